"""The stack: numbers and all gradients against torch.nn.LSTM and plain loops, states, splits, attributes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from plain import (
    F64,
    GATES,
    assert_all_same,
    assert_same,
    gradients,
    masks,
    new_model,
    normal,
    run_stack,
    stack_inputs,
)
from torch import Tensor, nn
from worlds import BACKENDS, dtype_of

from unrolled.layer_trace import LayerTrace
from unrolled.stack import MultiLayerLSTM
from unrolled.state import LSTMState

I, H, OUT = 5, 7, 4
NAN = float("nan")

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def results(model: MultiLayerLSTM, given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Output, state and all gradients of a call."""
    output, (h, c) = model(given["x"], (given["h0"], given["c0"]), **options)
    leaves = {name: v for name, v in given.items() if v.requires_grad} | dict(model.named_parameters())
    outputs = {"output": output, "h": h, "c": c}
    return outputs | {f"grad {name}": grad for name, grad in gradients(outputs, leaves).items()}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equals_torchs_lstm_and_a_linear_layer(backend: str, layers: int) -> None:
    model, given = new_model(backend, layers), stack_inputs(backend, layers)
    theirs = nn.LSTM(I, H, layers, batch_first=True, dtype=dtype_of(backend))
    with torch.no_grad():
        for k, layer in enumerate(model.layers):
            for kind, torchs in (("W_x", "weight_ih"), ("W_h", "weight_hh")):
                getattr(theirs, f"{torchs}_l{k}").copy_(torch.cat([getattr(layer, f"{kind}{g}").t() for g in GATES]))
            getattr(theirs, f"bias_ih_l{k}").copy_(torch.cat([getattr(layer, f"b_{g}") for g in GATES]))
            getattr(theirs, f"bias_hh_l{k}").zero_()
    top, (h, c) = theirs(given["x"], (given["h0"], given["c0"]))
    output = nn.functional.linear(top, model.proj.weight, model.proj.bias)
    expected = {"output": output, "h": h, "c": c}
    leaves = given | dict(theirs.named_parameters()) | dict(model.proj.named_parameters(prefix="proj"))
    grads = gradients(expected, leaves)
    got = results(model, given)
    for name in ("output", "h", "c"):
        assert_same(got[name], expected[name], name)
    for name in ("x", "h0", "c0", "proj.weight", "proj.bias"):
        assert_same(got[f"grad {name}"], grads[name], name)
    for k in range(layers):
        for kind, torchs in (("W_x", "weight_ih"), ("W_h", "weight_hh"), ("b_", "bias_ih")):
            for gate, chunk in zip(GATES, grads[f"{torchs}_l{k}"].chunk(4), strict=True):
                name = f"layers.{k}.{kind}{gate}"
                assert_same(got[f"grad {name}"], chunk.t() if chunk.dim() == 2 else chunk, name)


@pytest.mark.parametrize("output_dim", [OUT, None])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("names", ["none", "resets", "lengths", "both"])
def test_equals_plain_loops_in_every_field_and_gradient(
    backend: str, names: str, dropout: float, output_dim: int | None
) -> None:
    model, given, options = new_model(backend, 3, dropout, output_dim), stack_inputs(backend, 3), masks(names, 4, 6)
    leaves = given | dict(model.named_parameters())
    torch.manual_seed(0)
    trace = model.trace(given["x"], (given["h0"], given["c0"]), **options)
    torch.manual_seed(0)
    output, layers = run_stack(
        dict(model.named_parameters()), given["x"], given["h0"], given["c0"], dropout=dropout, **options
    )
    got = {"output": trace.output, "h": trace.state.h, "c": trace.state.c}
    expected = {
        "output": output,
        "h": torch.stack([layer.state[0] for layer in layers]),
        "c": torch.stack([layer.state[1] for layer in layers]),
    }
    for k, layer in enumerate(layers):
        for field in ("h", "c", *GATES):
            got[f"{k} {field}"], expected[f"{k} {field}"] = getattr(trace.layers[k], field), layer.sequence(field)
    assert_all_same(got, expected)
    assert_all_same(gradients(got, leaves), gradients(expected, leaves))
    for name in ("output", "h", "c", "0 c", "1 o"):
        assert_all_same(gradients({name: got[name]}, leaves), gradients({name: expected[name]}, leaves))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("names", ["none", "both"])
