"""Memory for large results, taken again once the tensors that had it are gone.

The system clears every page that a process touches anew: for the results of a training step, which come and go, that
took up to a quarter of the step (docs/experiments.md). Blocks that stay are touched once.
"""

from __future__ import annotations

import ctypes
import functools
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Smaller results are left to the allocator, which hands out memory that it has.
_SMALLEST = 256 * 2**10
# Bytes of all blocks, in use and waiting; whatever goes beyond is allocated and freed as any other tensor.
LIMIT = 2**30
# Blocks of one page of this size or more begin on its boundary: then all of it can lie on large pages.
_LARGE_PAGE = 2 * 2**20


class Pool:
    """Blocks by size. `advise(address, bytes)` is told of fresh ones."""

    def __init__(self, limit: int, advise: Callable[[int, int], object]) -> None:
        self._limit, self._advise = limit, advise
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Tensor]] = {}
        self._held = 0
        # Tensors may die anywhere, a garbage collection in the middle of `_take` included: this queue's `put` may be
        # called from there, where a lock would be waited for for ever.
        self._returned: queue.SimpleQueue[tuple[int, Tensor]] = queue.SimpleQueue()

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised float32 memory of this shape on the CPU."""
        count = math.prod(shape)
        if 4 * count < _SMALLEST:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        size = _rounded(4 * count)
        block = self._take(size)
        if block is None:
            return torch.empty(shape, dtype=torch.float32, device="cpu")
        # The storage keeps `floats` alive; with the last tensor on it `floats` goes, and the block comes back.
        floats = _lent(size).from_address(_begin(block, size))
        floats.size, floats.block, floats.back = size, block, self._returned.put
        # Not `torch.frombuffer` and a view of it: 18 microseconds where this takes 6.
        memory = torch.from_numpy(np.ndarray(shape, np.float32, floats))
        if torch.are_deterministic_algorithms_enabled() and torch._C._get_deterministic_fill_uninitialized_memory():
            memory.fill_(math.nan)  # what torch.empty does then
        return memory

    def _take(self, size: int) -> Tensor | None:
        with self._lock:
            self._collect()
            waiting = self._waiting.pop(size, [])
            block = waiting.pop() if waiting else self._fresh(size)
            if waiting:
                self._waiting[size] = waiting  # at the end: sizes that are no longer asked for come to the front
            return block

    def _collect(self) -> None:
        while True:
            try:
                size, block = self._returned.get_nowait()
            except queue.Empty:
                return
            self._waiting.setdefault(size, []).append(block)

    def _fresh(self, size: int) -> Tensor | None:
        """A new block, for which blocks of other sizes may have to go; None beyond the limit."""
        while self._held + size > self._limit:
            if not self._waiting:
                return None
            oldest = next(iter(self._waiting))
            self._waiting[oldest].pop()
            self._held -= oldest
            if not self._waiting[oldest]:
                del self._waiting[oldest]
        self._held += size
        slack = _LARGE_PAGE if size >= _LARGE_PAGE else 0
        block = torch.empty(size + slack, dtype=torch.uint8, device="cpu")
        if slack:
            self._advise(_begin(block, size), size)
        return block


@functools.cache
def _lent(size: int) -> Any:
    """The type of floats over a block of `size` bytes, which gives the block back as it goes: `weakref.finalize` takes
    four times as long.
    """

    class Lent(ctypes.c_float * (size // 4)):  # type: ignore[misc]
        def __del__(self) -> None:
            self.back((self.size, self.block))

    return Lent


def _rounded(size: int) -> int:
    """The next size with three significant bits: lengths that vary a little share blocks, an eighth wasted at most."""
    unit = 1 << max(12, size.bit_length() - 4)
    return -(-size // unit) * unit


def _begin(block: Tensor, size: int) -> int:
    address = block.data_ptr()
    return -(-address // _LARGE_PAGE) * _LARGE_PAGE if size >= _LARGE_PAGE else address
