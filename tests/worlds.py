"""The backends that this installation can run, the dtype that each is held to, and the world without a library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unrolled.recurrence import native

NOWHERE = Path(native.__file__).with_name("nowhere.so")
MISSING = native._load(NOWHERE).reason

needs_library = pytest.mark.skipif(native.library() is None, reason=f"no native library here: {native.missing()}")
CPU = pytest.param("cpu", marks=needs_library)
KERNELS = (CPU, "portable")
BACKENDS = (*KERNELS, "reference")


def dtype_of(backend: str) -> torch.dtype:
    """The widest that the backend takes: what shows the smallest mistakes."""
    return torch.float32 if backend == "cpu" else torch.float64


def remove_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this is an installation that found no C++ compiler."""
    monkeypatch.setattr(native, "_loaded", lambda: native._load(NOWHERE))
