"""What counting alone predicts: n-grams with modified Kneser-Ney smoothing, the bar that a model has to clear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .corpus import Split

_CHUNK = 2**20
# Where a text gives no discounts of its own, as where nothing occurs just once: halfway from nothing to all of a count.
_FALLBACK = (0.5, 1.0, 1.5)

_Integers = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Level:
    """The n-grams of one length n. A gram's number is its place in `keys`.

    `keys`: context's number * vocabulary + last token, ascending, the context being a gram of the level below. `p`: the
    smoothed probability of each gram's last token after its context. `backoff`: for each context, the share that goes
    to the level below; 1 where nothing ever followed.
    """

    keys: _Integers
    p: _Floats
    backoff: _Floats


@dataclass(frozen=True, eq=False)
class NGram:
    """An interpolated n-gram model (Chen and Goodman 1998, section 3): one discount each for counts of 1, 2 and more.

    Below the highest order what is counted is not how often a gram occurs but how many different tokens precede it, a
    document's beginning being one of them. The lowest level is interpolated with the uniform distribution, so every
    token of the vocabulary has a probability after every context, and they sum to 1. No context reaches across a
    document's beginning: the first tokens of a document have shorter ones.
    """

    order: int
    vocabulary: int
    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, split: Split, vocabulary: int, order: int = 5) -> NGram:
        """Count all of `split`, whose ids are 0 to vocabulary - 1. Takes some 100 bytes a token meanwhile."""
        for name, value in (("order", order), ("vocabulary", vocabulary)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        counted = list(_count(_checked(split.ids, vocabulary), _depths(split, 0, len(split)), vocabulary, order))
        times = [
            np.bincount(above.suffixes, minlength=len(gram.keys)) + gram.opens for gram, above in pairwise(counted)
        ]
        times.append(counted[-1].times)
        levels, below = list[_Level](), np.array([1 / vocabulary])
        contexts = 1
        for gram, count in zip(counted, times, strict=True):
            levels.append(_level(gram, count, below, contexts, vocabulary))
            below, contexts = levels[-1].p, len(gram.keys)
        return cls(order, vocabulary, tuple(levels))

    def nats(self, split: Split) -> float:
        """The negative log-likelihood of the split's predictions, summed."""
        return sum(float(part.sum()) for part in self.token_nats(split))

    def token_nats(self, split: Split) -> Iterator[_Floats]:
        """`nats` before the sum, one number for each scored token, in chunks. ValueError for ids out of range."""
        for begin in range(0, len(split), _CHUNK):
            end, reach = min(begin + _CHUNK, len(split)), min(begin, self.order - 1)
            ids = _checked(split.ids[begin - reach : end], self.vocabulary)
            depths = _depths(split, begin - reach, end)
            p = self._probabilities(ids, depths)[reach:]
            yield -np.log(p[split.counts(begin, end)])

    def _probabilities(self, ids: _Integers, depths: _Integers) -> _Floats:
        p = np.full(len(ids), 1 / self.vocabulary)
        numbers = np.zeros(len(ids), np.int64)
        for length, level in enumerate(self.levels):
            # The gram that ends one token earlier; before everything, the empty one, whose number is 0.
            contexts = numbers if length == 0 else np.concatenate([[-1], numbers[:-1]])
            contexts[depths < length] = -1
            known = np.flatnonzero(contexts >= 0)
            keys = contexts[known] * self.vocabulary + ids[known]
            at = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            found = level.keys[at] == keys if len(level.keys) else np.zeros(len(keys), np.bool_)
            p[known] *= level.backoff[contexts[known]]
            p[known[found]] = level.p[at[found]]
            numbers = np.full(len(ids), -1)
            numbers[known[found]] = at[found]
        return p


@dataclass(frozen=True, eq=False)
class _Grams:
    """The distinct grams of one length, in order.

    `suffixes`: the number of the gram that is left without the first token. `opens`: it begins a document somewhere.
    """

    keys: _Integers
    times: _Integers
    suffixes: _Integers
    opens: NDArray[np.bool_]


def _count(ids: _Integers, depths: _Integers, vocabulary: int, order: int) -> Iterator[_Grams]:
    numbers = np.zeros(len(ids), np.int64)
    for length in range(1, order + 1):
        ends = np.flatnonzero(depths >= length - 1)
        keys = numbers[ends - 1] * vocabulary + ids[ends]
        keys, first, number, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        opens = np.zeros(len(keys), np.bool_)
        opens[number[depths[ends] == length - 1]] = True
        yield _Grams(keys, times, numbers[ends[first]], opens)
        numbers = np.full(len(ids), -1)
        numbers[ends] = number


def _level(gram: _Grams, times: _Integers, below: _Floats, contexts: int, vocabulary: int) -> _Level:
    taken = np.array([0.0, *_discounts(times)])[np.minimum(times, 3)]
    context = gram.keys // vocabulary
    total = np.bincount(context, times, contexts)
    followed = total > 0
    total[~followed] = 1
    backoff = np.where(followed, np.bincount(context, taken, contexts) / total, 1.0)
    p = (times - taken) / total[context] + backoff[context] * below[gram.suffixes]
    return _Level(gram.keys, p, backoff)


def _discounts(times: _Integers) -> tuple[float, float, float]:
    """Equation 26 of Chen and Goodman, from how many grams occur once, twice, three and four times."""
    n1, n2, n3, n4 = (int((times == count).sum()) for count in range(1, 5))
    if not (n1 and n2 and n3):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < discount <= count for count, discount in enumerate(found, 1)) else _FALLBACK


def _depths(split: Split, begin: int, end: int) -> _Integers:
    """How many tokens of its own document precede each token from `begin` to `end`."""
    positions = np.arange(begin, end)
    return positions - split.starts[np.searchsorted(split.starts, positions, side="right") - 1]


def _checked(ids: NDArray[np.integer[Any]], vocabulary: int) -> _Integers:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"ids must be from 0 to {vocabulary - 1}, the vocabulary of these n-grams, got {wrong}")
    return ids.astype(np.int64)
