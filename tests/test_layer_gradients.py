"""Total gradients inside the layers, against plain loops in which every h_t, c_t and pre-activation keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import (
    F64,
    GATES,
    assert_same,
    layer_inputs,
    masks,
    new_layer,
    normal,
    redraw,
    run_layer,
    run_stack,
)
from torch import Tensor
from worlds import BACKENDS, dtype_of

from unrolled.layer import LSTMLayer
from unrolled.layer_trace import LayerGradients, LayerTrace
from unrolled.stack import MultiLayerLSTM

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

MASKS = ("none", "resets", "lengths", "both")
# A loss from the output, and from a function (layer, field name) -> [batch, time, hidden].
Fields = Callable[[int, str], Tensor]
STACK_LOSSES: dict[str, Callable[[Tensor, Fields], Tensor]] = {
    "output": lambda output, field: (output * normal(*output.shape, seed=40)).sum(),
    "top c": lambda output, field: field(-1, "c").square().sum(),
    "bottom c and top h": lambda output, field: field(0, "c").sin().sum() + (field(-1, "h")[:, -1] ** 3).sum(),
    "a bottom gate": lambda output, field: (field(0, "f") * normal(4, 6, 5, seed=41)).sum(),
    "one step of everything": lambda output, field: sum(
        (field(k, name)[:, 3] * normal(4, 5, seed=50 + k)).sum() for k in (0, 1) for name in ("h", "c", *GATES)
    ),
}


@pytest.mark.parametrize("names", ["none", "both"])
@pytest.mark.parametrize("field", ["h", "c", "o"])
def test_totals_of_a_projected_layer_equal_retained_gradients(backend: str, field: str, names: str) -> None:
    if backend == "cpu":
        pytest.skip("the native kernel has no projection of h: test_directions.py has its refusal")
    layer, given = redraw(LSTMLayer(5, 7, proj_dim=3, backend=backend, dtype=F64)), layer_inputs(backend)
    given["h0"], options = normal(4, 3, seed=2).requires_grad_(), masks(names, 4, 9)
    trace = layer.trace(**given, **options)
    weight = normal(*getattr(trace, field).shape, seed=42)
    got = trace.gradients((getattr(trace, field) * weight).sum())
    assert got.h.shape == (4, 9, 3)
    plain = run_layer(dict(layer.named_parameters()), given["x"], given["h0"], given["c0"], **options)
    assert_same(trace.h, plain.sequence("h"))
    (plain.sequence(field) * weight).sum().backward()
    _assert_totals(got, plain.totals())


@pytest.mark.parametrize("names", MASKS)
@pytest.mark.parametrize("field", ["h", "c", *GATES])
def test_totals_of_one_layer_equal_retained_gradients(backend: str, field: str, names: str) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend), masks(names, 4, 9)
    weight = normal(4, 9, 7, seed=42)
    trace = layer.trace(**given, **options)
    got = trace.gradients((getattr(trace, field) * weight).sum())
    plain = run_layer(dict(layer.named_parameters()), given["x"], given["h0"], given["c0"], **options)
    (plain.sequence(field) * weight).sum().backward()
    _assert_totals(got, plain.totals())


def test_totals_of_the_last_state(backend: str) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend), masks("both", 4, 9)
    trace = layer.trace(**given, **options)
    got = trace.gradients((trace.state[0] * trace.state[1]).sum())
    plain = run_layer(dict(layer.named_parameters()), given["x"], given["h0"], given["c0"], **options)
    assert plain.state is not None
    (plain.state[0] * plain.state[1]).sum().backward()
    _assert_totals(got, plain.totals())


@pytest.mark.parametrize("loss", STACK_LOSSES)
@pytest.mark.parametrize(("names", "dropout"), [("none", 0.0), ("both", 0.0), ("none", 0.4), ("both", 0.4)])
def test_totals_of_a_stack_equal_retained_gradients(backend: str, names: str, dropout: float, loss: str) -> None:
    model = redraw(MultiLayerLSTM(3, 5, 2, dropout, output_dim=4, backend=backend, dtype=dtype_of(backend)))
    x, h0, c0 = (
        normal(*size, seed=1 + k, dtype=dtype_of(backend)) for k, size in enumerate([(4, 6, 3), (2, 4, 5), (2, 4, 5)])
    )
    options = masks(names, 4, 6)
    torch.manual_seed(0)
    trace = model.trace(x, (h0, c0), **options)
    ours = STACK_LOSSES[loss](trace.output, lambda k, name: getattr(trace.layers[k], name))
    torch.manual_seed(0)
    output, layers = run_stack(dict(model.named_parameters()), x, h0, c0, dropout=dropout, **options)
    theirs = STACK_LOSSES[loss](output, lambda k, name: layers[k].sequence(name))
    # Equal outputs show that both drew the same dropout masks.
    assert_same(trace.output, output)
    assert_same(ours.to(x.dtype), theirs.to(x.dtype))
    got = trace.gradients(ours)
    theirs.backward()
    for k, layer in enumerate(layers):
        _assert_totals(got[k], layer.totals())


def test_totals_with_ids_and_three_layers(backend: str) -> None:
    model = redraw(MultiLayerLSTM(6, 5, 3, backend=backend, dtype=dtype_of(backend)))
    ids = torch.randint(6, (4, 6), generator=torch.Generator().manual_seed(3))
    trace = model.trace(ids)
    got = trace.gradients(trace.output.logsumexp(-1).sum())
    zeros = torch.zeros(3, 4, 5, dtype=dtype_of(backend))
    one_hot = torch.nn.functional.one_hot(ids, 6).to(dtype_of(backend))
    output, layers = run_stack(dict(model.named_parameters()), one_hot, zeros, zeros)
    output.logsumexp(-1).sum().backward()
    assert len(got) == 3
    for k, layer in enumerate(layers):
        _assert_totals(got[k], layer.totals())


def test_a_finite_difference_in_each_pre_activation(backend: str) -> None:
    # Units of x that are 1 at one step only: their weights are that step's own biases.
    # The differences are float64's whatever the backend: float32's would show three digits.
    truth = new_layer("reference", width=4, hidden=3)
    x = torch.eye(4).expand(2, 4, 4)

    def loss(trace: LayerTrace) -> Tensor:
        return trace.c[:, -1].exp().sum() + trace.h[:, 1].square().sum()

    trace = new_layer(backend, width=4, hidden=3).trace(x.to(dtype_of(backend)))
    got = trace.gradients(loss(trace))
    step, x = 1e-6, x.double()
    # The difference's own error: step^2 from the third derivative, 1e-16 / step from rounding. Float32's own: some 30
    # roundings of numbers of order 1.
    bound = 1e-8 if backend != "cpu" else 30 * torch.finfo(torch.float32).eps
    for gate in GATES:
        weight = getattr(truth, f"W_x{gate}")
        for t in range(4):
            for unit in range(3):
                with torch.no_grad():
                    weight[t, unit] += step
                    above = loss(truth.trace(x))
                    weight[t, unit] -= 2 * step
                    below = loss(truth.trace(x))
                    weight[t, unit] += step
                slope = float((above - below) / (2 * step))
                assert slope == pytest.approx(float(getattr(got, gate)[:, t, unit].sum()), abs=bound)


def test_sums_over_the_totals_are_the_parameters_gradients(backend: str) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend), masks("both", 4, 9)
    trace = layer.trace(**given, **options)
    loss = (trace.h * normal(4, 9, 7, seed=43)).sum() + trace.c.square().sum()
    totals = trace.gradients(loss)
    # The graph is kept.
    loss.backward()
    live = torch.arange(9) < options["lengths"][:, None]
    for gate in GATES:
        total = getattr(totals, gate)
        assert_same(total.sum((0, 1)), getattr(layer, f"b_{gate}").grad, f"b_{gate}")
        x = given["x"].detach() * live[..., None]
        assert_same(torch.einsum("bti,bth->ih", x, total), getattr(layer, f"W_x{gate}").grad, f"W_x{gate}")


def test_the_totals_are_plain_numbers_and_can_be_taken_again(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    trace = layer.trace(**given)
    loss = trace.h.square().sum()
    first, second = trace.gradients(loss), trace.gradients(loss)
    assert isinstance(first, LayerGradients)
    assert first._fields == ("h", "c", "i", "f", "g", "o")
    for one, other in zip(first, second, strict=True):
        assert one.shape == (4, 9, 7)
        assert not one.requires_grad
        assert torch.equal(one, other)


def test_autograd_alone_gives_the_explicit_part(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    trace = layer.trace(**given)
    loss = trace.h.sum()
    totals = trace.gradients(loss)
    assert_same(totals.h[:, -1], torch.ones(4, 7, dtype=dtype_of(backend)))
    assert (totals.h[:, :-1] - 1).abs().min() > 0
    (explicit,) = torch.autograd.grad(loss, trace.h)
    assert torch.equal(explicit, torch.ones_like(trace.h))


def test_nan_gradients_in_the_padding_are_ignored(backend: str) -> None:
    model = redraw(MultiLayerLSTM(3, 5, 2, output_dim=None, backend=backend, dtype=dtype_of(backend)))
    x, lengths = normal(4, 6, 3, seed=1, dtype=dtype_of(backend)), masks("lengths", 4, 6)["lengths"]
    ended = torch.arange(6) >= lengths[:, None]
    totals = []
    for padding in (0.0, float("nan")):
        trace = model.trace(x, lengths=lengths)
        weight = normal(4, 6, 5, seed=44).masked_fill(ended[..., None], padding)
        totals.append(trace.gradients((trace.output * weight).sum() + (trace.layers[0].c * weight).sum()))
    for zero, nan in zip(*totals, strict=True):
        for name in LayerGradients._fields:
            assert torch.equal(getattr(zero, name), getattr(nan, name)), name
            assert not getattr(nan, name)[ended].any(), name


@pytest.mark.parametrize(("rows", "steps"), [(4, 0), (0, 6), (4, 1)])
@pytest.mark.parametrize("names", ["none", "both"])
def test_totals_of_little_or_nothing(backend: str, names: str, rows: int, steps: int) -> None:
    model = MultiLayerLSTM(3, 5, 2, backend=backend)
    options: dict[str, Any] = {}
    if names == "both":
        options = {
            "resets": torch.zeros(rows, steps, dtype=torch.bool),
            "lengths": torch.full((rows,), steps),
        }
    trace = model.trace(torch.zeros(rows, steps, 3), **options)
    for totals in trace.gradients(trace.output.sum()):
        assert all(total.shape == (rows, steps, 5) for total in totals)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen", "frozen input weights"])
def test_a_trace_without_gradients_says_so(backend: str, how: str) -> None:
    layer, x = new_layer(backend), layer_inputs(backend)["x"].detach()
    if how == "frozen":
        layer.requires_grad_(False)
    if how == "frozen input weights":
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name.startswith("W_h"))
    mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
    with mode():
        trace = layer.trace(x)
    loss = torch.zeros((), requires_grad=True) * 1
    with pytest.raises(
        RuntimeError, match=r"taken without gradients: .*; take it outside torch\.no_grad\(\)"
    ) as caught:
        trace.gradients(loss)
    if how.startswith("frozen"):
        # The way out that the message names.
        assert "layer.W_xi.requires_grad_()" in str(caught.value)
        layer.W_xi.requires_grad_()
        trace = layer.trace(x)
        assert trace.gradients(trace.h.sum()).i.any()


def test_a_loss_from_elsewhere_says_so(backend: str) -> None:
    layer, x = new_layer(backend), layer_inputs(backend)["x"].detach()
    trace = layer.trace(x)
    for loss in (layer(x)[0].sum(), torch.zeros(()), trace.h.sum().detach()):
        with pytest.raises(RuntimeError, match=r"loss does not depend on this trace; compute it from what the trace"):
            trace.gradients(loss)


def test_a_loss_of_many_numbers_says_how_to_make_it_one(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    trace = layer.trace(**given)
    with pytest.raises(ValueError, match=r"loss is \[4, 9, 7\], expected a scalar: loss\.sum\(\) or loss\.mean\(\)"):
        trace.gradients(trace.h)


def test_traces_print_their_shapes_and_not_their_numbers(backend: str) -> None:
    model = MultiLayerLSTM(3, 5, 2, backend=backend)
    trace = model.trace(torch.zeros(4, 6, 3))
    one = "LayerTrace(h, c, i, f, g, o: [4, 6, 5] torch.float32)"
    assert repr(trace.layers[0]) == one
    assert repr(trace) == f"Trace(output: [4, 6, 3], layers: [{one}, {one}])"


def _assert_totals(got: LayerGradients, expected: dict[str, Tensor]) -> None:
    assert set(got._fields) == set(expected)
    for name, value in expected.items():
        assert_same(getattr(got, name), value, name)
