"""A model that reads tokens, its state carried: by a stepper where one computes what the model does, else by calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from .model import LanguageModel, evaluating
from .parts import take_apart
from .recurrence.native import missing
from .state import LSTMState
from .stepper import Stepper

State = LSTMState | tuple[Tensor, Tensor] | None

# Tokens that are stepped through; more of them are faster in one call. Those of one character are few: so reading them
# again behind a state gives the same bits.
_STEPPED = 16


class Reader(Protocol):
    """Reads one text; `state`, each [layers, 1, hidden], is a copy of what it has come to."""

    @property
    def state(self) -> LSTMState: ...
    def read(self, ids: Sequence[int]) -> Tensor:
        """Logits [vocabulary] behind the last of `ids`; the next call may overwrite them."""

    def follows(self, model: LanguageModel) -> bool:
        """Whether it reads as `model` does now; one that can, catches up with changed weights first."""


def reader_of(model: LanguageModel, state: State) -> Reader:
    """A stepper for a float32 model on the CPU that is as the library made it; else calls of the model.

    Calls too for a model with a requested backend, with hooks, or under autocast: all of that a stepper would pass by.
    """
    return _Stepping(model, state) if _can_be_stepped(model) else _Calling(model, state)


class _Stepping:
    def __init__(self, model: LanguageModel, state: State) -> None:
        strict = any(layer.strict for layer in take_apart(model).layers)
        self._model, self._modules, self._stepper = model, list(model.modules()), Stepper(model, 1, strict=strict)
        if state is not None:
            self._stepper.state = LSTMState(*state)
        self._id = torch.empty(1, dtype=torch.int64)
        self._logits = torch.empty(1, model.config.vocabulary)

    @property
    def state(self) -> LSTMState:
        return self._stepper.state

    def read(self, ids: Sequence[int]) -> Tensor:
        if len(ids) > _STEPPED:
            logits, self._stepper.state = _called(self._model, ids, self._stepper.state)
            return logits
        for token in ids:
            self._stepper.step(self._id.fill_(token), self._logits)
        return self._logits[0]

    def follows(self, model: LanguageModel) -> bool:
        if model is not self._model:
            return False
        if not self._stepper.stale:
            return _asks_for_nothing_else(self._modules)
        if _can_be_stepped(model):
            self._stepper.refresh()
            self._modules = list(model.modules())
            return True
        return False


class _Calling:
    def __init__(self, model: LanguageModel, state: State) -> None:
        self._model, self._state = model, state

    @property
    def state(self) -> LSTMState:
        assert isinstance(self._state, LSTMState)
        return self._state

    def read(self, ids: Sequence[int]) -> Tensor:
        logits, self._state = _called(self._model, ids, self._state)
        return logits

    def follows(self, model: LanguageModel) -> bool:
        return model is self._model and not _can_be_stepped(model)


def _called(model: LanguageModel, ids: Sequence[int], state: State) -> tuple[Tensor, LSTMState]:
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        logits, after = model(torch.tensor([ids], device=device), state)
    return logits[0, -1], after


def _can_be_stepped(model: LanguageModel) -> bool:
    if not isinstance(model, LanguageModel) or not _asks_for_nothing_else(model.modules()):
        return False
    try:
        take_apart(model)
    except (TypeError, ValueError):
        return False
    return True


def _asks_for_nothing_else(modules: Iterable[nn.Module]) -> bool:
    """Whether there is no autocast, no hook, no forward of an instance and no request for another backend."""
    stepped = ("auto", "cpu") if missing() is None else ("auto",)
    return not torch.is_autocast_enabled("cpu") and not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in module.__dict__
        or module.__dict__.get("backend", "auto") not in stepped
        for module in modules
    )
