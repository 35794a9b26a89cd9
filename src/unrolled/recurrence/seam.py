"""The seam between an opaque kernel and autograd: from a forward and a backward function to a differentiable operator.

A kernel is narrow: pre-activations of the input, recurrent weights, state and masks in; h, c and gates out. Products
with x, biases, dropout and the weights' gradients are plain torch around it, so that transforms, autocast and
parametrisations reach them for free.

Two forms of each operator are needed. Compiled and exported graphs take the registered operator with
`register_autograd`, which `torch.func` transforms refuse. Eager code takes an `autograd.Function` with a `vmap` rule,
which Dynamo would trace into. Neither has a forward-mode rule: a Function's own `jvp` loses nested tangents, so
`choose` sends forward mode to the reference before it can get here.

The backward pass is itself an operator whose derivative is that of the reference's hand-written backward pass, so every
order is exact, and nothing is detached or recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .calls import Function, below_autograd
from .cell import DIFFERENTIABLE, OF_C, PLAIN, TENSORS, Cell
from .masks import random_words
from .precision import full_precision

Scan = Callable[..., tuple[Tensor, Tensor, Tensor]]
ScanBackward = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
WeightGradient = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Operator(NamedTuple):
    """A differentiable recurrence, and its backward pass, which is differentiable too."""

    scan: Scan
    backward: ScanBackward


_LIBRARY = torch.library.Library("unrolled", "FRAGMENT")
_INPUTS = "Tensor pre, Tensor w_h, Tensor h0, Tensor c0, Tensor? resets, Tensor? lengths, Tensor? w_hr=None"
_BACKWARD_INPUTS = (
    "Tensor? grad_h, Tensor? grad_c, Tensor? grad_gates, Tensor w_h, Tensor c, Tensor gates, Tensor c0, "
    "Tensor? resets, Tensor? lengths, Tensor? w_hr=None"
)
# Where the batch axis of each argument and result lies; None marks the weights, which have none.
_ROWS_IN, _ROWS_OUT = (1, None, 0, 0, 1, 0, None), (1, 1, 1)
_BACKWARD_ROWS_IN, _BACKWARD_ROWS_OUT = (1, 1, 1, None, 1, 1, 0, 1, 0, None), (1, 0, 0, 0, 1)
# A cell's fields: behind all other arguments.
CELL = (
    "Tensor? peephole=None, float clip=0.0, bool hard_gates=False, bool relu=False, Tensor? norm=None, "
    "Tensor? keys=None, Tensor? h_mask=None, float zoneout_h=0.0, float zoneout_c=0.0, float recurrent_dropout=0.0, "
    "int first=0"
)
CELL_ROWS = tuple(TENSORS.get(name) for name in Cell._fields)
# Where the masks, which have no derivative, lie among the backward pass's arguments.
_BACKWARD_MASKS = (7, 8)

_STALE = (
    "the backward pass came to a window whose graph an earlier backward pass has already freed. If this window's state "
    "came from the one before, detach it between windows: state = state.detach() (for a layer: h0.detach(), "
    "c0.detach()); to go backward through one window twice, pass retain_graph=True the first time"
)


def weight_gradient(x: Tensor, grad: Tensor, skip: Tensor | None) -> Tensor:
    """x^T grad, [K, M], for x [N, K] and grad [N, M]; the rows of x where `skip` [N] is True count as zeros."""
    if skip is not None:
        x = x.masked_fill(skip.unsqueeze(-1), 0)
    return x.mT @ grad


def operator(
    name: str,
    forward: Scan,
    backward: ScanBackward,
    weight_gradient: WeightGradient = weight_gradient,
) -> Operator:
    """Register `unrolled::<name>` and `unrolled::<name>_backward`; return the functions to call.

    `forward` and `backward` have the arguments, shapes and meaning of `reference.scan` (with the inputs as one tensor
    [T, B, 4, H]) and `reference.scan_backward`, with the fields of the cell one by one. They may write only into memory
    that they allocate. Where gradients are enabled, `weight_gradient` is differentiable.
    """
    defaults = (None, *PLAIN)
    rows_in, backward_rows_in = ((*rows, *CELL_ROWS) for rows in (_ROWS_IN, _BACKWARD_ROWS_IN))
    scan_op = _register(name, f"{_INPUTS}, {CELL}", forward, _like_scan, rows_in, _ROWS_OUT)
    backward_op = _register(
        *(f"{name}_backward", f"{_BACKWARD_INPUTS}, {CELL}", backward),
        *(_like_backward, backward_rows_in, _BACKWARD_ROWS_OUT),
    )
    _register_derivatives(name, backward_op, weight_gradient)

    class Backward(Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return below_autograd(backward_op, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _save_for_second_order(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return _second_order(ctx, grads)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return map_rows(Backward.apply, backward_rows_in, _BACKWARD_ROWS_OUT, info.batch_size, in_dims, args)

    class Forward(Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return below_autograd(scan_op, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            # A Function makes a graph of the backward pass; without gradients there is none to make.
            run = Backward.apply if torch.is_grad_enabled() else partial(below_autograd, backward_op)
            return _first_order(run, weight_gradient, ctx, grads)

        @staticmethod
        def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
            return map_rows(Forward.apply, rows_in, _ROWS_OUT, info.batch_size, in_dims, args)

    def scan(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        run = scan_op if torch.compiler.is_compiling() else Forward.apply
        h, c, gates = run(*args, *defaults[len(args) + 1 - len(_ROWS_IN) :])
        return h, c, gates

    return Operator(scan, Backward.apply)


def _register_derivatives(name: str, backward: Callable[..., Any], weight_gradient: WeightGradient) -> None:
    """The derivatives of the two operators, as compiled graphs take them."""
    torch.library.register_autograd(
        f"unrolled::{name}",
        lambda ctx, *grads: _first_order(backward, weight_gradient, ctx, grads),
        setup_context=_save,
    )
    torch.library.register_autograd(
        f"unrolled::{name}_backward",
        lambda ctx, *grads: _second_order(ctx, grads),
        setup_context=_save_for_second_order,
    )


def _register(
    name: str,
    inputs: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    rows_in: Sequence[int | None],
    rows_out: Sequence[int],
) -> Callable[..., Any]:
    _LIBRARY.define(f"{name}({inputs}) -> ({', '.join(['Tensor'] * len(rows_out))})")
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"unrolled::{name}", fake, lib=_LIBRARY)
    registered: Callable[..., Any] = getattr(torch.ops.unrolled, name).default
    torch.library.register_vmap(
        f"unrolled::{name}",
        lambda info, in_dims, *args: map_rows(registered, rows_in, rows_out, info.batch_size, in_dims, args),
        lib=_LIBRARY,
    )
    return registered


def _like_scan(
    pre: Tensor,
    w_h: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, rows, _, hidden = pre.shape
    new, planes = pre.new_empty, Cell(*options).planes
    return new(steps, rows, w_h.shape[0]), new(steps, rows, hidden), new(steps, rows, planes, hidden)


def _like_backward(
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_gates: Tensor | None,
    w_h: Tensor,
    c: Tensor,
    gates: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    steps, rows, _, hidden = gates.shape
    new, width, projected = c0.new_empty, w_h.shape[0], 0 if w_hr is None else w_hr.shape[1]
    of_cells = new(rows, Cell(*options).gradient_planes, hidden)
    return new(steps, rows, 4, hidden), new(rows, width), new(rows, hidden), of_cells, new(steps, rows, projected)


def _save(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor]) -> None:
    # Cotangents stay None where the loss does not use that output: a loss on h alone allocates nothing for c and gates.
    ctx.set_materialize_grads(False)
    _, *kept = _without_numbers(ctx, inputs)
    ctx.save_for_backward(*kept, *output)


def _save_for_second_order(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
    ctx.save_for_backward(*_without_numbers(ctx, inputs))


def _without_numbers(ctx: Any, inputs: Sequence[Any]) -> list[Tensor | None]:
    """The tensors among an operator's inputs, the cell's last; the cell without them stays with `ctx`."""
    cell = Cell(*inputs[-len(PLAIN) :])
    ctx.cell = cell.with_tensors([None] * len(TENSORS))
    return [*inputs[: -len(PLAIN)], *cell.tensors]


class Gradients(NamedTuple):
    """Of a recurrence's arguments; those of the cell's tensors by name."""

    pre: Tensor
    w_h: Tensor | None
    h0: Tensor
    c0: Tensor
    w_hr: Tensor | None
    of_cell: dict[str, Tensor]


def first_order(
    backward: Callable[..., Any],
    weight_gradient: WeightGradient,
    grads: Sequence[Tensor | None],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Cell],
    outputs: tuple[Tensor, Tensor, Tensor],
    *,
    with_w_h: bool,
) -> Gradients:
    """The gradients from the cotangents of h, c and gates; `inputs` are w_h, h0, c0, resets, lengths, w_hr and cell."""
    w_h, h0, c0, resets, lengths, w_hr, cell = inputs
    h, c, gates = outputs
    grad_pre, grad_h0, grad_c0, of_cells, of_projected = backward(
        *grads, w_h, c, gates, c0, resets, lengths, w_hr, *cell
    )
    grad_w_h = grad_w_hr = None
    with full_precision(w_h):
        if with_w_h:
            taken_in = cell.dropped_h(h0), cell.dropped_h(h)
            grad_w_h = _grad_recurrent_weights(weight_gradient, *taken_in, grad_pre, resets, lengths)
        if w_hr is not None:
            new_c = c
            if cell.zoneout_c:
                drawn = cell.drawn(0, len(c), (h.shape[-1], c.shape[-1]), random_words)
                new_c = reference.new_c(c, gates, reference.c_before(c, c0, resets, lengths), cell, drawn)
            grad_w_hr = _grad_of_projection(weight_gradient, cell, new_c, gates, of_projected)
        of_cell: dict[str, Tensor] = {}
        of_all = of_cells.sum(0) if cell.gradient_planes else of_cells
        if cell.norm is not None:
            of_cell["norm"] = of_all[:10].reshape(cell.norm.shape)
        if cell.peephole is not None:
            of_cell["peephole"] = of_all[-3:]
    return Gradients(grad_pre, grad_w_h, grad_h0, grad_c0, grad_w_hr, of_cell)


def _first_order(
    backward: Callable[..., Any], weight_gradient: WeightGradient, ctx: Any, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments (None for the masks) from the cotangents of h, c and gates."""
    w_h, h0, c0, resets, lengths, w_hr, *tensors, h, c, gates = saved_tensors(ctx)
    if all(grad is None for grad in grads):
        return (None,) * (7 + len(PLAIN))
    inputs = w_h, h0, c0, resets, lengths, w_hr, ctx.cell.with_tensors(tensors)
    found = first_order(backward, weight_gradient, grads, inputs, (h, c, gates), with_w_h=ctx.needs_input_grad[1])
    of_cell = [found.of_cell.get(name) for name in Cell._fields]
    return found.pre, found.w_h, found.h0, found.c0, None, None, found.w_hr, *of_cell


