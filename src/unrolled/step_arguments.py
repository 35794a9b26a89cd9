"""What a stepper may be given; for each mistake a sentence that says what to write instead."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from .arguments import dtype_name, kind_of, shape_of
from .state import LSTMState, Rows

_ID_DTYPES = (torch.int32, torch.int64, torch.uint8)


def check_sizes(batch_size: Any, threads: Any) -> None:
    for name, value, least in (("batch_size", batch_size, 0), ("threads", threads, 1)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is {kind_of(value)}, expected an integer of at least {least}")
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")


def check_frame(x: Any, rows: int, width: int) -> None:
    """Check x: one float32 frame of each row, [rows, width], on the CPU."""
    expected = f"[batch, input] = [{rows}, {width}]"
    if x.dtype != torch.float32:
        raise TypeError(f"x is {dtype_name(x.dtype)}, but the weights are float32: x.float()")
    if x.dim() == 3 and x.shape[::2] == (rows, width):
        if x.shape[1] == 1:
            raise ValueError(f"x is {shape_of(x)}, expected {expected}: a step has no time axis: x[:, 0]")
        raise ValueError(
            f"x is {shape_of(x)}, expected {expected}: a step takes one time step: stepper.steps(x) takes them all"
        )
    if x.dim() == 1 and x.shape[0] == width:
        raise ValueError(f"x is {shape_of(x)}, expected {expected}: one row alone is x[None]")
    _check_rows(x, rows, x.dim() == 2 and x.shape[1] == width, expected)
    if x.shape != (rows, width):
        raise ValueError(f"x is {shape_of(x)}, expected {expected}")
    _check_device("x", x)


def check_ids(x: Any, rows: int, width: int, *, ids_only: bool) -> None:
    """Check x: one id of each row, [rows], on the CPU."""
    dtype = dtype_name(x.dtype)
    if not ids_only and x.dim() >= 2 and x.shape[-1] == width:
        raise TypeError(f"x is {dtype} {shape_of(x)}; frames must be floats: x.float(); ids are [batch] = [{rows}]")
    if x.dtype not in _ID_DTYPES:
        raise TypeError(f"x is {dtype}; ids must be int32, int64 or uint8: x.long()")
    expected = f"ids [batch] = [{rows}]"
    if x.dim() == 2 and x.shape[0] == rows:
        if x.shape[1] == 1:
            raise ValueError(f"x is {dtype} {shape_of(x)}, expected {expected}: a step has no time axis: x[:, 0]")
        raise ValueError(
            f"x is {dtype} {shape_of(x)}, expected {expected}: a step takes one time step: stepper.steps(x) takes them "
            "all"
        )
    if x.dim() == 0:
        raise ValueError(f"x is one id without an axis, expected {expected}: x[None]")
    _check_rows(x, rows, x.dim() == 1, expected)
    if x.shape != (rows,):
        raise ValueError(f"x is {dtype} {shape_of(x)}, expected {expected}")
    _check_device("x", x)


def check_steps(x: Any, rows: int, width: int, *, ids_only: bool) -> None:
    """Check x: float32 frames [rows, time, width], or ids [rows, time], on the CPU."""
    check_tensor(x, f"{rows}, time", width, ids_only=ids_only)
    frames = x.dtype.is_floating_point
    said, ids = f"{dtype_name(x.dtype)} {shape_of(x)}", f"[batch, time] = [{rows}, time]"
    if frames and x.dtype != torch.float32:
        raise TypeError(f"x is {dtype_name(x.dtype)}, but the weights are float32: x.float()")
    if not frames and not ids_only and x.dim() == 3 and x.shape[2] == width:
        raise TypeError(f"x is {said}; frames must be floats: x.float(); ids are {ids}")
    if not frames and x.dtype not in _ID_DTYPES:
        raise TypeError(f"x is {dtype_name(x.dtype)}; ids must be int32, int64 or uint8: x.long()")
    expected = f"[batch, time, input] = [{rows}, time, {width}]" if frames else f"ids {ids}"
    axes = 3 if frames else 2
    fits = x.dim() == axes and (not frames or x.shape[2] == width)
    _check_rows(x, rows, fits, expected)
    if not fits:
        alone = x.dim() == axes - 1 and (not frames or x.shape[1] == width)
        hint = ": one sequence alone is x[None], one step stepper.step(x)" if alone else ""
        raise ValueError(f"x is {shape_of(x) if frames else said}, expected {expected}{hint}")
    _check_device("x", x)


def check_tensor(x: Any, rows: int | str, width: int, *, ids_only: bool) -> None:
    """Check that x is a tensor, and, where a model reads ids alone, that it is not one of floats."""
    expected = f"ids [{rows}]" if ids_only else f"[{rows}, {width}] or ids [{rows}]"
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {kind_of(x)}, expected a tensor {expected}: torch.as_tensor(x)")
    if x.layout is not torch.strided:
        raise TypeError(
            f"x is {str(x.layout).removeprefix('torch.')}, expected a dense tensor {expected}: x.to_dense()"
        )
    if x.dtype.is_floating_point and ids_only:
        raise TypeError(
            f"a language model reads token ids, int32, int64 or uint8 [{rows}], and got {dtype_name(x.dtype)} "
            f"{shape_of(x)}: x.long(); frames of floats go into Stepper(model.lstm, ...)"
        )


def check_sequence(x: Any, width: int, *, ids_only: bool) -> Tensor:
    """Check x: float32 frames [batch, time, width], or ids [time] or [batch, time], returned as int64 of two axes."""
    expected = "ids [time] or [batch, time]" + ("" if ids_only else f", or frames [batch, time, {width}]")
    if not isinstance(x, Tensor):
        raise TypeError(f"x is {kind_of(x)}, expected a tensor, {expected}: torch.as_tensor(x)")
    _check_device("x", x)
    if x.dtype.is_floating_point and not ids_only:
        if x.dtype != torch.float32:
            raise TypeError(f"x is {dtype_name(x.dtype)}, but the weights are float32: x.float()")
        if x.dim() != 3 or x.shape[2] != width:
            hint = ": one sequence alone is x[None]" if x.dim() == 2 and x.shape[1] == width else ""
            raise ValueError(f"x is {shape_of(x)}, expected {expected}{hint}")
        return x.detach()
    if x.dtype not in _ID_DTYPES:
        raise TypeError(f"x is {dtype_name(x.dtype)}, expected {expected}: x.long()")
    if x.dim() not in (1, 2):
        raise ValueError(f"x is {dtype_name(x.dtype)} {shape_of(x)}, expected {expected}")
    return x.long() if x.dim() == 2 else x.long()[None]


def wrong_id(ids: Tensor, vocabulary: int, *, embedded: bool) -> IndexError:
    wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
    why = (
        f"this model's vocabulary has {vocabulary} tokens; encode with the tokenizer that it was trained with"
        if embedded
        else f"an id is a row of a one-hot input of width {vocabulary}"
    )
    return IndexError(f"ids must be from 0 to {vocabulary - 1}, got {wrong}: {why}")


def check_out(out: Any, shape: tuple[int, ...]) -> None:
    """Check out: contiguous float32 of `shape`, [batch, output] or [batch, time, output], on the CPU."""
    make, axes = f"torch.empty{shape}", "[batch, output]" if len(shape) == 2 else "[batch, time, output]"
    if not isinstance(out, Tensor):
        raise TypeError(f"out is {kind_of(out)}, expected a tensor {list(shape)}: {make}")
    if out.dtype != torch.float32:
        raise TypeError(f"out is {dtype_name(out.dtype)}, expected float32: {make}")
    if out.shape != shape:
        raise ValueError(f"out is {shape_of(out)}, expected {axes} = {list(shape)}: {make}")
    _check_device("out", out)
    if not out.is_contiguous() or out.is_neg():
        raise ValueError(f"out is not contiguous (its strides are {list(out.stride())}): {make}")


def check_state(state: Any, shape: torch.Size, rows: int, *, whole: bool) -> LSTMState:
    """Check a state for `rows` rows of a stepper whose own is of `shape` [layers, batch, hidden]."""
    if isinstance(state, Tensor) or not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"state is {kind_of(state)}, expected LSTMState(h, c) or a pair (h, c)")
    expected = [shape[0], rows, shape[2]]
    for name, value in (("state.h", state[0]), ("state.c", state[1])):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {kind_of(value)}, expected a tensor {expected}")
        if list(value.shape) != expected:
            raise ValueError(
                f"{name} is {shape_of(value)}, expected [layers, batch, hidden] = {expected}"
                f"{_state_hint(name, value, expected, whole)}"
            )
        if value.dtype != torch.float32:
            raise TypeError(f"{name} is {dtype_name(value.dtype)}, but a stepper's state is float32: {name}.float()")
        _check_device(name, value)
    return LSTMState(*state)


def chosen_rows(index: Rows, rows: int) -> Tensor:
    """The chosen rows as int64, counted from 0; `index` as in `LSTMState.rows`, each row at most once."""
    # NumPy's integers and tensors without an axis count as ints.
    if isinstance(index, SupportsIndex) and getattr(index, "ndim", 0) == 0:
        index = [operator.index(index)]
    try:
        chosen = torch.arange(rows)[index]
    except IndexError:
        raise IndexError(f"rows {index} do not all exist: the stepper has {rows} rows, counted from 0") from None
    if chosen.unique().numel() != chosen.numel():
        raise ValueError(f"rows {chosen.tolist()} name a row twice; each can be set once")
    return chosen


def _state_hint(name: str, value: Tensor, expected: list[int], whole: bool) -> str:
    layers, rows, hidden = expected
    if value.dim() == 3 and list(value.shape) == [rows, layers, hidden]:
        return f"; is it batch-first? {name}.transpose(0, 1) puts the layers first"
    if value.dim() == 2 and layers == 1:
        return f": {name}[None] adds the layer axis"
    if value.dim() == 3 and value.shape[0] == layers and value.shape[2] == hidden:
        if whole:
            return ": stepper.set_rows(index, state) sets some of the rows"
        if value.shape[1] == 1:
            return f": one state for all of them is state.rows([0] * {rows})"
    return ""


def _check_rows(x: Tensor, rows: int, otherwise_right: bool, expected: str) -> None:
    if otherwise_right and x.shape[0] != rows:
        raise ValueError(
            f"x is {shape_of(x)}, expected {expected}: it has {x.shape[0]} rows and the stepper {rows}; "
            f"Stepper(model, {x.shape[0]}) has as many"
        )


def _check_device(name: str, value: Tensor) -> None:
    if value.device.type != "cpu":
        raise ValueError(f"{name} is on {value.device}, but a stepper runs on the CPU: {name}.cpu()")
