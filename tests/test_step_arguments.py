import numpy as np
import pytest
import torch
from steppers import BACKENDS, use

from unrolled import LanguageModel, LSTMLayer, LSTMState, ModelConfig, MultiLayerLSTM, Stepper


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request, monkeypatch):
    use(request.param, monkeypatch)


LANGUAGE = LanguageModel(ModelConfig(11, 7, 2, embedding=5))
STACK = MultiLayerLSTM(5, 7, 2, output_dim=3)
FRAME, IDS = torch.zeros(4, 5), torch.zeros(4, dtype=torch.long)

STEPS = {
    "a list": (
        STACK,
        [[0.0] * 5],
        TypeError,
        "x is a list of 1, expected a tensor [4, 5] or ids [4]: torch.as_tensor(x)",
    ),
    "an array": (
        STACK,
        np.zeros((4, 5)),
        TypeError,
        "x is an ndarray, expected a tensor [4, 5] or ids [4]: torch.as_tensor(x)",
    ),
    "an int": (LANGUAGE, 3, TypeError, "x is an int, expected a tensor ids [4]: torch.as_tensor(x)"),
    "a sparse tensor": (
        STACK,
        FRAME.to_sparse(),
        TypeError,
        "x is sparse_coo, expected a dense tensor [4, 5] or ids [4]: x.to_dense()",
    ),
    "float64": (STACK, FRAME.double(), TypeError, "x is float64, but the weights are float32: x.float()"),
    "bfloat16": (STACK, FRAME.bfloat16(), TypeError, "x is bfloat16, but the weights are float32: x.float()"),
    "one row alone": (
        STACK,
        FRAME[0],
        ValueError,
        "x is [5], expected [batch, input] = [4, 5]: one row alone is x[None]",
    ),
    "a time axis": (
        STACK,
        FRAME[:, None],
        ValueError,
        "x is [4, 1, 5], expected [batch, input] = [4, 5]: a step has no time axis: x[:, 0]",
    ),
    "a sequence": (
        STACK,
        torch.zeros(4, 9, 5),
        ValueError,
        "x is [4, 9, 5], expected [batch, input] = [4, 5]: a step takes one time step: stepper.steps(x) takes them all",
    ),
    "other rows": (
        STACK,
        torch.zeros(3, 5),
        ValueError,
        "x is [3, 5], expected [batch, input] = [4, 5]: it has 3 rows and the stepper 4; Stepper(model, 3) has as many",
    ),
    "another width": (STACK, torch.zeros(4, 6), ValueError, "x is [4, 6], expected [batch, input] = [4, 5]"),
    "another device": (
        STACK,
        FRAME.to("meta"),
        ValueError,
        "x is on meta, but a stepper runs on the CPU: x.cpu()",
    ),
    "integer frames": (
        STACK,
        FRAME.long(),
        TypeError,
        "x is int64 [4, 5]; frames must be floats: x.float(); ids are [batch] = [4]",
    ),
    "floats for ids": (
        LANGUAGE,
        IDS.float(),
        TypeError,
        "a language model reads token ids, int32, int64 or uint8 [4], and got float32 [4]: x.long(); frames of floats "
        "go into Stepper(model.lstm, ...)",
    ),
    "bools": (LANGUAGE, IDS.bool(), TypeError, "x is bool; ids must be int32, int64 or uint8: x.long()"),
    "ids with a time axis": (
        LANGUAGE,
        IDS[:, None],
        ValueError,
        "x is int64 [4, 1], expected ids [batch] = [4]: a step has no time axis: x[:, 0]",
    ),
    "a sequence of ids": (
        LANGUAGE,
        torch.zeros(4, 9, dtype=torch.long),
        ValueError,
        "x is int64 [4, 9], expected ids [batch] = [4]: a step takes one time step: stepper.steps(x) takes them all",
    ),
    "one id": (LANGUAGE, IDS[0], ValueError, "x is one id without an axis, expected ids [batch] = [4]: x[None]"),
    "other rows of ids": (
        LANGUAGE,
        IDS[:2],
        ValueError,
        "x is [2], expected ids [batch] = [4]: it has 2 rows and the stepper 4; Stepper(model, 2) has as many",
    ),
    "ids of three axes": (
        LANGUAGE,
        torch.zeros(2, 2, 2, dtype=torch.long),
        ValueError,
        "x is int64 [2, 2, 2], expected ids [batch] = [4]",
    ),
    "ids elsewhere": (LANGUAGE, IDS.to("meta"), ValueError, "x is on meta, but a stepper runs on the CPU: x.cpu()"),
    "an id above": (
        LANGUAGE,
        torch.tensor([0, 11, 3, 4]),
        IndexError,
        "ids must be from 0 to 10, got 11: this model's vocabulary has 11 tokens; encode with the tokenizer that it "
        "was trained with",
    ),
    "an id below": (
        STACK,
        torch.tensor([0, 1, -1, 7], dtype=torch.int32),
        IndexError,
        "ids must be from 0 to 4, got -1: an id is a row of a one-hot input of width 5",
    ),
}


