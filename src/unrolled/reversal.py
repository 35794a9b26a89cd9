"""Reading each row from its end: what the backward direction of a layer is given, and how its results come back."""

from __future__ import annotations

import torch
from torch import Tensor


def turned(values: Tensor, lengths: Tensor | None) -> Tensor:
    """`values` [B, T, ...] with each row's valid steps in the opposite order, and the others where they are."""
    if lengths is None:
        return values.flip(1)
    steps = torch.arange(values.shape[1], device=values.device)
    ends = lengths.unsqueeze(1).long()
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return values.gather(1, index.reshape(*index.shape, *(1,) * (values.dim() - 2)).expand_as(values))


def turned_resets(resets: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Where a row that is read from its end starts afresh: once it has passed the first step of a part.

    `resets` [B, T] of the row as it stands are True at the first step of a part. Neither direction then sees what lies
    on the other side.
    """
    if resets is None or resets.shape[1] == 0:
        return resets
    passed = turned(resets, lengths)
    return torch.cat([torch.zeros_like(passed[:, :1]), passed[:, :-1]], 1)
