import math

import pytest
import torch
from steppers import BACKENDS, NATIVE, inputs, made, use, whole

from unrolled import Calibration, LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, Stepper, calibration
from unrolled.calibration import calibrate
from unrolled.parts import take_apart

native_only = pytest.mark.skipif(not NATIVE, reason="there is no native library here")


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request, monkeypatch):
    use(request.param, monkeypatch)


def exact_bits(model, ids):
    logits = whole(model, ids)[0]
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())) / math.log(2)


@pytest.mark.parametrize("name", ["language model", "language model without embedding", "stack"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_bits_are_those_of_the_next_token(name, chunk, seed, monkeypatch):
    monkeypatch.setattr(calibration, "_CHUNK", chunk * 3 * 132)
    model = made(name)
    vocabulary = 5 if name == "stack" else 11
    ids = torch.randint(vocabulary, (3, 40))
    found = Stepper(model, 1).compare(ids)
    assert found.steps == 120
    assert found.bits == pytest.approx(exact_bits(model, ids), abs=1e-5)
    assert found.bits_float32 == pytest.approx(exact_bits(model, ids), abs=1e-5)
    assert found.bits_lost == found.bits - found.bits_float32
    assert found.largest_difference < 1e-4


def test_one_text_is_one_row_and_any_integers_are_ids(seed):
    model = made("language model")
    ids = inputs(model, 1, 30)
    stepper = Stepper(model, 2)
    assert stepper.compare(ids[0]) == stepper.compare(ids) == stepper.compare(ids[0].to(torch.uint8))


def test_the_state_of_the_stepper_stays(seed):
    model = made("language model")
    stepper = Stepper(model, 3)
    stepper.step(torch.tensor([1, 2, 3]))
    before = stepper.state
    stepper.compare(inputs(model, 2, 9))
    assert torch.equal(stepper.state.h, before.h)


@pytest.mark.parametrize("name", ["stack", "stack of another output", "stack without projection", "layer", "nn.LSTM"])
def test_frames_have_no_bits(name, seed):
    model = made(name)
    found = Stepper(model, 1).compare(inputs(model, 2, 7))
    assert (found.bits, found.bits_float32, found.bits_lost) == (None, None, None)
    assert found.largest_difference < 1e-4
    assert str(found).splitlines()[0] == "float32 beside float32, 14 steps"


def test_outputs_that_are_no_logits_over_the_ids_have_none():
    found = Stepper(MultiLayerLSTM(5, 8, output_dim=3), 1).compare(torch.tensor([1, 2, 3]))
    assert found.bits is None


@pytest.mark.parametrize("steps", [0, 1])
def test_nothing_is_predicted_in_less_than_two_steps(steps):
    found = Stepper(LanguageModel(ModelConfig(5, 4)), 1).compare(torch.zeros(2, steps, dtype=torch.long))
    assert (found.steps, found.bits) == (2 * steps, None)
    assert Stepper(LSTMLayer(2, 3), 1).compare(torch.zeros(0, 4, 2)).largest_difference == 0


def test_a_difference_is_found_and_a_nan_is_not_hidden(seed):
    model = made("stack").eval()
    x = torch.randn(2, 12, 5)
    exact = model(x)[0].detach()
    off = torch.tensor([0.0, 0.0, 0.5, -2.0, *[0.25] * 8])[:, None]
    found = calibrate("int8", lambda _: exact + off, take_apart(model), x)
    assert found.largest_difference == pytest.approx(2, abs=1e-5)
    off[1] = torch.nan
    found = calibrate("int8", lambda _: exact + off, take_apart(model), x)
    assert math.isnan(found.largest_difference)


@native_only
def test_smaller_weights_lose_little_and_less_with_more_bits(seed, monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(40, 64, 2))
    ids = torch.randint(40, (4, 200))
    low, lower = (Stepper(model, 1, kind).compare(ids) for kind in ("bfloat16", "int8"))
    assert 0 < low.largest_difference < lower.largest_difference < 0.1
    assert abs(low.bits_lost) < 0.01
    assert abs(lower.bits_lost) < 0.01


def test_a_report_reads_as_a_report():
    report = Calibration("int8", 12345, 0.0123, 1.5012, 1.5)
    assert str(report) == (
        "int8 beside float32, 12,345 steps\n"
        "  largest difference of an output  0.0123\n"
        "  bits per token                   1.5012, float32 1.5000, lost +0.0012"
    )
    assert str(Calibration("bfloat16", 1, 0.0, 1.49999, 1.5)).endswith("lost +0.0000")


LANGUAGE, STACK = LanguageModel(ModelConfig(11, 7, 2)), MultiLayerLSTM(5, 7)


@pytest.mark.parametrize(
    ("model", "x", "error", "message"),
    [
        (
            LANGUAGE,
            [1, 2],
            TypeError,
            "x is a list of 2, expected a tensor, ids [time] or [batch, time]: torch.as_tensor(x)",
        ),
        (LANGUAGE, torch.zeros(4), TypeError, "x is float32, expected ids [time] or [batch, time]: x.long()"),
        (
            LANGUAGE,
            torch.zeros(1, 2, 3, dtype=torch.long),
            ValueError,
            "x is int64 [1, 2, 3], expected ids [time] or [batch, time]",
        ),
        (
            STACK,
            torch.zeros(4, 5),
            ValueError,
            "x is [4, 5], expected ids [time] or [batch, time], or frames [batch, time, 5]: one sequence alone is "
            "x[None]",
        ),
        (STACK, torch.zeros(4, 2, 5).double(), TypeError, "x is float64, but the weights are float32: x.float()"),
        (
            STACK,
            torch.zeros(4, 2, 6),
            ValueError,
            "x is [4, 2, 6], expected ids [time] or [batch, time], or frames [batch, time, 5]",
        ),
        (
            STACK,
            torch.zeros(4, 2, 5, device="meta"),
            ValueError,
            "x is on meta, but a stepper runs on the CPU: x.cpu()",
        ),
        (
            STACK,
            torch.tensor([1, 5]),
            IndexError,
            "ids must be from 0 to 4, got 5: an id is a row of a one-hot input of width 5",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(model, x, error, message):
    with pytest.raises(error) as caught:
        Stepper(model, 1).compare(x)
    assert str(caught.value) == message
