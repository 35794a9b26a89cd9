"""The random masks of one call: its seed, what is drawn once for a whole sequence, and random words, as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import kernels, native, threefry
from .calls import is_plain

# Of the steps of a row, counted modulo 2^32, those that no sequence reaches.
_OF_H, _OF_X = -1, -2
# The row whose key is for the weights.
_WEIGHTS = 2**32 - 1

_LIBRARY = torch.library.Library("unrolled", "FRAGMENT")
_LIBRARY.define("row_keys(Tensor seed, int first, int rows) -> Tensor")
_LIBRARY.define("random_words(Tensor keys, int first, int steps, int units) -> Tensor")
_LIBRARY.define(
    "multiplier(Tensor keys, int first, int steps, int units, float probability, ScalarType dtype) -> Tensor"
)


def drawn_seed(device: torch.device) -> Tensor:
    """A seed, int64 [], from torch's generator of this device."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def row_keys(seed: Tensor, rows: int, first: int = 0) -> Tensor:
    """`threefry.row_keys` of so many rows as one operator."""
    run = _row_keys if is_plain(seed) else torch.ops.unrolled.row_keys
    keys: Tensor = run(seed, first, rows)
    return keys


def random_words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    """`threefry.words` as one operator."""
    words: Tensor = torch.ops.unrolled.random_words(keys, first, steps, units)
    return words


def sequence_mask(keys: Tensor, of: str, width: int, probability: float, dtype: torch.dtype) -> Tensor:
    """What "x" or "h" is multiplied by in every step of a row, [rows, width]: 0, or 1 / (1 - probability)."""
    step = _OF_X if of == "x" else _OF_H
    run = _multiplier if is_plain(keys) else torch.ops.unrolled.multiplier
    mask: Tensor = run(keys, step, 1, width, probability, dtype)
    return mask[0]


def weight_mask(seed: Tensor, shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """The same of W_h [H, 4, H]: each weight is its own unit, and its row in W_h the step."""
    depth, gates, hidden = shape
    keys = row_keys(seed, 1, _WEIGHTS)
    mask: Tensor = torch.ops.unrolled.multiplier(keys, 0, depth, gates * hidden, probability, dtype)
    return mask.reshape(shape)


def _by_kernel(given: Tensor) -> bool:
    return given.is_cpu and native.missing() is None


def _row_keys(seed: Tensor, first: int, rows: int) -> Tensor:
    if _by_kernel(seed):
        return kernels.row_keys(seed, first, rows)
    return threefry.row_keys(seed, torch.arange(first, first + rows, device=seed.device))


def _words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    return (kernels.random_words if _by_kernel(keys) else threefry.words)(keys, first, steps, units)


def _multiplier(keys: Tensor, first: int, steps: int, units: int, probability: float, dtype: torch.dtype) -> Tensor:
    if _by_kernel(keys) and dtype == torch.float32:
        return kernels.multiplier(keys, first, steps, units, probability)
    kept = ~threefry.below(_words(keys, first, steps, units), 0, threefry.threshold(probability))
    return kept.to(dtype) / (1 - probability)


def _like_keys(seed: Tensor, first: int, rows: int) -> Tensor:
    return seed.new_empty(rows)


def _like_words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    return keys.new_empty(2, steps, keys.shape[0], units, dtype=torch.int32)


def _like_multiplier(
    keys: Tensor, first: int, steps: int, units: int, probability: float, dtype: torch.dtype
) -> Tensor:
    return keys.new_empty(steps, keys.shape[0], units, dtype=dtype)


def _map_keys(info: Any, in_dims: tuple[int | None, ...], seed: Tensor, first: int, rows: int) -> Any:
    numbers = torch.arange(first, first + rows, device=seed.device)
    return threefry.row_keys(seed.movedim(in_dims[0] or 0, 0).unsqueeze(-1), numbers), 0


def _map_words(info: Any, in_dims: tuple[int | None, ...], keys: Tensor, *places: int) -> Any:
    """Mapped keys join the others."""
    keys = keys.movedim(in_dims[0] or 0, 0)
    words = random_words(keys.flatten(), *places)
    return words.unflatten(2, keys.shape), 2


def _map_multiplier(info: Any, in_dims: tuple[int | None, ...], keys: Tensor, *more: Any) -> Any:
    """As words."""
    keys = keys.movedim(in_dims[0] or 0, 0)
    mask: Tensor = torch.ops.unrolled.multiplier(keys.flatten(), *more)
    return mask.unflatten(1, keys.shape), 1


_LIBRARY.impl("row_keys", _row_keys, "CompositeExplicitAutograd")
torch.library.register_fake("unrolled::row_keys", _like_keys, lib=_LIBRARY)
torch.library.register_vmap("unrolled::row_keys", _map_keys, lib=_LIBRARY)

_LIBRARY.impl("random_words", _words, "CompositeExplicitAutograd")
torch.library.register_fake("unrolled::random_words", _like_words, lib=_LIBRARY)
torch.library.register_vmap("unrolled::random_words", _map_words, lib=_LIBRARY)

_LIBRARY.impl("multiplier", _multiplier, "CompositeExplicitAutograd")
torch.library.register_fake("unrolled::multiplier", _like_multiplier, lib=_LIBRARY)
torch.library.register_vmap("unrolled::multiplier", _map_multiplier, lib=_LIBRARY)
