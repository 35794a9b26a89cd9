"""What the tests of other libraries' weights share: sizes, results, how near they have to be, and a run apart."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unrolled import MultiLayerLSTM

# Rows, steps, inputs, units; and how many layers.
SIZES = pytest.mark.parametrize(("sizes", "depth"), [((1, 1, 1, 1), 1), ((4, 6, 5, 7), 2), ((2, 9, 8, 3), 3)], ids=str)


def drawn(*shape: int, seed: int, dtype: str = "float64") -> NDArray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def results(model: MultiLayerLSTM, x: NDArray, h: NDArray, c: NDArray, **options: torch.Tensor) -> list[NDArray]:
    """output, h_n and c_n; states [layers, batch, hidden]."""
    with torch.no_grad():
        output, state = model(*map(torch.from_numpy, (x,)), (torch.from_numpy(h), torch.from_numpy(c)), **options)
    return [value.numpy() for value in (output, *state)]


def assert_near(got: list[NDArray], expected: list[NDArray], rounded: np.dtype | None = None) -> None:
    """Equal but for the rounding of their dtype, or of `rounded` where a library rounds inside.

    That is some 20 steps of sums over some 20 terms of order 1. In float64 it may reach 1e-13; in float32, of 400
    roundings that do not all go one way, 20 or so remain, and thrice that is allowed. A wrong gate, or a bias that is
    missing, shows in the first or second digit.
    """
    for one, other, name in zip(got, expected, ("output", "h", "c")[: len(got)], strict=True):
        bound = 1e-12 if (rounded or other.dtype) == np.float64 else 64 * np.finfo(np.float32).eps
        assert one.dtype == other.dtype, name
        np.testing.assert_allclose(one, other, rtol=bound, atol=bound, err_msg=name)


def run_apart(file: str, package: str) -> None:
    """Run the tests in `file` in an interpreter of their own.

    Keras and Flax load JAX, whose threads make every later fork a warning, and some of our tests fork.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'unrolled[interop-test]'")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name(file)],
        env={**os.environ, "KERAS_BACKEND": "torch", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
