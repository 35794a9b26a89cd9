"""What may be changed in a layer while it runs: the value at one place, and where it has got to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor

# In the order in which a step makes them, and an edit sees them.
NAMES = ("i", "f", "g", "c", "o", "h")


class Place(NamedTuple):
    """Where a value stands: its layer in the order of the state, its name (h, c, i, f, g or o), and the time step.

    A backward layer's steps are in the order in which it runs: its step 0 is the row's last.
    """

    layer: int
    name: str
    time: int


# Gets h, c or an activated gate of one step, [batch, width], and gives what takes its place, or None: it stays.
Edit = Callable[[Tensor, Place], Tensor | None]


@dataclass(frozen=True, eq=False)
class Clamp:
    """An edit that puts `value` into some units: `model.trace(x, edit=Clamp(layer, "c", unit, 0.0))`.

    `units`: one or several. `value`: a number, or a tensor that fits [batch, units]. `steps`: a range of them, such as
    `range(3, 9)`; None means all. Layers that it does not name run as without an edit. ValueError for a name that is
    none; a unit or layer that the model has not is an IndexError when it runs.
    """

    layer: int
    name: str
    units: int | Sequence[int]
    value: float | Tensor
    steps: range | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"name={self.name!r} is none of {', '.join(NAMES)}, which a step makes in this order")

    def __call__(self, values: Tensor, place: Place) -> Tensor | None:
        if (place.layer, place.name) != (self.layer, self.name):
            return None
        if self.steps is not None and place.time not in self.steps:
            return None
        units = [self.units] if isinstance(self.units, int) else list(self.units)
        width = values.shape[-1]
        if wrong := [unit for unit in units if not 0 <= unit < width]:
            raise IndexError(f"{self.name} of layer {self.layer} has units 0 to {width - 1}, and got {wrong[0]}")
        changed = values.clone()
        changed[..., units] = self.value if isinstance(self.value, int | float) else self.value.to(values)
        return changed


def edited(layers: Sequence[Sequence[Callable[..., Any]]], edit: Edit) -> list[list[Callable[..., Any]]]:
    """`layers`, each its trace in one direction or two, with the part of `edit` that is theirs.

    Raises IndexError where it is for a layer that there is not.
    """
    check_layer(edit, sum(map(len, layers)))
    numbers = count()
    return [[partial(trace, edit=_of_layer(edit, next(numbers))) for trace in directions] for directions in layers]


def check_layer(edit: Edit, layers: int) -> None:
    """IndexError for a clamp of a layer that there is not."""
    if isinstance(edit, Clamp) and not 0 <= edit.layer < layers:
        raise IndexError(f"the clamp is of layer {edit.layer}, and there are layers 0 to {layers - 1}")


def _of_layer(edit: Edit, number: int) -> Edit | None:
    if isinstance(edit, Clamp) and edit.layer != number:
        return None
    return lambda values, place: edit(values, place._replace(layer=number))