@pytest.mark.parametrize("mistake", STEPS)
def test_a_wrong_input_is_refused_and_the_state_stays(mistake):
    model, x, error, message = STEPS[mistake]
    stepper = Stepper(model, 4)
    stepper.step(IDS)
    before = stepper.state
    with pytest.raises(error) as caught:
        stepper.step(x)
    assert str(caught.value) == message
    assert torch.equal(stepper.state.h, before.h)
    assert torch.equal(stepper.state.c, before.c)
    stepper.step(IDS)


SEQUENCES = {
    "a list": (
        STACK,
        [],
        TypeError,
        "x is a list of 0, expected a tensor [4, time, 5] or ids [4, time]: torch.as_tensor(x)",
    ),
    "float64": (STACK, FRAME[:, None].double(), TypeError, "x is float64, but the weights are float32: x.float()"),
    "one sequence alone": (
        STACK,
        torch.zeros(9, 5),
        ValueError,
        "x is [9, 5], expected [batch, time, input] = [4, time, 5]: one sequence alone is x[None], one step "
        "stepper.step(x)",
    ),
    "other rows": (
        STACK,
        torch.zeros(3, 9, 5),
        ValueError,
        "x is [3, 9, 5], expected [batch, time, input] = [4, time, 5]: it has 3 rows and the stepper 4; "
        "Stepper(model, 3) has as many",
    ),
    "another width": (
        STACK,
        torch.zeros(4, 9, 6),
        ValueError,
        "x is [4, 9, 6], expected [batch, time, input] = [4, time, 5]",
    ),
    "another device": (
        STACK,
        FRAME[:, None].to("meta"),
        ValueError,
        "x is on meta, but a stepper runs on the CPU: x.cpu()",
    ),
    "integer frames": (
        STACK,
        FRAME[:, None].long(),
        TypeError,
        "x is int64 [4, 1, 5]; frames must be floats: x.float(); ids are [batch, time] = [4, time]",
    ),
    "floats for ids": (
        LANGUAGE,
        IDS[:, None].float(),
        TypeError,
        "a language model reads token ids, int32, int64 or uint8 [4, time], and got float32 [4, 1]: x.long(); frames "
        "of floats go into Stepper(model.lstm, ...)",
    ),
    "bools": (LANGUAGE, IDS[:, None].bool(), TypeError, "x is bool; ids must be int32, int64 or uint8: x.long()"),
    "ids without time": (
        LANGUAGE,
        IDS,
        ValueError,
        "x is int64 [4], expected ids [batch, time] = [4, time]: one sequence alone is x[None], one step "
        "stepper.step(x)",
    ),
    "other rows of ids": (
        LANGUAGE,
        torch.zeros(2, 9, dtype=torch.long),
        ValueError,
        "x is [2, 9], expected ids [batch, time] = [4, time]: it has 2 rows and the stepper 4; Stepper(model, 2) has "
        "as many",
    ),
    "ids of three axes": (
        LANGUAGE,
        torch.zeros(4, 2, 2, dtype=torch.long),
        ValueError,
        "x is int64 [4, 2, 2], expected ids [batch, time] = [4, time]",
    ),
    "an id in the last step": (
        LANGUAGE,
        torch.tensor([[0, 1]] * 3 + [[0, 11]]),
        IndexError,
        "ids must be from 0 to 10, got 11: this model's vocabulary has 11 tokens; encode with the tokenizer that it "
        "was trained with",
    ),
}


@pytest.mark.parametrize("mistake", SEQUENCES)
def test_wrong_sequences_are_refused_and_the_state_stays(mistake):
    model, x, error, message = SEQUENCES[mistake]
    stepper = Stepper(model, 4)
    stepper.step(IDS)
    before = stepper.state
    with pytest.raises(error) as caught:
        stepper.steps(x)
    assert str(caught.value) == message
    assert torch.equal(stepper.state.h, before.h)
    assert torch.equal(stepper.state.c, before.c)


OUTS = {
    "a list": ([], TypeError, "out is a list of 0, expected a tensor [4, 3]: torch.empty(4, 3)"),
    "float64": (torch.zeros(4, 3).double(), TypeError, "out is float64, expected float32: torch.empty(4, 3)"),
    "another shape": (
        torch.zeros(4, 5),
        ValueError,
        "out is [4, 5], expected [batch, output] = [4, 3]: torch.empty(4, 3)",
    ),
    "strided": (
        torch.zeros(3, 4).t(),
        ValueError,
        "out is not contiguous (its strides are [1, 4]): torch.empty(4, 3)",
    ),
    "elsewhere": (
        torch.zeros(4, 3, device="meta"),
        ValueError,
        "out is on meta, but a stepper runs on the CPU: out.cpu()",
    ),
}


@pytest.mark.parametrize("mistake", OUTS)
def test_a_wrong_out_is_refused_and_the_state_stays(mistake):
    out, error, message = OUTS[mistake]
    stepper = Stepper(STACK, 4)
    with pytest.raises(error) as caught:
        stepper.step(FRAME, out)
    assert str(caught.value) == message
    assert not stepper.state.h.any()


