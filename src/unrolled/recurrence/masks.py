"""The random masks of one call: its seed, what is drawn once for a whole sequence, and random words as one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import threefry

# Of the steps of a row, counted modulo 2^32, those that no sequence reaches.
_OF_H, _OF_X = -1, -2
# The row whose key is for the weights.
_WEIGHTS = 2**32 - 1

_LIBRARY = torch.library.Library("unrolled", "FRAGMENT")
_LIBRARY.define("random_words(Tensor keys, int first, int steps, int units) -> Tensor")


def drawn_seed(device: torch.device) -> Tensor:
    """A seed, int64 [], from torch's generator of this device."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def random_words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    """`threefry.words` as one operator."""
    words: Tensor = torch.ops.unrolled.random_words(keys, first, steps, units)
    return words


def row_keys(seed: Tensor, rows: int) -> Tensor:
    return threefry.row_keys(seed, torch.arange(rows, device=seed.device))


def sequence_mask(keys: Tensor, of: str, width: int, probability: float, dtype: torch.dtype) -> Tensor:
    """What "x" or "h" is multiplied by in every step of a row, [rows, width]: 0, or 1 / (1 - probability)."""
    words = random_words(keys, _OF_X if of == "x" else _OF_H, 1, width)[:, 0]
    return _multiplier(words, probability, dtype)


def weight_mask(seed: Tensor, shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """The same of W_h [H, 4, H]: each weight is its own unit, and its row in W_h the step."""
    depth, gates, hidden = shape
    keys = threefry.row_keys(seed, torch.tensor([_WEIGHTS], device=seed.device))
    words = random_words(keys, 0, depth, gates * hidden)
    return _multiplier(words, probability, dtype).reshape(shape)


def _multiplier(words: Tensor, probability: float, dtype: torch.dtype) -> Tensor:
    kept = ~threefry.below(words, 0, threefry.threshold(probability))
    return kept.to(dtype) / (1 - probability)


def _like_words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    return keys.new_empty(2, steps, keys.shape[0], units, dtype=torch.int32)


def _map_words(info: Any, in_dims: tuple[int | None, ...], keys: Tensor, first: int, steps: int, units: int) -> Any:
    """Mapped keys join the others."""
    keys = keys.movedim(in_dims[0] or 0, 0)
    words = random_words(keys.flatten(), first, steps, units)
    return words.unflatten(2, keys.shape), 2


_LIBRARY.impl("random_words", threefry.words, "CompositeExplicitAutograd")
torch.library.register_fake("unrolled::random_words", _like_words, lib=_LIBRARY)
torch.library.register_vmap("unrolled::random_words", _map_words, lib=_LIBRARY)
