"""Recurrent weights as the kernel reads them, kept for many calls: of one step, packing them is the larger part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from . import kernels


class Packed:
    """A W_h [H, 4, H] (of a projected h [P, 4, H]) that stays as it is, and from its first call on its packed form."""

    def __init__(self, w_h: Tensor) -> None:
        self.w_h = w_h
        self.by_set: dict[bytes | None, Tensor] = {}  # packed for which instruction set


# By where W_h lies in memory, which is its own for as long as it is here.
_at_hand: dict[int, Packed] = {}


@contextmanager
def at_hand(packed: Sequence[Packed]) -> Iterator[None]:
    """In here calls with these weights, and always the same projection, pack them no more than once."""
    for each in packed:
        _at_hand[each.w_h.data_ptr()] = each
    try:
        yield
    finally:
        for each in packed:
            _at_hand.pop(each.w_h.data_ptr(), None)


def forward(pre: Tensor, w_h: Tensor, *arguments: Any, **options: Any) -> None:
    """`kernels.forward`, with what is at hand."""
    packed = _at_hand.get(w_h.data_ptr()) if _at_hand else None
    if packed is None or not packed.w_h.is_set_to(w_h):
        kernels.forward(pre, w_h, *arguments, **options)
        return
    chosen = kernels._run().instruction_set
    found = packed.by_set.get(chosen)
    used = kernels.forward(pre, w_h, *arguments, scratch=found, **options)
    if found is None and pre.numel():
        packed.by_set[chosen] = used.clone()
