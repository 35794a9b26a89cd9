"""A stack behind the C interface of the step: its structs, its packed weights, and buffers that show a stray write."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_void_p
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from unrolled.recurrence import kernels, native

SETS = native.instruction_sets()
FLOAT32, BFLOAT16, INT8 = 0, 1, 2
NAN = float("nan")
_FRONT = 68
needs_library = pytest.mark.skipif(native.library() is None, reason=f"no native library here: {native.missing()}")


class Run(Structure):
    _fields_ = (("instruction_set", c_char_p), ("threads", c_int64))


class Step(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("layers", "rows", "input", "hidden", "output")),
        ("weights", c_int32),
        ("packed", POINTER(c_void_p)),
        *((name, c_void_p) for name in ("packed_projection", "x", "ids", "table")),
        ("vocabulary", c_int64),
        *((name, c_void_p) for name in ("h_before", "h_after", "c", "out", "scratch")),
        ("scratch_bytes", c_int64),
        *((name, c_void_p) for name in ("cells", "sums")),
    )


class Sizes(NamedTuple):
    layers: int
    rows: int
    input: int
    hidden: int
    output: int


class Layer(NamedTuple):
    w_x: Tensor | None  # [I, 4, H]
    w_h: Tensor  # [H, 4, H]
    bias: Tensor  # [4, H]


class Stack(NamedTuple):
    layers: list[Layer]
    projection: tuple[Tensor, Tensor] | None  # [O, H], [O]


def stack_of(sizes: Sizes) -> Stack:
    scale = sizes.hidden**-0.5
    layers = []
    for k in range(sizes.layers):
        width = sizes.hidden if k else sizes.input
        w_x = scale * torch.randn(width, 4, sizes.hidden) if width else None
        layers.append(Layer(w_x, scale * torch.randn(sizes.hidden, 4, sizes.hidden), torch.randn(4, sizes.hidden)))
    projection = (scale * torch.randn(sizes.output, sizes.hidden), torch.randn(sizes.output))
    return Stack(layers, projection if sizes.output else None)


def library() -> ctypes.CDLL:
    return kernels._library()  # with torch's threads under it


def function(name: str, result: type, *arguments: type) -> Any:
    found = library()[name]
    found.restype, found.argtypes = result, arguments
    return found


def layer_bytes() -> Callable[[int, int, int], int]:
    return function("unrolled_step_layer_bytes", c_int64, c_int32, c_int64, c_int64)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Native:
    """A stack behind the C interface; every buffer starts as NaN, and lies between bytes that must stay as they are."""

    def __init__(self, stack: Stack, sizes: Sizes, kind: int, name: str | None = None, threads: int = 1) -> None:
        self.run, self.kind, self.guarded = Run(name and name.encode(), threads), kind, []
        self.packed = [self.pack_layer(layer) for layer in stack.layers]
        self.addresses = (c_void_p * len(self.packed))(*map(address, self.packed))
        self.projection = None if stack.projection is None else self.pack_projection(*stack.projection)
        shape = (sizes.layers, sizes.rows, sizes.hidden)
        self.h, self.after, self.c = self.floats(*shape).zero_(), self.floats(*shape), self.floats(*shape).zero_()
        self.out = self.floats(sizes.rows, sizes.output) if stack.projection else None
        needed = function("unrolled_step_scratch_bytes", c_int64, c_int32, *[c_int64] * 4)(
            kind, sizes.rows, sizes.input, sizes.hidden, threads
        )
        self.scratch = self.memory(needed)
        self.call = Step(
            **sizes._asdict(),
            weights=kind,
            packed=self.addresses,
            packed_projection=address(self.projection),
            c=address(self.c),
            out=address(self.out),
            scratch=address(self.scratch),
            scratch_bytes=needed,
        )

    def memory(self, size: int) -> Tensor:
        """Bytes of NaN, aligned to no more than 4, and with as many as a vector holds on either side."""
        assert size >= 0
        whole = torch.full(((size + 3) // 4 + 33,), NAN).view(torch.uint8)
        self.guarded.append((whole, size))
        return whole[_FRONT : _FRONT + size]

    def floats(self, *shape: int) -> Tensor:
        return self.memory(4 * torch.Size(shape).numel()).view(torch.float32).view(shape)

    def assert_guards_hold(self) -> None:
        for whole, size in self.guarded:
            for guard in (whole[:_FRONT], whole[_FRONT + (size + 3) // 4 * 4 :]):
                assert guard.clone().view(torch.float32).isnan().all()

    def pack_layer(self, layer: Layer) -> Tensor:
        width, hidden = 0 if layer.w_x is None else layer.w_x.shape[0], layer.w_h.shape[0]
        packed = self.memory(layer_bytes()(self.kind, width, hidden))
        pack = function("unrolled_step_pack_layer", c_char_p, c_void_p, c_int32, *[c_int64] * 2, *[c_void_p] * 4)
        pointers = map(address, (layer.w_x, layer.w_h, layer.bias, packed))
        assert pack(byref(self.run), self.kind, width, hidden, *pointers) is None
        return packed

    def pack_projection(self, weight: Tensor, bias: Tensor) -> Tensor:
        output, hidden = weight.shape
        size = function("unrolled_step_projection_bytes", c_int64, c_int32, c_int64, c_int64)
        packed = self.memory(size(self.kind, hidden, output))
        pack = function("unrolled_step_pack_projection", c_char_p, c_void_p, c_int32, *[c_int64] * 2, *[c_void_p] * 3)
        pointers = map(address, (weight, bias, packed))
        assert pack(byref(self.run), self.kind, hidden, output, *pointers) is None
        return packed

    def refusal(self) -> str | None:
        self.call.h_before, self.call.h_after = address(self.h), address(self.after)
        message = function("unrolled_step", c_char_p, c_void_p, c_void_p)(byref(self.run), byref(self.call))
        return message if message is None else message.decode()

    def step(self, x: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Copies of h and c [layers, rows, hidden] and of out."""
        if x is not None:
            self.call.x = address(x)
        assert self.refusal() is None
        self.h, self.after = self.after, self.h
        self.after.fill_(NAN)
        self.assert_guards_hold()
        return self.h.clone(), self.c.clone(), None if self.out is None else self.out.clone()
