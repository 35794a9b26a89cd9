"""Time steps of a whole stack by the native library: its weights packed, its pointers bound once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_int32, c_int64, c_void_p
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import kernels
from .step import StackWeights
from .structs import CellStruct

# In the order of enum UnrolledWeights.
KINDS = ("float32", "bfloat16", "int8")
# What each token adds to the first layer's gates, [vocabulary, 4, hidden] floats, is worth its memory up to here; where
# it is more, a step multiplies the embedding's rows.
_TABLE_BYTES = 64 * 2**20


class _Step(Structure):
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


class _Call(NamedTuple):
    """A step with its pointers, and the C functions with it: they return what is wrong with it, and take it else."""

    step: _Step
    take: Callable[[], bytes | None]
    take_several: Callable[[c_int64], bytes | None]


class NativeStep:
    """A stack of `rows` rows on `threads` threads; same members as `PlainStep`, whose `out` also may be its `x`.

    `h` and `c` [layers, rows, hidden] are the state, to be read and written between two steps.
    """

    def __init__(self, weights: StackWeights, rows: int, kind: str, threads: int) -> None:
        self._library = _Functions()
        self._run = kernels._run()
        self._run.threads = threads
        self._kind, self._rows = KINDS.index(kind), rows
        layers, self._hidden = len(weights.layers), weights.layers[0].w_h.shape[0]
        # A step reads one h and writes the other.
        self._h = (torch.zeros(layers, rows, self._hidden), torch.zeros(layers, rows, self._hidden))
        self._turn = 0
        self.c = torch.zeros(layers, rows, self._hidden)
        structs = [kernels.cell_struct(cell, rows, self._hidden, self._hidden) for cell in weights.cells]
        self._cells = (CellStruct * len(structs))(*structs) if structs else None
        # Whose addresses are in the structs.
        self._of_cells = weights.cells
        # Of whole vectors, where they wait for their normalisation.
        normed, width = any(cell.norm is not None for cell in weights.cells), 4 * (-(-self._hidden // 16) * 16)
        self._sums = kernels.empty((rows, width)) if normed else None
        self._upper = [self._layer(weights, k) for k in range(1, layers)]
        self._projection = self._packed_projection(weights)
        self._frames: tuple[_Call, _Call] | None = None
        self._ids: tuple[_Call, _Call] | None = None
        self._embedding: Tensor | None = None
        self._kept: list[object] = []
        self._width = weights.layers[0].w_x.shape[0]
        self._scratch: Tensor | None = None

    @property
    def h(self) -> Tensor:
        return self._h[self._turn]

    @property
    def takes_frames(self) -> bool:
        return self._frames is not None

    @property
    def takes_ids(self) -> bool:
        return self._ids is not None or self._embedding is not None

    def take_frames(self, weights: StackWeights) -> None:
        """Make ready for frames, floats [rows, input]."""
        self._frames = self._bound(self._layer(weights, 0), self._width, None)

    def take_ids(self, weights: StackWeights) -> None:
        """Make ready for ids: of the embedding's rows, or of one-hot rows."""
        w_x, _, bias = weights.layers[0]
        embedding = weights.embedding
        if embedding is not None and embedding.shape[0] * bias.numel() * 4 > _TABLE_BYTES:
            self.take_frames(weights)
            self._embedding, self._x = embedding, torch.empty(self._rows, embedding.shape[1])
            return
        # The same product as a step's, so that a table changes no bit.
        table = w_x + bias if embedding is None else kernels.product(embedding, w_x.flatten(1), bias.flatten())[0]
        self._ids = self._bound(self._layer(weights, 0, input_size=0), 0, table)

    def frames(self, x: Tensor, out: Tensor) -> None:
        """Take a step on `x` [rows, input]; `out` [rows, output] may be `x` itself."""
        assert self._frames is not None
        # This and `ids` are written out: a small step takes a few microseconds.
        step, take, _ = self._frames[self._turn]
        step.x, step.out = x.data_ptr(), out.data_ptr()
        if (message := take()) is not None:
            raise _refusal(message)
        self._turn ^= 1

    def ids(self, ids: Tensor, out: Tensor) -> None:
        """Take a step on `ids` [rows] int64; IndexError, and nothing done, where one is out of range."""
        if self._ids is None:
            return self.frames(self._embedded(ids, self._x), out)
        step, take, _ = self._ids[self._turn]
        step.ids, step.out = ids.data_ptr(), out.data_ptr()
        if (message := take()) is not None:
            raise _refusal_of_ids(message, ids, step)
        self._turn ^= 1
        return None

    def several_frames(self, x: Tensor, out: Tensor) -> None:
        """Take the steps of `x` [rows, time, input]; `out` [rows, time, output] may be `x` itself."""
        assert self._frames is not None
        step = self._frames[self._turn].step
        step.x = x.data_ptr()
        if (message := self._take_several(self._frames, x.shape[1], out)) is not None:
            raise _refusal(message)

    def several_ids(self, ids: Tensor, out: Tensor) -> None:
        """Take the steps of `ids` [rows, time] int64; IndexError, and nothing done, where one is out of range."""
        if self._ids is None:
            return self.several_frames(self._embedded(ids.flatten()).unflatten(0, ids.shape), out)
        step = self._ids[self._turn].step
        step.ids = ids.data_ptr()
        if (message := self._take_several(self._ids, ids.shape[1], out)) is not None:
            raise _refusal_of_ids(message, ids, step)
        return None

    def _embedded(self, ids: Tensor, out: Tensor | None = None) -> Tensor:
        assert self._embedding is not None
        return torch.index_select(self._embedding, 0, ids, out=out)

    def _take_several(self, calls: tuple[_Call, _Call], steps: int, out: Tensor) -> bytes | None:
        step, _, take_several = calls[self._turn]
        # It serves single steps too.
        if self._scratch is None:
            sizes = (self._kind, self._rows, self._width, self._hidden, self._run.threads)
            self._scratch = self._memory(self._library.several_scratch_bytes(*sizes))
        step.scratch, step.scratch_bytes, step.out = self._scratch.data_ptr(), self._scratch.nbytes, out.data_ptr()
        message = take_several(c_int64(steps))
        if message is None and steps:
            self._turn ^= 1
        return message

    def _bound(self, bottom: Tensor, width: int, table: Tensor | None) -> tuple[_Call, _Call]:
        """The two steps that take turns, all pointers set but those of x or ids and out."""
        run, layers = self._run, [bottom, *self._upper]
        scratch = self._memory(self._library.scratch_bytes(self._kind, self._rows, width, self._hidden, run.threads))
        packed = (c_void_p * len(layers))(*(layer.data_ptr() for layer in layers))
        projection, output = self._projection if self._projection is not None else (None, 0)
        self._kept += [layers, packed, scratch, table]
        calls = []
        for before, after in (self._h, self._h[::-1]):
            step = _Step(
                layers=len(layers),
                rows=self._rows,
                input=width,
                hidden=self._hidden,
                output=output,
                weights=self._kind,
                packed=packed,
                packed_projection=None if projection is None else projection.data_ptr(),
                table=None if table is None else table.data_ptr(),
                vocabulary=0 if table is None else table.shape[0],
                h_before=before.data_ptr(),
                h_after=after.data_ptr(),
                c=self.c.data_ptr(),
                scratch=scratch.data_ptr(),
                scratch_bytes=scratch.nbytes,
                cells=None if self._cells is None else ctypes.addressof(self._cells),
                sums=None if self._sums is None else self._sums.data_ptr(),
            )
            functions = (self._library.step, self._library.steps)
            calls.append(_Call(step, *(partial(each, ctypes.byref(run), ctypes.byref(step)) for each in functions)))
        return calls[0], calls[1]

    def _layer(self, weights: StackWeights, k: int, input_size: int | None = None) -> Tensor:
        w_x, w_h, bias = weights.layers[k]
        width = w_x.shape[0] if input_size is None else input_size
        packed = self._memory(self._library.layer_bytes(self._kind, width, self._hidden))
        # With ids, the table has the bias.
        pointers = (w_x.data_ptr(), w_h.data_ptr(), bias.data_ptr()) if width else (None, w_h.data_ptr(), None)
        sizes = (self._kind, width, self._hidden)
        _check(self._library.pack_layer(ctypes.byref(self._run), *sizes, *pointers, packed.data_ptr()))
        return packed

    def _packed_projection(self, weights: StackWeights) -> tuple[Tensor, int] | None:
        if weights.projection is None:
            return None
        weight, bias = weights.projection
        sizes = (self._kind, self._hidden, weight.shape[0])
        packed = self._memory(self._library.projection_bytes(*sizes))
        pointers = (weight.data_ptr(), bias.data_ptr(), packed.data_ptr())
        _check(self._library.pack_projection(ctypes.byref(self._run), *sizes, *pointers))
        return packed, weight.shape[0]

    def _memory(self, size: int) -> Tensor:
        if size < 0:
            raise RuntimeError("the native library cannot pack a stack of these sizes")
        return kernels.empty((-(-size // 4),))


def _refusal(message: bytes) -> RuntimeError:
    return RuntimeError(f"the native library refused the step: {message.decode()}")


def _refusal_of_ids(message: bytes, ids: Tensor, step: _Step) -> Exception:
    if bool(((ids < 0) | (ids >= step.vocabulary)).any()):
        return IndexError("an id is out of range")
    return _refusal(message)


def _check(message: bytes | None) -> None:
    if message is not None:
        raise RuntimeError(f"the native library refused the weights: {message.decode()}")


class _Functions:
    """The step's functions with their types."""

    def __init__(self) -> None:
        library = kernels._library()

        def function(name: str, result: type, *arguments: type) -> Any:
            found = library[f"unrolled_step{name}"]
            found.restype = result
            if arguments:
                found.argtypes = arguments
            return found

        size, pointer = c_int64, c_void_p
        self.layer_bytes = function("_layer_bytes", size, c_int32, size, size)
        self.projection_bytes = function("_projection_bytes", size, c_int32, size, size)
        self.scratch_bytes = function("_scratch_bytes", size, c_int32, size, size, size, size)
        self.pack_layer = function(
            "_pack_layer", c_char_p, pointer, c_int32, size, size, pointer, pointer, pointer, pointer
        )
        self.pack_projection = function(
            "_pack_projection", c_char_p, pointer, c_int32, size, size, pointer, pointer, pointer
        )
        self.several_scratch_bytes = function("s_scratch_bytes", size, c_int32, size, size, size, size)
        # Without types: they are given references, and a step has no time for conversions.
        self.step, self.steps = function("", c_char_p), function("s", c_char_p)
