"""One layer: numbers and all gradients against torch.nn.LSTM and plain loops, and how the module behaves as one."""

from __future__ import annotations

import copy

import pytest
import torch
from plain import (
    GATES,
    assert_all_same,
    assert_same,
    gradients,
    layer_inputs,
    masks,
    new_layer,
    normal,
    results,
    run_layer,
)
from tolerance import assert_close
from torch import Tensor, nn
from worlds import BACKENDS, dtype_of

from unrolled.layer import LSTMLayer

I, H = 5, 7
MASKS = ("none", "resets", "lengths", "both")

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_equals_torchs_lstm(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    theirs = nn.LSTM(I, H, batch_first=True, dtype=dtype_of(backend))
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.cat([getattr(layer, f"W_x{gate}").t() for gate in GATES]))
        theirs.weight_hh_l0.copy_(torch.cat([getattr(layer, f"W_h{gate}").t() for gate in GATES]))
        theirs.bias_ih_l0.copy_(torch.cat([getattr(layer, f"b_{gate}") for gate in GATES]))
        theirs.bias_hh_l0.zero_()
    h, (_, last_c) = theirs(given["x"], (given["h0"][None], given["c0"][None]))
    expected = gradients({"h": h, "c": last_c[0]}, given | dict(theirs.named_parameters()))
    ours_h, ours_c = layer(**given)
    got = gradients({"h": ours_h, "c": ours_c[:, -1]}, given | dict(layer.named_parameters()))
    assert_same(ours_h, h, "h")
    assert_same(ours_c[:, -1], last_c[0], "c")
    for name in given:
        assert_same(got[name], expected[name], name)
    for kind, torchs in (("W_x", "weight_ih_l0"), ("W_h", "weight_hh_l0"), ("b_", "bias_ih_l0")):
        for gate, chunk in zip(GATES, expected[torchs].chunk(4), strict=True):
            assert_same(got[f"{kind}{gate}"], chunk.t() if chunk.dim() == 2 else chunk, kind + gate)


@pytest.mark.parametrize("names", MASKS)
@pytest.mark.parametrize(("rows", "steps"), [(4, 9), (5, 1), (1, 6)])
def test_equals_a_plain_loop_in_every_field_and_gradient(backend: str, names: str, rows: int, steps: int) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend, rows, steps), masks(names, rows, steps)
    leaves = given | dict(layer.named_parameters())
    trace = layer.trace(**given, **options)
    got = {name: getattr(trace, name) for name in ("h", "c", *GATES)}
    got |= {"last h": trace.state[0], "last c": trace.state[1]}
    plain = run_layer(dict(layer.named_parameters()), given["x"], given["h0"], given["c0"], **options)
    assert plain.state is not None
    expected = {name: plain.sequence(name) for name in ("h", "c", *GATES)}
    expected |= {"last h": plain.state[0], "last c": plain.state[1]}
    assert_all_same(got, expected)
    assert_all_same(gradients(got, leaves), gradients(expected, leaves))
    # Each field alone too: a field whose cotangent were dropped could hide among eight.
    for name, value in got.items():
        assert_all_same(gradients({name: value}, leaves), gradients({name: expected[name]}, leaves))


@pytest.mark.parametrize("names", MASKS)
def test_forward_returns_what_the_trace_holds(backend: str, names: str) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend), masks(names, 4, 9)
    h, c = layer(**given, **options)
    trace = layer.trace(**given, **options)
    assert torch.equal(trace.h, h)
    assert torch.equal(trace.c, c)
    assert h.shape == c.shape == trace.o.shape == (4, 9, H)


