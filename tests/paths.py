"""Which path computed a result, and whether it is the right one: what the tests of transforms share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unrolled.recurrence import reference

# Both sides do the same few thousand operations in another order: in float64 1e-15 each, 1e-13 where third orders
# cancel; in float32 1e-7 each, and 5e-6 there. A lost tangent or a detached factor is wrong in its first digits.
RTOL = {torch.float64: 1e-10, torch.float32: 3e-5}


class _Operators(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "unrolled":
            self.counts[func._opname] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """What runs inside: a kernel by its operator's name, the reference by its function's ("reference.scan")."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(reference, name)

        def count(*args: Any, **keywords: Any) -> Any:
            counts[f"reference.{name}"] += 1
            return function(*args, **keywords)

        return count

    patches = [mock.patch.object(reference, name, counting(name)) for name in ("scan", "scan_backward")]
    with patches[0], patches[1], _Operators(counts):
        yield counts


def assert_equal(ours: Any, exact: Any) -> None:
    """Two trees of tensors are equal to rounding, relative to the largest value of each, and not just zeros."""
    ours, exact = tree_leaves(ours), tree_leaves(exact)
    assert len(ours) == len(exact)
    assert any(expected.numel() for expected in exact)
    for value, expected in zip(ours, exact, strict=True):
        if not expected.numel():
            assert value.shape == expected.shape
            continue
        scale = float(expected.detach().abs().max())
        assert scale > 1e-6, "a comparison of zeros shows nothing"
        near = RTOL[expected.dtype]
        torch.testing.assert_close(value, expected, rtol=near, atol=near * scale)
