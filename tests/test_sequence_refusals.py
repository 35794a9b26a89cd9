"""What the C interface of the sequence kernels refuses, in words, writing nothing; scratch to the last float."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from worlds import needs_library

from unrolled.recurrence import kernels

pytestmark = needs_library

T, B, H = 3, 4, 5
N, K, M = 6, 7, 70
NAN = float("nan")


def library() -> ctypes.CDLL:
    return kernels._library()


class Call:
    """A correct call of one C function, in whose place a test puts one wrong thing."""

    def __init__(self, name: str) -> None:
        self.function = getattr(library(), f"unrolled_{name}")
        self.run: Any = kernels.Run(None, 1)
        self.tensors = {}
        structure, sizes, inputs, outputs = CALLS[name]
        for field, size in inputs.items():
            self.tensors[field] = torch.randn(size)
        self.outputs = {field: torch.full(size, NAN) for field, size in outputs.items()}
        self.struct: Any = structure(**sizes)
        for field, tensor in (self.tensors | self.outputs).items():
            if field in ("grad_h", "grad_c", "grad_gates"):
                gradient = kernels.Gradient(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))
                setattr(self.struct, field, gradient)
            else:
                setattr(self.struct, field, tensor.data_ptr())
        self.struct.scratch_floats = self.outputs["scratch"].numel()

    def __call__(self) -> str | None:
        run = None if self.run is None else ctypes.byref(self.run)
        struct = None if self.struct is None else ctypes.byref(self.struct)
        wrong = self.function(run, struct)
        return None if wrong is None else wrong.decode("ascii")

    def nothing_written(self) -> bool:
        return all(bool(value.isnan().all()) for value in self.outputs.values())


SCRATCH = (32 * 1024,)
SEQUENCE = {"steps": T, "rows": B, "hidden": H}
CALLS: dict[str, tuple[Any, dict[str, int], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "forward": (
        kernels.Forward,
        {**SEQUENCE, "keep_c": 1},
        {"pre": (T, B, 4, H), "w_h": (H, 4, H), "h0": (B, H), "c0": (B, H)},
        {"h": (T, B, H), "c": (T, B, H), "gates": (T, B, 4, H), "scratch": SCRATCH},
    ),
    "backward": (
        kernels.Backward,
        SEQUENCE,
        {
            "grad_h": (T, B, H),
            "grad_c": (T, B, H),
            "grad_gates": (T, B, 4 * H),
            "w_h": (H, 4, H),
            "c": (T, B, H),
            "gates": (T, B, 4, H),
            "c0": (B, H),
        },
        {"grad_pre": (T, B, 4, H), "grad_h0": (B, H), "grad_c0": (B, H), "scratch": SCRATCH},
    ),
    "product": (
        kernels.Product,
        {"rows": N, "depth": K, "columns": M, "x_stride": K, "w_depth_stride": M, "w_column_stride": 1},
        {"x": (N, K), "w": (K, M), "bias": (M,)},
        {"out": (N, M), "scratch": SCRATCH},
    ),
    "weight_gradient": (
        kernels.WeightGradient,
        {"rows": N, "depth": K, "columns": M, "x_stride": K, "grad_stride": M},
        {"x": (N, K), "grad": (N, M)},
        {"grad_w": (K, M), "grad_bias": (M,), "scratch": SCRATCH},
    ),
}
# What may be left out; every other pointer is needed.
OPTIONAL = {"gates of forward", "grad_h", "grad_c", "grad_gates", "bias", "grad_bias"}
NEEDED = [
    (name, field)
    for name, (_, _, inputs, outputs) in CALLS.items()
    for field in inputs | outputs
    if field not in OPTIONAL and f"{field} of {name}" not in OPTIONAL
]


@pytest.mark.parametrize("name", CALLS)
def test_a_correct_call_writes_every_output(name: str) -> None:
    call = Call(name)
    assert call() is None
    assert all(bool(value.isfinite().all()) for field, value in call.outputs.items() if field != "scratch")


@pytest.mark.parametrize(("name", "field"), NEEDED)
def test_a_missing_pointer_is_refused_and_nothing_is_written(name: str, field: str) -> None:
    call = Call(name)
    setattr(call.struct, field, None)
    message = call()
    assert message is not None
    assert message.endswith("must not be NULL")
    assert field in message.replace(",", "").split()
    assert call.nothing_written()


def put(field: str, value: Any) -> Callable[[Call], None]:
    return lambda call: setattr(call.struct, field, value)


def run_with(instruction_set: bytes | None, threads: int) -> Callable[[Call], None]:
    return lambda call: setattr(call, "run", kernels.Run(instruction_set, threads))


NEGATIVE = "steps, rows and hidden must not be negative"
NEGATIVE_PRODUCT = "rows, depth and columns must not be negative"
NO_SET = "this processor, or this library, has no such instruction set"
EVERY: list[tuple[Callable[[Call], None], str]] = [
    (lambda call: setattr(call, "run", None), "run is NULL"),
    (lambda call: setattr(call, "struct", None), "call is NULL"),
    (run_with(None, 0), "threads must be at least 1"),
    (run_with(None, -3), "threads must be at least 1"),
    (run_with(None, 2**16 + 1), "threads is beyond 2^16"),
    (run_with(b"sse9", 1), NO_SET),
    (run_with(b"", 1), NO_SET),
    (put("scratch_floats", 0), "scratch is too small"),
    (put("scratch_floats", -1), "scratch is too small"),
    (put("rows", 2**62), "beyond 2^"),
]
ONE: dict[str, list[tuple[Callable[[Call], None], str]]] = {
    "forward": [
        *((put(field, -1), NEGATIVE) for field in SEQUENCE),
        (put("hidden", 2**24 + 1), "hidden is beyond 2^24"),
        (put("steps", 2**40), "steps x rows x hidden is beyond 2^38"),
    ],
    "backward": [
        *((put(field, -1), NEGATIVE) for field in SEQUENCE),
        (put("hidden", 2**24 + 1), "hidden is beyond 2^24"),
        (put("grad_h", kernels.Gradient(8, -1, 1)), "a cotangent's strides must not be negative"),
        (put("grad_gates", kernels.Gradient(8, 1, -1)), "a cotangent's strides must not be negative"),
    ],
    "product": [
        *((put(field, -1), NEGATIVE_PRODUCT) for field in ("rows", "depth", "columns")),
        (put("columns", 2**62), "a product of two of rows, depth and columns is beyond 2^40"),
        (put("depth", 2**39), "a product of two of rows, depth and columns is beyond 2^40"),
        (put("w_column_stride", 2), "one of the strides of w must be 1"),
        (put("w_depth_stride", -M), "strides must not be negative"),
        (put("x_stride", -K), "strides must not be negative"),
    ],
    "weight_gradient": [
        *((put(field, -1), NEGATIVE_PRODUCT) for field in ("rows", "depth", "columns")),
        (put("x_stride", -K), "strides must not be negative"),
        (put("grad_stride", -M), "strides must not be negative"),
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_what_cannot_be_is_refused_and_nothing_is_written(name: str) -> None:
    for spoil, expected in EVERY + ONE[name]:
        call = Call(name)
        spoil(call)
        message = call()
        assert message is not None, expected
        assert expected in message
        assert call.nothing_written(), expected


@pytest.mark.parametrize("name", CALLS)
def test_scratch_may_be_exactly_what_was_asked_for_and_no_float_less(name: str) -> None:
    size = {"product": (K, M), "weight_gradient": (1,)}.get(name, (H, 0))
    floats = getattr(library(), f"unrolled_{name}_scratch")(*size)
    # Every alignment: floats lie anywhere.
    for offset in range(16):
        call, room = Call(name), torch.full((floats + 48,), NAN)
        call.struct.scratch, call.struct.scratch_floats = room[16 + offset :].data_ptr(), floats - 1
        assert call() == "scratch is too small"
        assert room.isnan().all()
        call.struct.scratch_floats = floats
        assert call() is None
        assert room[: 16 + offset].isnan().all()
        assert room[16 + offset + floats :].isnan().all()
