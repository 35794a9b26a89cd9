"""How far a kernel may be from the truth: one rule, with a reason, for every numeric comparison of backends.

The truth is the reference in float64. Rounding is unavoidable, and plain torch in the kernel's own dtype shows how much
of it is: a kernel's largest error may be twice that, plus 4 ulp of the largest true value, so that a tensor on which
plain torch happens to be exact does not demand the same luck.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FACTOR = 2.0
ULPS = 4


def largest_error(value: Tensor, exact: Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    return float((value.double() - exact.double()).abs().max())


def budget(plain: Tensor, exact: Tensor) -> float:
    """The largest error allowed, from plain torch's result in the kernel's dtype and the exact one."""
    if exact.numel() == 0:
        return 0.0
    largest = float(exact.abs().max())
    ulp = torch.finfo(plain.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
    return FACTOR * largest_error(plain, exact) + ULPS * ulp


def assert_close(value: Tensor, plain: Tensor, exact: Tensor, name: str) -> None:
    assert value.shape == exact.shape, f"{name}: {list(value.shape)} instead of {list(exact.shape)}"
    assert torch.isfinite(value).all(), f"{name} is not finite"
    error, allowed = largest_error(value, exact), budget(plain, exact)
    assert error <= allowed, f"{name}: error {error:.3g}, plain torch makes {largest_error(plain, exact):.3g}"
