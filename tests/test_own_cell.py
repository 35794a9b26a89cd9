"""Cells of one's own: the library's equations as a step give the library's numbers, with resets, lengths and traces;
states of other widths; what is refused; how such models train, and who does not take them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import F64, assert_all_same, gradients, masks, normal, redraw
from small_runs import run as train
from small_runs import small, sums
from torch import Tensor, nn

from unrolled import LSTMLayer, LSTMState, MultiLayerLSTM, Stepper, export_onnx, load, to_torch
from unrolled.checkpoint import CheckpointError, load_weights
from unrolled.corpus import read_corpus
from unrolled.own_cell import OwnTrace

State = tuple[Tensor, Tensor]


class Plain(nn.Module):
    """The LSTM itself, by the names of `LSTMLayer`."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        layer = LSTMLayer(input_dim, hidden_dim)
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        (h, c), p = state, dict(self.named_parameters())
        i, f, g, o = (x @ p[f"W_x{n}"] + h @ p[f"W_h{n}"] + p[f"b_{n}"] for n in "ifgo")
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Gru(nn.Module):
    """A state of h alone, and an output that is not h."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.cell, self.state_size = nn.GRUCell(input_dim, hidden_dim + 2), (hidden_dim + 2, 0)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h = self.cell(x, state[0])
        return 2 * h[:, 2:], (h, state[1])


def average(x: Tensor, state: State) -> tuple[Tensor, State]:
    """No parameters: h is a running average, c the sum."""
    h, c = 0.5 * state[0] + 0.5 * x, state[1] + x
    return h, (h, c)


def twins(**options: Any) -> tuple[LSTMLayer, LSTMLayer]:
    """The same layer, with a cell of its own and without."""
    own = LSTMLayer(5, 7, cell=Plain(5, 7), dtype=F64, **options)
    plain = LSTMLayer(5, 7, backend="reference", dtype=F64, **options)
    redraw(own)
    plain.load_state_dict({name.removeprefix("cell."): value for name, value in own.state_dict().items()})
    return own, plain


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "zeros"])
@pytest.mark.parametrize("kind", ["none", "resets", "lengths", "both"])
def test_the_library_s_equations_give_its_numbers(kind: str, learned: bool) -> None:
    own, plain = twins(learn_initial_state=learned)
    where, x = masks(kind, 4, 9), normal(4, 9, 5, seed=1).requires_grad_()
    states = [(), (normal(4, 7, seed=2).requires_grad_(), normal(4, 7, seed=3).requires_grad_())]
    for state in states:
        found = []
        for layer in (own, plain):
            h, c = layer(x, *state, **where)
            trace = layer.trace(x, *state, **where)
            total = trace.gradients(
                (trace.h * normal(4, 9, 7, seed=5)).sum() + (trace.c * normal(4, 9, 7, seed=6)).sum()
            )
            leaves = {"x": x, **{name.removeprefix("cell."): value for name, value in layer.named_parameters()}}
            leaves |= dict(zip("hc", state, strict=False))
            grads = gradients({"h": h, "c": c}, leaves)
            both = {"h": h, "c": c, "traced h": trace.h, "traced c": trace.c, "dh": total.h, "dc": total.c}
            found.append(
                {
                    **both,
                    "last h": trace.state[0],
                    "last c": trace.state[1],
                    **{f"grad {n}": g for n, g in grads.items()},
                }
            )
        assert_all_same(*found)


def test_behind_a_row_s_end_nothing_is_read() -> None:
    own, _ = twins()
    where, x = masks("lengths", 4, 9), normal(4, 9, 5, seed=1)
    ended = torch.arange(9) >= where["lengths"][:, None]
    h0 = normal(4, 7, seed=2)
    h0[1] = float("nan")
    h, c = own(torch.where(ended[:, :, None], float("nan"), x), h0, h0, **where)
    assert torch.isfinite(h).all()
    assert not h[ended].any()
    assert not c[ended].any()
    (h.sum() + c.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in own.parameters() if parameter.grad is not None)


def test_ids_are_one_hot_rows() -> None:
    own, _ = twins()
    ids = torch.randint(5, (4, 9))
    torch.testing.assert_close(own(ids)[0], own(nn.functional.one_hot(ids, 5).double())[0])
    with pytest.raises(IndexError, match="ids must be from 0 to 4, got 5"):
        own(ids + 5 - ids)


def test_a_state_of_other_widths() -> None:
    layer = LSTMLayer(5, 7, cell=Gru(5, 7), dtype=F64, learn_initial_state=True)
    assert [list(value.shape) for value in layer.initial_state(3)] == [[3, 9], [3, 0]]
    assert [name for name, _ in layer.named_parameters()][:2] == ["h_init", "c_init"]
    x = normal(3, 6, 5, seed=1)
    trace = layer.trace(x)
    assert isinstance(trace, OwnTrace)
    assert repr(trace) == "OwnTrace(output: [3, 6, 7], h: [3, 6, 9], c: [3, 6, 0] torch.float64)"
    assert isinstance(layer.cell, Gru)
    h = torch.zeros(3, 9, dtype=F64)
    for t in range(6):
        h = layer.cell.cell(x[:, t], h)
        torch.testing.assert_close(trace.h[:, t], h)
        torch.testing.assert_close(trace.output[:, t], 2 * h[:, 2:])
    assert torch.equal(layer(x)[0], trace.output)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_in_a_stack(bidirectional: bool) -> None:
    options: dict[str, Any] = {"bidirectional": bidirectional, "residual": True, "dtype": F64}
    options["learn_initial_state"] = True
    own = MultiLayerLSTM(5, 7, 2, cell=Plain, **options)
    plain = MultiLayerLSTM(5, 7, 2, **options)
    redraw(own)
    plain.load_state_dict({name.replace(".cell.", "."): value for name, value in own.state_dict().items()})
    x, where = normal(4, 9, 5, seed=1), masks("both", 4, 9)
    state = LSTMState(*(normal(4 if bidirectional else 2, 4, 7, seed=k) for k in (2, 3)))
    for given in (None, state):
        (ours, after), (theirs, behind) = own(x, given, **where), plain(x, given, **where)
        assert_all_same({"y": ours, "h": after.h, "c": after.c}, {"y": theirs, "h": behind.h, "c": behind.c})
        traces = [model.trace(x, given, **where) for model in (own, plain)]
        loss = [trace.output.square().sum() for trace in traces]
        for a, b in zip(*(trace.gradients(each) for trace, each in zip(traces, loss, strict=True)), strict=True):
            assert_all_same({"h": a.h, "c": a.c}, {"h": b.h, "c": b.c})
    assert isinstance(own.zero_state(3), LSTMState)
    gru = MultiLayerLSTM(5, 7, 2, cell=Gru)
    assert [list(part.shape) for part in gru.zero_state(3)] == [[2, 3, 9], [2, 3, 0]]
    out, carried = gru(torch.randn(3, 4, 5))
    again, _ = gru(torch.randn(3, 4, 5), carried)
    assert out.shape == again.shape == (3, 4, 5)


def test_a_function_without_parameters() -> None:
    layer = LSTMLayer(3, 3, cell=average)
    h, c = layer(torch.ones(2, 4, 3))
    assert h[0, :, 0].tolist() == [0.5, 0.75, 0.875, 0.9375]
    assert c[1, :, 2].tolist() == [1, 2, 3, 4]
    assert layer.double()(torch.ones(2, 4, 3, dtype=F64))[0].dtype == F64
    assert layer(torch.ones(2, 0, 3, dtype=F64))[0].shape == (2, 0, 3)
    assert not list(layer.state_dict())
    assert repr(layer) == "LSTMLayer(3, 3, cell=average)"
    layer.reset_parameters()


def test_recompute_draws_the_same_random_numbers() -> None:
    def noisy(x: Tensor, state: State) -> tuple[Tensor, State]:
        h = nn.functional.dropout(state[0] + x, 0.5)
        return h, (h, state[1])

    found = []
    for recompute in (False, True):
        layer, x = LSTMLayer(3, 3, cell=noisy, recompute=recompute), torch.ones(2, 5, 3, requires_grad=True)
        torch.manual_seed(1)
        layer(x)[0].square().sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert torch.equal(*found)


def test_its_module_moves_and_is_drawn_anew() -> None:
    layer = LSTMLayer(5, 7, cell=Plain(5, 7), dtype=F64)
    assert {parameter.dtype for parameter in layer.parameters()} == {F64}
    layer.reset_parameters()
    assert not any(parameter.any() for parameter in layer.parameters())
    assert LSTMLayer(5, 7, cell=Plain(5, 7).double())(normal(1, 2, 5, seed=1))[0].dtype == F64
    with pytest.raises(TypeError) as error:
        LSTMLayer(5, 7, cell=Gru(5, 7)).reset_parameters()
    assert str(error.value) == "the cell Gru has parameters and no reset_parameters() that draws them anew"


def test_a_run_of_such_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained by the trainer, interrupted and gone on with, its weights saved and its code not."""
    config = small(tmp_path, monkeypatch)
    size = read_corpus(config.files, tokens="char", split=config.split).tokenizer.size

    def model() -> MultiLayerLSTM:
        torch.manual_seed(3)
        return MultiLayerLSTM(size, 6, 2, 0.1, cell=Gru, learn_initial_state=True)

    config = replace(config, steps=6, eval_every=3, save_every=3)
    train(replace(config, out=str(tmp_path / "whole")), model=model())
    train(config, stop_at=3, model=model())
    train(config, model=model())
    found = [sums(tmp_path / out / "step-00000006") for out in ("whole", "run")]
    assert found[0] == found[1]
    weights, _ = load_weights(tmp_path / "run")
    model().load_state_dict(weights)
    with pytest.raises(CheckpointError, match=r"holds the weights of unrolled\.stack\.MultiLayerLSTM"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("returned", "error", "sentence"),
    [
        (
            lambda x, s: x,
            TypeError,
            "the cell returned a tensor [2, 3], expected (output, (h, c)): what it gives, and the state behind the "
            "step",
        ),
        (
            lambda x, s: (x, x),
            TypeError,
            "the cell returned (a tensor [2, 3], a tensor [2, 3]), expected (output, (h, c)): what it gives, and the "
            "state behind the step",
        ),
        (lambda x, s: (x, (x, None)), TypeError, "the cell returned None as c, expected a tensor [2, 3]"),
        (
            lambda x, s: (x[:, :2], s),
            ValueError,
            "the cell returned output [2, 2], expected [batch, width] = [2, 3]: hidden_dim",
        ),
        (
            lambda x, s: (x, (x, x[:1])),
            ValueError,
            "the cell returned c [1, 3], expected [batch, width] = [2, 3]: its width before the step, which "
            "cell.state_size says",
        ),
    ],
)
def test_what_a_step_may_return(returned: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as raised:
        LSTMLayer(3, 3, cell=returned)(torch.ones(2, 4, 3))
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peephole": True}, "peephole=True"),
        ({"cell_clip": 2.0, "proj_dim": 2}, "cell_clip=2.0, proj_dim=2"),
        ({"strict": True}, "strict=True"),
        ({"backend": "cpu"}, "backend='cpu'"),
    ],
)
def test_options_that_it_knows_nothing_of(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        LSTMLayer(3, 3, cell=average, **options)
    assert str(error.value) == (
        f"cell=average has its own equations, in a plain loop, and takes no {said}: leave that out, or compute it in "
        "the cell"
    )
    layer = LSTMLayer(3, 3, cell=average)
    layer.strict = True
    with pytest.raises(ValueError, match="takes no strict=True"):
        layer(torch.ones(2, 4, 3))


def test_what_is_no_cell() -> None:
    expected = "expected a function or module that is called as cell(x_t, (h, c)) and returns (output, (h, c))"
    for cell, said in ((3, "an int"), (Plain, "the class Plain")):
        with pytest.raises(TypeError) as error:
            LSTMLayer(3, 3, cell=cell)
        assert str(error.value) == f"cell is {said}, {expected}"
    odd = Gru(3, 3)
    odd.state_size = (3,)
    with pytest.raises(ValueError) as error:
        LSTMLayer(3, 3, cell=odd)
    assert str(error.value) == "cell.state_size is (3,), expected the widths of h and c: (3, 3)"
    with pytest.raises(TypeError) as error:
        MultiLayerLSTM(3, 3, cell=Gru(3, 3))
    assert str(error.value) == (
        "cell is the module Gru, which all layers would share, expected what makes one for each of them: the class "
        "Gru, or a function of (input_dim, hidden_dim)"
    )
    with pytest.raises(TypeError, match=r"cell is an int, expected a function of \(input_dim, hidden_dim\)"):
        MultiLayerLSTM(3, 3, cell=3)


def test_nobody_has_a_hand_in_it() -> None:
    model = MultiLayerLSTM(3, 3, cell=Gru)
    with pytest.raises(ValueError) as error:
        model.trace(torch.ones(2, 4, 3), edit=lambda values, place: None)
    assert str(error.value) == "cell=Gru makes its values where no edit sees them: change them in the cell"


def test_who_computes_the_library_s_cells_alone(tmp_path: Path) -> None:
    model = MultiLayerLSTM(3, 3, cell=Gru)
    file = tmp_path / "m.onnx"
    calls = (lambda: Stepper(model, 1), lambda: Stepper(model.layers[0], 1), lambda: export_onnx(model, file))
    for call in calls:
        with pytest.raises(TypeError, match=r"a layer has a cell of its own, Gru, and (a stepper|an exported model) "):
            call()
    with pytest.raises(ValueError) as error:
        to_torch(model)
    assert str(error.value) == "the layer has cell=Gru, which an nn.LSTM has no place for: build the model without"
