"""What each unit is worth: the loss of a text with the unit held still, many units side by side in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import recurrence
from .corpus import Progress, Split
from .evaluate import device_of
from .excerpts import excerpt, spread
from .layer import LSTMLayer
from .loss import token_nats
from .model import LanguageModel, evaluating

# Rows of one batch, units x excerpts: where a product with W_h has become as fast as it gets.
_ROWS = 256
_LOGITS = 2**24
EXCERPTS, LENGTH, WARM_UP = 4, 64, 256


@dataclass(frozen=True)
class UnitCost:
    """What the loss is more, in nats for each predicted token, while one unit is held still."""

    layer: int
    unit: int
    nats: float


@dataclass(frozen=True, eq=False)
class Ablation:
    """What holding units still costs.

    `nats`: the loss as it is, mean over `predicted` tokens. `costs` [layers, hidden] (of a projected h [layers, proj]):
    what it is more while one unit's `quantity` is held at `value`; NaN where that was not tried.
    """

    nats: float
    costs: Tensor
    quantity: str
    value: str
    predicted: int

    def ranked(self, most: int | None = None) -> list[UnitCost]:
        """The units that were tried, dearest first."""
        tried = (~self.costs.isnan()).nonzero().tolist()
        costs = [UnitCost(layer, unit, float(self.costs[layer, unit])) for layer, unit in tried]
        return sorted(costs, key=lambda cost: -cost.nats)[:most]


def ablate(
    model: LanguageModel,
    split: Split,
    *,
    quantity: Literal["c", "h"] = "c",
    value: Literal["mean", "zero"] = "mean",
    layers: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    excerpts: int = EXCERPTS,
    length: int = LENGTH,
    warm_up: int = WARM_UP,
    progress: Progress | None = None,
) -> Ablation:
    """Hold one unit after the other still, in every step of up to `excerpts` excerpts of `length` tokens.

    `value`: the unit's own mean over these excerpts, or zero. `layers`, `units`: only these. Each excerpt begins with
    the state of the `warm_up` tokens before it, in which nothing is held. The layers below a unit run once, its own one
    step by step, many units as rows of one batch, and those above it as ever.

    Raises ValueError for numbers below 1, for a text without such excerpts, and where nothing is to be tried, and
    IndexError for layers and units that there are not.
    """
    for name, number, least in (("excerpts", excerpts, 1), ("length", length, 1), ("warm_up", warm_up, 0)):
        if number < least:
            raise ValueError(f"{name}={number} must be at least {least}")
    if quantity not in ("c", "h"):
        raise ValueError(f"quantity={quantity!r} must be c or h")
    if value not in ("mean", "zero"):
        raise ValueError(f"value={value!r} must be mean or zero")
    width = model.config.hidden if quantity == "c" else model.config.h_dim
    among = _chosen("layers", layers, model.config.layers), _chosen("units", units, width)
    subject = _Subject(model, split, excerpts, length, warm_up)
    costs = torch.full((model.config.layers, width), torch.nan, dtype=torch.float64)
    at_once = subject.units_at_once
    done, of = 0, len(among[0]) * len(among[1])
    for layer in among[0]:
        held = subject.means(layer, quantity) if value == "mean" else torch.zeros(width)
        for first in range(0, len(among[1]), at_once):
            some = torch.tensor(among[1][first : first + at_once])
            costs[layer, some] = subject.nats_without(layer, quantity, some, held[some]) - subject.nats
            done += len(some)
            if progress is not None:
                progress("ablating", done, of)
    return Ablation(subject.nats, costs, quantity, value, subject.predicted)


class _Subject:
    """Excerpts of a text, traced once as they are, and again with units held."""

    def __init__(self, model: LanguageModel, split: Split, excerpts: int, length: int, warm_up: int) -> None:
        device, begins = device_of(model), spread(split, excerpts, length + 1)
        self._model, self.predicted = model, len(begins) * length
        with torch.inference_mode(), evaluating(model):
            self._state = model.initial_state(len(begins))
            if warm_up:
                ids, resets = excerpt(split, begins[:, None] + np.arange(-warm_up, 0), device)
                self._state = model(ids, self._state, resets=resets)[1]
            ids, resets = excerpt(split, begins[:, None] + np.arange(length + 1), device)
            self._ids, self._targets, self._resets = ids[:, :-1], ids[:, 1:], resets[:, :-1]
            self._trace = model.trace(self._ids, self._state, resets=self._resets)
            self.nats = float(token_nats(self._trace.output, self._targets).double().mean())
            # What came up to each layer, and up from the last one.
            self._below = [model._inputs(self._ids, None)]
            for number, layer in enumerate(self._trace.layers):
                self._below.append(self._added(layer.h, self._below[-1], number))

    @property
    def units_at_once(self) -> int:
        """As many as make full rows, and no more logits than fit into 64 MiB."""
        excerpts, length = self._ids.shape
        return max(1, min(_ROWS // excerpts, _LOGITS // (excerpts * length * self._model.config.vocabulary)))

    def means(self, layer: int, quantity: str) -> Tensor:
        """Of each unit, over all steps of all excerpts."""
        values: Tensor = getattr(self._trace.layers[layer], quantity)
        return values.mean((0, 1))

    def nats_without(self, layer: int, quantity: str, units: Tensor, held: Tensor) -> Tensor:
        """The loss, mean over tokens, with each of `units` held at its number in turn: [units]."""
        with torch.inference_mode(), evaluating(self._model):
            h = self._held(layer, quantity, units.to(self._ids.device), held.to(self._state.c))
            count = len(units)
            x = self._added(h, self._below[layer], layer).flatten(0, 1)
            resets = self._resets.repeat(count, 1)
            for number, above in enumerate(self._model.lstm.layers[layer + 1 :], layer + 1):
                h0, c0 = (part[number].repeat(count, 1) for part in self._state)
                x = self._added(above(x, h0, c0, resets=resets)[0], x, number)
            nats = token_nats(self._model.lstm._project(x), self._targets.repeat(count, 1))
        of_each: Tensor = nats.double().unflatten(0, (count, -1)).mean(1)
        return of_each.cpu()

    def _held(self, layer: int, quantity: str, units: Tensor, held: Tensor) -> Tensor:
        """h of the layer, [units, excerpts, length, hidden]."""
        own = self._model.lstm.layers[layer]
        assert isinstance(own, LSTMLayer), "a language model has no other layers"
        options = own._scan_options()
        del options["backend"], options["strict"]
        each = torch.arange(len(units), device=units.device)

        def hold(values: Tensor, name: str, _: int) -> None:
            if name == quantity:
                # A fresh tensor that nobody else has seen yet.
                values[each, :, units] = held[:, None]

        return recurrence.variants(
            self._below[layer],
            *own._weights(),
            self._state.h[layer],
            self._state.c[layer],
            hold,
            len(units),
            resets=self._resets,
            **options,
        )

    def _added(self, h: Tensor, below: Tensor, layer: int) -> Tensor:
        """What a layer hands up."""
        return h + below if self._model.lstm.residual and layer else h


def _chosen(name: str, given: Sequence[int] | None, there: int) -> list[int]:
    found = list(range(there)) if given is None else list(given)
    if wrong := [number for number in found if not 0 <= number < there]:
        raise IndexError(f"{name} are 0 to {there - 1}, and got {wrong[0]}")
    if not found:
        raise ValueError(f"{name} is empty: there is nothing to hold; None means all")
    return found
