"""How somebody's layer is called, and which of what it returns is what: each way is tried, shapes tell the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .check_equations import Outcome

# What a layer that is called in another way than it is made for may raise.
RAISED = (
    *(RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError, NotImplementedError),
    *(UnboundLocalError, ArithmeticError),
)
# Sizes of a batch and of its steps: the first that are none of the layer's widths, so that no axis looks like another.
_SIZES = (3, 5, 7, 11, 13)


@dataclass(frozen=True)
class Call:
    """One way to call a layer: how it reads, and the call."""

    text: str
    run: Callable[[Any, Tensor, Tensor, Tensor], Any]
    takes_state: bool = True


@dataclass(frozen=True)
class Given:
    """What a layer gave; `turned`: its output is [time, batch] although x was [batch, time], or the other way round."""

    outcome: Outcome
    text: str
    turned: bool = False


def sizes(widths: tuple[int, int]) -> tuple[int, int]:
    """Rows and steps."""
    rows, steps = [size for size in _SIZES if size not in widths][:2]
    return rows, steps


def _steps(layer: Any, x: Tensor, h: Tensor, c: Tensor, *, apart: bool, batch_first: bool) -> tuple[Tensor, Tensor]:
    """A cell, which takes a step a call."""
    axis, hs, cs = int(batch_first), [], []
    for x_t in x.unbind(axis):
        found = layer(x_t, h, c) if apart else layer(x_t, (h, c))
        while len(found) == 2 and isinstance(found[1], tuple | list):
            found = found[1]
        h, c = found[-2:]
        if h.shape != c.shape or h.dim() != 2:
            raise ValueError("a step returns h and c, [batch, hidden] each")
        hs.append(h)
        cs.append(c)
    return torch.stack(hs, axis), torch.stack(cs, axis)


def calls(batch_first: bool) -> Iterator[tuple[Call, ...]]:
    """Ways to call a layer; a group is tried where the one before it has none that works."""
    yield (
        Call("layer(x, h, c)", lambda layer, x, h, c: layer(x, h, c)),
        Call("layer(x, (h, c))", lambda layer, x, h, c: layer(x, (h, c))),
        Call("layer(x, (h, c)), states [1, batch, hidden]", lambda layer, x, h, c: layer(x, (h[None], c[None]))),
        Call("layer(x, h, c), states [1, batch, hidden]", lambda layer, x, h, c: layer(x, h[None], c[None])),
        Call(
            "layer(x_t, (h, c)) for each step",
            lambda layer, x, h, c: _steps(layer, x, h, c, apart=False, batch_first=batch_first),
        ),
        Call(
            "layer(x_t, h, c) for each step",
            lambda layer, x, h, c: _steps(layer, x, h, c, apart=True, batch_first=batch_first),
        ),
    )
    yield (Call("layer(x)", lambda layer, x, h, c: layer(x), takes_state=False),)


def given(call: Call, layer: Any, x: Tensor, h: Tensor, c: Tensor, batch_first: bool) -> Given | str:
    """What a layer gives of x [batch, time, input]; or, where that cannot be had, why not."""
    into = x if batch_first else x.transpose(0, 1)
    try:
        # A layer that makes its own zeros makes them of the default dtype.
        with _default_dtype(x.dtype):
            returned = call.run(layer, into, h, c)
    except RAISED as error:
        said = str(error).partition("\n")[0]
        return f"{call.text} raises {type(error).__name__}: {said}"
    return _understood(returned, (x.shape[0], x.shape[1], h.shape[1]), batch_first, call.text)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _flat(returned: Any) -> list[Any]:
    if isinstance(returned, tuple | list):
        return [each for part in returned for each in _flat(part)]
    return [returned]


def _understood(returned: Any, shape: tuple[int, int, int], batch_first: bool, text: str) -> Given | str:
    rows, steps, hidden = shape
    found = _flat(returned)
    sequences: list[Tensor] = []
    states: list[Tensor] = []
    turned = False
    for each in found:
        if not isinstance(each, Tensor) or not each.is_floating_point():
            return f"{text} returns a {type(each).__name__} among other things"
        if each.shape in ((rows, steps, hidden), (steps, rows, hidden)):
            is_batch_first = each.shape[0] == rows
            turned = turned or is_batch_first != batch_first
            sequences.append(each if is_batch_first else each.transpose(0, 1))
        elif each.shape in ((rows, hidden), (1, rows, hidden), (rows, 1, hidden)):
            states.append(each.reshape(rows, hidden))
        else:
            return f"{text} returns a tensor {list(each.shape)}, of a batch of {rows} with {steps} steps"
    names = ["h"] * bool(sequences) + ["c"] * (len(sequences) == 2)
    if len(sequences) > 2 or len(states) > 2 or not found:
        return f"{text} returns {len(found)} tensors"
    padded = [*sequences, None, None][:2], [*states, None, None][:2]
    outcome = Outcome(padded[0][0], padded[0][1], padded[1][0], padded[1][1])
    shown = [f"{' and '.join(names)} of every step"] if names else []
    shown += [f"the last {' and '.join(['h', 'c'][: len(states)])}"] if states else []
    return Given(outcome, f"{text} -> {', '.join(shown)}", turned)
