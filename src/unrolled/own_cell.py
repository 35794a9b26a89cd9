"""A cell of the caller's own: one step, any differentiable function, run over time by a plain loop in torch.

The loop does around the step what the library's own recurrences do: resets and lengths by selection, and every step's
state kept. One call of the step is all that a step costs beside that, and it is most of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import recurrence
from .arguments import kind_of, shape_of
from .reversal import turned

State = tuple[Tensor, Tensor]
# x_t [batch, input] and the state (h, c) before the step, to the step's output [batch, hidden] and the state behind it.
Step = Callable[[Tensor, State], tuple[Tensor, State]]
# For each layer of a stack: input_dim and hidden_dim to its step.
NewStep = Callable[[int, int], Step]

_EXPECTED = "expected a function or module that is called as cell(x_t, (h, c)) and returns (output, (h, c))"


class OwnGradients(NamedTuple):
    """dL/dh_t and dL/dc_t of a loss in one layer, later steps included, each as the trace's field."""

    h: Tensor
    c: Tensor


class Steps(NamedTuple):
    """Of every step its output, h and c; and h and c as the cell left them, also behind a row's end.

    All that a loss has of h and c in a step goes through the latter: their gradients are the total ones.
    """

    output: list[Tensor]
    h: list[Tensor]
    c: list[Tensor]
    left_h: list[Tensor]
    left_c: list[Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class OwnTrace:
    """Everything that is known of a layer with a cell of its own: what it gave, and its state in every step.

    `output` [batch, time, hidden], `h` and `c` [batch, time, width]; of a backward layer each at the step of the input
    that it belongs to. `state` is (h, c) after the last step that a row ran.
    """

    output: Tensor
    h: Tensor
    c: Tensor
    state: State
    # In the order in which they ran.
    _steps: Steps
    _lengths: Tensor | None
    _turned: bool = False

    def turned(self) -> OwnTrace:
        """Of a backward layer, which ran each row from its end: the fields in the order of its input."""
        fields: dict[str, Any] = {name: turned(getattr(self, name), self._lengths) for name in ("output", "h", "c")}
        return replace(self, **fields, _turned=True)

    def gradients(self, loss: Tensor) -> OwnGradients:
        """The total gradients of the scalar `loss` in this layer; the graph is kept.

        Raises RuntimeError if the trace was taken without gradients, or if `loss` does not depend on it.
        """
        if loss.numel() != 1:
            raise ValueError(f"loss is {shape_of(loss)}, expected a scalar: loss.sum() or loss.mean()")
        left = self._steps.left_h, self._steps.left_c
        followed = [value for steps in left for value in steps if value.requires_grad]
        if not followed:
            raise RuntimeError("this trace was taken without gradients, or its state carries none")
        grads = torch.autograd.grad(loss, followed, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        if all(grad is None for grad in grads):
            raise RuntimeError("loss does not depend on this trace; compute it from what the trace holds")
        found = iter(grads)
        filled = [[_or_zeros(next(found) if value.requires_grad else None, value) for value in steps] for steps in left]
        h, c = (torch.stack(steps, 1) for steps in filled)
        return OwnGradients(*(turned(each, self._lengths) if self._turned else each for each in (h, c)))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {list(getattr(self, name).shape)}" for name in ("output", "h", "c"))
        return f"OwnTrace({sizes} {self.output.dtype})"

    def _repr_html_(self) -> str:
        from .trace_html import fragment

        return fragment(f"OwnTrace, c {list(self.c.shape)}", [self])


def checked_step(cell: Any, hidden: int) -> tuple[int, int]:
    """The widths of h and c: `cell.state_size`, or `hidden` both. TypeError or ValueError for what is no cell."""
    if isinstance(cell, type) or not callable(cell):
        raise TypeError(
            f"cell is {kind_of(cell) if not isinstance(cell, type) else f'the class {name_of(cell)}'}, {_EXPECTED}"
        )
    size = getattr(cell, "state_size", (hidden, hidden))
    widths = tuple(size) if isinstance(size, tuple | list) else ()
    if len(widths) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in widths):
        raise ValueError(f"cell.state_size is {size!r}, expected the widths of h and c: ({hidden}, {hidden})")
    return widths[0], widths[1]


def check_new_step(cell: Any) -> None:
    """TypeError for what makes no cells for the layers of a stack. None is nothing of one's own."""
    if isinstance(cell, nn.Module):
        raise TypeError(
            f"cell is the module {name_of(cell)}, which all layers would share, expected what makes one for each of "
            f"them: the class {name_of(cell)}, or a function of (input_dim, hidden_dim)"
        )
    if cell is not None and not callable(cell):
        raise TypeError(f"cell is {kind_of(cell)}, expected a function of (input_dim, hidden_dim) that makes a cell")


def name_of(cell: Any) -> str:
    """Of a function its own, of a module its class's."""
    return str(getattr(cell, "__name__", type(cell).__name__))


def run(
    cell: Step,
    x: Tensor,
    state: State,
    start: State,
    masks: tuple[Tensor | None, Tensor | None],
    sizes: tuple[int, int],
) -> Steps:
    """Run `cell` over x [batch, time, ...]. `start` [batch, width]: what a row begins with behind a reset.

    `masks`: resets and lengths, checked as x is; `sizes`: the widths of x and of the output. Raises TypeError or
    ValueError for a cell that returns something else than it should.
    """
    (h, c), (resets, lengths) = state, masks
    if lengths is not None:
        # A row without steps never reads its state.
        h, c = (value.masked_fill((lengths == 0).unsqueeze(-1), 0) for value in (h, c))
    steps = Steps([], [], [], [], [])
    for t, x_t in enumerate(x.unbind(1)):
        if resets is not None:
            fresh = resets[:, t].unsqueeze(-1)
            h, c = torch.where(fresh, start[0], h), torch.where(fresh, start[1], c)
        x_t = F.one_hot(x_t.long(), sizes[0]).to(h.dtype) if x_t.dim() == 1 else x_t
        output, h, c = _unpacked(cell(x_t, (h, c)), sizes[1], (h, c))
        steps.left_h.append(h)
        steps.left_c.append(c)
        if lengths is not None:
            ended = (lengths <= t).unsqueeze(-1)
            output, h, c = (value.masked_fill(ended, 0) for value in (output, h, c))
        for kept, value in zip(steps, (output, h, c), strict=False):
            kept.append(value)
    return steps


def together(steps: Sequence[Tensor], like: Tensor, width: int) -> Tensor:
    """Steps [batch, width] as [batch, time, width], none of them too."""
    # Time-first in memory, as the recurrences leave it.
    return torch.stack(list(steps)).transpose(0, 1) if steps else like.new_zeros(like.shape[0], 0, width)


def trace_of(steps: Steps, state: State, hidden: int, lengths: Tensor | None) -> OwnTrace:
    """Of what `run` gave, from the `state` that it began with."""
    widths = (hidden, state[0].shape[1], state[1].shape[1])
    output, h, c = (together(each, state[0], width) for each, width in zip(steps[:3], widths, strict=True))
    last = recurrence.last_step(h, state[0], lengths), recurrence.last_step(c, state[1], lengths)
    return OwnTrace(output, h, c, last, steps, lengths)


def reset_parameters(cell: Step) -> None:
    """Draw a module's parameters anew; TypeError where it has some and no method of this name."""
    if isinstance(cell, nn.Module) and next(cell.parameters(), None) is not None:
        own = getattr(cell, "reset_parameters", None)
        if own is None:
            raise TypeError(f"the cell {name_of(cell)} has parameters and no reset_parameters() that draws them anew")
        own()


def _unpacked(returned: Any, hidden: int, before: State) -> tuple[Tensor, Tensor, Tensor]:
    pair = isinstance(returned, tuple | list) and len(returned) == 2
    state = returned[1] if pair else None
    if not (isinstance(state, tuple | list) and len(state) == 2):
        got = f"({kind_of(returned[0])}, {kind_of(returned[1])})" if pair else kind_of(returned)
        raise TypeError(
            f"the cell returned {got}, expected (output, (h, c)): what it gives, and the state behind the step"
        )
    rows = before[0].shape[0]
    wanted = (("output", returned[0], hidden), ("h", state[0], before[0].shape[1]), ("c", state[1], before[1].shape[1]))
    for name, value, width in wanted:
        if not isinstance(value, Tensor):
            raise TypeError(f"the cell returned {kind_of(value)} as {name}, expected a tensor [{rows}, {width}]")
        if value.shape != (rows, width):
            hint = "hidden_dim" if name == "output" else "its width before the step, which cell.state_size says"
            raise ValueError(
                f"the cell returned {name} {shape_of(value)}, expected [batch, width] = [{rows}, {width}]: {hint}"
            )
    return returned[0], state[0], state[1]


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
