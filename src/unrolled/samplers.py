"""From the model's logits to the next token: penalties, temperature, truncation, one draw."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.integer[Any]]

# Where a temperature is smaller than this, differences of logits divided by it may overflow.
_COLDEST = 1e-200


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. They apply in this order, each to what the one before left; the defaults do nothing.

    1. `repetition_penalty` 2. `presence_penalty` and `frequency_penalty` 3. `temperature` 4. `top_k` 5. `top_p`
    6. `min_p`. Raises ValueError for values out of range.
    """

    temperature: float = 1.0
    """Below 1 keeps to what the model finds likely; 0 takes the most probable token each time."""
    top_k: int = 0
    """Draw from this many of the most probable tokens; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest most probable tokens that together reach this share; 1 is all."""
    min_p: float = 0.0
    """Draw from tokens that are at least this share as probable as the most probable one; 0 is all."""
    repetition_penalty: float = 1.0
    """Divide the logit of each token of prompt and text by this, or multiply it if it is negative; 1 is none."""
    presence_penalty: float = 0.0
    """Subtract this from the logit of each token that was written, however often."""
    frequency_penalty: float = 0.0
    """Subtract this from the logit of a token for each time that it was written."""
    penalty_window: int = 0
    """Penalties look at this many of the last tokens; 0 is all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be 0 (the most probable token) or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or the number of tokens to keep")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (all tokens)")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be from 0 (all tokens) to 1 (the most probable ones alone)")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be a positive number; 1 is none")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number; 0 is none")
        if self.penalty_window < 0:
            raise ValueError(f"penalty_window={self.penalty_window} must be 0 (all tokens) or a number of tokens")

    @property
    def penalises(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


class Sampler:
    """Chooses the tokens of one text, each knowing those before.

    Repetition is penalised for what was read and what was written, as in Keskar et al. 2019 with the correction for
    negative logits that is usual since; presence and frequency for what was written alone, as OpenAI's API has them.
    """

    def __init__(
        self, sampling: Sampling, vocabulary: int, uniform: Callable[[], float], read: Iterable[int] = ()
    ) -> None:
        """`uniform` gives the next number in [0, 1); `read` are the tokens before the first that is chosen."""
        self._sampling, self._uniform = sampling, uniform
        self._tempered = sampling.temperature != 1 or sampling.penalises
        self._truncates = bool(sampling.top_k) or sampling.top_p < 1
        self._history = _History(vocabulary, sampling.penalty_window) if sampling.penalises else None
        for token in read:
            self.take(token, written=False)

    def take(self, token: int, *, written: bool = True) -> None:
        """A token that the text goes on with, chosen here or not."""
        if self._history is not None:
            self._history.add(token, written)

    def choose(self, logits: Floats, powers: Floats) -> int:
        """The next token, not yet taken, by logits [vocabulary]; `powers` are their `exponentials`."""
        if self._sampling.temperature == 0:
            return int(self._penalised(logits).argmax())  # of equals the first
        ids, weights = self.weights(logits, powers)
        sums = weights.cumsum()
        # The first sum above the target: never a token of weight 0.
        place = int(sums.searchsorted(self._uniform() * sums[-1], side="right"))
        return place if ids is None else int(ids[place])

    def weights(self, logits: Floats, powers: Floats) -> tuple[Ids | None, Floats]:
        """What is drawn from where the temperature is not 0: tokens, None for all, and in what proportion."""
        sampling = self._sampling
        if self._tempered:
            logits = self._penalised(logits)
            powers = np.exp((logits - logits.max()) / max(sampling.temperature, _COLDEST))
        ids: Ids | None = None
        if self._truncates:
            ids, powers = _most_probable(powers, sampling.top_k, sampling.top_p)
        if sampling.min_p:
            # The largest is 1, whatever was left out before.
            kept = np.flatnonzero(powers >= sampling.min_p)
            ids, powers = kept if ids is None else ids[kept], powers[kept]
        return ids, powers

    def _penalised(self, logits: Floats) -> Floats:
        history, sampling = self._history, self._sampling
        if history is None:
            return logits
        logits = logits.copy()
        seen = np.flatnonzero(history.seen)
        those = logits[seen]
        those = np.where(those > 0, those / sampling.repetition_penalty, those * sampling.repetition_penalty)
        written = history.written[seen]
        logits[seen] = those - sampling.presence_penalty * (written > 0) - sampling.frequency_penalty * written
        return logits


def probabilities(
    logits: Floats, sampling: Sampling, *, read: Iterable[int] = (), written: Iterable[int] = ()
) -> Floats:
    """The chance of every token, [vocabulary], behind a text of which `read` was the prompt."""
    sampler = Sampler(sampling, len(logits), lambda: 0.0, read)
    for token in written:
        sampler.take(token)
    chances, (_, powers) = np.zeros(len(logits)), exponentials(logits)
    if sampling.temperature == 0:
        chances[sampler.choose(logits, powers)] = 1
        return chances
    ids, weights = sampler.weights(logits, powers)
    chances[slice(None) if ids is None else ids] = weights / weights.sum()
    return chances


def exponentials(logits: Floats) -> tuple[float, Floats]:
    """The largest of the logits, and exp(logits - largest). ValueError where there is nothing to draw from."""
    largest = float(logits.max())  # NaN if there is one
    if not math.isfinite(largest):
        raise ValueError(
            "the model's logits are not finite, so there is nothing to draw from; most likely its weights diverged in "
            "training: go back to an earlier checkpoint, or train with a lower --lr"
        )
    return largest, np.exp(logits - largest)


def uniforms(seed: int, sample: int, drawn: int = 0) -> Callable[[], float]:
    """Numbers in [0, 1) that follow from seed and sample alone, from number `drawn` on: the same with every NumPy."""
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(sample,))).advance(drawn)
    return lambda: (bits.random_raw() >> 11) * 2.0**-53


def _most_probable(weights: Floats, top_k: int, top_p: float) -> tuple[Ids, Floats]:
    """Most probable first, of equals the lower id."""
    size = len(weights)
    some = 0 < top_k < size
    # Where all are taken, those below make up less than half of what a nucleus leaves out: none needs to be sorted.
    least = np.partition(weights, size - top_k)[size - top_k] if some else (1 - top_p) / 2 / size * weights.sum()
    ids: Ids = np.flatnonzero(weights >= least)
    ids = ids[(-weights[ids]).argsort(kind="stable")][: top_k or None]
    kept = weights[ids]
    if top_p < 1:
        total = kept.sum() if some else weights.sum()
        before = kept.cumsum() - kept
        count = max(1, int((before < top_p * total).sum()))
        ids, kept = ids[:count], kept[:count]
    return ids, kept


class _History:
    """How often each token is among the last `window` (0: all) tokens, and how often it was written there."""

    def __init__(self, vocabulary: int, window: int) -> None:
        self.seen, self.written = np.zeros(vocabulary, np.int64), np.zeros(vocabulary, np.int64)
        self._window, self._last = window, deque[tuple[int, bool]]()

    def add(self, token: int, written: bool) -> None:
        self.seen[token] += 1
        self.written[token] += written
        if self._window:
            self._last.append((token, written))
            if len(self._last) > self._window:
                token, written = self._last.popleft()
                self.seen[token] -= 1
                self.written[token] -= written
