"""What `unrolled.LSTM` has beyond `nn.LSTM`: it can be opened, compiled, mapped and differentiated again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from plain import F64, normal, redraw
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unrolled import LSTM, from_torch

B, T, I, H, P = 4, 6, 5, 7, 3
GATES = ("i", "f", "g", "o")
LENGTHS = torch.tensor([3, 6, 1, 4])

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def new(layers: int = 2, **options: Any) -> LSTM:
    module = redraw(LSTM(I, H, layers, **{"batch_first": True, "dtype": F64} | options))
    assert isinstance(module, LSTM)
    return module


def by_hand(module: LSTM, suffix: str, x: Tensor) -> dict[str, Tensor]:
    """One direction over x [T, I] of one row, gate by gate."""
    weights = {name: getattr(module, f"{name}_{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    c = torch.zeros(H, dtype=x.dtype)
    h = torch.zeros(module.proj_size or H, dtype=x.dtype)
    kept: dict[str, list[Tensor]] = {name: [] for name in ("h", "c", *GATES)}
    for step in x:
        pre = weights["weight_ih"] @ step + weights["bias_ih"] + weights["weight_hh"] @ h + weights["bias_hh"]
        i, f, g, o = pre[:H].sigmoid(), pre[H : 2 * H].sigmoid(), pre[2 * H : 3 * H].tanh(), pre[3 * H :].sigmoid()
        c = f * c + i * g
        h = o * c.tanh()
        h = getattr(module, f"weight_hr_{suffix}") @ h if module.proj_size else h
        for name, value in (("h", h), ("c", c), ("i", i), ("f", f), ("g", g), ("o", o)):
            kept[name].append(value)
    return {name: torch.stack(values) for name, values in kept.items()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("proj_size", [0, P])
def test_a_trace_holds_every_value_at_the_step_of_its_input(proj_size: int, packed: bool):
    module, x = new(bidirectional=True, proj_size=proj_size), normal(B, T, I, seed=1)
    if packed:
        trace = module.trace(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
    else:
        trace = module.trace(x, lengths=LENGTHS)
    assert len(trace.layers) == 4
    for row, length in enumerate(LENGTHS.tolist()):
        below = x[row, :length]
        for layer in range(2):
            ahead = by_hand(module, f"l{layer}", below)
            back = {name: v.flip(0) for name, v in by_hand(module, f"l{layer}_reverse", below.flip(0)).items()}
            for found, expected in ((trace.layers[2 * layer], ahead), (trace.layers[2 * layer + 1], back)):
                for name, value in expected.items():
                    torch.testing.assert_close(getattr(found, name)[row, :length], value, rtol=0, atol=1e-13)
                    assert not getattr(found, name)[row, length:].any()
            below = torch.cat([ahead["h"], back["h"]], -1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_trace_is_the_call_itself(dtype: torch.dtype):
    module, x = new(3, dropout=0.3, batch_first=False, dtype=dtype), normal(T, B, I, seed=1, dtype=dtype)
    hx = (normal(3, B, H, seed=2, dtype=dtype), normal(3, B, H, seed=3, dtype=dtype))
    torch.manual_seed(5)
    trace = module.trace(x, hx)
    torch.manual_seed(5)
    output, state = module(x, hx)
    assert torch.equal(trace.output, output)
    for found, expected in zip(trace.state, state, strict=True):
        assert torch.equal(found, expected)
    assert trace.layers[0].f.shape == (B, T, H)
    grad = torch.autograd.grad(trace.layers[0].f.sum(), module.weight_ih_l0)[0]
    assert grad[H : 2 * H].any()


@pytest.mark.parametrize("form", ["padded", "packed", "time-first", "one sequence"])
@pytest.mark.parametrize("proj_size", [0, P])
def test_total_gradients_are_those_of_the_stack_that_from_torch_makes(proj_size: int, form: str):
    """Whose own are held to plain loops; in the rows' own order, whatever goes in."""
    module = new(bidirectional=True, proj_size=proj_size, batch_first=form != "time-first")
    x, masks = normal(B, T, I, seed=1).requires_grad_(), {} if form == "one sequence" else {"lengths": LENGTHS}
    stack = from_torch(module)
    given = x[:1] if form == "one sequence" else x
    expected = stack.trace(given, **masks)
    if form == "packed":
        trace = module.trace(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
        output = pad_packed_sequence(trace.output, batch_first=True, total_length=T)[0]
    else:
        trace = module.trace(x.transpose(0, 1) if form == "time-first" else x[0] if len(given) == 1 else x, **masks)
        output = trace.output.transpose(0, 1) if form == "time-first" else trace.output.reshape(expected.output.shape)
    weight = normal(*expected.output.shape, seed=4)
    ours = trace.gradients((output * weight).sum() + trace.state[1].square().sum() + trace.layers[1].f.sum())
    theirs = expected.gradients(
        (expected.output * weight).sum() + expected.state.c.square().sum() + expected.layers[1].f.sum()
    )
    assert len(ours) == 4
    for found, exact, layer in zip(ours, theirs, expected.layers, strict=True):
        for name, value in exact._asdict().items():
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-11, atol=1e-12, msg=name)
            assert value.shape == getattr(layer, name).shape
    for found, exact in zip(trace.layers, expected.layers, strict=True):
        for ours_last, theirs_last in zip(found.state, exact.state, strict=True):
            torch.testing.assert_close(ours_last, theirs_last, rtol=0, atol=1e-13)


