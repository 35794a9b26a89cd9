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
from worlds import BACKENDS, KERNELS, dtype_of, needs_library

from unrolled import LSTMState, MultiLayerLSTM
from unrolled.recurrence import cpu, portable, reference

F32 = torch.float32
kernels = pytest.mark.parametrize("kernel", KERNELS)
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


def operator(kernel: str, suffix: str = "") -> Any:
    return getattr(torch.ops.unrolled, kernel + suffix).default


def arguments(shape: Shape, dtype: torch.dtype, spread: bool = False) -> tuple[Any, ...]:
    """pre, w_h, h0, c0, resets, lengths: what the operator takes, with `spread` on strided memory."""
    case = make(shape, seed=2)
    pre = case.cotangents["gates"].transpose(0, 1).contiguous()
    floats = [value.to(dtype) for value in (pre, *(case.floats[name] for name in ("w_h", "h0", "c0")))]
    if spread:
        floats = [value.mT.contiguous().mT for value in floats]
    resets = None if case.resets is None else case.resets.t()
    return (*(value.requires_grad_() for value in floats), resets, case.lengths)


def backward_arguments(shape: Shape, dtype: torch.dtype, given: tuple[int, ...]) -> tuple[Any, ...]:
    pre, w_h, h0, c0, resets, lengths = arguments(shape, dtype)
    with torch.no_grad():
        _, c, gates = reference.scan(pre, w_h, h0, c0, resets, lengths)
    cotangents = [torch.randn_like(value).requires_grad_() for value in (c, c, gates)]
    some = [value if k in given else None for k, value in enumerate(cotangents)]
    return (*some, w_h, c.requires_grad_(), gates.requires_grad_(), c0, resets, lengths)


# The operators as torch's own checks see them: schema, fake tensors, autograd registration, dynamic shapes. One call of
# each operator is checked in `test_operators.py`.


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@kernels
def test_opcheck_of_the_scan(kernel: str, shape: Shape) -> None:
    torch.library.opcheck(operator(kernel), arguments(shape, dtype_of(kernel)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [Shape(3, 3, 2, 4, ("resets", "lengths"), proj=2), Shape(3, 0, 2, 4, proj=5), Shape(0, 5, 2, 4, proj=2)]
)
@kernels
def test_opcheck_of_a_projected_scan_and_its_backward(kernel: str, shape: Shape) -> None:
    w_hr = make(shape, seed=2).floats["w_hr"].to(dtype_of(kernel)).requires_grad_()
    torch.library.opcheck(operator(kernel), (*arguments(shape, dtype_of(kernel)), w_hr))
    pre, w_h, h0, c0, *masks = arguments(shape, dtype_of(kernel))
    with torch.no_grad():
        h, c, gates = reference.scan(pre, w_h, h0, c0, *masks, w_hr)
    cotangents = [torch.randn_like(value).requires_grad_() for value in (h, c, gates)]
    values = (*cotangents, w_h, c.requires_grad_(), gates.requires_grad_(), c0, *masks, w_hr)
    torch.library.opcheck(operator(kernel, "_backward"), values)


@pytest.mark.slow
@kernels
def test_opcheck_of_the_scan_on_strided_memory(kernel: str) -> None:
    values = arguments(SHAPES[3], dtype_of(kernel), spread=True)
    assert not any(value.is_contiguous() for value in values[:4])
    torch.library.opcheck(operator(kernel), values)


@pytest.mark.slow
@kernels
def test_opcheck_of_the_scan_in_float32_and_without_gradients(kernel: str) -> None:
    values = arguments(SHAPES[3], F32)
    torch.library.opcheck(operator(kernel), values)
    torch.library.opcheck(operator(kernel), tuple(value if value is None else value.detach() for value in values))


BACKWARD = [
    (SHAPES[0], (0,)),
    (SHAPES[0], (1, 2)),
    *((shape, (0, 1, 2)) for shape in (SHAPES[0], SHAPES[3], SHAPES[4], SHAPES[6], SHAPES[7])),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "given"), BACKWARD, ids=lambda v: v.name if isinstance(v, Shape) else str(v))
