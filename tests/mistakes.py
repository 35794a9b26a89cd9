"""The mistakes of a call: its argument, the exception, and the whole sentence that the caller then reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from unrolled.state import LSTMState

B, T, I, H, L = 4, 6, 5, 7, 2


def floats(*size: int) -> Tensor:
    return torch.zeros(size)


def ids(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64)


def flags(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool)


X = floats(B, T, I)
PAIR = (floats(L, B, H), floats(L, B, H))
NESTED = torch.nested.nested_tensor([floats(3, I), floats(6, I)], layout=torch.jagged)

# (x, exception, the whole message): for a layer and a stack alike.
INPUTS: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([[1, 2]], TypeError, "x is a list of 1, expected a tensor [batch, time, 5]: torch.as_tensor(x)"),
    "an array": (
        np.zeros((B, T, I)),
        TypeError,
        "x is an ndarray, expected a tensor [batch, time, 5]: torch.as_tensor(x)",
    ),
    "None": (None, TypeError, "x is None, expected a tensor [batch, time, 5]: torch.as_tensor(x)"),
    "packed": (
        pack_sequence([floats(3, I), floats(2, I)]),
        TypeError,
        "x is a PackedSequence; pass the padded tensor and its lengths: x, lengths = pad_packed_sequence(x, "
        "batch_first=True), then lengths=lengths",
    ),
    "nested": (
        NESTED,
        TypeError,
        "x is a nested tensor; pass the padded one, x.to_padded_tensor(0), and the rows' lengths",
    ),
    "floats of two axes": (
        floats(T, I),
        ValueError,
        "x is [6, 5], expected [batch, time, 5]: one step of each row is x[:, None], one sequence alone is x[None]; if "
        "these are token ids, they must be integers: x.long()",
    ),
    "floats of one axis": (floats(I), ValueError, "x is [5], expected three axes: [batch, time, 5]"),
    "floats of four axes": (
        floats(1, B, T, I),
        ValueError,
        "x is [1, 4, 6, 5], expected three axes: [batch, time, 5]",
    ),
    "another width": (
        floats(B, T, 3),
        ValueError,
        "x is [4, 6, 3], so 3 wide, but input_dim is 5: expected [batch, time, 5]",
    ),
    "input before time": (
        floats(B, I, T),
        ValueError,
        "x is [4, 5, 6], so 6 wide, but input_dim is 5: expected [batch, time, 5]; is it [batch, input, time]? "
        "x.transpose(1, 2)",
    ),
    "float64": (
        X.double(),
        TypeError,
        "x is float64, but the weights are float32: x.float(), or convert the model: model.to(torch.float64)",
    ),
    "bfloat16": (
        X.bfloat16(),
        TypeError,
        "x is bfloat16, but the weights are float32: x.float(), or convert the model: model.to(torch.bfloat16)",
    ),
    "another device": (
        X.to("meta"),
        ValueError,
        'x is on meta, but the weights are on cpu: x.to("cpu"), or move the model: model.to("meta")',
    ),
    "ids on another device": (
        ids(B, T).to("meta"),
        ValueError,
        'x is on meta, but the weights are on cpu: x.to("cpu"), or move the model: model.to("meta")',
    ),
    "integers of three axes": (
        ids(B, T, I),
        TypeError,
        "x is int64 [4, 6, 5]; three axes are frames, which must be floats: x.float(); ids have two axes, "
        "[batch, time]",
    ),
    "bools of three axes": (
        flags(B, T, I),
        TypeError,
        "x is bool [4, 6, 5]; three axes are frames, which must be floats: x.float(); ids have two axes, [batch, time]",
    ),
    "bools": (
        flags(B, T),
        TypeError,
        "x is bool; ids must be int32, int64 or uint8: x.long(); frames must be floats [batch, time, 5]: x.float()",
    ),
    "int16": (
        ids(B, T).short(),
        TypeError,
        "x is int16; ids must be int32, int64 or uint8: x.long(); frames must be floats [batch, time, 5]: x.float()",
    ),
    "ids of one axis": (
        ids(T),
        ValueError,
        "x is int64 [6], expected ids [batch, time]: one sequence alone is x[None]; or frames, floats [batch, time, 5]",
    ),
    "ids of four axes": (
        ids(1, 1, B, T),
        ValueError,
        "x is int64 [1, 1, 4, 6], expected ids [batch, time]; or frames, floats [batch, time, 5]",
    ),
}

MASKS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "resets: a list": (
        {"resets": [False] * T},
        TypeError,
        "resets is a list of 6, expected a bool tensor [4, 6]: torch.as_tensor(resets)",
    ),
    "resets: integers": ({"resets": ids(B, T)}, TypeError, "resets is int64, expected bool: resets.bool()"),
    "resets: floats": ({"resets": floats(B, T)}, TypeError, "resets is float32, expected bool: resets.bool()"),
    "resets: time-first": (
        {"resets": flags(T, B)},
        ValueError,
        "resets is [6, 4], expected [batch, time] = [4, 6]; is it time-first? resets.t() makes it batch-first",
    ),
    "resets: one for each row": (
        {"resets": flags(B)},
        ValueError,
        "resets is [4], expected [batch, time] = [4, 6]; a row that starts afresh at once has True at [row, 0] and "
        "False elsewhere",
    ),
    "resets: too short": ({"resets": flags(B, 5)}, ValueError, "resets is [4, 5], expected [batch, time] = [4, 6]"),
    "resets: another device": (
        {"resets": flags(B, T).to("meta")},
        ValueError,
        'resets is on meta, but the weights are on cpu: resets.to("cpu"), or move the model: model.to("meta")',
    ),
    "lengths: a list": (
        {"lengths": [6, 6, 3, 0]},
        TypeError,
        "lengths is a list of 4, expected an integer tensor [4]: torch.as_tensor(lengths)",
    ),
    "lengths: an int": (
        {"lengths": 3},
        TypeError,
        "lengths is an int, expected an integer tensor [4]: torch.as_tensor(lengths)",
    ),
    "lengths: floats": ({"lengths": floats(B)}, TypeError, "lengths is float32, expected integers: lengths.long()"),
    "lengths: a mask": (
        {"lengths": flags(B, T)},
        TypeError,
        "lengths is bool, expected integers: a mask of the valid steps has the lengths lengths.sum(1)",
    ),
    "lengths: two axes": (
        {"lengths": ids(B, 1)},
        ValueError,
        "lengths is [4, 1], expected [batch] = [4], one for each row of x [4, 6, 5]: lengths.flatten()",
    ),
    "lengths: too few": (
        {"lengths": ids(3)},
        ValueError,
        "lengths is [3], expected [batch] = [4], one for each row of x [4, 6, 5]",
    ),
    "lengths: one for each step": (
        {"lengths": ids(T)},
        ValueError,
        "lengths is [6], expected [batch] = [4], one for each row of x [4, 6, 5]; is x time-first? "
        "x.transpose(0, 1) makes it batch-first",
    ),
    "lengths: another device": (
        {"lengths": ids(B).to("meta")},
        ValueError,
        'lengths is on meta, but the weights are on cpu: lengths.to("cpu"), or move the model: model.to("meta")',
    ),
    "lengths: above": (
        {"lengths": torch.tensor([6, 7, 0, 1])},
        ValueError,
        "lengths must be from 0 to 6, got 7: a length counts the valid steps of its row, and x has 6",
    ),
    "lengths: below": (
        {"lengths": torch.tensor([6, -1, 0, 9], dtype=torch.int32)},
        ValueError,
        "lengths must be from 0 to 6, got -1: a length counts the valid steps of its row, and x has 6",
    ),
}

STATES: dict[str, tuple[Any, type[Exception], str]] = {
    "one tensor": (
        floats(2, L, B, H),
        TypeError,
        "state is a tensor [2, 2, 4, 7], expected LSTMState(h, c) or a pair (h, c); None starts from zeros",
    ),
    "three": (
        (*PAIR, PAIR[0]),
        TypeError,
        "state is a tuple of 3, expected LSTMState(h, c) or a pair (h, c); None starts from zeros",
    ),
    "a dict": (
        {"h": PAIR[0], "c": PAIR[1]},
        TypeError,
        "state is a dict, expected LSTMState(h, c) or a pair (h, c); None starts from zeros",
    ),
    "half of it": ((PAIR[0], None), TypeError, "state.c is None, expected a tensor [2, batch, 7]"),
    "no layer axis": (
        (floats(B, H), floats(B, H)),
        ValueError,
        "state.h is [4, 7], expected [layers, batch, hidden] = [2, batch, 7]; model.zero_state(batch) starts from "
        "zeros",
    ),
    "more layers": (
        (floats(3, B, H), floats(3, B, H)),
        ValueError,
        "state.h is [3, 4, 7], expected [layers, batch, hidden] = [2, batch, 7]: it has 3 layers and the model has 2; "
        "model.zero_state(batch) starts from zeros",
    ),
    "batch first": (
        (floats(B, L, H), floats(B, L, H)),
        ValueError,
        "state.h is [4, 2, 7], expected [layers, batch, hidden] = [2, batch, 7]; is it batch-first? "
        "state.h.transpose(0, 1) puts the layers first; model.zero_state(batch) starts from zeros",
    ),
    "another width, in c": (
        (floats(L, B, H), floats(L, B, 8)),
        ValueError,
        "state.c is [2, 4, 8], expected [layers, batch, hidden] = [2, batch, 7]; model.zero_state(batch) starts from "
        "zeros",
    ),
    "two batches": (
        (floats(L, B, H), floats(L, 3, H)),
        ValueError,
        "state.h has 4 rows and state.c has 3; they must be of the same batch",
    ),
    "float64": (
        (PAIR[0].double(), PAIR[1].double()),
        TypeError,
        "state.h is float64, but the weights are float32: state.h.float(), or convert the model: "
        "model.to(torch.float64)",
    ),
    "integers": (
        (PAIR[0].long(), PAIR[1]),
        TypeError,
        "state.h is int64, but the weights are float32: state.h.float()",
    ),
    "another device": (
        (PAIR[0], PAIR[1].to("meta")),
        ValueError,
        'state.c is on meta, but the weights are on cpu: state.c.to("cpu"), or move the model: model.to("meta")',
    ),
    "other rows": (
        LSTMState(floats(L, 3, H), floats(L, 3, H)),
        ValueError,
        "x is [4, 6, 5], so it has 4 rows, but the state has 3; pick the rows that go with x, state.rows(...), or "
        "leave the state out to start from zeros",
    ),
    "x time-first": (
        (floats(L, T, H), floats(L, T, H)),
        ValueError,
        "x is [4, 6, 5], so it has 4 rows, but the state has 6; is x time-first? x.transpose(0, 1) makes it "
        "batch-first",
    ),
}

LAYER_STATES: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "h0 alone": (
        (floats(B, H),),
        ValueError,
        "h0 was given without c0: pass both, or neither to start from zeros",
    ),
    "c0 alone": (
        (None, floats(B, H)),
        ValueError,
        "c0 was given without h0: pass both, or neither to start from zeros",
    ),
    "a pair": (
        ((floats(B, H), floats(B, H)),),
        TypeError,
        "h0 is a tuple of 2; a layer takes h and c apart: layer(x, h, c)",
    ),
    "a number": ((0, floats(B, H)), TypeError, "h0 is an int, expected a tensor [batch, 7]"),
    "a stack's": (
        (floats(1, B, H), floats(1, B, H)),
        ValueError,
        "h0 is [1, 4, 7], expected [batch, hidden] = [batch, 7]; of a stack's state, [layers, batch, hidden], layer k "
        "takes h0[k]",
    ),
    "another width": ((floats(B, 6), floats(B, H)), ValueError, "h0 is [4, 6], expected [batch, hidden] = [batch, 7]"),
    "one axis": ((floats(B, H), floats(H)), ValueError, "c0 is [7], expected [batch, hidden] = [batch, 7]"),
    "float64": (
        (floats(B, H), floats(B, H).double()),
        TypeError,
        "c0 is float64, but the weights are float32: c0.float(), or convert the model: model.to(torch.float64)",
    ),
    "another device": (
        (floats(B, H).to("meta"), floats(B, H)),
        ValueError,
        'h0 is on meta, but the weights are on cpu: h0.to("cpu"), or move the model: model.to("meta")',
    ),
    "two batches": (
        (floats(B, H), floats(3, H)),
        ValueError,
        "h0 has 4 rows and c0 has 3; they must be of the same batch",
    ),
    "other rows": (
        (floats(3, H), floats(3, H)),
        ValueError,
        "x is [4, 6, 5], so it has 4 rows, but h0 and c0 have 3; pick the rows that go with x, h0[rows], c0[rows], or "
        "leave the state out to start from zeros",
    ),
    "x time-first": (
        (floats(T, H), floats(T, H)),
        ValueError,
        "x is [4, 6, 5], so it has 4 rows, but h0 and c0 have 6; is x time-first? x.transpose(0, 1) makes it "
        "batch-first",
    ),
}

ID_RANGES = {
    "above": ([[0, 1, 5]], "ids must be from 0 to 4, got 5: an id is a row of a one-hot input of width 5"),
    "below": ([[0, -1, 9]], "ids must be from 0 to 4, got -1: an id is a row of a one-hot input of width 5"),
}
