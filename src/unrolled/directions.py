"""Layers on top of each other, each in one direction or in both: what a stack and the drop-in have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import recurrence
from .layer_trace import LayerTrace
from .own_cell import OwnTrace
from .reversal import turned, turned_resets
from .state import LSTMState

# x [B, T, ...], h0, c0, and by name resets and lengths, to h and c of every step, or to a trace.
RunLayer = Callable[..., tuple[Tensor, Tensor] | LayerTrace | OwnTrace]


class Passed(NamedTuple):
    """What the top layer hands up, [B, T, directions * width], each direction's last state, and all traces."""

    output: Tensor
    state: LSTMState
    traces: tuple[LayerTrace, ...]


def run_layers(
    x: Tensor,
    state: tuple[Tensor, Tensor],
    layers: Sequence[Sequence[RunLayer]],
    between: Callable[[Tensor], Tensor],
    *,
    resets: Tensor | None,
    lengths: Tensor | None,
    residual: bool = False,
) -> Passed:
    """Run `layers`, bottom first: each is its forward direction, alone or with its backward one behind it.

    `state` and what is returned are in the order layer 0 forward, layer 0 backward, layer 1 forward, and so on. The
    backward direction begins at each row's end, and starts afresh wherever the forward one does. `between` is what goes
    through from one layer to the next. `residual`: from the second layer on, what came up to a layer, before `between`,
    is added to its h.
    """
    starts = list(zip(state[0].unbind(0), state[1].unbind(0), strict=True))
    lasts: list[tuple[Tensor, Tensor]] = []
    traces: list[Any] = []
    for k, directions in enumerate(layers):
        below, x = x, between(x) if k else x
        outputs = []
        for run, backward in zip(directions, (False, True), strict=False):
            h0, c0 = starts[len(lasts)]
            # After the forward direction, which has found lengths out of range.
            given: dict[str, Any] = {"resets": turned_resets(resets, lengths) if backward else resets}
            found = run(turned(x, lengths) if backward else x, h0, c0, **given, lengths=lengths)
            if isinstance(found, LayerTrace | OwnTrace):
                lasts.append(found.state)
                placed = found.turned() if backward else found
                traces.append(placed)
                outputs.append(placed.output if isinstance(placed, OwnTrace) else placed.h)
            else:
                h, c = found
                lasts.append((recurrence.last_step(h, h0, lengths), recurrence.last_step(c, c0, lengths)))
                outputs.append(turned(h, lengths) if backward else h)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        x = x + below if residual and k else x
    last_h, last_c = zip(*lasts, strict=True)
    return Passed(x, LSTMState(torch.stack(last_h), torch.stack(last_c)), tuple(traces))