@kernels
def test_opcheck_of_the_backward_scan(kernel: str, shape: Shape, given: tuple[int, ...]) -> None:
    torch.library.opcheck(operator(kernel, "_backward"), backward_arguments(shape, dtype_of(kernel), given))


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_opcheck_of_the_states_without_gradients(shape: Shape, kind: str, strict: bool) -> None:
    case = make(shape, seed=2)
    x, w_x, bias = (case.floats[name].to(F32) for name in ("x", "w_x", "bias"))
    x = x if kind == "floats" else torch.randint(shape.width, (shape.rows, shape.steps))
    _, w_h, h0, c0, *masks = (None if v is None else v.detach() for v in arguments(shape, F32))
    torch.library.opcheck(torch.ops.unrolled.states.default, (x, w_x, w_h, bias, h0, c0, *masks, strict))


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(5, 3, 8), (1, 1, 1), (0, 3, 4), (4, 0, 3)])
def test_opcheck_of_the_products(rows: int, depth: int, columns: int, biased: bool, strict: bool) -> None:
    x, w, grad = torch.randn(rows, depth), torch.randn(depth, columns), torch.randn(rows, columns)
    bias = torch.randn(columns) if biased else None
    torch.library.opcheck(torch.ops.unrolled.product.default, (x, w, bias, strict))
    for value in (x, w, *([bias] if biased else [])):
        value.requires_grad_()
    torch.library.opcheck(torch.ops.unrolled.product.default, (x, w, bias, strict))
    torch.library.opcheck(torch.ops.unrolled.weight_gradient.default, (x.detach(), grad, None, True))
    torch.library.opcheck(torch.ops.unrolled.weight_gradient.default, (x.detach(), grad, grad[:, 0] > 0, False))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("size", [(3, 5), (4,), (0, 5)])
@pytest.mark.parametrize("what", ["ids", "lengths"])
def test_opcheck_of_the_range_check(what: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.unrolled.checked_range.default, (torch.randint(7, size, dtype=dtype), 0, 6, what))


@kernels
def test_the_operators_are_the_reference(kernel: str) -> None:
    values = arguments(SHAPES[3], dtype_of(kernel))
    assert_equal(operator(kernel)(*values), reference.scan(*values))
    values = backward_arguments(SHAPES[3], dtype_of(kernel), (0, 1, 2))
    assert_equal(operator(kernel, "_backward")(*values), reference.scan_backward(*values))


# Graphs: retained, freed, changed


def stack(kernel: str, **options: Any) -> tuple[MultiLayerLSTM, Tensor, dict[str, Tensor]]:
    """A stack of two that "auto" runs on the kernel, an x that requires gradients, and masks."""
    torch.manual_seed(5)
    model = MultiLayerLSTM(3, 4, 2, **{"dtype": dtype_of(kernel), **options})
    x = torch.randn(3, 6, 3, dtype=model.proj.weight.dtype, requires_grad=True)
    masks = {"resets": torch.rand(3, 6) < 0.3, "lengths": torch.tensor([6, 0, 4])}
    return model, x, masks


def loss_of(output: Tensor, state: LSTMState) -> Tensor:
    return output.pow(3).sum() + state.h.pow(2).sum() + state.c.pow(3).sum()


def gradients_of(model: MultiLayerLSTM, x: Tensor, loss: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [x, *model.parameters()], **options)


@kernels
def test_two_backward_passes_give_the_same_bits_and_leave_the_trace_as_it_was(kernel: str) -> None:
    model, x, masks = stack(kernel)
    trace = model.trace(x, **masks)
    names = "hcifgo"
    before = [getattr(layer, name).detach().clone() for layer in trace.layers for name in names]
    loss = loss_of(trace.output, trace.state) + sum(getattr(trace.layers[0], name).pow(3).sum() for name in names)
    first = gradients_of(model, x, loss, retain_graph=True)
    second = gradients_of(model, x, loss, create_graph=True)
    third = gradients_of(model, x, loss)
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one, three)
        # Where the gradients' own graph is made, their products are torch's.
        assert torch.equal(one, two) or kernel == "cpu"
        assert_equal(two, one)
    after = [getattr(layer, name) for layer in trace.layers for name in names]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "resets"])
@pytest.mark.parametrize("through", ["h", "c"])
@kernels
def test_a_freed_window_says_to_detach_the_state(kernel: str, through: str, masked: bool) -> None:
    model, x, masks = stack(kernel)
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