def _grad_recurrent_weights(
    weight_gradient: WeightGradient,
    h0: Tensor,
    h: Tensor,
    grad_pre: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """The sum over all steps of h_{t-1}^T dpre_t, as `w_h` lies, as one product.

    Reshaped, not flattened: batched cotangents (`is_grads_batched`) know no flatten.
    """
    steps, rows, width = h.shape
    hidden = grad_pre.shape[-1]
    if not steps:
        return h.new_zeros(width, 4, hidden)
    dpre, skip = grad_pre.reshape(steps * rows, 4 * hidden), resets
    if lengths is not None:
        ended = reference.ended(lengths, steps)
        skip = ended if skip is None else skip | ended
    if skip is not None:
        h0 = h0.masked_fill(skip[:1].any(0).unsqueeze(-1), 0)
        skip = skip[1:].reshape(-1)
    # Step 0 is taken apart: joining h0 to h would copy the largest tensor of the layer but for the gates.
    rest = weight_gradient(h.reshape(steps * rows, width)[: (steps - 1) * rows], dpre[rows:], skip)
    return torch.addmm(rest, h0.mT, dpre[:rows]).reshape(width, 4, hidden)


def _grad_of_projection(weight_gradient: WeightGradient, cell: Cell, c: Tensor, gates: Tensor, dh: Tensor) -> Tensor:
    """The sum over all steps of (o * squashed(c_t))^T dL/dh_t, [H, P], for the h_t that nothing has held yet."""
    projected = gates[:, :, 3] * cell.squashed(cell.normed(c, OF_C))
    return weight_gradient(projected.reshape(-1, projected.shape[-1]), dh.reshape(-1, dh.shape[-1]), None)


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """What a Function saved. Raises RuntimeError, with advice, where an earlier backward pass has freed it."""
    try:
        saved: tuple[Any, ...] = ctx.saved_tensors
    except RuntimeError as error:
        if "second time" in str(error):
            raise RuntimeError(_STALE) from error
        raise
    return saved


def _second_order(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of the reference's backward pass, for the arguments that were given."""
    saved: Sequence[Tensor | None] = ctx.saved_tensors
    first = len(saved) - len(TENSORS)
    constant = {*_BACKWARD_MASKS, *(first + k for k, name in enumerate(TENSORS) if name not in DIFFERENTIABLE)}
    given = [k for k, value in enumerate(saved) if value is not None and k not in constant]

    def at(*values: Tensor) -> tuple[Tensor, ...]:
        arguments: list[Any] = list(saved)
        for k, value in zip(given, values, strict=True):
            arguments[k] = value
        others, tensors = arguments[:first], arguments[first:]
        backward: ScanBackward = reference.scan_backward
        return backward(*others, ctx.cell.with_tensors(tensors))

    with full_precision(grads[0]):
        products = torch.func.vjp(at, *[saved[k] for k in given])[1](tuple(grads))
    by_position = dict(zip(given, products, strict=True))
    of_cell = {name: by_position.get(first + k) for k, name in enumerate(TENSORS)}
    return (*[by_position.get(k) for k in range(first)], *[of_cell.get(name) for name in Cell._fields])


def map_rows(
    function: Callable[..., Any],
    rows_in: Sequence[int | None],
    rows_out: Sequence[int],
    size: int,
    in_dims: Sequence[int | None],
    args: Sequence[Tensor | None],
) -> tuple[Any, Any]:
    """The vmap rule: mapped rows join the batch; mapped weights (an ensemble) take one call for each member."""
    # Of a compiled call the dispatcher leaves out the last arguments that are their defaults.
    rows_in = rows_in[: len(args)]
    if all(dim is None for dim, axis in zip(in_dims, rows_in, strict=True) if axis is None):
        folded = [_fold(value, dim, axis, size) for value, dim, axis in zip(args, in_dims, rows_in, strict=True)]
        results = function(*folded)
        return tuple(
            result.unflatten(axis, (size, result.shape[axis] // size))
            for result, axis in zip(results, rows_out, strict=True)
        ), tuple(rows_out)
    members = [
        function(*[v if v is None or d is None else v.select(d, k) for v, d in zip(args, in_dims, strict=True)])
        for k in range(size)
    ]
    return tuple(torch.stack(results) for results in zip(*members, strict=True)), (0,) * len(rows_out)


def _fold(value: Tensor | None, dim: int | None, axis: int | None, size: int) -> Tensor | None:
    """`value` with its mapped axis (or, where it has none, `size` copies) merged into its batch axis."""
    if value is None or axis is None:
        return value
    if dim is None:
        value = value.unsqueeze(axis).expand(*value.shape[:axis], size, *value.shape[axis:])
    else:
        value = value.movedim(dim, axis)
    return value.flatten(axis, axis + 1)