def test_forward_returns_what_the_trace_holds(backend: str, names: str, dropout: float) -> None:
    model, given, options = new_model(backend, 3, dropout), stack_inputs(backend, 3), masks(names, 4, 6)
    state = LSTMState(given["h0"], given["c0"])
    torch.manual_seed(5)
    output, after = model(given["x"], state, **options)
    torch.manual_seed(5)
    trace = model.trace(given["x"], state, **options)
    assert isinstance(after, LSTMState)
    assert isinstance(trace.state, LSTMState)
    assert torch.equal(trace.output, output)
    assert torch.equal(trace.state.h, after.h)
    assert torch.equal(trace.state.c, after.c)
    assert output.shape == (4, 6, OUT)
    assert after.h.shape == after.c.shape == (3, 4, H)
    assert all(isinstance(layer, LayerTrace) for layer in trace.layers)
    assert len(trace.layers) == 3


def test_the_state_is_every_layers_last_step(backend: str) -> None:
    model, given = new_model(backend, 3), stack_inputs(backend, 3)
    trace = model.trace(given["x"])
    for k, layer in enumerate(trace.layers):
        assert torch.equal(trace.state.h[k], layer.h[:, -1])
        assert torch.equal(trace.state.c[k], layer.c[:, -1])


def test_no_state_is_a_zero_state_and_a_plain_pair_is_a_state(backend: str) -> None:
    model, given = new_model(backend), stack_inputs(backend)
    zeros = model.zero_state(4)
    assert isinstance(zeros, LSTMState)
    assert zeros.h.shape == zeros.c.shape == (2, 4, H)
    assert zeros.h.dtype == dtype_of(backend)
    expected = model(given["x"])[0]
    for state in (zeros, tuple(zeros), list(zeros)):
        assert torch.equal(model(given["x"], state)[0], expected)
    given_state = (given["h0"], given["c0"])
    assert torch.equal(model(given["x"], given_state)[0], model(given["x"], LSTMState(*given_state))[0])
    assert not torch.equal(model(given["x"], given_state)[0], expected)


