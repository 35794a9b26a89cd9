"""A model that reads tokens, its state carried: by a stepper where one computes what the model does, else by calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .model import LanguageModel, evaluating
from .parts import take_apart
from .recurrence.native import missing
from .state import LSTMState, check_carried
from .stepper import Stepper

State = LSTMState | tuple[Tensor, Tensor] | None
Logits = NDArray[np.floating[Any]]

# Tokens that are stepped through; more of them are faster in one call. Those of one character are few: so reading them
# again behind a state gives the same bits.
_STEPPED = 16


class Reader:
    """Texts side by side, as many as `state` has rows, or one; each call reads on.

    By a stepper where the model is float32, on the CPU and as the library made it; else by calls of the model, also for
    one with a requested backend, with hooks, or under autocast: all of that a stepper would pass by.
    """

    def __init__(self, model: LanguageModel, state: State) -> None:
        self._state = state
        self._take(model)

    @property
    def state(self) -> LSTMState:
        """A copy, each [layers, texts, hidden]: what the texts have come to."""
        if self._stepper is not None:
            return self._stepper.state
        assert isinstance(self._state, LSTMState)
        return self._state

    def read(self, ids: Sequence[int]) -> Logits:
        """Logits [1, vocabulary] behind the last of `ids`, where there is one text."""
        if len(ids) <= _STEPPED and self._stepper is not None:
            for token in ids:
                self.step([token])
            return self._logits
        if self._stepper is None:
            logits, self._state = _called(self._model, [ids], self._state)
        else:
            logits, self._stepper.state = _called(self._model, [ids], self._stepper.state)
        return logits

    def step(self, ids: Sequence[int]) -> Logits:
        """Logits [texts, vocabulary] behind one more token of each. The next call may overwrite them."""
        if self._stepper is None:
            logits, self._state = _called(self._model, [[token] for token in ids], self._state)
            return logits
        self._ids[:] = ids
        try:
            self._stepper.step(self._in, self._out)
        except RuntimeError:
            # A step asks anyway whether the weights have changed: asking before would cost as much once more.
            if not self._stepper.stale:
                raise
            self._state = self._stepper.state
            self._take(self._model)
            return self.step(ids)
        return self._logits

    def follow(self, model: LanguageModel) -> None:
        """Read as `model` does now, if that is another model or is no longer read in the same way."""
        if model is not self._model or (
            _can_be_stepped(model) if self._stepper is None else not _asks_for_nothing_else(self._modules)
        ):
            self._state = self.state
            self._take(model)

    def _take(self, model: LanguageModel) -> None:
        check_carried(model.lstm if isinstance(model, LanguageModel) else model, "generate")
        self._model, self._stepper = model, None
        if not _can_be_stepped(model):
            return
        strict = any(layer.strict for layer in take_apart(model).layers)
        rows = self._state[0].shape[1] if self._state is not None and self._state[0].ndim == 3 else 1
        self._stepper = Stepper(model, rows, strict=strict)
        if self._state is not None:
            self._stepper.state = LSTMState(*self._state)
        self._modules = [vars(module) for module in model.modules()]
        self._in, self._out = torch.empty(rows, dtype=torch.int64), torch.empty(rows, model.config.vocabulary)
        # The same memory: NumPy is quicker than torch with so few numbers.
        self._ids, self._logits = self._in.numpy(), self._out.numpy()


def _called(model: LanguageModel, ids: Sequence[Sequence[int]], state: State) -> tuple[Logits, LSTMState]:
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        logits, after = model(torch.tensor(ids, device=device), state)
    return logits[:, -1].to("cpu", torch.float64).numpy(), after


def _can_be_stepped(model: LanguageModel) -> bool:
    if not isinstance(model, LanguageModel) or not _asks_for_nothing_else(map(vars, model.modules())):
        return False
    try:
        take_apart(model)
    except (TypeError, ValueError):
        return False
    return True


def _asks_for_nothing_else(modules: Iterable[dict[str, Any]]) -> bool:
    """Whether there is no autocast, and modules have no hook, no forward of their own and no request for a backend.

    `modules`: the attributes of each.
    """
    stepped = ("auto", "cpu") if missing() is None else ("auto",)
    return not torch.is_autocast_enabled("cpu") and not any(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or "forward" in own
        or own.get("backend", "auto") not in stepped
        for own in modules
    )
