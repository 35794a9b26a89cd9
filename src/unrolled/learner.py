"""One step of training: from a window of text to moved weights, and to the state that the next window starts from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .checkpoint import Run, Training, check_shapes
from .config import TrainConfig
from .lanes import Lanes, Window
from .loss import nats
from .machine import randomness
from .model import LanguageModel
from .optimize import Optimizer
from .state import LSTMState


class NotFiniteError(ArithmeticError):
    """A step whose loss or gradient is no number; the weights were not moved."""


class Lesson(NamedTuple):
    """What a step did: `loss` in mean nats of a scored token, `norm` of the gradient before clipping, `tokens` read."""

    loss: float
    norm: float
    rate: float
    tokens: int


class Learner:
    """Moves the weights of `model`, window by window; `averaged` is the running average of where they have been."""

    def __init__(self, model: LanguageModel, lanes: Lanes, config: TrainConfig, device: torch.device) -> None:
        """`config` is resolved: it has its steps."""
        assert config.steps is not None, "a resolved configuration has its steps"
        self.model, self.lanes, self.device = model, lanes, device
        self._config = config
        self._optimizer = Optimizer(model, config, config.steps)
        self.averaged = self._optimizer.averaged
        self._state: LSTMState | None = None

    def step(self, step: int) -> Lesson:
        """Read the window of step `step`, counted from 0, and move the weights. Raises NotFiniteError."""
        epoch, index = divmod(step, self.lanes.windows_per_epoch)
        window = self.lanes.window(epoch, index)
        tokens = window.targets.numel() if window.scored is None else int(window.scored.sum())
        self._optimizer.clear()
        # A lane's first window of an epoch continues nothing.
        state = self._state if self._config.state == "carry" and index else None
        with randomness(self._config.seed, step, self.device):
            loss, state = self._backward(window, state, max(1, tokens))
        norm = self._optimizer.norm()
        # The one moment at which a step waits for the device.
        mean, length = torch.stack([loss, norm.to(loss.dtype)]).tolist()
        if not (math.isfinite(mean) and math.isfinite(length)):
            raise NotFiniteError(f"the loss is {mean} and the gradient's norm {length} at step {step + 1}")
        self._state = state
        return Lesson(mean, length, self._optimizer.step(step, norm), window.targets.numel())

    def _backward(self, window: Window, state: LSTMState | None, tokens: int) -> tuple[Tensor, LSTMState]:
        """Add the gradients of the window's sum of nats over `tokens`; that loss, and the state at its end."""
        inputs, targets, resets, scored = (None if part is None else part.to(self.device) for part in window)
        assert inputs is not None and targets is not None  # noqa: PT018
        logits, state = self.model(inputs, state, resets=resets)
        loss = nats(logits, targets, scored) / tokens
        loss.backward()
        return loss.detach(), state.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Every number beside the averaged weights on which the next steps depend; the state is that of all lanes."""
        tensors = self._optimizer.tensors()
        if self._config.state == "carry":
            state = self._state or self.model.zero_state(self._config.lanes)
            tensors |= {"state.h": state.h, "state.c": state.c}
        return tensors

    def restore(self, step: int, run: Run, training: Training) -> None:
        """Be as after `step` steps. CheckpointError where the tensors are not those of this model and these lanes."""
        expected = {name: value.shape for name, value in self.tensors().items()}
        check_shapes(run.directory / "training.safetensors", expected, training.tensors)
        self._optimizer.restore(step, run.model, training.tensors)
        if self._config.state == "carry":
            self._state = LSTMState(training.tensors["state.h"], training.tensors["state.c"]).to(self.device)