def test_each_row_with_a_length_equals_that_row_alone(backend: str) -> None:
    model, given, lengths = new_model(backend), stack_inputs(backend), masks("lengths", 4, 6)["lengths"]
    output, state = model(given["x"], (given["h0"], given["c0"]), lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        before = LSTMState(given["h0"], given["c0"]).rows(row)
        alone, after = model(given["x"][row, None, :length], before)
        assert_same(output[row, :length], alone[0])
        assert_same(state.rows(row).h, after.h)
        assert_same(state.rows(row).c, after.c)
        # Exactly: h is 0 there, and the product of a zero row is 0.
        assert torch.equal(output[row, length:], model.proj.bias.expand(6 - length, OUT))


def test_a_whole_batch_of_length_zero_returns_the_given_state(backend: str) -> None:
    model, given = new_model(backend), stack_inputs(backend)
    output, state = model(given["x"], (given["h0"], given["c0"]), lengths=torch.zeros(4, dtype=torch.int32))
    assert torch.equal(output, model.proj.bias.expand(4, 6, OUT))
    assert torch.equal(state.h, given["h0"])
    assert torch.equal(state.c, given["c0"])


def test_the_padding_is_never_read(backend: str) -> None:
    model, given, options = new_model(backend), stack_inputs(backend), masks("both", 4, 6)
    ended = torch.arange(6) >= options["lengths"][:, None]
    clean = results(model, given, **options)
    wild = {**given, "x": given["x"].detach().masked_fill(ended[..., None], NAN).requires_grad_()}
    got = results(model, wild, resets=options["resets"] | ended, lengths=options["lengths"])
    for name, value in clean.items():
        assert torch.equal(got[name], value), name


def test_a_reset_at_the_first_step_ignores_the_given_state_in_every_layer(backend: str) -> None:
    model, given = new_model(backend), stack_inputs(backend)
    resets = torch.zeros(4, 6, dtype=torch.bool)
    resets[2, 0] = True
    zeroed = {name: value.detach().clone() for name, value in given.items()}
    zeroed["h0"][:, 2] = zeroed["c0"][:, 2] = 0
    wild = {name: value.clone() for name, value in zeroed.items()}
    wild["h0"][:, 2] = wild["c0"][:, 2] = NAN
    for values in (zeroed, wild):
        for value in values.values():
            value.requires_grad_()
    expected, got = results(model, zeroed), results(model, wild, resets=resets)
    for name in ("grad h0", "grad c0"):
        assert not got[name][:, 2].any()
        expected[name][:, 2] = 0
    assert_all_same(got, expected)


@pytest.mark.parametrize(("rows", "steps"), [(4, 0), (0, 6), (0, 0)])
def test_nothing_to_do_is_legal_and_has_gradients(backend: str, rows: int, steps: int) -> None:
    model, given = new_model(backend), stack_inputs(backend, rows=rows, steps=steps)
    got = results(model, given)
    assert got["output"].shape == (rows, steps, OUT)
    assert torch.equal(got["h"], given["h0"])
    assert torch.equal(got["c"], given["c0"])
    assert torch.equal(got["grad h0"], normal(2, rows, H, seed=22, dtype=dtype_of(backend)))
    assert torch.equal(got["grad c0"], normal(2, rows, H, seed=23, dtype=dtype_of(backend)))
    assert not got["grad layers.0.W_xf"].any()


def test_one_step_at_a_time_equals_the_sequence(backend: str) -> None:
    model, given = new_model(backend, 3), stack_inputs(backend, 3)
    expected, last = model(given["x"])
    state, outputs = None, []
    for t in range(6):
        output, state = model(given["x"][:, t : t + 1], state)
        outputs.append(output)
    assert state is not None
    assert_same(torch.cat(outputs, 1), expected)
    assert_same(state.h, last.h)
    assert_same(state.c, last.c)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("kind", ["floats", "ids"])
def test_carrying_the_state_across_any_split(backend: str, kind: str, dtype: torch.dtype) -> None:
    _skip_unless_taken(backend, dtype)
    model = new_model(backend, 3).to(dtype)
    x = stack_inputs(backend)["x"].detach().to(dtype)
    if kind == "ids":
        x = torch.randint(I, (4, 6), generator=torch.Generator().manual_seed(4))
    whole = model.trace(x)
    for cut in range(7):
        head = model.trace(x[:, :cut])
        tail = model.trace(x[:, cut:].clone(), head.state)
        pairs = [("state.h", tail.state.h, whole.state.h), ("state.c", tail.state.c, whole.state.c)]
        for k, layer in enumerate(whole.layers):
            for name in ("h", "c", *GATES):
                joined = torch.cat([getattr(head.layers[k], name), getattr(tail.layers[k], name)], 1)
                pairs.append((f"layers[{k}].{name}", joined, getattr(layer, name)))
        output = torch.cat([head.output, tail.output], 1)
        for name, got, expected in pairs:
            if backend == "reference":
                assert torch.equal(got, expected), f"{name}, split at {cut}"
            else:
                _assert_rounding(got, expected, f"{name}, split at {cut}")
        # The projection is one product over all steps, and a product's bits depend on its number of rows.
        _assert_rounding(output, whole.output, f"output, split at {cut}")


def test_a_stale_state_says_detach_and_a_detached_one_trains(backend: str) -> None:
    model, given = new_model(backend), stack_inputs(backend)
    output, state = model(given["x"])
    output.sum().backward()
    second, _ = model(given["x"], state.detach())
    second.sum().backward()
    stale, _ = model(given["x"], state)
    # The reference is plain autograd all the way, whose own words these are.
    words = ["backward through the graph a second time"]
    if backend != "reference":
        words = ["detach it between windows: state = state.detach()", "twice, pass retain_graph=True the first time"]
    # Backward twice through one window is the same mistake to torch, and has the same answer.
    h, _ = model.layers[0](given["x"])
    h.sum().backward()
    for loss in (stale.sum(), h.sum()):
        with pytest.raises(RuntimeError) as caught:
            loss.backward()
        assert all(word in str(caught.value) for word in words)


def test_hooks_of_the_layers_fire(backend: str) -> None:
    model, x = new_model(backend, 3), stack_inputs(backend)["x"]
    seen: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: seen.append((name, output if isinstance(output, Tensor) else output[0]))
        )
    output, _ = model(x)
    inner = ["layers.0", "dropout", "layers.1", "dropout", "layers.2", "dropout", "proj", ""]
    assert [name for name, _ in seen] == inner
    assert torch.equal(seen[-1][1], output)
    for k, layer in enumerate(model.trace(x).layers):
        assert torch.equal(seen[2 * k][1], layer.h)


