"""Layer normalisation in the cell: its parameters, its edges, its steps, and its pairs with every other option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import gradients, layer_inputs, masks, normal, redraw
from test_cell_options import by_hand
from worlds import BACKENDS, KERNELS, dtype_of, needs_library

from unrolled import LSTMLayer, MultiLayerLSTM, Stepper

F64 = torch.float64
OTHERS: list[dict[str, Any]] = [
    {"peephole": True},
    {"coupled": True},
    {"cell_clip": 0.5},
    {"gate_activation": "hard_sigmoid"},
    {"activation": "relu"},
    {"bias": False},
    {"peephole": True, "coupled": True, "cell_clip": 0.5},
]


def named(options: dict[str, Any]) -> str:
    return "+".join(options)


def test_parameters() -> None:
    layer = LSTMLayer(3, 4, layer_norm=True, peephole=True, forget_bias=1.0)
    names = list(dict(layer.named_parameters()))
    assert names[-9:] == ["p_f", "p_i", "p_o", "gain_f", "gain_i", "gain_o", "gain_g", "gain_c", "b_c"]
    assert all(getattr(layer, f"gain_{each}").tolist() == [1.0] * 4 for each in "ifgoc")
    assert layer.b_c.tolist() == [0.0] * 4
    assert layer.b_f.tolist() == [1.0] * 4
    fewer = dict(LSTMLayer(3, 4, layer_norm=True, bias=False, coupled=True).named_parameters())
    assert [name for name in fewer if not name.startswith("W_")] == ["gain_i", "gain_o", "gain_g", "gain_c"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_unit_is_its_own_mean(backend: str) -> None:
    """So x and h are not seen at all, and the gates are those of the shifts."""
    layer = redraw(LSTMLayer(3, 1, layer_norm=True, backend=backend, dtype=dtype_of(backend)))
    assert isinstance(layer, LSTMLayer)
    x = normal(2, 5, 3, seed=1).to(dtype_of(backend)).requires_grad_()
    trace = layer.trace(x)
    for name in "ifo":
        expected = torch.sigmoid(getattr(layer, f"b_{name}")).expand(2, 5, 1)
        torch.testing.assert_close(getattr(trace, name), expected)
    torch.testing.assert_close(trace.h, trace.o * torch.tanh(layer.b_c))
    of_x, of_gain, of_shift = torch.autograd.grad(trace.h.sum(), (x, layer.gain_c, layer.b_c))
    assert not of_x.any()
    assert not of_gain.any()
    assert of_shift.all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputed_it_is_the_same(backend: str) -> None:
    layer, given = LSTMLayer(5, 7, layer_norm=True, backend=backend, dtype=dtype_of(backend)), layer_inputs(backend)
    redraw(layer)
    leaves = {**given, **dict(layer.named_parameters())}
    results = []
    for layer.recompute in (False, True):
        h, c = layer(**given, **masks("both", 4, 9))
        results.append([h, c, *gradients({"h": h, "c": c}, leaves).values()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_library
@pytest.mark.parametrize("zoneout", [0.0, (0.2, 0.3)])
@pytest.mark.parametrize("hidden", [5, 40])
def test_strict_has_the_bits_of_single_rows_and_steps(hidden: int, zoneout: Any) -> None:
    """With zoneout as in evaluation, where it is expected."""
    model = redraw(MultiLayerLSTM(3, hidden, 2, layer_norm=True, zoneout=zoneout, strict=True)).eval()
    x = normal(6, 7, 3, seed=1).float()
    with torch.no_grad():
        whole, state = model(x)
        row, _ = model(x[2:3])
        first, between = model(x[:, :4])
        rest, last = model(x[:, 4:], between)
    assert torch.equal(row[0], whole[2])
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(last.c, state.c)
    for threads in (1, 3):
        stepper = Stepper(model, 6, threads=threads, strict=True)
        assert torch.equal(torch.as_tensor(stepper.steps(x)), whole)
        assert torch.equal(stepper.state.c, state.c)


@needs_library
@pytest.mark.parametrize("zoneout", [0.0, (0.2, 0.3)])
@pytest.mark.parametrize(("weights", "near"), [("bfloat16", 0.05), ("int8", 0.15)])
def test_a_stepper_with_smaller_weights(weights: Any, near: float, zoneout: Any) -> None:
    torch.manual_seed(1)
    model = MultiLayerLSTM(3, 33, 2, layer_norm=True, zoneout=zoneout).eval()
    x = normal(4, 9, 3, seed=1).float()
    with torch.no_grad():
        expected, _ = model(x)
    stepper = Stepper(model, 4, weights)
    single = torch.stack([torch.as_tensor(stepper.step(x[:, t])).clone() for t in range(9)], 1)
    stepper.reset()
    assert torch.equal(torch.as_tensor(stepper.steps(x)), single)
    assert (single - expected).abs().max() < near * expected.abs().max()


def test_total_gradients_beside_peepholes_are_those_of_autograd() -> None:
    """dL/dc_t of a cell whose gates see c, with a loss on a gate, too: from a loop that keeps every c."""
    layer = redraw(LSTMLayer(5, 7, layer_norm=True, peephole=True, backend="reference", dtype=F64))
    assert isinstance(layer, LSTMLayer)
    given = layer_inputs("reference")
    trace = layer.trace(**given)
    into_h, into_f = normal(4, 9, 7, seed=5), normal(4, 9, 7, seed=6)
    total = trace.gradients((trace.h * into_h).sum() + (trace.f * into_f).sum())
    h, c = (value[:, 3].detach().requires_grad_() for value in (trace.h, trace.c))
    rest = layer.trace(given["x"][:, 4:], h, c)
    loss = (rest.h * into_h[:, 4:]).sum() + (rest.f * into_f[:, 4:]).sum() + (h * into_h[:, 3]).sum()
    of_h, of_c = torch.autograd.grad(loss, [h, c])
    torch.testing.assert_close(total.h[:, 3], of_h)
    # What c_3 reaches through h_3: by o, and by c on its way to h.
    c = c.detach().requires_grad_()
    o = trace.o[:, 3].detach()
    through_o = torch.logit(o) + layer.p_o.detach() * (c - c.detach())
    seen = torch.nn.functional.layer_norm(c, (7,), layer.gain_c, layer.b_c)
    (of_now,) = torch.autograd.grad(torch.sigmoid(through_o) * torch.tanh(seen), c, of_h)
    torch.testing.assert_close(total.c[:, 3], of_c + of_now)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "both"])
@pytest.mark.parametrize("options", OTHERS, ids=named)
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_every_other_option(backend: str, options: dict[str, Any], kind: str) -> None:
    layer = redraw(LSTMLayer(5, 7, layer_norm=True, backend=backend, dtype=dtype_of(backend), **options))
    exact = redraw(LSTMLayer(5, 7, layer_norm=True, dtype=F64, **options))
    assert isinstance(layer, LSTMLayer)
    assert isinstance(exact, LSTMLayer)
    given = layer_inputs(backend)
    found = layer(**given, **masks(kind, 4, 9))
    doubles = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    expected = by_hand(exact, *doubles.values(), **masks(kind, 4, 9))
    near = 1e-11 if dtype_of(backend) == F64 else 1e-4
    leaves = ({**given, **dict(layer.named_parameters())}, {**doubles, **dict(exact.named_parameters())})
    grads = [gradients({"h": out[0], "c": out[1]}, each) for out, each in zip((found, expected), leaves, strict=True)]
    for ours, theirs in zip((*found, *grads[0].values()), (*expected, *grads[1].values()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=near, atol=near)


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure", [{"bidirectional": True}, {"proj_dim": 3}, {"bidirectional": True, "proj_dim": 3}]
)
@pytest.mark.parametrize("backend", KERNELS)
def test_with_other_structures(backend: str, structure: dict[str, Any]) -> None:
    results = []
    for name, dtype in ((backend, dtype_of(backend)), ("reference", F64)):
        model = redraw(MultiLayerLSTM(5, 7, 2, layer_norm=True, backend=name, dtype=dtype, **structure))
        out, state = model(normal(4, 9, 5, seed=1).to(dtype), **masks("both", 4, 9))
        grads = torch.autograd.grad(out.square().sum() + state.c.sum(), list(model.parameters()))
        results.append([out, *state, *grads])
    near = 1e-10 if dtype_of(backend) == F64 else 1e-4
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=near, atol=near)