@kernels
def test_other_errors_of_the_backward_pass_keep_their_words(kernel: str) -> None:
    model, x, _ = stack(kernel)
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
        if func in (operator("portable", "_backward"), operator("cpu", "_backward")):
            self.given.append(tuple(value is not None for value in args[:3]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("used", ["h", "c", "gates", "h c"])
@kernels
def test_an_output_that_the_loss_does_not_use_costs_no_zeros(kernel: str, used: str) -> None:
    values, run = arguments(SHAPES[0], dtype_of(kernel)), {"cpu": cpu, "portable": portable}[kernel].scan
    results = dict(zip(("h", "c", "gates"), run(*values), strict=True))
    with Cotangents() as cotangents:
        sum(results[name].sum() for name in used.split()).backward()
    assert cotangents.given == [tuple(name in used.split() for name in results)]


@kernels
def test_states_that_require_gradients_get_the_references(kernel: str) -> None:
    model, x, masks = stack(kernel)
    state = LSTMState(*(torch.randn(2, 3, 4, dtype=x.dtype, requires_grad=True) for _ in "hc"))
    with counted() as ran:
        ours = torch.autograd.grad(loss_of(*model(x, state, **masks)), state)
    assert (ran[kernel], ran[f"{kernel}_backward"], ran["reference.scan"]) == (2, 2, 0)
    model.backend = "reference"
    assert_equal(ours, torch.autograd.grad(loss_of(*model(x, state, **masks)), state))
    # Two windows in one graph: the second one's loss reaches the first one's state.
    ours = torch.autograd.grad(loss_of(*model(x, model(x, state)[1])), state)
    model.backend = "auto"
    assert_equal(torch.autograd.grad(loss_of(*model(x, model(x, state)[1])), state), ours)


# Ways of running


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@kernels
def test_checkpointing_gives_the_same_gradients_and_runs_the_kernel_again(kernel: str, reentrant: bool) -> None:
    model, x, masks = stack(kernel)
    with counted():  # by the same operators: one node sums the gradients of biases in another order
        expected = gradients_of(model, x, loss_of(*model(x, **masks)))

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, state = model(x, **masks)
        return output, state.h, state.c

    with counted() as ran:
        output, h, c = checkpoint(run, x, use_reentrant=reentrant)
        loss_of(output, LSTMState(h, c)).backward()
    # The first pass of a reentrant checkpoint runs without gradients, where the native kernel is another operator.
    assert (ran[kernel] + ran["states"], ran[f"{kernel}_backward"]) == (4, 2)
    assert ran["states"] == (2 if reentrant and kernel == "cpu" else 0)
    for value, exact in zip((x, *model.parameters()), expected, strict=True):
        assert torch.equal(value.grad, exact)


@kernels
def test_backward_in_eval_mode(kernel: str) -> None:
    model, x, masks = stack(kernel, dropout=0.5)
    model.eval()
    ours = gradients_of(model, x, loss_of(*model(x, **masks)))
    model.backend = "reference"
    assert_equal(ours, gradients_of(model, x, loss_of(*model(x, **masks))))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@kernels
def test_without_gradients_the_kernel_runs_and_nothing_is_kept(kernel: str, mode: Any) -> None:
    model, x, masks = stack(kernel)
    expected, with_gradients = model(x, **masks)
    with mode(), counted() as ran:
        output, state = model(x, **masks)
    assert ran["states" if kernel == "cpu" else kernel] == 2
    assert ran[f"{kernel}_backward"] == 0
    assert all(torch.equal(*both) for both in zip(state, with_gradients, strict=True))
    # The projection is torch's, which on some processors adds its bias at another place in inference mode.
    torch.testing.assert_close(output, expected)
    assert not output.requires_grad
    assert state.h.grad_fn is None


@kernels
def test_a_deep_copy_computes_and_trains_on_its_own(kernel: str) -> None:
    model, x, masks = stack(kernel)
    model(x, **masks)[0].sum().backward()
    twin = copy.deepcopy(model)
    expected = gradients_of(model, x, loss_of(*model(x, **masks)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for value, exact in zip(gradients_of(twin, x, loss_of(*twin(x, **masks))), expected, strict=True):
        assert torch.equal(value, exact)


# Autocast: products with the input and the projection in low precision, recurrence and states in float32


autocast_backends = pytest.mark.parametrize("backend", BACKENDS)


@autocast_backends
def test_autocast_dtypes(backend: str) -> None:
    model, x, masks = stack("cpu", backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        trace = model.trace(x, **masks)
        loss_of(trace.output.float(), trace.state).backward()
    assert trace.output.dtype == torch.bfloat16
    assert {value.dtype for value in trace.state} == {F32}
    assert {getattr(layer, name).dtype for layer in trace.layers for name in "hcifgo"} == {F32}
    assert {value.grad.dtype for value in (x, *model.parameters())} == {F32}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@autocast_backends
def test_autocast_leaves_the_recurrence_alone(backend: str, mode: Any) -> None:
    """With pre-activations that bfloat16 holds exactly, autocast changes nothing in any backend's recurrence."""
    torch.manual_seed(6)
    ids = torch.randint(5, (3, 12))
    model = MultiLayerLSTM(5, 16, output_dim=None, backend=backend)
    with mode():
        plain, _ = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            low, _ = model(ids)
        assert torch.equal(low, plain)
        model.backend = "reference"
        assert_equal(low, model(ids)[0])


@kernels
def test_a_backward_pass_inside_autocast_keeps_the_recurrent_gradients_in_float32(kernel: str) -> None:
    torch.manual_seed(6)
    ids = torch.randint(5, (3, 12))
    model = MultiLayerLSTM(5, 16, output_dim=None, backend=kernel)
    weights = [parameter for name, parameter in model.named_parameters() if "W_h" in name]

    expected = torch.autograd.grad(model(ids)[0].pow(2).sum(), weights)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(model(ids)[0].pow(2).sum(), weights)
    assert all(torch.equal(value, exact) for value, exact in zip(inside, expected, strict=True))
