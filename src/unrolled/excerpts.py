"""Places of a text, side by side: which there are, and what stands there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Split


def spread(split: Split, count: int, length: int) -> NDArray[np.int64]:
    """The beginnings of `count` excerpts of `length` tokens, each within one document, spread evenly over the text.

    Fewer where the text has fewer such places. ValueError where it has none.
    """
    ends = np.append(split.starts[1:], len(split))
    there = np.maximum(ends - split.starts - length + 1, 0)
    total = int(there.sum())
    if not total:
        raise ValueError(
            f"no document is as long as {length} tokens, the longest has {int((ends - split.starts).max())}; pass a "
            "longer text, or ask for less"
        )
    # In the middle of each of so many equal parts of all places.
    chosen = ((np.arange(min(count, total)) + 0.5) * (total / min(count, total))).astype(np.int64)
    behind = np.cumsum(there)
    document = np.searchsorted(behind, chosen, side="right")
    begins: NDArray[np.int64] = split.starts[document] + chosen - (behind[document] - there[document])
    return begins


def excerpt(split: Split, places: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and resets at `places` [rows, steps]; what is read in front of a text, the reset at its beginning undoes."""
    ids = split.ids[np.clip(places, 0, len(split) - 1)].astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(opens(split, places)).to(device)


def opens(split: Split, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these places begin a document."""
    found = np.searchsorted(split.starts, places)
    begins: NDArray[np.bool_] = split.starts[np.minimum(found, len(split.starts) - 1)] == places
    return begins
