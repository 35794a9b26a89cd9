"""What a call may look like: ranks, widths, dtypes, devices; for each mistake a sentence that says what to write.

Values (the ranges of ids and lengths) are checked inside the recurrence, where they also can be under vmap. Sizes turn
into text only where something is raised: text fixes a symbolic size, and every call would then compile anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .state import LSTMState

_ID_DTYPES = (torch.int32, torch.int64, torch.uint8)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_input(x: Any, input_dim: int, like: Tensor) -> None:
    """Check x: floats [batch, time, input_dim] of the dtype and device of `like`, or ids [batch, time]."""
    if not isinstance(x, Tensor):
        if isinstance(x, torch.nn.utils.rnn.PackedSequence):
            raise TypeError(
                "x is a PackedSequence; pass the padded tensor and its lengths: x, lengths = "
                "pad_packed_sequence(x, batch_first=True), then lengths=lengths"
            )
        raise TypeError(f"x is {kind_of(x)}, expected a tensor [batch, time, {input_dim}]: torch.as_tensor(x)")
    if x.is_nested:
        raise TypeError("x is a nested tensor; pass the padded one, x.to_padded_tensor(0), and the rows' lengths")
    if x.dtype.is_floating_point:
        _check_frames(x, input_dim)
        _check_float("x", x, like)
    else:
        _check_ids(x, input_dim, like)
        _check_device("x", x, like)


def check_same_rows(x: Tensor, state_rows: int | None, *, of_stack: bool) -> None:
    """Check that an x that passed `check_input` has as many rows as the state that came with it (None: none did)."""
    if state_rows is None or x.shape[0] == state_rows:
        return
    state, pick = ("the state has", "state.rows(...)") if of_stack else ("h0 and c0 have", "h0[rows], c0[rows]")
    if x.shape[1] == state_rows:
        raise ValueError(
            f"x is {shape_of(x)}, so it has {x.shape[0]} rows, but {state} {state_rows}; is x time-first? "
            "x.transpose(0, 1) makes it batch-first"
        )
    raise ValueError(
        f"x is {shape_of(x)}, so it has {x.shape[0]} rows, but {state} {state_rows}; pick the rows that go with x, "
        f"{pick}, or leave the state out to start from zeros"
    )


def check_masks(x: Tensor, resets: Any, lengths: Any) -> None:
    """Check resets, bool [batch, time], and lengths, integers [batch], against an x that passed `check_input`."""
    if resets is not None:
        _check_resets(x, resets)
    if lengths is not None:
        _check_lengths(x, lengths)


def check_layer_state(h0: Any, c0: Any, widths: tuple[int, int], like: Tensor) -> int | None:
    """Check h0 and c0, [batch, widths[0]] and [batch, widths[1]], given together or not at all; return their rows."""
    if h0 is None and c0 is None:
        return None
    if h0 is None or c0 is None:
        if isinstance(h0, (tuple, list)) and len(h0) == 2:
            raise TypeError(f"h0 is {kind_of(h0)}; a layer takes h and c apart: layer(x, h, c)")
        given, missing = ("c0", "h0") if h0 is None else ("h0", "c0")
        raise ValueError(f"{given} was given without {missing}: pass both, or neither to start from zeros")
    for name, value, width in (("h0", h0, widths[0]), ("c0", c0, widths[1])):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {kind_of(value)}, expected a tensor [batch, {width}]")
        if value.dim() != 2 or value.shape[1] != width:
            axis, hint = _width_name(name, widths), ""
            if value.dim() == 3 and value.shape[2] == width:
                hint = f"; of a stack's state, [layers, batch, {axis}], layer k takes {name}[k]"
            raise ValueError(f"{name} is {shape_of(value)}, expected [batch, {axis}] = [batch, {width}]{hint}")
        _check_float(name, value, like)
    if h0.shape[0] != c0.shape[0]:
        raise ValueError(f"h0 has {h0.shape[0]} rows and c0 has {c0.shape[0]}; they must be of the same batch")
    rows: int = h0.shape[0]  # not int(...), which would fix a symbolic size
    return rows


def check_state(state: Any, layers: int, directions: int, widths: tuple[int, int], like: Tensor) -> LSTMState:
    """Check a state, `LSTMState` or a plain (h, c), and return it with its names.

    h is [layers * directions, batch, widths[0]] and c [layers * directions, batch, widths[1]].
    """
    if isinstance(state, Tensor) or not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(f"state is {kind_of(state)}, expected LSTMState(h, c) or a pair (h, c); None starts from zeros")
    h, c = state
    count = layers * directions
    for name, value, width in (("state.h", h, widths[0]), ("state.c", c, widths[1])):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {kind_of(value)}, expected a tensor [{count}, batch, {width}]")
        if value.dim() != 3 or value.shape[0] != count or value.shape[2] != width:
            axes = f"[{'layers' if directions == 1 else '2 * layers'}, batch, {_width_name(name, widths)}]"
            raise ValueError(
                f"{name} is {shape_of(value)}, expected {axes} = [{count}, batch, {width}]"
                f"{_state_hint(name, value, layers, directions, width)}; model.zero_state(batch) starts from zeros"
            )
        _check_float(name, value, like)
    if h.shape[1] != c.shape[1]:
        raise ValueError(f"state.h has {h.shape[1]} rows and state.c has {c.shape[1]}; they must be of the same batch")
    return LSTMState(h, c)


def _width_name(name: str, widths: tuple[int, int]) -> str:
    return "proj" if widths[0] != widths[1] and name in ("h0", "state.h") else "hidden"


def _state_hint(name: str, value: Tensor, layers: int, directions: int, width: int) -> str:
    count = layers * directions
    if value.dim() == 2 and count == 1 and value.shape[1] == width:
        return f": {name}.unsqueeze(0) adds the layer axis"
    if value.dim() != 3 or value.shape[2] != width:
        return ""
    if value.shape[1] == count:
        return f"; is it batch-first? {name}.transpose(0, 1) puts the layers first"
    if directions == 2:
        return f": it has {value.shape[0]} and the model {layers} layers, each forward and backward"
    return f": it has {value.shape[0]} layers and the model has {layers}"


def _check_frames(x: Tensor, input_dim: int) -> None:
    if x.dim() == 2:
        raise ValueError(
            f"x is {shape_of(x)}, expected [batch, time, {input_dim}]: one step of each row is x[:, None], one "
            "sequence alone is x[None]; if these are token ids, they must be integers: x.long()"
        )
    if x.dim() != 3:
        raise ValueError(f"x is {shape_of(x)}, expected three axes: [batch, time, {input_dim}]")
    if x.shape[2] != input_dim:
        hint = "; is it [batch, input, time]? x.transpose(1, 2)" if x.shape[1] == input_dim else ""
        raise ValueError(
            f"x is {shape_of(x)}, so {x.shape[2]} wide, but input_dim is {input_dim}: expected "
            f"[batch, time, {input_dim}]{hint}"
        )


def _check_ids(x: Tensor, input_dim: int, like: Tensor) -> None:
    dtype, to_float = dtype_name(x.dtype), _conversion("x", like.dtype)
    if x.dim() == 3:
        raise TypeError(
            f"x is {dtype} {shape_of(x)}; three axes are frames, which must be floats: {to_float}; ids have two axes, "
            "[batch, time]"
        )
    if x.dtype not in _ID_DTYPES:
        raise TypeError(
            f"x is {dtype}; ids must be int32, int64 or uint8: x.long(); frames must be floats "
            f"[batch, time, {input_dim}]: {to_float}"
        )
    if x.dim() != 2:
        hint = ": one sequence alone is x[None]" if x.dim() == 1 else ""
        raise ValueError(
            f"x is {dtype} {shape_of(x)}, expected ids [batch, time]{hint}; or frames, floats "
            f"[batch, time, {input_dim}]"
        )


def _check_resets(x: Tensor, resets: Any) -> None:
    rows, steps = x.shape[:2]
    if not isinstance(resets, Tensor):
        raise TypeError(
            f"resets is {kind_of(resets)}, expected a bool tensor [{rows}, {steps}]: torch.as_tensor(resets)"
        )
    if resets.dtype != torch.bool:
        raise TypeError(f"resets is {dtype_name(resets.dtype)}, expected bool: resets.bool()")
    if resets.shape != (rows, steps):
        hint = ""
        if resets.shape == (steps, rows):
            hint = "; is it time-first? resets.t() makes it batch-first"
        elif resets.shape == (rows,):
            hint = "; a row that starts afresh at once has True at [row, 0] and False elsewhere"
        raise ValueError(f"resets is {shape_of(resets)}, expected [batch, time] = [{rows}, {steps}]{hint}")
    _check_device("resets", resets, x)


def _check_lengths(x: Tensor, lengths: Any) -> None:
    rows, steps = x.shape[:2]
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths is {kind_of(lengths)}, expected an integer tensor [{rows}]: torch.as_tensor(lengths)")
    if lengths.dtype not in _INTEGERS:
        mask = lengths.dtype == torch.bool and lengths.dim() == 2
        hint = "a mask of the valid steps has the lengths lengths.sum(1)" if mask else "lengths.long()"
        raise TypeError(f"lengths is {dtype_name(lengths.dtype)}, expected integers: {hint}")
    if lengths.shape != (rows,):
        hint = ""
        if lengths.shape == (steps,):
            hint = "; is x time-first? x.transpose(0, 1) makes it batch-first"
        elif lengths.dim() == 2 and 1 in lengths.shape:
            hint = ": lengths.flatten()"
        raise ValueError(
            f"lengths is {shape_of(lengths)}, expected [batch] = [{rows}], one for each row of x {shape_of(x)}{hint}"
        )
    _check_device("lengths", lengths, x)


def _check_float(name: str, value: Tensor, like: Tensor) -> None:
    _check_device(name, value, like)
    if value.dtype == like.dtype:
        return
    if torch.is_autocast_enabled(value.device.type) and value.dtype.is_floating_point and like.dtype == torch.float32:
        return
    hint = _conversion(name, like.dtype)
    if value.dtype.is_floating_point:
        hint += f", or convert the model: model.to(torch.{dtype_name(value.dtype)})"
    raise TypeError(f"{name} is {dtype_name(value.dtype)}, but the weights are {dtype_name(like.dtype)}: {hint}")


def _check_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(
            f'{name} is on {value.device}, but the weights are on {like.device}: {name}.to("{like.device}"), or move '
            f'the model: model.to("{value.device}")'
        )


def _conversion(name: str, dtype: torch.dtype) -> str:
    return f"{name}.float()" if dtype == torch.float32 else f"{name}.to(torch.{dtype_name(dtype)})"


def kind_of(value: Any) -> str:
    """What was got in place of a tensor or a state, with its article."""
    if isinstance(value, Tensor):
        return f"a tensor {shape_of(value)}"
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeiou" or name == "ndarray" else "a"
    return f"{article} {name} of {len(value)}" if isinstance(value, (tuple, list)) else f"{article} {name}"


def shape_of(value: Tensor) -> str:
    """As in error texts: [2, 3]."""
    return str(list(value.shape))


def dtype_name(dtype: torch.dtype) -> str:
    """Without `torch.`."""
    return str(dtype).removeprefix("torch.")
