"""Every operator that is registered with torch passes torch's own check of it; one without a sample call is found.

`test_seam.py` checks the same at more shapes, dtypes and layouts of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Shape, make
from test_seam import arguments, backward_arguments

import unrolled
from unrolled.recurrence import native

SHAPE = Shape(3, 4, 2, 5, ("resets", "lengths"))
F32, F64 = torch.float32, torch.float64


def states() -> tuple[Any, ...]:
    x, w_x, w_h, bias, h0, c0 = (make(SHAPE, seed=2).floats[name] for name in ("x", "w_x", "w_h", "bias", "h0", "c0"))
    *_, resets, lengths = arguments(SHAPE, F32)
    return (*(value.float() for value in (x, w_x, w_h, bias, h0, c0)), resets, lengths, False)


def drawn(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


CALLS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "cpu": lambda: arguments(SHAPE, F32),
    "cpu_backward": lambda: backward_arguments(SHAPE, F32, (0, 2)),
    "portable": lambda: arguments(SHAPE, F64),
    "portable_backward": lambda: backward_arguments(SHAPE, F64, (0, 2)),
    "states": states,
    "product": lambda: (drawn(5, 3).requires_grad_(), drawn(3, 8).requires_grad_(), drawn(8).requires_grad_(), False),
    "weight_gradient": lambda: (drawn(5, 3), drawn(5, 8), torch.arange(5) > 2, True),
    "row_keys": lambda: (torch.tensor(7), 2, 5),
    "random_words": lambda: (torch.arange(3) << 40, 2, 4, 5),
    "multiplier": lambda: (torch.arange(3) << 40, 2, 4, 5, 0.25, torch.float32),
    "checked_range": lambda: (torch.arange(6).reshape(2, 3), 0, 5, "ids"),
}
NATIVE = {"cpu", "cpu_backward", "states", "product", "weight_gradient"}


def registered() -> set[str]:
    assert unrolled.LSTMLayer is not None, "importing it registers all of them"
    return {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("unrolled::")}


def test_every_registered_operator_has_a_call() -> None:
    assert registered() == {f"unrolled::{name}" for name in CALLS}


# What the native kernel's operators pass, the slow suite shows of the portable ones.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("portable")) for name in CALLS]
)
def test_opcheck(name: str) -> None:
    if name in NATIVE and native.library() is None:
        pytest.skip(f"no native library here: {native.missing()}")
    torch.library.opcheck(getattr(torch.ops.unrolled, name).default, CALLS[name]())
