"""A whole text through a model, opened, a stretch at a time: what one stretch holds is all that is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Split
from .evaluate import device_of
from .excerpts import excerpt, opens
from .held_weights import HeldWeights
from .loss import token_nats
from .model import LanguageModel, evaluating
from .stack import Trace

# What the traces of one call may take: h, c and four gates of every unit, layer and token.
_BYTES = 2**25
# Lanes of a long text, and the tokens that a lane is worth: with fewer, reading its warm-up twice costs too much.
LANES, TOKENS_OF_A_LANE = 48, 2048
WARM_UP = 256


@dataclass(frozen=True, eq=False)
class Stretch:
    """Some tokens of a text, and what the model did in reading them.

    `trace` is of [lanes, steps], the last one also of some behind the text's end; `places` [tokens] are where those
    tokens stand in the text that belong to this stretch (int64, step by step, in each step lane by lane); `nats`
    [tokens] is what each of them cost when it was predicted. NaN where nothing did: at a document's first token,
    without a warm-up at a lane's, and where `Split.scored` is False.
    """

    trace: Trace
    places: Tensor
    nats: Tensor

    def values(self, layer: int, name: str) -> Tensor:
        """`trace.layers[layer].<name>` of the tokens at `places`: [tokens, width]."""
        # Time-first is how the recurrence leaves it: no copy.
        flat: Tensor = getattr(self.trace.layers[layer], name).transpose(0, 1).flatten(0, 1)
        return flat[: len(self.places)]


def default_lanes(tokens: int) -> int:
    """As many as the text is long enough for, at most 48."""
    return max(1, min(LANES, tokens // TOKENS_OF_A_LANE))


def stretches(
    model: LanguageModel,
    split: Split,
    *,
    lanes: int = 1,
    warm_up: int = WARM_UP,
    steps: int | None = None,
) -> Iterator[Stretch]:
    """Every token of `split` once, in evaluation mode and without gradients; the state starts afresh at documents.

    One lane carries its state from the text's beginning to its end. Of several, which are read side by side and so
    several times as fast, each begins `warm_up` tokens before its part of the text, from zeros, and what it does there
    is not shown: from then on its state is that of the whole text up to what a text of `warm_up` tokens does not tell.

    `steps` of one stretch: as many as fit into 32 MiB if None. Memory does not depend on the text's length. Raises
    ValueError for numbers below 1 (of `warm_up` below 0).
    """
    for name, value, least in (
        ("lanes", lanes, 1),
        ("warm_up", warm_up, 0),
        ("steps", 1 if steps is None else steps, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    # Longer lanes come first: of a stretch, step by step and lane by lane, so does what lies in the text.
    lanes = min(lanes, len(split))
    begins = np.append(0, np.cumsum(len(split) // lanes + (np.arange(lanes) < len(split) % lanes)))
    size, config = int(begins[1]), model.config
    if steps is None:
        # Of logits there are three: themselves, one step later, and their log-softmax.
        numbers = 6 * config.layers * config.hidden + 3 * config.vocabulary
        of_a_token = numbers * next(model.parameters()).element_size()
        most = max(1, _BYTES // (of_a_token * lanes))
        # Equally long ones: a last one of another size would take memory of its own.
        steps = -(-size // -(-size // most))
    return _read(model, split, (begins[:-1], begins[1:]), warm_up if lanes > 1 else 0, min(steps, size))


def _read(
    model: LanguageModel, split: Split, lanes: tuple[NDArray[np.int64], NDArray[np.int64]], warm_up: int, steps: int
) -> Iterator[Stretch]:
    begins, ends = lanes
    device, size, weights = device_of(model), int(ends[0]), HeldWeights(model)
    with torch.inference_mode():
        state = model.initial_state(len(begins))
    predicted: Tensor | None = None
    for first in [*range(-warm_up, 0, steps), *range(0, size, steps)]:
        last = min(first + steps, 0) if first < 0 else first + steps
        places = begins[:, None] + np.arange(first, last)
        ids, resets = excerpt(split, places, device)
        # Whoever gets a stretch goes on outside of the mode.
        with torch.inference_mode(), evaluating(model), weights.at_hand():
            stretch = None
            if first < 0:
                logits, state = model(ids, state, resets=resets)
            else:
                trace = model.trace(ids, state, resets=resets)
                logits, state = trace.output, trace.state
                inside = (places < ends[:, None]).T
                nats = _nats(predicted, logits, ids, torch.from_numpy(inside & _counting(split, places).T).to(device))
                stretch = _stretch(trace, places.T, nats, inside)
                del trace, nats
            predicted = logits[:, -1:].clone()
            del logits
        if stretch is not None:
            yield stretch
        # Before the next one is made: memory is that of one.
        del stretch


def _stretch(trace: Trace, places: NDArray[np.int64], nats: Tensor, inside: NDArray[np.bool_]) -> Stretch:
    tokens = int(inside.sum())
    return Stretch(trace, torch.from_numpy(places.flatten()[:tokens]).to(nats.device), nats.flatten()[:tokens])


def _nats(predicted: Tensor | None, logits: Tensor, ids: Tensor, counting: Tensor) -> Tensor:
    """[steps, lanes]: of the tokens that are read, each predicted by the step before; NaN where none counts."""
    if predicted is None:
        predicted = torch.zeros_like(logits[:, :1])
        counting[0] = False
    of_each = torch.cat([predicted, logits[:, :-1]], 1).transpose(0, 1)
    nats = torch.full(counting.shape, torch.nan, dtype=logits.dtype, device=logits.device)
    nats[counting] = token_nats(of_each, ids.t(), counting).to(nats.dtype)
    return nats


def _counting(split: Split, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these tokens have a prediction that counts."""
    counting = ~opens(split, places)
    if split.scored is not None:
        counting &= split.scored[np.clip(places, 0, len(split) - 1)]
    return counting
