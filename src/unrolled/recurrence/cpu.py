"""The native kernel, fused and threaded, for float32 on the CPU.

Forward, a tile of pre-activations stays in registers from the product with W_h to the stores of gates, c and h.
Backward, the gradients of a step's pre-activations are what the product of the step before it reads, still in the cache.
The functions compute what `reference.scan` and `reference.scan_backward` define.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import kernels, seam


def forward(
    pre: Tensor, w_h: Tensor, h0: Tensor, c0: Tensor, resets: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    steps, rows, _, hidden = pre.shape
    h, c = kernels.empty((steps, rows, hidden)), kernels.empty((steps, rows, hidden))
    gates = kernels.empty((steps, rows, 4, hidden))
    kernels.forward(pre, w_h, (h0, c0), (resets, lengths), (h, c, gates))
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
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels.backward((grad_h, grad_c, grad_gates), w_h, c, gates, c0, (resets, lengths))


scan = seam.operator("cpu", forward, backward)
