"""Resets to a state that is not zeros: the sequence is cut before each step at which a row starts afresh.

The kernels know resets to zeros alone. Between two cuts there is none, so a kernel runs each part as a call of its own,
from the state that the part before it left, or, in the rows that start afresh, from `start`. Selection is torch's, so
the gradient of `start` comes to it, and none crosses a reset.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# h and c, [H] each, with which a row starts afresh.
Start = tuple[Tensor, Tensor]
# The number of its first step, the input's share of some steps, h0, c0, resets and lengths counted from them: to h, c
# and gates.
RunPart = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor, Tensor]]


def run_parts(
    run: RunPart,
    pre: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    start: Start | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `run` gives over `pre` [T, B, 4, H], its resets, bool [T, B], being to `start`; None is zeros."""
    if start is None or resets is None:
        return run(0, pre, h0, c0, resets, lengths)
    steps = pre.shape[0]
    cuts = [0, *_cuts(resets), steps]
    h, c = h0, c0
    parts = []
    # Split at once: the gradients of slices would each be as large as all of `pre`.
    for (begin, end), some in zip(pairwise(cuts), pre.split([b - a for a, b in pairwise(cuts)]), strict=True):
        if begin < end:
            fresh = resets[begin].unsqueeze(-1)
            h, c = torch.where(fresh, start[0], h), torch.where(fresh, start[1], c)
        found = run(begin, some, h, c, None, None if lengths is None else lengths - begin)
        parts.append(found)
        if begin < end:
            h, c = found[0][-1], found[1][-1]
    if len(parts) == 1:
        return parts[0]
    h, c, gates = (torch.cat(each) for each in zip(*parts, strict=True))
    return h, c, gates


def _cuts(resets: Tensor) -> list[int]:
    """The steps but for the first at which any row starts afresh; where that can't be looked up, all of them."""
    # Not in one expression: Dynamo knows no functorch.
    unknown = torch.compiler.is_compiling() or resets.is_meta
    if unknown or torch._C._functorch.is_functorch_wrapped_tensor(resets):
        return list(range(1, resets.shape[0]))
    return [t for t, any_row in enumerate(resets.any(1).tolist()) if any_row and t]