@pytest.mark.parametrize("option", [{}, {"bidirectional": True}, {"proj_size": P}])
def test_recompute_keeps_no_gates_and_changes_no_bit(option: dict[str, Any]):
    module = new(dropout=0.3, **option)
    x = normal(B, T, I, seed=1).requires_grad_()
    found: dict[bool, list[Any]] = {}
    for recompute in (False, True):
        module.recompute = recompute
        sizes: list[int] = []

        def keep(value: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(value.numel())
            return value

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            output, state = module(x, lengths=LENGTHS)
        loss = output.square().sum() + state[1].sum()
        found[recompute] = [output, *state, *torch.autograd.grad(loss, [x, *module.parameters()])]
        assert (max(sizes) >= 4 * B * T * H) == (not recompute)
    for value, exact in zip(found[True], found[False], strict=True):
        assert torch.equal(value, exact)
    assert repr(module) == repr(new(dropout=0.3, **option))[:-1] + ", recompute=True)"
    assert copy.deepcopy(module).recompute


@pytest.mark.parametrize("option", [{}, {"bidirectional": True}, {"proj_size": P}])
def test_second_order_gradients_are_torchs(option: dict[str, Any]):
    ours = new(**option)
    theirs = nn.LSTM(I, H, 2, batch_first=True, dtype=F64, **option)
    theirs.load_state_dict(ours.state_dict())
    x = normal(B, T, I, seed=1).requires_grad_()
    found = []
    for module in (ours, theirs):
        (slope,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *module.parameters()]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("option", [{}, {"bidirectional": True}, {"proj_size": P}])
def test_vmap_over_stacked_weights_and_forward_mode(option: dict[str, Any]):
    members = [redraw(new(**option), seed) for seed in range(3)]
    x, tangent = normal(B, T, I, seed=1), normal(B, T, I, seed=2)
    weights, _ = torch.func.stack_module_state(members)
    mapped = torch.func.vmap(lambda own: torch.func.functional_call(members[0], own, (x,))[0])(weights)
    expected = torch.stack([member(x)[0] for member in members])
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-13)
    _, slope = torch.func.jvp(lambda x: members[0](x)[0], (x,), (tangent,))
    nudged = (members[0](x + 1e-6 * tangent)[0] - members[0](x - 1e-6 * tangent)[0]) / 2e-6
    torch.testing.assert_close(slope, nudged, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_it_compiles_as_one_graph_with_the_same_values_and_gradients(masked: bool):
    module = new(bidirectional=True, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (6, 9):
        x = normal(B, steps, I, seed=1, dtype=torch.float32)
        masks = {"lengths": LENGTHS, "resets": torch.arange(steps).repeat(B, 1) == 2} if masked else {}
        found = []
        for call in (module, compiled):
            output, (h, _) = call(x, **masks)
            found.append([output, *torch.autograd.grad(output.sum() + h.square().sum(), list(module.parameters()))])
        for got, expected in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_strict_rows_have_the_same_bits_in_any_batch():
    module = new(2, bidirectional=True, dtype=torch.float32, strict=True)
    x = normal(B, T, I, seed=1, dtype=torch.float32)
    try:
        together = module(x)[0]
    except RuntimeError as error:
        pytest.skip(str(error))
    for row in range(B):
        assert torch.equal(module(x[row : row + 1])[0][0], together[row])


def test_bfloat16_autocast_keeps_the_recurrence_in_the_weights_dtype():
    module, x = new(dtype=torch.float32), normal(B, T, I, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            output, (h, c) = module(given)
            assert output.dtype == h.dtype == c.dtype == torch.float32
            torch.testing.assert_close(output, module.double()(x.double())[0].float(), rtol=0, atol=2e-2)
            module.float()
