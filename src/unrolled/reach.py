"""How far back the loss at a token reaches: its total gradient in each of the steps before, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Progress, Split
from .evaluate import device_of
from .excerpts import excerpt, spread
from .loss import token_nats
from .model import LanguageModel, evaluating

# Of one backward pass: h, c, gates, and the gradients of all of these.
_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Reach:
    """Norms of total gradients, |dL_t / dc_{t-k}| and |dL_t / dh_{t-k}|, over the units of a layer.

    `c`, `h` [layers, tokens, window] (float64, CPU), at k the gradient k steps before step t, which predicts the token
    that L_t is the cost of, in nats. `places` [tokens]: where in the text each of these tokens stands.
    """

    c: Tensor
    h: Tensor
    places: NDArray[np.int64]

    def mean(self, name: str = "c") -> Tensor:
        """[layers, window]: the mean over tokens, of c or of h."""
        found: Tensor = {"c": self.c, "h": self.h}[name].mean(1)
        return found

    def steps(self, share: float = 0.9, name: str = "c") -> list[int]:
        """For each layer the fewest last steps that have this share of the sum of mean norms over the window."""
        means = self.mean(name)
        shares = means.cumsum(1) / means.sum(1, keepdim=True)
        return [1 + int(k) for k in (shares < share).sum(1).clamp(max=means.shape[1] - 1)]

    def factor(self, name: str = "c") -> list[float]:
        """For each layer what a step back multiplies the mean norm by, on average over the window: 1 keeps it."""
        means = self.mean(name)
        steps = means.shape[1] - 1
        return [float(each) for each in (means[:, -1] / means[:, 0]) ** (1 / steps)] if steps else [1.0] * len(means)


def reach(
    model: LanguageModel,
    split: Split,
    *,
    window: int = 128,
    tokens: int = 64,
    warm_up: int = 256,
    progress: Progress | None = None,
) -> Reach:
    """The gradients of the losses at `tokens` tokens, spread evenly over the text, in the `window` steps before each.

    They are those of `Trace.gradients`: through every path, later steps and upper layers included. The state at a
    window's beginning is that of the `warm_up` tokens before it (from zeros, or from the document's beginning). Without
    dropout; the model's own gradients stay as they are. Raises ValueError for a window below 1 and for a text none of
    whose documents is longer than the window; TypeError for another model than a `LanguageModel`.
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(f"reach traces a LanguageModel, and got {type(model).__name__}")
    if window < 1 or tokens < 1 or warm_up < 0:
        raise ValueError(f"window={window} and tokens={tokens} must be at least 1, warm_up={warm_up} at least 0")
    begins = spread(split, tokens, window + 1)
    config = model.config
    of_a_row = 24 * config.layers * config.hidden * window * next(model.parameters()).element_size()
    rows, norms = max(1, _BYTES // of_a_row), []
    for first in range(0, len(begins), rows):
        norms.append(_norms(model, split, begins[first : first + rows], window, warm_up))
        if progress is not None:
            progress("gradients", min(first + rows, len(begins)), len(begins))
    c, h = (torch.cat(each, 1) for each in zip(*norms, strict=True))
    return Reach(c, h, begins + window)


def _norms(
    model: LanguageModel, split: Split, begins: NDArray[np.int64], window: int, warm_up: int
) -> tuple[Tensor, Tensor]:
    """Of c and of h, [layers, rows, window]."""
    device = device_of(model)
    with torch.inference_mode(False), evaluating(model):
        state = model.initial_state(len(begins)).detach()
        if warm_up:
            ids, resets = excerpt(split, begins[:, None] + np.arange(-warm_up, 0), device)
            with torch.no_grad():
                state = model(ids, state, resets=resets)[1]
        ids, resets = excerpt(split, begins[:, None] + np.arange(window + 1), device)
        with torch.enable_grad():
            trace = model.trace(ids[:, :-1], state, resets=resets[:, :-1])
            # Rows know nothing of each other, so that the sum's gradient is in each that of its own loss.
            loss = token_nats(trace.output[:, -1], ids[:, -1]).sum()
            layers = trace.gradients(loss)
    c, h = (
        torch.stack([getattr(layer, name).norm(dim=-1).flip(-1) for layer in layers]).double().cpu() for name in "ch"
    )
    return c, h
