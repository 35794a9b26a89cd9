"""What a call may look like: ranks, widths, dtypes, devices; for each mistake a sentence that says what to write.

Values (the ranges of ids and lengths) are checked inside the recurrence, where they also can be under vmap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .state import LSTMState

_ID_DTYPES = (torch.int32, torch.int64, torch.uint8)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_input(x: Any, input_dim: int, like: Tensor, state_rows: int | None = None) -> None:
    """Check x: floats [batch, time, input_dim] of the dtype and device of `like`, or ids [batch, time].

    `state_rows`, where given, is the number of rows of the state that came with x: it tells a time-first x.
    """
    if not isinstance(x, Tensor):
        if isinstance(x, torch.nn.utils.rnn.PackedSequence):
            raise TypeError(
                "x is a PackedSequence; pass the padded tensor and its lengths: x, lengths = "
                "pad_packed_sequence(x, batch_first=True), then lengths=lengths"
            )
        raise TypeError(f"x is a {type(x).__name__}, expected a tensor [batch, time, {input_dim}]; torch.as_tensor(x)")
    if x.dtype.is_floating_point:
        _check_frames(x, input_dim)
        _check_float("x", x, like)
    else:
        _check_ids(x, input_dim)
        _check_device("x", x, like)
    if state_rows is not None and x.shape[0] != state_rows:
        if x.shape[1] == state_rows:
            raise ValueError(
                f"x is {_shape(x)}, so {x.shape[0]} rows, but the state has {state_rows}; is x time-first? "
                "x.transpose(0, 1) makes it [batch, time, ...]"
            )
        raise ValueError(
            f"x has {x.shape[0]} rows (its shape is {_shape(x)}, batch first), but the state has {state_rows}; pick "
            "rows of the state with state.rows(...), or pass None to start from zeros"
        )


def check_masks(x: Tensor, resets: Any, lengths: Any) -> None:
    """Check resets, bool [batch, time], and lengths, integers [batch], against an x that passed `check_input`."""
    rows, steps = x.shape[:2]
    if resets is not None:
        _check_tensor("resets", resets, "a bool tensor [{}, {}]", rows, steps)
        if resets.dtype != torch.bool:
            raise TypeError(f"resets is {_name(resets.dtype)}, expected bool: resets.bool()")
        if resets.shape != (rows, steps):
            hint = "; resets.t() makes it batch first" if resets.shape == (steps, rows) else ""
            raise ValueError(f"resets is {_shape(resets)}, expected [batch, time] = [{rows}, {steps}]{hint}")
        _check_device("resets", resets, x)
    if lengths is not None:
        _check_tensor("lengths", lengths, "an integer tensor [{}]; torch.tensor(lengths)", rows)
        if lengths.dtype not in _INTEGERS:
            raise TypeError(f"lengths is {_name(lengths.dtype)}, expected integers: lengths.long()")
        if lengths.shape != (rows,):
            raise ValueError(f"lengths is {_shape(lengths)}, expected one length for each row: [{rows}]")
        _check_device("lengths", lengths, x)


def check_layer_state(h0: Any, c0: Any, hidden_dim: int, like: Tensor) -> int | None:
    """Check h0 and c0, each [batch, hidden_dim], given together or not at all; return their number of rows."""
    if h0 is None and c0 is None:
        return None
    if h0 is None or c0 is None:
        given, missing = ("c0", "h0") if h0 is None else ("h0", "c0")
        raise ValueError(f"{given} was given without {missing}: pass both, or neither to start from zeros")
    for name, value in (("h0", h0), ("c0", c0)):
        _check_tensor(name, value, f"a tensor [batch, {hidden_dim}]")
        if value.dim() == 3 and value.shape[0] == 1:
            raise ValueError(f"{name} is {_shape(value)}, expected [batch, {hidden_dim}] for one layer: {name}[0]")
        if value.dim() != 2 or value.shape[1] != hidden_dim:
            raise ValueError(f"{name} is {_shape(value)}, expected [batch, hidden] = [batch, {hidden_dim}]")
        _check_float(name, value, like)
    if h0.shape[0] != c0.shape[0]:
        raise ValueError(f"h0 has {h0.shape[0]} rows and c0 has {c0.shape[0]}; they belong to the same batch")
    rows: int = h0.shape[0]  # not int(...), which would fix a symbolic size
    return rows


def check_state(state: Any, layers: int, hidden_dim: int, like: Tensor) -> LSTMState:
    """Check a state, `LSTMState` or a plain (h, c), each [layers, batch, hidden_dim], and return it with its names."""
    if isinstance(state, Tensor) or not isinstance(state, (tuple, list)) or len(state) != 2:
        got = f"a tensor {_shape(state)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
        raise TypeError(f"state is {got}, expected LSTMState(h, c) or a pair (h, c); None starts from zeros")
    h, c = state
    for name, value in (("state.h", h), ("state.c", c)):
        _check_tensor(name, value, f"a tensor [{layers}, batch, {hidden_dim}]")
        expected = f"[layers, batch, hidden] = [{layers}, batch, {hidden_dim}]"
        if value.dim() != 3:
            hint = f"; {name}.unsqueeze(0) adds the layer axis" if value.dim() == 2 and layers == 1 else ""
            raise ValueError(f"{name} is {_shape(value)}, expected {expected}{hint}")
        if value.shape[0] != layers:
            hint = "; is it batch-first? .transpose(0, 1)" if value.shape[1] == layers else ""
            raise ValueError(
                f"{name} has {value.shape[0]} layers (its shape is {_shape(value)}), the model has {layers}{hint}; "
                "start from model.zero_state(batch)"
            )
        if value.shape[2] != hidden_dim:
            raise ValueError(f"{name} is {_shape(value)}, expected {expected}; start from model.zero_state(batch)")
        _check_float(name, value, like)
    if h.shape[1] != c.shape[1]:
        raise ValueError(f"state.h has {h.shape[1]} rows and state.c has {c.shape[1]}; they belong to the same batch")
    return LSTMState(h, c)


def _check_frames(x: Tensor, input_dim: int) -> None:
    if x.dim() == 2:
        raise ValueError(
            f"x is {_shape(x)}, expected [batch, time, {input_dim}]: one step for each row is x[:, None], one sequence "
            "alone is x[None]; token ids are integers, x.long()"
        )
    if x.dim() != 3:
        raise ValueError(f"x is {_shape(x)}, expected three axes [batch, time, {input_dim}]")
    if x.shape[2] != input_dim:
        raise ValueError(
            f"x is {_shape(x)}: its last axis is {x.shape[2]} wide, the layer was built with input_dim={input_dim}"
        )


def _check_ids(x: Tensor, input_dim: int) -> None:
    dtype = _name(x.dtype)
    if x.dim() == 3:
        raise TypeError(
            f"x is {dtype} {_shape(x)}: three axes are frames, which are floats: x.float(); ids have two, [batch, time]"
        )
    if x.dtype not in _ID_DTYPES:
        raise TypeError(f"x is {dtype}; ids are int32, int64 or uint8: x.long(), frames are floats: x.float()")
    if x.dim() != 2:
        raise ValueError(
            f"x is {dtype} {_shape(x)}; ids are [batch, time], one sequence alone is x[None]; frames are floats "
            f"[batch, time, {input_dim}]"
        )


def _check_tensor(name: str, value: Any, expected: str, *sizes: int) -> None:
    if not isinstance(value, Tensor):
        # Only here do sizes become text: that fixes a symbolic size, and every call would then compile anew.
        raise TypeError(f"{name} is a {type(value).__name__}, expected {expected.format(*sizes)}")


def _check_float(name: str, value: Tensor, like: Tensor) -> None:
    _check_device(name, value, like)
    if value.dtype == like.dtype:
        return
    if torch.is_autocast_enabled(value.device.type) and value.dtype.is_floating_point and like.dtype == torch.float32:
        return
    to = _name(like.dtype)
    raise TypeError(
        f"{name} is {_name(value.dtype)}, the weights are {to}: {name}.to(torch.{to}), or convert the model with "
        f".to(torch.{_name(value.dtype)})"
    )


def _check_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f'{name} is on {value.device}, the weights are on {like.device}: {name}.to("{like.device}")')


def _shape(value: Tensor) -> str:
    return str(list(value.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