def test_an_out_of_one_step_is_refused_for_several():
    with pytest.raises(ValueError) as caught:
        Stepper(STACK, 4).steps(FRAME[:, None], torch.zeros(4, 3))
    assert str(caught.value) == "out is [4, 3], expected [batch, time, output] = [4, 1, 3]: torch.empty(4, 1, 3)"


def test_an_out_whose_minus_sign_is_not_yet_taken_is_refused():
    out = torch.complex(torch.zeros(1, 1), torch.ones(1, 1)).conj().imag
    with pytest.raises(ValueError, match="out is not contiguous"):
        Stepper(LSTMLayer(2, 1), 1).step(torch.zeros(1, 2), out)


def state(layers, rows, hidden):
    return LSTMState.zeros(layers, rows, hidden)


STATES = {
    "a tensor": (
        torch.zeros(2, 2, 4, 7),
        TypeError,
        "state is a tensor [2, 2, 4, 7], expected LSTMState(h, c) or a pair (h, c)",
    ),
    "None": (None, TypeError, "state is None, expected LSTMState(h, c) or a pair (h, c)"),
    "half of it": ((torch.zeros(2, 4, 7), 0), TypeError, "state.c is an int, expected a tensor [2, 4, 7]"),
    "layers": (
        state(3, 4, 7),
        ValueError,
        "state.h is [3, 4, 7], expected [layers, batch, hidden] = [2, 4, 7]",
    ),
    "batch first": (
        (torch.zeros(4, 2, 7), torch.zeros(4, 2, 7)),
        ValueError,
        "state.h is [4, 2, 7], expected [layers, batch, hidden] = [2, 4, 7]; is it batch-first? "
        "state.h.transpose(0, 1) puts the layers first",
    ),
    "other rows": (
        state(2, 3, 7),
        ValueError,
        "state.h is [2, 3, 7], expected [layers, batch, hidden] = [2, 4, 7]: stepper.set_rows(index, state) sets some "
        "of the rows",
    ),
    "float64": (
        state(2, 4, 7).to(torch.float64),
        TypeError,
        "state.h is float64, but a stepper's state is float32: state.h.float()",
    ),
    "elsewhere": (
        state(2, 4, 7).to("meta"),
        ValueError,
        "state.h is on meta, but a stepper runs on the CPU: state.h.cpu()",
    ),
}


@pytest.mark.parametrize("mistake", STATES)
def test_a_wrong_state_is_refused(mistake):
    wrong, error, message = STATES[mistake]
    stepper = Stepper(STACK, 4)
    with pytest.raises(error) as caught:
        stepper.state = wrong
    assert str(caught.value) == message


ROWS = {
    "too far": (4, state(2, 1, 7), IndexError, "rows [4] do not all exist: the stepper has 4 rows, counted from 0"),
    "one too far": (
        [0, -5],
        state(2, 2, 7),
        IndexError,
        "rows [0, -5] do not all exist: the stepper has 4 rows, counted from 0",
    ),
    "twice": ([1, -3], state(2, 2, 7), ValueError, "rows [1, 1] name a row twice; each can be set once"),
    "one state for many": (
        [0, 1],
        state(2, 1, 7),
        ValueError,
        "state.h is [2, 1, 7], expected [layers, batch, hidden] = [2, 2, 7]: one state for all of them is "
        "state.rows([0] * 2)",
    ),
    "two states for one": (
        1,
        state(2, 2, 7),
        ValueError,
        "state.h is [2, 2, 7], expected [layers, batch, hidden] = [2, 1, 7]",
    ),
}


@pytest.mark.parametrize("mistake", ROWS)
def test_wrong_rows_are_refused(mistake):
    index, given, error, message = ROWS[mistake]
    stepper = Stepper(STACK, 4)
    with pytest.raises(error) as caught:
        stepper.set_rows(index, given)
    assert str(caught.value) == message


def test_a_layers_state_is_told_to_take_an_axis():
    with pytest.raises(ValueError, match=r"state.h is \[4, 3\], .* = \[1, 4, 3\]: state.h\[None\] adds the layer axis"):
        Stepper(LSTMLayer(2, 3), 4).state = (torch.zeros(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": -1}, ValueError, "batch_size=-1 must be at least 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size is a float, expected an integer of at least 0"),
        ({"batch_size": True}, TypeError, "batch_size is a bool, expected an integer of at least 0"),
        ({"threads": 0}, ValueError, "threads=0 must be at least 1"),
        ({"threads": "2"}, TypeError, "threads is a str, expected an integer of at least 1"),
        ({"weights": "int4"}, ValueError, "weights='int4' is not one of float32, bfloat16, int8"),
        ({"weights": torch.int8}, ValueError, "weights=torch.int8 is not one of float32, bfloat16, int8"),
    ],
)
def test_wrong_settings_are_refused(arguments, error, message):
    with pytest.raises(error) as caught:
        Stepper(STACK, **{"batch_size": 1, **arguments})
    assert str(caught.value) == message
