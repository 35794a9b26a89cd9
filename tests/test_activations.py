"""The native sigmoid and tanh: against float64, of the special values, and equal bits where promised."""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from unrolled.recurrence import native

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native library: {native.missing()}")

SETS = native.instruction_sets()
EXACT: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}
ULPS = 2.5
SMALLEST_NORMAL = 2.0**-126
INF, NAN = math.inf, math.nan


def compute(function: str, instruction_set: str, x: Tensor) -> Tensor:
    """`function` of every float of x. The output starts as NaN."""
    assert x.is_contiguous()
    y = torch.full_like(x, NAN)
    call = getattr(native.library(), f"unrolled_{function}")
    call.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    call.restype = ctypes.c_char_p
    assert call(instruction_set.encode(), x.data_ptr(), y.data_ptr(), x.numel()) is None
    return y


def from_bits(first: int, end: int, step: int = 1) -> Tensor:
    """The floats whose bits are first, first + step, ..."""
    return torch.arange(first, end, step, dtype=torch.int64).to(torch.int32).view(torch.float32)


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal bits; any two NaN count as equal."""
    return torch.equal(bits(one.nan_to_num(NAN)), bits(other.nan_to_num(NAN)))


def ulps(value: Tensor, exact: Tensor) -> Tensor:
    """Errors in ulp of the correctly rounded result; 0 where a subnormal result became 0, infinite where NaN differ."""
    rounded = exact.float()
    exponent = (bits(rounded) & 0x7F80_0000).view(torch.float32).clamp(min=SMALLEST_NORMAL)
    error = (value.double() - exact).abs_().div_(exponent.double().mul_(2.0**-23))
    if bool((exponent == SMALLEST_NORMAL).any()):
        error[(value == 0) & (exact.abs() < SMALLEST_NORMAL)] = 0.0
    if bool(error.isnan().any()):
        error = torch.where(value.isnan() & exact.isnan(), 0.0, error.nan_to_num(INF))
    return error


def neighbourhoods(points: Tensor) -> Tensor:
    """The 64 floats around each point, and their negatives."""
    near = (bits(points.abs())[:, None] + torch.arange(-32, 32, dtype=torch.int32)).clamp(min=0).view(torch.float32)
    return torch.cat([near.flatten(), -near.flatten()])


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """65,536 floats over all bits; all around what the kernels round, clamp or look up differently from there on."""
    whole = torch.arange(260, dtype=torch.float64) / 2
    edges = [whole * math.log(2), whole / 2, whole / 2 / 0.975, 2.0 ** torch.arange(-126.0, 128.0, dtype=torch.float64)]
    edges.append(torch.tensor([87.33, 88.0, 88.38, 88.5, 89.0, 9.0109, 9.25, 104.0], dtype=torch.float64))
    return torch.cat([from_bits(-(2**31), 2**31, 2**16 - 1), neighbourhoods(torch.cat(edges).float())])


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("function", EXACT)
def test_errors_of_a_sample(function: str, instruction_set: str, sample: Tensor) -> None:
    error = ulps(compute(function, instruction_set, sample), EXACT[function](sample.double()))
    worst = int(error.argmax())
    assert error[worst] <= ULPS, f"{function}({sample[worst].item()!r}) is wrong by {error[worst]:.2f} ulp"


@pytest.mark.parametrize("instruction_set", SETS)
def test_special_values(instruction_set: str) -> None:
    x = torch.tensor([NAN, -NAN, INF, -INF, 0.0, -0.0, 3e38, -3e38, 1e-30, -1e-30, 20.0])
    sigmoid = torch.tensor([NAN, NAN, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 0.5, 0.5, 1.0])
    tanh = torch.tensor([NAN, NAN, 1.0, -1.0, 0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1.0])
    assert same_bits(compute("sigmoid", instruction_set, x), sigmoid)
    assert same_bits(compute("tanh", instruction_set, x), tanh)


@pytest.mark.parametrize("instruction_set", SETS)
def test_range_and_symmetry(instruction_set: str, sample: Tensor) -> None:
    x = sample[~sample.isnan()]
    sigmoid, tanh = (compute(function, instruction_set, x) for function in EXACT)
    assert [float(sigmoid.min()), float(sigmoid.max())] == [0.0, 1.0]
    assert [float(tanh.min()), float(tanh.max())] == [-1.0, 1.0]
    assert torch.equal(bits(compute("tanh", instruction_set, -x)), bits(-tanh))


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(SETS), reason="needs a processor with AVX2 and AVX-512")
def test_avx2_and_avx512_give_the_same_bits(sample: Tensor) -> None:
    for function in EXACT:
        assert same_bits(compute(function, "avx2", sample), compute(function, "avx512", sample)), function


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("function", EXACT)
def test_any_length_and_place(function: str, instruction_set: str) -> None:
    x = torch.randn(67, generator=torch.Generator().manual_seed(5)) * 3
    whole = compute(function, instruction_set, x)
    for first in range(17):
        for end in (first, first + 1, 40, 66, 67):
            part = x[first:end]
            assert torch.equal(bits(compute(function, instruction_set, part)), bits(whole[first:end]))


CHUNK = 2**17


def chunk_errors(first: int) -> dict[str, float]:
    """The largest errors over the floats with bits first to first + CHUNK and their negatives, by function and set."""
    positive = from_bits(first, first + CHUNK)
    negative = -positive
    worst: dict[str, float] = {}
    for name, x in [("sigmoid", positive), ("sigmoid", negative), ("tanh", positive)]:
        exact = EXACT[name](x.double())
        values = {instruction_set: compute(name, instruction_set, x) for instruction_set in SETS}
        for instruction_set, value in values.items():
            lowest, highest = (float(bound) for bound in value.aminmax())
            outside = lowest < (0.0 if name == "sigmoid" else -1.0) or highest > 1.0
            assert not outside, f"{name} leaves its range near {x[0].item()!r}"
            if name == "tanh":
                assert torch.equal(bits(compute(name, instruction_set, negative)), bits(-value)), "tanh is not odd"
            # AVX-512 has the bits of AVX2: where it does, their error is computed once.
            if instruction_set == "avx512" and same_bits(value, values["avx2"]):
                error = worst[f"{name} avx2"]
            else:
                error = float(ulps(value, exact).max())
            key = f"{name} {instruction_set}"
            worst[key] = max(error, worst.get(key, 0.0))
    return worst


@pytest.mark.slow
def test_errors_of_all_floats() -> None:
    """`--log-cli-level=info` shows the largest errors."""
    worst: dict[str, float] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for errors in pool.map(chunk_errors, range(0, 2**31, CHUNK)):
            worst = {key: max(error, worst.get(key, 0.0)) for key, error in errors.items()}
    for key, error in worst.items():
        logging.getLogger(__name__).info("%s: %.3f ulp", key, error)
    assert len(worst) == len(EXACT) * len(SETS)
    assert max(worst.values()) <= ULPS, worst
