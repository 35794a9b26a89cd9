"""What a model's state looks like, as calls show it: tensors by name, and each one's axis of lanes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .model import LanguageModel, evaluating
from .state import check_carried, mapped

# Whatever of tensors, tuples, lists and dicts a model returns; None means its own beginning.
State = Any


class Recurrent(Protocol):
    """What training asks of a model: ids [lanes, time] and the state before them, to logits and the state behind them.

    Logits are [lanes, time, vocabulary]. `state` None is where a text begins. `resets` [lanes, time] (bool, or None for
    nowhere): that lane begins afresh before that step.
    """

    def __call__(self, ids: Tensor, state: State = None, *, resets: Tensor | None = None) -> tuple[Tensor, State]: ...


@dataclass(frozen=True)
class StateLayout:
    """`axes`: the lanes' axis of each tensor by name; `example`: a state of two lanes."""

    axes: dict[str, int]
    example: State

    @staticmethod
    def of(model: nn.Module, vocabulary: int, device: torch.device) -> StateLayout:
        """Asked of the model with two lanes and with three, in evaluation mode.

        Raises ValueError or TypeError, with what is expected, for a model that is not as `Recurrent` says.
        """
        check_carried(model.lstm if isinstance(model, LanguageModel) else model, "training")
        cuda = [device] if device.type == "cuda" else []
        with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=cuda):
            states = [_called(model, lanes, vocabulary, device) for lanes in (2, 3)]
        two, three = (dict(_leaves(state, "state")) for state in states)
        if two.keys() != three.keys():
            raise ValueError(
                f"the state of two lanes has tensors {', '.join(two)} and that of three {', '.join(three)}; expected "
                "the same for any number of lanes"
            )
        return StateLayout({name: _axis(name, two[name], three[name]) for name in two}, states[0])

    def zeros(self, lanes: int) -> dict[str, Tensor]:
        """Tensors by name, as of a state of so many lanes."""
        shapes = {name: list(tensor.shape) for name, tensor in _leaves(self.example, "state")}
        for name, axis in self.axes.items():
            shapes[name][axis] = lanes
        return {name: tensor.new_zeros(shapes[name]) for name, tensor in _leaves(self.example, "state")}

    def joined(self, states: Sequence[State]) -> dict[str, Tensor]:
        """Tensors by name, of several lots of lanes as one."""
        parts = [dict(_leaves(state, "state")) for state in states]
        return {name: torch.cat([part[name] for part in parts], axis) for name, axis in self.axes.items()}

    def chosen(self, tensors: dict[str, Tensor], lanes: slice) -> State:
        """The state of some of the lanes, as the model takes it."""
        width = lanes.stop - lanes.start
        part = (tensors[name].narrow(axis, lanes.start, width).contiguous() for name, axis in self.axes.items())
        return mapped(self.example, lambda _: next(part))


def _leaves(state: State, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, part in state.items():
            yield from _leaves(part, f"{name}.{key}")
    elif isinstance(state, tuple | list):
        for key, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
            yield from _leaves(part, f"{name}.{key}")
    elif state is not None:
        raise TypeError(f"a state holds tensors in tuples, lists and dicts, and this one has {type(state).__name__}")


def _called(model: nn.Module, lanes: int, vocabulary: int, device: torch.device) -> State:
    steps = 4
    ids = torch.zeros(lanes, steps, dtype=torch.int64, device=device)
    returned = model(ids, None, resets=torch.zeros_like(ids, dtype=torch.bool))
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor)):
        raise TypeError(f"{type(model).__name__} returns {type(returned).__name__}, expected a pair (logits, state)")
    if returned[0].shape != (lanes, steps, vocabulary):
        raise ValueError(
            f"{type(model).__name__} returns logits {list(returned[0].shape)} for ids [{lanes}, {steps}], expected "
            f"[{lanes}, {steps}, {vocabulary}]: one row for each token, as wide as the vocabulary"
        )
    return returned[1]


def _axis(name: str, two: Tensor, three: Tensor) -> int:
    differing = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=False)) if a != b]
    if two.dim() != three.dim() or [(two.shape[axis], three.shape[axis]) for axis in differing] != [(2, 3)]:
        raise ValueError(
            f"{name} is {list(two.shape)} for two lanes and {list(three.shape)} for three; expected one axis that is "
            "the lanes"
        )
    return differing[0]
