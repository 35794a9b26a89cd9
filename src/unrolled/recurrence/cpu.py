"""The native kernel, fused and threaded, for float32 on the CPU.

Forward, a tile of pre-activations stays in registers from the product with W_h to the stores of gates, c and h.
Backward, the gradients of a step's pre-activations are what the step before it multiplies, still in the cache.
The functions compute what `reference.scan` and `reference.scan_backward` define.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import kernels, products, seam
from .calls import is_plain
from .cell import PLAIN, Cell

# Bytes of pre-activations that are made, and used up, at a time. With the library's products they stay in the cache.
# Each of MKL's packs the weights anew: with fewer of them a call takes up to a quarter less (docs/experiments.md).
_CHUNK_BYTES, _CHUNK_BYTES_OF_MKL = 2 * 2**20, 16 * 2**20

_LIBRARY = torch.library.Library("unrolled", "FRAGMENT")
_LIBRARY.define(
    "states(Tensor x, Tensor w_x, Tensor w_h, Tensor bias, Tensor h0, Tensor c0, Tensor? resets, Tensor? lengths, "
    f"bool strict, Tensor? w_hr=None, {seam.CELL}) -> (Tensor, Tensor)"
)
# `strict`, w_hr and the cell behind the tensors are for all rows.
_ROWS_IN, _ROWS_OUT = (0, None, None, None, 0, 0, 1, 0, None, None, *seam.CELL_ROWS), (1, 1)


def forward(
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
    h, c = kernels.empty((steps, rows, w_h.shape[0])), kernels.empty((steps, rows, hidden))
    cell = Cell(*options)
    gates = kernels.empty((steps, rows, cell.planes, hidden))
    kernels.forward(pre, w_h, (h0, c0), (resets, lengths), (h, c, gates), w_hr=w_hr, cell=cell)
    return h, c, gates


def backward(
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
    grad_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads, masks = (grad_h, grad_c, grad_gates), (resets, lengths)
    return kernels.backward(grads, w_h, c, gates, c0, masks, w_hr=w_hr, cell=Cell(*options), grad_bias=grad_bias)


scan, differentiable_backward = seam.operator("cpu", forward, backward, products.weight_gradient)


def states(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    strict: bool,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
) -> tuple[Tensor, Tensor]:
    """h and c of every step, as from `scan`, without derivatives: pre-activations live for some steps, gates for none.

    `x` [B, T, I] or ids [B, T], both with their values checked; the other arguments as in `scan`.
    """
    tensors = x, w_x, w_h, bias, h0, c0, resets, lengths
    run = _states if is_plain(*tensors, w_hr, *cell.tensors) else torch.ops.unrolled.states
    h, c = run(*tensors, strict, w_hr, *cell)
    return h, c


def _states(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    strict: bool,
    w_hr: Tensor | None = None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    rows, steps = x.shape[:2]
    width, _, hidden = w_h.shape
    h, c = kernels.empty((steps, rows, width)), kernels.empty((steps, rows, hidden))
    cell = Cell(*options)
    size = _CHUNK_BYTES if products.are_own(strict) else _CHUNK_BYTES_OF_MKL
    chunk = max(1, min(steps, size // max(1, 16 * rows * hidden)))
    pre = kernels.kept("pre", chunk * rows * 4 * hidden)[: chunk * rows * 4 * hidden].view(chunk, rows, 4, hidden)
    inputs, scratch = products.Inputs(w_x, bias, strict=strict), None
    for start in range(0, steps, chunk):
        stop = min(steps, start + chunk)
        part = pre[: stop - start]
        lacking = inputs.write(x[:, start:stop], part)
        scratch = kernels.forward(
            part,
            w_h,
            (h[start - 1], c[start - 1]) if start else (h0, c0),
            (None if resets is None else resets[start:stop], None if lengths is None else lengths - start),
            (h[start:stop], c[start:stop], None),
            bias=None if lacking is None else lacking.view(4, hidden),
            w_hr=w_hr,
            cell=cell,
            scratch=scratch,
        )
    return h, c


def _like_states(x: Tensor, w_x: Tensor, w_h: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    rows, steps = x.shape[:2]
    return w_h.new_empty(steps, rows, w_h.shape[0]), w_h.new_empty(steps, rows, w_h.shape[2])


def _map_states(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return seam.map_rows(torch.ops.unrolled.states, _ROWS_IN, _ROWS_OUT, info.batch_size, in_dims, args)


_LIBRARY.impl("states", _states, "CompositeExplicitAutograd")
torch.library.register_fake("unrolled::states", _like_states, lib=_LIBRARY)
torch.library.register_vmap("unrolled::states", _map_states, lib=_LIBRARY)
