"""The check that integers lie within a range, as an operator: it also runs under vmap and in compiled graphs.

In Python the same check would fail there, for want of concrete values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("unrolled", "FRAGMENT")
_LIBRARY.define("checked_range(Tensor values, SymInt low, SymInt high, str what) -> Tensor")

_ADVICE = {
    "ids": (
        IndexError,
        "an id is a row of a one-hot input of width {width}; check the tokenizer, or build with a larger input_dim",
    ),
    "lengths": (ValueError, "a length counts the valid steps of its row, and x has {high}"),
}


def checked_range(values: Tensor, low: int, high: int, what: str) -> Tensor:
    """A copy of `values` as int64, all of which lie in low..high, both included.

    Raises IndexError (what="ids") or ValueError (what="lengths") otherwise.
    """
    checked: Tensor = torch.ops.unrolled.checked_range(values, low, high, what)
    return checked


def _check(values: Tensor, low: int, high: int, what: str) -> Tensor:
    if values.numel():
        smallest, largest = (int(bound) for bound in values.aminmax())
        if smallest < low or largest > high:
            error, advice = _ADVICE[what]
            wrong = smallest if smallest < low else largest
            raise error(f"{what} must be from {low} to {high}, got {wrong}: {advice.format(high=high, width=high + 1)}")
    return values.to(torch.int64, copy=True, memory_format=torch.contiguous_format)


def _like(values: Tensor, low: int, high: int, what: str) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.int64)


def _map(info: Any, in_dims: Any, values: Tensor, low: int, high: int, what: str) -> tuple[Tensor, int | None]:
    return checked_range(values, low, high, what), in_dims[0]


_LIBRARY.impl("checked_range", _check, "CompositeExplicitAutograd")
torch.library.register_fake("unrolled::checked_range", _like, lib=_LIBRARY)
torch.library.register_vmap("unrolled::checked_range", _map, lib=_LIBRARY)
