"""One step of training: from a window of text to moved weights, and to the state that the next window starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .lanes import Lanes, Window
from .loss import nats
from .machine import randomness
from .optimize import Optimizer
from .ranks import ALONE, Ranks
from .state_layout import StateLayout
from .truncated import CarriedState


class NotFiniteError(ArithmeticError):
    """A step whose loss or gradient is no number; the weights were not moved."""


class Lesson(NamedTuple):
    """What a step did: `loss` in mean nats of a scored token, `norm` of the gradient before clipping, `tokens` read."""

    loss: float
    norm: float
    rate: float
    tokens: int


class Learner:
    """Moves the weights of `model`, window by window; `averaged` is the running average of where they have been.

    Of several ranks each reads its share of the lanes. All have the same gradients, hence the same weights.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: StateLayout,
        lanes: Lanes,
        config: TrainConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        """`config` is resolved: it has its steps. RankError where the lanes can't be divided."""
        assert config.steps is not None, "a resolved configuration has its steps"
        self.model, self.lanes, self.device = model, lanes, device
        self._config, self._layout = config, layout
        self._optimizer = Optimizer(model, config, config.steps)
        self.averaged = self._optimizer.averaged
        self._ranks = ranks
        # Lots of this rank's lanes that go through the model one after the other, each with its state.
        self._lots = _lots(ranks.share(config.lanes), config.accumulate)
        self._states = [CarriedState() for _ in self._lots]

    def step(self, step: int) -> Lesson:
        """Read the window of step `step`, counted from 0, and move the weights. Raises NotFiniteError."""
        epoch, index = divmod(step, self.lanes.windows_per_epoch)
        if index == 0 or self._config.state == "reset":
            # A lane's first window of an epoch continues nothing.
            for carried in self._states:
                carried.reset()
        window = self.lanes.window(epoch, index)
        self._optimizer.clear()
        with randomness(self._config.seed, step, self.device, self._ranks.rank):
            loss = self._optimizer.add_up(self._backward(window), self._ranks)
        norm = self._optimizer.norm()
        # The one moment at which a step waits for the device.
        mean, length = torch.stack([loss, norm.to(loss.dtype)]).tolist()
        if not (math.isfinite(mean) and math.isfinite(length)):
            raise NotFiniteError(f"the loss is {mean} and the gradient's norm {length} at step {step + 1}")
        return Lesson(mean, length, self._optimizer.step(step, norm), window.targets.numel())

    def _backward(self, window: Window) -> Tensor:
        """Leave the window's gradients with the weights and its states with the lots; its loss.

        The sum of nats is divided by the tokens of all lanes before it goes backward: so lots are summed, not averaged,
        and ranks as well.
        """
        tokens = max(1, window.targets.numel() if window.scored is None else int(window.scored.sum()))
        low = self._config.autocast == "bfloat16"
        total = torch.zeros((), device=self.device)
        for lanes, carried in zip(self._lots, self._states, strict=True):
            inputs, targets, resets, scored = (None if p is None else p[lanes].to(self.device) for p in window)
            assert inputs is not None and targets is not None  # noqa: PT018
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                logits, state = self.model(inputs, carried.state, resets=resets)
                loss = nats(logits, targets, scored) / tokens
            loss.backward()
            total = total + loss.detach()
            carried.state = state
        return total

    def tensors(self) -> dict[str, Tensor]:
        """Every number beside the averaged weights on which the next steps depend; the state is that of all lanes."""
        tensors = self._optimizer.tensors()
        if self._config.state == "carry":
            tensors |= self._layout.zeros(self._config.lanes) if self._states[0].state is None else self._state()
        return tensors

    def _state(self) -> dict[str, Tensor]:
        own = self._layout.joined([carried.state for carried in self._states])
        return {name: self._ranks.gathered(own[name], axis) for name, axis in self._layout.axes.items()}

    def begin(self, saved: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None) -> None:
        """Restore what rank 0 was given, on all ranks; without it, begin everywhere with the weights of rank 0."""
        if self._ranks.size > 1:
            mine = [
                {name: value.clone() for name, value in now.items()}
                for now in (self.averaged.state_dict(), self.tensors())
            ]
            for own, given in zip(mine, saved or ({}, {}), strict=True):
                for name, value in given.items():
                    own[name].copy_(value)
                self._ranks.spread(list(own.values()))
            saved = (mine[0], mine[1])
        if saved is not None:
            self.restore(*saved)

    def align(self) -> None:
        """Take rank 0's weights and moments: on unlike processors, rounding lets those of the ranks drift apart."""
        self._ranks.spread([*self.averaged.state_dict().values(), *self._optimizer.tensors().values()])

    def restore(self, averaged: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Be as when `tensors` gave these, and the averaged model's `state_dict` was `averaged`."""
        self._optimizer.restore(averaged, tensors)
        if self._config.state == "carry":
            there = {name: tensors[name].to(self.device) for name in self._layout.axes}
            for lanes, carried in zip(self._lots, self._states, strict=True):
                carried.state = self._layout.chosen(there, lanes)


def _lots(lanes: slice, count: int) -> list[slice]:
    width = lanes.stop - lanes.start
    count = min(count, width)
    bounds = [lanes.start + width * lot // count for lot in range(count + 1)]
    return [slice(begin, end) for begin, end in pairwise(bounds)]