def test_no_state_is_a_zero_state(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    zeros = torch.zeros(4, H, dtype=dtype_of(backend))
    for ours, explicit in zip(layer(given["x"]), layer(given["x"], zeros, zeros), strict=True):
        assert torch.equal(ours, explicit)


@pytest.mark.parametrize(("rows", "steps"), [(4, 0), (0, 9), (0, 0)])
@pytest.mark.parametrize("names", ["none", "both"])
def test_nothing_to_do_is_legal_and_has_gradients(backend: str, names: str, rows: int, steps: int) -> None:
    layer, given = new_layer(backend), layer_inputs(backend, rows, steps)
    options = {
        "resets": torch.zeros(rows, steps, dtype=torch.bool),
        "lengths": torch.zeros(rows, dtype=torch.int64),
    }
    trace = layer.trace(**given, **(options if names == "both" else {}))
    for name in ("h", "c", *GATES):
        assert getattr(trace, name).shape == (rows, steps, H)
    assert torch.equal(trace.state[0], given["h0"])
    assert torch.equal(trace.state[1], given["c0"])
    loss = sum(getattr(trace, name).sum() for name in ("h", "c", *GATES)) + 3 * trace.state[0].sum()
    grads = gradients({"loss": loss}, given | dict(layer.named_parameters()))
    factor = normal(seed=21, dtype=dtype_of(backend)) * 3
    assert torch.equal(grads.pop("h0"), factor.expand(rows, H))
    assert all(not grad.any() for grad in grads.values())


def test_no_steps_from_no_state_still_have_a_backward_pass(backend: str) -> None:
    layer, x = new_layer(backend), torch.zeros(3, 0, I, dtype=dtype_of(backend))
    h, c = layer(x)
    (h.sum() + c.sum()).backward()
    assert layer.W_hf.grad is not None
    assert not layer.W_hf.grad.any()
    trace = layer.trace(x)
    assert trace.gradients(trace.h.sum()).f.shape == (3, 0, H)


def test_strided_arguments_give_the_same_bits_as_contiguous_ones(backend: str) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend), masks("both", 4, 9)
    expected = results(layer, given, **options)
    strided = {name: _strided(value.detach()).requires_grad_() for name, value in given.items()}
    strided_options = {name: _strided(value) for name, value in options.items()}
    assert not any(value.is_contiguous() for value in (*strided.values(), *strided_options.values()))
    assert_all_same(results(layer, strided, **strided_options), expected)
    time_first = {**given, "x": given["x"].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()}
    assert_all_same(results(layer, time_first, **options), expected)
    expanded = {name: value[:, :1].detach().expand(value.shape).requires_grad_() for name, value in given.items()}
    copied = {name: value.detach().clone().requires_grad_() for name, value in expanded.items()}
    assert_all_same(results(layer, expanded, **options), results(layer, copied, **options))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("names", ["none", "both"])
def test_ids_are_one_hot_rows(backend: str, names: str, dtype: torch.dtype) -> None:
    layer, given, options = new_layer(backend, width=11), layer_inputs(backend), masks(names, 4, 9)
    ids = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(5)).to(dtype)
    one_hot = nn.functional.one_hot(ids.long(), 11).to(dtype_of(backend))
    state = {name: given[name] for name in ("h0", "c0")}
    expected = results(layer, {"x": one_hot, **state}, **options)
    assert_all_same(results(layer, {"x": ids, **state}, **options), expected)
    assert_all_same(results(layer, {"x": _strided(ids), **state}, **options), expected)


@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize(
    ("rows", "steps", "dtype"), [(4, 9, torch.float64), (1, 8, torch.float32), (17, 5, torch.float32)]
)
def test_carrying_the_state_across_any_split(
    backend: str, kind: str, rows: int, steps: int, dtype: torch.dtype
) -> None:
    _skip_unless_taken(backend, dtype)
    layer = new_layer(backend).to(dtype)
    given = {name: value.detach().to(dtype) for name, value in layer_inputs(backend, rows, steps).items()}
    if kind == "ids":
        given["x"] = torch.randint(I, (rows, steps), generator=torch.Generator().manual_seed(6))
    resets = masks("resets", rows, steps)["resets"] if rows > 1 else None
    whole = layer(**given, resets=resets)
    for cut in range(steps + 1):
        head = layer.trace(given["x"][:, :cut], given["h0"], given["c0"], resets=_part(resets, 0, cut))
        tail = layer.trace(given["x"][:, cut:].clone(), *head.state, resets=_part(resets, cut, steps))
        for name, expected in zip(("h", "c"), whole, strict=True):
            joined = torch.cat([getattr(head, name), getattr(tail, name)], 1)
            if backend == "reference":
                assert torch.equal(joined, expected), f"{name}, split at {cut}"
            else:
                # Products of another number of rows round differently: a few ulp a step, steps of slope near 1.
                bound = 8 * steps * torch.finfo(dtype).eps
                assert (joined - expected).abs().max() <= bound * (1 + expected.abs().max()), f"{name}, split at {cut}"


