"""What was found inside a model, for the terminal and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .ablation import Ablation
from .convergence import Convergence
from .evaluate import PositionCurve
from .inspection import Inspection
from .reach import Reach
from .relations import Relation
from .score_table import position_table
from .unit_statistics import GATES, LayerStatistics


@dataclass(frozen=True, eq=False)
class Report:
    """All that was asked for of one text; None for what was not."""

    run: str
    text: str
    inspection: Inspection
    reach: Reach | None = None
    ablation: Ablation | None = None
    convergence: Convergence | None = None
    positions: PositionCurve | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, by the names of the fields; what is no finite number is None.

        `layers` and `relations` have lists over units. Of `reach` the means over tokens are given, [layers, window].
        """
        found: dict[str, Any] = {"run": self.run, "text": self.text, **_plain(self.inspection)}
        for relation, each in zip(found["relations"], self.inspection.relations, strict=True):
            relation["bar"] = each.bar
        if self.reach is not None:
            means = {name: _plain(self.reach.mean(name)) for name in "ch"}
            found["reach"] = {**means, "steps": self.reach.steps(), "factor": self.reach.factor()}
        for name in ("ablation", "convergence", "positions"):
            if getattr(self, name) is not None:
                found[name] = _plain(getattr(self, name))
        return found

    def table(self, most: int = 5) -> str:
        """Tables, with the `most` telling units of each."""
        seen = self.inspection
        parts = [f"{self.run}, {self.text}: {seen.tokens:,} tokens, {seen.nats:.4f} nats each"]
        parts += ["\n".join(_statistics(k, layer, most)) for k, layer in enumerate(seen.layers)]
        if seen.relations:
            parts.append("\n".join(_relations(seen.relations, most)))
        if self.reach is not None:
            parts.append("\n".join(_reach(self.reach)))
        if self.ablation is not None:
            parts.append("\n".join(_ablation(self.ablation, most)))
        if self.convergence is not None:
            parts.append("\n".join(_convergence(self.convergence)))
        if self.positions is not None:
            parts.append(position_table(self.positions))
        if seen.notes:
            parts.append("\n".join(seen.notes))
        return "\n\n".join(parts)


def _statistics(number: int, layer: LayerStatistics, most: int) -> Iterator[str]:
    yield f"{f'layer {number}':10}  {'mean':>7}  {'below 0.1':>9}  {'above 0.9':>9}   over units and steps"
    for gate in GATES:
        mean, left, right = (float(each[gate].mean()) for each in (layer.mean, layer.left, layer.right))
        yield f"  {gate:8}  {mean:7.3f}  {left:9.1%}  {right:9.1%}"
    middle = float(layer.memory.median())
    yield (
        f"memory 1 / (1 - mean f): {float(layer.memory.min()):.3g} to {float(layer.memory.max()):.3g} steps, median "
        f"{middle:.3g}; latching {int(layer.latching.sum())}, dead {int(layer.dead.sum())} of {len(layer.memory)} units"
    )
    order = layer.memory.argsort(descending=True)[:most].tolist()
    longest = (f"{unit} ({float(layer.memory[unit]):.3g}, holding {float(layer.holding[unit]):.0%})" for unit in order)
    yield f"longest memories: units {', '.join(longest)}"


def _relations(relations: tuple[Relation, ...], most: int) -> Iterator[str]:
    yield f"{'feature':10}  {'bits of':>7}  {'bar':>6}  {'above it':>8}   layer.unit and quantity: mutual information"
    for each in relations:
        units = int(each.above.any(0).sum())
        best = ", ".join(
            f"{found.layer}.{found.unit} {found.quantity} {found.bits:.3f}{'' if found.above else ' (below)'}"
            for found in each.ranked(most)
        )
        yield f"{each.feature:10}  {each.entropy:7.3f}  {each.bar:6.3f}  {units:8}   {best}"
    first = relations[0]
    yield (
        f"mutual information in bits, over {first.counted:,} tokens; bar: the most that any unit shares with any of "
        f"{len(first.shifted)} circular shifts"
    )


def _reach(found: Reach) -> Iterator[str]:
    means = found.mean("c")
    layers = range(len(means))
    yield "steps back  " + "".join(f"{f'layer {k}':>10}" for k in layers) + "   |dL_t/dc| there, of that at t"
    for lag in _octaves(means.shape[1]):
        yield f"{lag:10}  " + "".join(f"{float(means[k, lag] / means[k, 0]):10.3g}" for k in layers)
    for k, (steps, factor) in enumerate(zip(found.steps(), found.factor(), strict=True)):
        yield f"layer {k}: 90% of the gradient in the last {steps} steps; {factor:.3f} a step"


def _ablation(found: Ablation, most: int) -> Iterator[str]:
    held = f"{found.quantity} of a unit held at {'its mean' if found.value == 'mean' else 'zero'}"
    yield f"loss {found.nats:.4f} nats over {found.predicted:,} tokens; more with {held}:"
    for each in found.ranked(most):
        yield f"  layer {each.layer} unit {each.unit:5}  {each.nats:+.4f}"


def _convergence(found: Convergence) -> Iterator[str]:
    layers = range(len(found.c))
    yield "tokens read " + "".join(f"{f'layer {k}':>10}" for k in layers) + f"{'costs more':>12}{'divergence':>12}"
    for lag in _octaves(len(found.nats)):
        distances = "".join(f"{float(found.c[k, lag]):10.3g}" for k in layers)
        yield f"{lag:11} {distances}{float(found.nats[lag]):12.4f}{float(found.divergence[lag]):12.4f}"
    yield (
        f"two states of different prefixes reading the same, {found.pairs} pairs: distance of c (1.41: nothing in "
        "common), what the next token costs more in nats, and how far the predictions are apart"
    )


def _octaves(length: int) -> Iterator[int]:
    """0, 1, 2, 4 and so on, and the last one."""
    yield 0
    number = 1
    while number < length - 1:
        yield number
        number *= 2
    if length > 1:
        yield length - 1


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return _plain(value.tolist())
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
