"""The registered operators and how autograd uses them: retained and freed graphs, checkpointing, autocast, modes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import Shape, make
from paths import assert_equal, counted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from unrolled import LSTMState, MultiLayerLSTM
from unrolled.recurrence import portable, reference

F32, F64 = torch.float32, torch.float64
SHAPES = [
    Shape(3, 3, 2, 4),
    Shape(3, 3, 2, 4, ("resets",)),
    Shape(3, 3, 2, 4, ("lengths",)),
    Shape(3, 3, 2, 4, ("resets", "lengths")),
    Shape(1, 1, 2, 1, ("resets", "lengths")),
    Shape(3, 0, 2, 4),
    Shape(3, 0, 2, 4, ("resets", "lengths")),
    Shape(0, 5, 2, 4, ("resets", "lengths")),
    Shape(0, 0, 2, 4),
]


def arguments(shape: Shape, dtype: torch.dtype = F64, spread: bool = False) -> tuple[Any, ...]:
    """pre, w_h, h0, c0, resets, lengths: what the operator takes, with `spread` on strided memory."""
    case = make(shape, seed=2)
    pre = case.cotangents["gates"].transpose(0, 1).contiguous()
    floats = [value.to(dtype) for value in (pre, *(case.floats[name] for name in ("w_h", "h0", "c0")))]
    if spread:
        floats = [value.mT.contiguous().mT for value in floats]
    resets = None if case.resets is None else case.resets.t()
    return (*(value.requires_grad_() for value in floats), resets, case.lengths)


def backward_arguments(shape: Shape, given: tuple[int, ...]) -> tuple[Any, ...]:
    pre, w_h, h0, c0, resets, lengths = arguments(shape)
    with torch.no_grad():
        _, c, gates = reference.scan(pre, w_h, h0, c0, resets, lengths)
    cotangents = [torch.randn_like(value).requires_grad_() for value in (c, c, gates)]
    some = [value if k in given else None for k, value in enumerate(cotangents)]
    return (*some, w_h, c.requires_grad_(), gates.requires_grad_(), c0, resets, lengths)


# The operators as torch's own checks see them: schema, fake tensors, autograd registration, dynamic shapes


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_opcheck_of_the_scan(shape: Shape) -> None:
    torch.library.opcheck(torch.ops.unrolled.portable.default, arguments(shape))


def test_opcheck_of_the_scan_on_strided_memory() -> None:
    values = arguments(SHAPES[3], spread=True)
    assert not any(value.is_contiguous() for value in values[:4])
    torch.library.opcheck(torch.ops.unrolled.portable.default, values)


def test_opcheck_of_the_scan_in_float32_and_without_gradients() -> None:
    values = arguments(SHAPES[3], F32)
    torch.library.opcheck(torch.ops.unrolled.portable.default, values)
    torch.library.opcheck(
        torch.ops.unrolled.portable.default, tuple(value if value is None else value.detach() for value in values)
    )


BACKWARD = [
    (SHAPES[0], (0,)),
    (SHAPES[0], (1, 2)),
    *((shape, (0, 1, 2)) for shape in (SHAPES[0], SHAPES[3], SHAPES[4], SHAPES[6], SHAPES[7])),
]


@pytest.mark.parametrize(("shape", "given"), BACKWARD, ids=lambda v: v.name if isinstance(v, Shape) else str(v))
def test_opcheck_of_the_backward_scan(shape: Shape, given: tuple[int, ...]) -> None:
    torch.library.opcheck(torch.ops.unrolled.portable_backward.default, backward_arguments(shape, given))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("size", [(3, 5), (4,), (0, 5)])
@pytest.mark.parametrize("what", ["ids", "lengths"])
def test_opcheck_of_the_range_check(what: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.unrolled.checked_range.default, (torch.randint(7, size, dtype=dtype), 0, 6, what))


def test_the_operators_are_the_reference() -> None:
    values = arguments(SHAPES[3])
    assert_equal(torch.ops.unrolled.portable(*values), reference.scan(*values))
    values = backward_arguments(SHAPES[3], (0, 1, 2))
    assert_equal(torch.ops.unrolled.portable_backward(*values), reference.scan_backward(*values))


# Graphs: retained, freed, changed


def stack(**options: Any) -> tuple[MultiLayerLSTM, Tensor, dict[str, Tensor]]:
    """A stack of two, an x that requires gradients, and masks."""
    torch.manual_seed(5)
    model = MultiLayerLSTM(3, 4, 2, **{"dtype": F64, **options})
    x = torch.randn(3, 6, 3, dtype=model.proj.weight.dtype, requires_grad=True)
    masks = {"resets": torch.rand(3, 6) < 0.3, "lengths": torch.tensor([6, 0, 4])}
    return model, x, masks


def loss_of(output: Tensor, state: LSTMState) -> Tensor:
    return output.pow(3).sum() + state.h.pow(2).sum() + state.c.pow(3).sum()


def gradients_of(model: MultiLayerLSTM, x: Tensor, loss: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [x, *model.parameters()], **options)


def test_two_backward_passes_give_the_same_bits_and_leave_the_trace_as_it_was() -> None:
    model, x, masks = stack()
    trace = model.trace(x, **masks)
    names = "hcifgo"
    before = [getattr(layer, name).detach().clone() for layer in trace.layers for name in names]
    loss = loss_of(trace.output, trace.state) + sum(getattr(trace.layers[0], name).pow(3).sum() for name in names)
    first = gradients_of(model, x, loss, retain_graph=True)
    second = gradients_of(model, x, loss, create_graph=True)
    third = gradients_of(model, x, loss)
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    after = [getattr(layer, name) for layer in trace.layers for name in names]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "resets"])
@pytest.mark.parametrize("through", ["h", "c"])
def test_a_freed_window_says_to_detach_the_state(through: str, masked: bool) -> None:
    model, x, masks = stack()
    masks = {"resets": masks["resets"]} if masked else {}
    output, state = model(x, **masks)
    output.sum().backward()
    kept, dropped = getattr(state, through), torch.zeros_like(state.h)
    state = LSTMState(kept, dropped) if through == "h" else LSTMState(dropped, kept)
    for stale in (state, LSTMState(*(value * 1 for value in state))):
        output, _ = model(x, stale)
        with pytest.raises(RuntimeError, match=r"detach it between windows: state = state\.detach\(\)"):
            output.sum().backward()
    output, _ = model(x, state.detach())
    output.sum().backward()


def test_other_errors_of_the_backward_pass_keep_their_words() -> None:
    model, x, _ = stack()
    trace = model.layers[0].trace(x)
    with torch.no_grad():
        trace.i.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        trace.h.sum().backward()


class Cotangents(TorchDispatchMode):
    """Which of the three cotangents each backward scan was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[bool, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.unrolled.portable_backward.default:
            self.given.append(tuple(value is not None for value in args[:3]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("used", ["h", "c", "gates", "h c"])
def test_an_output_that_the_loss_does_not_use_costs_no_zeros(used: str) -> None:
    values = arguments(SHAPES[0])
    results = dict(zip(("h", "c", "gates"), portable.scan(*values), strict=True))
    with Cotangents() as cotangents:
        sum(results[name].sum() for name in used.split()).backward()
    assert cotangents.given == [tuple(name in used.split() for name in results)]


def test_states_that_require_gradients_get_the_references() -> None:
    model, x, masks = stack()
    state = LSTMState(*(torch.randn(2, 3, 4, dtype=F64, requires_grad=True) for _ in "hc"))
    with counted() as ran:
        ours = torch.autograd.grad(loss_of(*model(x, state, **masks)), state)
    assert (ran["portable"], ran["portable_backward"], ran["reference.scan"]) == (2, 2, 0)
    model.backend = "reference"
    assert_equal(ours, torch.autograd.grad(loss_of(*model(x, state, **masks)), state))
    # Two windows in one graph: the second one's loss reaches the first one's state.
    ours = torch.autograd.grad(loss_of(*model(x, model(x, state)[1])), state)
    model.backend = "auto"
    assert_equal(torch.autograd.grad(loss_of(*model(x, model(x, state)[1])), state), ours)


# Ways of running


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointing_gives_the_same_gradients_and_runs_the_kernel_again(reentrant: bool) -> None:
    model, x, masks = stack()
    expected = gradients_of(model, x, loss_of(*model(x, **masks)))

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, state = model(x, **masks)
        return output, state.h, state.c

    with counted() as ran:
        output, h, c = checkpoint(run, x, use_reentrant=reentrant)
        loss_of(output, LSTMState(h, c)).backward()
    assert (ran["portable"], ran["portable_backward"]) == (4, 2)
    for value, exact in zip((x, *model.parameters()), expected, strict=True):
        assert torch.equal(value.grad, exact)


def test_backward_in_eval_mode() -> None:
    model, x, masks = stack(dropout=0.5)
    model.eval()
    ours = gradients_of(model, x, loss_of(*model(x, **masks)))
    model.backend = "reference"
    assert_equal(ours, gradients_of(model, x, loss_of(*model(x, **masks))))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_kernel_runs_and_nothing_is_kept(mode: Any) -> None:
    model, x, masks = stack()
    expected, _ = model(x, **masks)
    with mode(), counted() as ran:
        output, state = model(x, **masks)
    assert ran["portable"] == 2
    assert torch.equal(output, expected)
    assert not output.requires_grad
    assert state.h.grad_fn is None


def test_a_deep_copy_computes_and_trains_on_its_own() -> None:
    model, x, masks = stack()
    model(x, **masks)[0].sum().backward()
    twin = copy.deepcopy(model)
    expected = gradients_of(model, x, loss_of(*model(x, **masks)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for value, exact in zip(gradients_of(twin, x, loss_of(*twin(x, **masks))), expected, strict=True):
        assert torch.equal(value, exact)


# Autocast: products with the input and the projection in low precision, recurrence and states in float32


def test_autocast_dtypes() -> None:
    model, x, masks = stack(dtype=F32)
    with torch.autocast("cpu", torch.bfloat16):
        trace = model.trace(x, **masks)
        loss_of(trace.output.float(), trace.state).backward()
    assert trace.output.dtype == torch.bfloat16
    assert {value.dtype for value in trace.state} == {F32}
    assert {getattr(layer, name).dtype for layer in trace.layers for name in "hcifgo"} == {F32}
    assert {value.grad.dtype for value in (x, *model.parameters())} == {F32}


def test_autocast_leaves_the_recurrence_alone() -> None:
    """With pre-activations that bfloat16 holds exactly, autocast changes nothing in any backend's recurrence."""
    torch.manual_seed(6)
    ids, results = torch.randint(5, (3, 12)), {}
    model = MultiLayerLSTM(5, 16, output_dim=None)
    for backend in ("portable", "reference"):
        model.backend = backend
        plain, _ = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            low, _ = model(ids)
        assert torch.equal(low, plain), backend
        results[backend] = low
    torch.testing.assert_close(results["portable"], results["reference"], rtol=1e-6, atol=1e-6)


def test_a_backward_pass_inside_autocast_keeps_the_recurrent_gradients_in_float32() -> None:
    torch.manual_seed(6)
    ids = torch.randint(5, (3, 12))
    model = MultiLayerLSTM(5, 16, output_dim=None)
    weights = [parameter for name, parameter in model.named_parameters() if "W_h" in name]

    expected = torch.autograd.grad(model(ids)[0].pow(2).sum(), weights)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(model(ids)[0].pow(2).sum(), weights)
    assert all(torch.equal(value, exact) for value, exact in zip(inside, expected, strict=True))