def test_gradients_flow_through_a_carried_state(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    expected = results(layer, given)
    head = layer.trace(given["x"][:, :4], given["h0"], given["c0"])
    tail = layer.trace(given["x"][:, 4:], *head.state)
    joined = {name: torch.cat([getattr(head, name), getattr(tail, name)], 1) for name in ("h", "c")}
    grads = gradients(joined, given | dict(layer.named_parameters()))
    assert_all_same(joined | {f"grad {name}": grad for name, grad in grads.items()}, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision_is_as_close_to_the_truth_as_plain_torch(backend: str, dtype: torch.dtype) -> None:
    _skip_unless_taken(backend, dtype)
    options = masks("both", 4, 9)
    exact = results(new_layer("reference"), layer_inputs("reference"), **options)
    low = {name: value.detach().to(dtype).requires_grad_() for name, value in layer_inputs("reference").items()}
    weights = {name: p.to(dtype) for name, p in new_layer("reference").named_parameters()}
    plain = run_layer(weights, low["x"], low["h0"], low["c0"], **options)
    got = results(new_layer(backend).to(dtype), low, **options)
    for name in ("h", "c"):
        assert got[name].dtype == dtype
        assert_close(got[name].detach(), plain.sequence(name).detach(), exact[name].detach(), name)
    assert all(value.dtype == dtype for value in got.values())


def test_state_dict_device_dtype_and_copies(backend: str) -> None:
    layer = LSTMLayer(I, H, backend=backend)
    names = [f"{kind}{gate}" for gate in "fiog" for kind in ("W_x", "W_h", "b_")]
    assert list(layer.state_dict()) == names
    assert [name for name, _ in layer.named_parameters()] == names
    assert all(isinstance(getattr(layer, name), nn.Parameter) for name in names)
    assert layer.backend == backend
    other = "portable" if backend == "reference" else "reference"
    loaded = LSTMLayer(I, H, backend=other)
    loaded.load_state_dict(layer.state_dict(), strict=True)
    assert loaded.backend == other
    x = normal(2, 3, I, seed=1).float()
    copied = copy.deepcopy(layer)
    assert copied.backend == backend
    assert torch.equal(copied(x)[0], layer(x)[0])
    with torch.no_grad():
        copied.b_f.add_(1)
    assert not layer.b_f.any()


def test_extra_repr_names_the_sizes_and_a_backend_that_was_asked_for(backend: str) -> None:
    assert repr(LSTMLayer(I, H)) == "LSTMLayer(5, 7)"
    assert repr(LSTMLayer(I, H, backend=backend)) == f"LSTMLayer(5, 7, backend='{backend}')"


def test_on_the_meta_device(backend: str) -> None:
    _skip_unless_taken(backend, torch.bfloat16)
    layer = LSTMLayer(I, H, backend=backend, device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}
    x = torch.empty(3, 4, I, device="meta", dtype=torch.bfloat16)
    resets = torch.empty(3, 4, device="meta", dtype=torch.bool)
    lengths = torch.empty(3, device="meta", dtype=torch.int64)
    h, c = layer(x, resets=resets, lengths=lengths)
    assert h.shape == c.shape == (3, 4, H)
    assert h.device.type == "meta"
    assert h.dtype == torch.bfloat16
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.W_xf.any()
    assert not layer.b_f.any()


def test_a_parametrized_weight_is_read_where_it_is_used(backend: str) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    layer, given = new_layer(backend), layer_inputs(backend)
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        expected.W_hf.mul_(2)
    nn.utils.parametrize.register_parametrization(layer, "W_hf", Doubled())
    for got, wanted in zip(layer(**given), expected(**given), strict=True):
        assert_same(got, wanted)
    layer(**given)[0].sum().backward()
    expected(**given)[0].sum().backward()
    assert expected.W_hf.grad is not None
    assert_same(layer.parametrizations.W_hf.original.grad, 2 * expected.W_hf.grad)


def test_an_in_place_edit_of_a_weight_is_seen_by_the_next_call(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    before = layer(**given)[0]
    with torch.no_grad():
        layer.b_o.sub_(40)
    after = layer(**given)[0]
    assert before.abs().max() > 0.1
    assert after.abs().max() < 1e-12


@pytest.mark.parametrize(("width", "hidden"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_below_one_are_refused(backend: str, width: int, hidden: int) -> None:
    with pytest.raises(ValueError, match=f"input_dim={width} and hidden_dim={hidden} must both be at least 1"):
        LSTMLayer(width, hidden, backend=backend)


def _skip_unless_taken(backend: str, dtype: torch.dtype) -> None:
    if backend == "cpu" and dtype != torch.float32:
        pytest.skip("the native kernel takes float32 on the CPU alone, and test_choose.py sees it refuse the rest")


def _part(resets: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if resets is None else resets[:, start:stop]


def _strided(value: Tensor) -> Tensor:
    """The same numbers, with every axis strided."""
    wide = value.new_zeros([2 * size for size in value.shape])
    view = wide[tuple(slice(None, None, 2) for _ in value.shape)]
    return view.copy_(value)
