"""What each unit's gates, cell and output do over a text, whatever its length: sums over the steps, kept in float64.

Saturation is counted as Karpathy, Johnson & Fei-Fei do ("Visualizing and Understanding Recurrent Networks", 2015): a
gate is saturated left where it is below 0.1 and right where it is above 0.9. Their gates lie within 0..1; the candidate
g, within -1..1, is counted as (g + 1) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Numbers of a gate that are worked on at once, of narrow layers so many rows at most: with fewer of them, calling
# torch's threads takes longer than the sums.
_NUMBERS, _MOST_ROWS = 2**18, 1024


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
        self._totals: dict[str, Tensor] = {}
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}
        self._pivots: dict[str, Tensor] = {}
        # Memory for what is worked on: anew for each rows, it would be cleared by the system each time.
        self._rooms: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in steps: each of h, c, i, f, g, o by name, [tokens, hidden], gates after their activation."""
        tokens, width = values["c"].shape
        rows = max(1, min(_MOST_ROWS, _NUMBERS // width))
        for begin in range(0, tokens, rows):
            self._add({name: values[name][begin : begin + rows] for name in NAMES})
        self._tokens += tokens

    def result(self) -> LayerStatistics:
        """Of all steps so far. Raises ValueError where there are none."""
        if not self._tokens:
            raise ValueError("no steps were added, and of none there are no statistics")
        shares = {key: total / self._tokens for key, total in self._totals.items()}
        means, left, right = (dict(zip(GATES, shares[key].chunk(4), strict=True)) for key in ("gates", "left", "right"))
        deviations = {}
        for name, pivot in self._pivots.items():
            away = shares[f"away {name}"]
            means[name] = pivot.double().cpu() + away
            deviations[name] = (shares[f"squares {name}"] - away * away).clamp(min=0).sqrt()
        lows, highs = ({name: both[end].double() for name, both in self._bounds.items()} for end in (0, 1))
        holding = shares["holding"]
        return LayerStatistics(
            tokens=self._tokens,
            mean={name: means[name] for name in NAMES},
            std=deviations,
            low=lows,
            high=highs,
            left=left,
            right=right,
            memory=1 / shares["forgotten"],
            holding=holding,
            latching=(holding >= LATCHES) & (holding < 1),
            dead=highs["h"] - lows["h"] <= 2 * MOVES,
        )

    def _add(self, some: Mapping[str, Tensor]) -> None:
        if some["c"].dtype in (torch.bfloat16, torch.float16):
            some = {name: values.float() for name, values in some.items()}
        for name in STATES:
            self._add_state(name, some[name])
        self._add_gates(_side_by_side([some[gate] for gate in GATES]))

    def _add_state(self, name: str, values: Tensor) -> None:
        if name not in self._pivots:
            # Near the mean, so that squares around it do not cancel where a unit hardly moves.
            self._pivots[name] = values.mean(0)
        away = torch.sub(values, self._pivots[name], out=self._room(name, values))
        self._sum(f"away {name}", away)
        self._sum(f"squares {name}", away.mul_(away))
        low, high = values.amin(0).cpu(), values.amax(0).cpu()
        if name in self._bounds:
            low, high = torch.minimum(low, self._bounds[name][0]), torch.maximum(high, self._bounds[name][1])
        self._bounds[name] = low, high

    def _add_gates(self, gates: Tensor) -> None:
        """[rows, 4 hidden]: all four at once, since a call into torch takes as long as many numbers."""
        width = gates.shape[1] // 4
        left, right = gates.new_full((4, width), LEFT), gates.new_full((4, width), RIGHT)
        of_g = GATES.index("g")
        left[of_g], right[of_g] = 2 * LEFT - 1, 2 * RIGHT - 1
        # Into numbers: a comparison that gives bools takes three times as long.
        below = torch.lt(gates, left.flatten(), out=self._room("below", gates))
        above = torch.gt(gates, right.flatten(), out=self._room("above", gates))
        for key, values in (("gates", gates), ("left", below), ("right", above)):
            self._sum(key, values)
        i, f = (slice(k * width, (k + 1) * width) for k in (GATES.index("i"), GATES.index("f")))
        self._sum("holding", above[:, f].mul_(below[:, i]))
        # Not 1 - mean: where f is all but 1, the difference of two sums would have lost it.
        self._sum("forgotten", torch.sub(1, gates[:, f], out=below[:, f]))

    def _room(self, name: str, like: Tensor) -> Tensor:
        room = self._rooms.get(name)
        if room is None or len(room) < len(like):
            room = self._rooms[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return room[: len(like)]

    def _sum(self, key: str, values: Tensor) -> None:
        # A product with ones: in torch, a sum over rows takes half as long again.
        total = torch.mm(values.new_ones(1, len(values)), values)[0].cpu().double()
        self._totals[key] = self._totals[key].add_(total) if key in self._totals else total


def _side_by_side(gates: Sequence[Tensor]) -> Tensor:
    """[rows, gates * hidden] of [rows, hidden] each: a view, where they lie in memory as a trace has them."""
    first, (rows, width) = gates[0], gates[0].shape
    places = [(each.data_ptr() - first.data_ptr()) // first.element_size() for each in gates]
    shared = all(each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for each in gates)
    if (
        shared
        and places == [k * width for k in range(len(gates))]
        and {each.stride() for each in gates} == {(first.stride(0), 1)}
    ):
        return first.as_strided((rows, len(gates) * width), (first.stride(0), 1))
    return torch.cat(list(gates), 1)
