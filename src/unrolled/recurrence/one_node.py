"""A layer's product with x and its recurrence as one node of the graph: what eager training runs on the native kernel.

The same calls as those of the operators in `seam` and `products`, and the same gradients. What is left out lies between
them: more nodes, and torch's dispatch of operators with twenty arguments, a sixth of a small layer's training step
(docs/experiments.md). The gates are written over the pre-activations, which nobody else sees. Transforms, graphs,
autocast and whatever wants to see the operators do not come here (`calls.is_plain`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import cpu, kernels, prepacked, products, seam
from .calls import is_plain
from .cell import TENSORS, Cell


def scan(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None,
    cell: Cell,
    place: Tensor | None,
    *,
    strict: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """h, c and gates, time-first, of float `x` [B, T, I]; `resets` are bool [T, B].

    `place`, one of `new_place`, has the gradient of the input's share of the pre-activations.
    """
    tensors, numbers = cell.tensors, cell.with_tensors([None] * len(TENSORS))
    by_time = x.transpose(0, 1).contiguous()
    h, c, gates = _Layer.apply(  # type: ignore[no-untyped-call]
        *(by_time, w_x, w_h, bias, h0, c0, resets, lengths, w_hr), *tensors, place, numbers, strict
    )
    return h, c, gates


def new_place(steps: int, rows: int, hidden: int) -> Tensor:
    """Where a gradient [T, B, 4, H] passes on its way to nowhere; it has no memory of its own."""
    anchor = torch.zeros(0, dtype=torch.float32, device="cpu", requires_grad=True)
    place: Tensor = _Place.apply(anchor, (steps, rows, 4, hidden))  # type: ignore[no-untyped-call]
    return place


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.set_materialize_grads(False)
        return anchor.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        return None, None


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, w_x, w_h, bias, h0, c0, resets, lengths, w_hr, *tensors, _, numbers, strict = inputs
        steps, rows, width = x.shape
        cell, hidden = numbers.with_tensors(tensors), w_h.shape[2]
        pre = kernels.empty((steps, rows, 4, hidden))
        out = pre.view(steps * rows, 4 * hidden)
        whole = products.are_own(strict)
        products.product(x.view(steps * rows, width), w_x.flatten(1), bias.flatten() if whole else None, strict, out)
        h, c = kernels.empty((steps, rows, w_h.shape[0])), kernels.empty((steps, rows, hidden))
        gates = pre if cell.norm is None else kernels.empty((steps, rows, cell.planes, hidden))
        lacking = None if whole else bias
        prepacked.forward(pre, w_h, (h0, c0), (resets, lengths), (h, c, gates), bias=lacking, w_hr=w_hr, cell=cell)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w_x, w_h, h0, c0, resets, lengths, w_hr, *tensors, h, c, gates)
        ctx.numbers = numbers
        return h, c, gates

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, w_x, w_h, h0, c0, resets, lengths, w_hr, *tensors, h, c, gates = seam.saved_tensors(ctx)
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        # Where a graph is made of the backward pass itself, it is of operations that have a derivative.
        plain = not torch.is_grad_enabled() and is_plain(*grads) and not _batched(*grads)
        for_x, for_w_x, for_w_h, for_bias, *_, for_place, _, _ = ctx.needs_input_grad
        cell, hidden, of_bias = ctx.numbers.with_tensors(tensors), w_h.shape[2], None
        run, weight_gradient = cpu.differentiable_backward, seam.weight_gradient
        if plain:
            of_bias = kernels.empty((4, hidden)) if for_bias and cell.norm is None else None
            run, weight_gradient = partial(cpu.backward, grad_bias=of_bias), _weight_gradient
        inputs = w_h, h0, c0, resets, lengths, w_hr, cell
        found = seam.first_order(run, weight_gradient, grads, inputs, (h, c, gates), with_w_h=for_w_h)
        steps, rows, width = x.shape
        flat = x.reshape(steps * rows, width), w_x.reshape(width, 4 * hidden)
        through = _through_product if plain else products.differentiable_gradients
        needed = for_x, for_w_x, for_bias and of_bias is None
        of_x, of_w_x, sum_of_bias = through(found.pre.reshape(steps * rows, 4 * hidden), *flat, needed)
        of_bias = sum_of_bias.reshape(4, hidden) if sum_of_bias is not None else of_bias
        return (
            *(_shaped(of_x, x), _shaped(of_w_x, w_x), found.w_h, of_bias),
            *(found.h0, found.c0, None, None, found.w_hr, *(found.of_cell.get(name) for name in TENSORS)),
            *(found.pre if for_place else None, None, None),
        )


def _batched(*grads: Tensor | None) -> bool:
    """Whether cotangents came by `is_grads_batched`, whose vmap no other question shows."""
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def _shaped(grad: Tensor | None, like: Tensor) -> Tensor | None:
    return None if grad is None else grad.reshape(like.shape)


def _weight_gradient(x: Tensor, grad: Tensor, skip: Tensor | None) -> Tensor:
    return products.weight_gradients(x, grad, skip, False)[0]


def _through_product(
    grad: Tensor, x: Tensor, w: Tensor, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`products.differentiable_gradients` without derivatives."""
    for_x, for_w, for_bias = needed
    of_x = products.product(grad, w.mT, None, False) if for_x else None
    if not (for_w or for_bias):
        return of_x, None, None
    of_w, of_bias = products.weight_gradients(x, grad, None, for_bias)
    return of_x, of_w, of_bias if for_bias else None
