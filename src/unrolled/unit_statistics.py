"""What each unit's gates, cell and output do over a text, whatever its length: sums over the steps, kept in float64.

Saturation is counted as Karpathy, Johnson & Fei-Fei do ("Visualizing and Understanding Recurrent Networks", 2015): a
gate is saturated left where it is below 0.1 and right where it is above 0.9. Their gates lie within 0..1; the candidate
g, within -1..1, is counted as (g + 1) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GATES = ("i", "f", "g", "o")
STATES = ("h", "c")
NAMES = (*STATES, *GATES)
LEFT, RIGHT = 0.1, 0.9
# The share of steps, from which on a unit is latching, in which it holds what it has.
LATCHES = 0.5
# Of h's whole range, -1 to 1, what a dead unit does not go beyond.
MOVES = 0.01
# Numbers that are worked on at once: what they take stays in the caches. Of narrow layers so many rows at most.
_NUMBERS, _MOST_ROWS = 2**16, 1024
# What is summed, of what.
_SUMS = (
    *(("sum", name) for name in NAMES),
    *(("squares", name) for name in STATES),
    *((side, gate) for side in ("left", "right") for gate in GATES),
    *(("forgotten", ""), ("holding", "")),
)
_PLACES = {key: row for row, key in enumerate(_SUMS)}


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One layer's units over `tokens` steps; tensors are [hidden] (of a projected h [proj]), on the CPU, in float64.

    - `mean`: of each of h, c, i, f, g, o. `std`, `low`, `high`: of h and c.
    - `left`, `right`: of each gate, the share of steps in which it was saturated.
    - `memory`: 1 / (1 - mean f), the steps that a cell remembers for (the time constant of a cell whose forget gate
      always has its mean); infinite where f was 1 throughout.
    - `holding`: the share of steps in which f was saturated right and i left, so that the cell kept what it had: the
      closed input gate protects the memory (Hochreiter & Schmidhuber 1997).
    - `latching`: bool, units that held in at least half of all steps and did not in at least one: written now and
      then, and kept in between.
    - `dead`: bool, units whose h stayed within 1% of its range of -1 to 1: whatever reads them gets a constant.
    """

    tokens: int
    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    low: Mapping[str, Tensor]
    high: Mapping[str, Tensor]
    left: Mapping[str, Tensor]
    right: Mapping[str, Tensor]
    memory: Tensor
    holding: Tensor
    latching: Tensor
    dead: Tensor


class UnitStatistics:
    """The sums behind `LayerStatistics` of one layer, to which steps are added as they come."""

    def __init__(self) -> None:
        self._tokens = 0
        # A row for each of _SUMS.
        self._totals: Tensor | None = None
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}
        self._pivots: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in steps: each of h, c, i, f, g, o by name, [tokens, hidden], gates after their activation."""
        tokens, width = values["c"].shape
        rows = max(1, min(_MOST_ROWS, _NUMBERS // width))
        for begin in range(0, tokens, rows):
            self._add({name: values[name][begin : begin + rows] for name in NAMES})
        self._tokens += tokens

    def result(self) -> LayerStatistics:
        """Of all steps so far. Raises ValueError where there are none."""
        if self._totals is None:
            raise ValueError("no steps were added, and of none there are no statistics")
        shares = dict(zip(_SUMS, self._totals / self._tokens, strict=True))
        means = {gate: shares["sum", gate] for gate in GATES}
        deviations = {}
        for name, pivot in self._pivots.items():
            away, squares = (shares[kind, name][: len(pivot)] for kind in ("sum", "squares"))
            means[name] = pivot.double().cpu() + away
            deviations[name] = (squares - away * away).clamp(min=0).sqrt()
        lows, highs = ({name: both[end].double() for name, both in self._bounds.items()} for end in (0, 1))
        holding = shares["holding", ""]
        return LayerStatistics(
            tokens=self._tokens,
            mean={name: means[name] for name in NAMES},
            std=deviations,
            low=lows,
            high=highs,
            left={gate: shares["left", gate] for gate in GATES},
            right={gate: shares["right", gate] for gate in GATES},
            memory=1 / shares["forgotten", ""],
            holding=holding,
            latching=(holding >= LATCHES) & (holding < 1),
            dead=highs["h"] - lows["h"] <= 2 * MOVES,
        )

    def _add(self, some: Mapping[str, Tensor]) -> None:
        if some["c"].dtype in (torch.bfloat16, torch.float16):
            some = {name: values.float() for name, values in some.items()}
        c = some["c"]
        # Sums are products with ones: in torch, a sum over rows takes half as long again.
        ones, sums = c.new_ones(1, c.shape[0]), c.new_zeros(len(_SUMS), c.shape[1])
        scratch, left_i = torch.empty_like(c), torch.empty_like(c)

        def add_up(kind: str, name: str, values: Tensor) -> None:
            row = _PLACES[kind, name]
            torch.mm(ones, values.to(c.dtype), out=sums[row : row + 1, : values.shape[1]])

        for name in STATES:
            if name not in self._pivots:
                # Near the mean, so that squares around it do not cancel where a unit hardly moves.
                self._pivots[name] = some[name].mean(0)
            away = some[name] - self._pivots[name]
            add_up("sum", name, away)
            add_up("squares", name, away.mul_(away))
            low, high = some[name].amin(0).cpu(), some[name].amax(0).cpu()
            if name in self._bounds:
                low, high = torch.minimum(low, self._bounds[name][0]), torch.maximum(high, self._bounds[name][1])
            self._bounds[name] = low, high
        for gate in ("i", "g", "o", "f"):
            left, right = (2 * LEFT - 1, 2 * RIGHT - 1) if gate == "g" else (LEFT, RIGHT)
            add_up("sum", gate, some[gate])
            # Into numbers: a comparison that gives bools takes three times as long.
            add_up("left", gate, torch.lt(some[gate], left, out=left_i if gate == "i" else scratch))
            add_up("right", gate, torch.gt(some[gate], right, out=scratch))
        # Of f, the last of the gates: where it is saturated right.
        add_up("holding", "", scratch.mul_(left_i))
        # Not 1 - mean: where f is all but 1, the difference of two sums would have lost it.
        add_up("forgotten", "", torch.sub(1, some["f"], out=scratch))
        totals = sums.cpu().double()
        self._totals = totals if self._totals is None else self._totals.add_(totals)
