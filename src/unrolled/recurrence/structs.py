"""What the native library's functions are given: the structs of csrc/unrolled.h, field by field."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p


class Run(ctypes.Structure):
    _fields_ = [("instruction_set", c_char_p), ("threads", c_int64)]


class Gradient(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("time_stride", c_int64), ("row_stride", c_int64)]


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, c_void_p) for name in names]


class CellStruct(ctypes.Structure):
    _fields_ = [
        ("peephole", c_void_p),
        ("clip", c_float),
        ("hard_gates", c_int32),
        ("relu", c_int32),
        ("norm", c_void_p),
        ("keys", c_void_p),
        *((name, c_float) for name in ("zoneout_h", "zoneout_c", "dropout", "scale")),
        *((name, c_uint32) for name in ("held_h", "held_c", "dropped_g", "first")),
    ]


class Forward(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("steps", "rows", "hidden")),
        *_pointers("pre", "w_h", "h0", "c0", "resets", "lengths", "h", "c", "gates", "scratch"),
        ("scratch_floats", c_int64),
        ("keep_c", c_int32),
        ("packed", c_int32),
        ("cell", CellStruct),
        *_pointers("sums", "h_mask", "h_in"),
        ("projected", c_int64),
        *_pointers("w_hr", "unprojected", "bias"),
    ]


class Backward(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("steps", "rows", "hidden")),
        *((name, Gradient) for name in ("grad_h", "grad_c", "grad_gates")),
        *_pointers("w_h", "c", "gates", "c0", "resets", "lengths", "grad_pre", "grad_h0", "grad_c0", "scratch"),
        ("scratch_floats", c_int64),
        ("cell", CellStruct),
        *_pointers("grad_cell", "h_mask"),
        ("projected", c_int64),
        *_pointers("w_hr", "unprojected", "grad_projected", "grad_bias", "bias_sums"),
    ]


class RandomWords(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("first", "steps", "rows", "units")),
        *_pointers("keys", "words"),
    ]


class Multiplier(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("first", "steps", "rows", "units")),
        ("keys", c_void_p),
        ("threshold", c_uint32),
        ("scale", c_float),
        ("multiplier", c_void_p),
    ]


class Product(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "depth", "columns")),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("w", c_void_p),
        ("w_depth_stride", c_int64),
        ("w_column_stride", c_int64),
        *_pointers("bias", "out", "scratch"),
        ("scratch_floats", c_int64),
        ("packed", c_int32),
    ]


class WeightGradient(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "depth", "columns")),
        *_pointers("x", "grad"),
        ("x_stride", c_int64),
        ("grad_stride", c_int64),
        *_pointers("grad_w", "grad_bias", "scratch"),
        ("scratch_floats", c_int64),
        ("skip", c_void_p),
    ]