@pytest.mark.parametrize(("output_dim", "width"), [("input", I), (OUT, OUT), (1, 1), (None, H)])
def test_the_outputs_width(backend: str, output_dim: Any, width: int) -> None:
    model = MultiLayerLSTM(I, H, 2, output_dim=output_dim, backend=backend)
    assert model(torch.zeros(3, 6, I))[0].shape == (3, 6, width)
    assert model.output_dim == (I if output_dim == "input" else output_dim)
    assert (model.proj is None) == (output_dim is None)
    assert ("proj.weight" in model.state_dict()) == (output_dim is not None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"hidden_dim": 0}, "input_dim=5 and hidden_dim=0 must both be at least 1"),
        ({"dropout": 1.5}, "dropout probability has to be between 0 and 1, but got 1.5"),
        ({"output_dim": 0}, 'output_dim=0 must be at least 1, "input" (the input\'s width) or None'),
        ({"output_dim": "inputs"}, "output_dim='inputs' must be at least 1, \"input\" (the input's width) or None"),
        ({"backend": "fast"}, "backend='fast' is not one of auto, cpu, portable, reference"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_built_says_why(backend: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        MultiLayerLSTM(**{"input_dim": I, "hidden_dim": H, "backend": backend, **options})
    assert words in str(caught.value)


def test_the_backend_is_an_attribute_and_not_in_the_state_dict(backend: str) -> None:
    model, x = new_model(backend), stack_inputs(backend)["x"].detach()
    assert model.backend == backend
    expected = model(x)[0]
    other = "portable" if backend == "reference" else "reference"
    model.backend = other
    assert [layer.backend for layer in model.layers] == [other, other]
    assert_same(model(x)[0], expected)
    with pytest.raises(ValueError, match="backend='fast' is not one of auto, cpu, portable, reference"):
        model.backend = "fast"
    assert model.backend == other
    assert not any("backend" in name for name in model.state_dict())


def test_copies_and_checkpoints_are_apart_and_equal(backend: str) -> None:
    model, x = new_model(backend), stack_inputs(backend)["x"].detach()
    copied = copy.deepcopy(model)
    loaded = MultiLayerLSTM(I, H, 2, output_dim=OUT, backend=backend, dtype=dtype_of(backend))
    loaded.load_state_dict(model.state_dict(), strict=True)
    expected = model(x)[0]
    with torch.no_grad():
        model.layers[0].W_xi.zero_()
    assert torch.equal(copied(x)[0], expected)
    assert torch.equal(loaded(x)[0], expected)
    assert not torch.equal(model(x)[0], expected)


def test_device_and_dtype(backend: str) -> None:
    _skip_unless_taken(backend, F64)
    model = MultiLayerLSTM(I, H, 2, backend=backend, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    output, state = model(torch.empty(3, 6, I, device="meta", dtype=torch.float64))
    assert output.shape == (3, 6, I)
    assert state.h.device.type == model.zero_state(3).h.device.type == "meta"
    model.to_empty(device="cpu").reset_parameters()
    assert model.layers[1].W_ho.any()
    half = model.to(torch.bfloat16)
    output, state = half(torch.zeros(3, 6, I, dtype=torch.bfloat16))
    assert output.dtype == state.h.dtype == state.c.dtype == half.zero_state(3).c.dtype == torch.bfloat16


def test_bfloat16_forward_is_near_the_truth(backend: str) -> None:
    _skip_unless_taken(backend, torch.bfloat16)
    model, x = new_model(backend), stack_inputs(backend)["x"].detach()
    expected, state = model(x)
    low, low_state = model.to(torch.bfloat16)(x.bfloat16())
    # Six steps, two layers, a projection: some 30 roundings of values of order 1.
    bound = 30 * torch.finfo(torch.bfloat16).eps
    assert (low - expected).abs().max() < bound
    assert (low_state.c - state.c).abs().max() < bound


def test_autocast_keeps_states_in_float32_and_products_in_bfloat16(backend: str) -> None:
    model, x = new_model(backend).float(), stack_inputs(backend)["x"].detach().float()
    expected, _ = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = model(x)
        trace = model.trace(x, state)
        _, from_low = model(x.bfloat16(), LSTMState(state.h.bfloat16(), state.c.bfloat16()))
    assert output.dtype == torch.bfloat16
    assert state.h.dtype == state.c.dtype == trace.layers[0].i.dtype == from_low.c.dtype == torch.float32
    assert (output - expected).abs().max() < 30 * torch.finfo(torch.bfloat16).eps
    output.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_printing_shows_the_parts(backend: str) -> None:
    lines = repr(MultiLayerLSTM(I, H, 2, 0.1, backend=backend)).splitlines()
    assert lines[:2] == ["MultiLayerLSTM(", "  5, 7, num_layers=2"]
    assert f"    (1): LSTMLayer(7, 7, backend='{backend}')" in lines
    assert "  (dropout): Dropout(p=0.1, inplace=False)" in lines


def _skip_unless_taken(backend: str, dtype: torch.dtype) -> None:
    if backend == "cpu" and dtype != torch.float32:
        pytest.skip("the native kernel takes float32 on the CPU alone, and test_choose.py sees it refuse the rest")


def _assert_rounding(got: Tensor, expected: Tensor, name: str) -> None:
    """Six steps and three layers of sums of a dozen terms of order 1: some 50 roundings, none of them amplified."""
    bound = 50 * torch.finfo(expected.dtype).eps
    assert (got - expected).abs().max() <= bound * (1 + expected.abs().max()), name
