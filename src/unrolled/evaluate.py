"""How well a model predicts a split: with its state carried over all of it and in blocks from zeros, beside n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Progress, Split
from .lanes import Window
from .loss import bits_per_byte, perplexity, token_nats
from .model import LanguageModel, evaluating
from .ngram import NGram
from .state import LSTMState
from .tokens import Tokenizer

BLOCK = 256
ORDER = 5
# What n-grams are counted on at most: the end of the text, which is nearest to what is scored.
COUNTED_TOKENS = 5_000_000
# Of one call: logits of 32 MiB in float32, whatever the vocabulary.
_LOGITS = 2**23
_CHUNK = 1024
_BATCH = 64

# Places of predictions in their block or document, and what each cost in nats.
_Costs = Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]


@dataclass(frozen=True)
class Score:
    """What a split costs: `nats` is the mean over its `tokens` scored tokens, in natural logarithms."""

    nats: float
    bits_per_byte: float
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Bars:
    """What counting alone reaches on the same tokens: single tokens, and grams of `order`. Others as in `Counts`."""

    unigram: Score
    ngram: Score
    order: int
    counted: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Counts:
    """N-grams of a training text, of order 1 and of a higher one; of its `tokens` the last `counted` were counted."""

    unigram: NGram
    ngram: NGram
    counted: int
    tokens: int

    @classmethod
    def of(cls, train: Split, tokenizer: Tokenizer, *, order: int = ORDER) -> Counts:
        """Count `train`, or its last COUNTED_TOKENS tokens."""
        end = part(train, max(0, len(train) - COUNTED_TOKENS), len(train))
        single, grams = (NGram.fit(end, tokenizer.size, length) for length in (1, order))
        return cls(single, grams, len(end), len(train))

    def bars(self, split: Split, tokenizer: Tokenizer) -> Bars:
        """What they make of a split."""
        single, grams = (score(model.nats(split), split, tokenizer) for model in (self.unigram, self.ngram))
        return Bars(single, grams, self.ngram.order, self.counted, self.tokens)


@dataclass(frozen=True)
class Evaluation:
    """Both scores of the same tokens, and the bars beside them. `dataclasses.asdict` gives plain numbers for JSON."""

    stateful: Score
    blocks: Score
    bars: Bars | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Evaluation:
        """From the plain numbers that `asdict` makes of one."""
        stateful, blocks, bars = values["stateful"], values["blocks"], values["bars"]
        ngrams = {name: Score(**bars[name]) for name in ("unigram", "ngram")} if bars else {}
        return cls(Score(**stateful), Score(**blocks), Bars(**{**bars, **ngrams}) if bars else None)


@dataclass(frozen=True, eq=False)
class PositionCurve:
    """Mean nats at each place of a block, the same tokens twice: [block] each, NaN where no block is so long.

    `cold[t]` is what the prediction behind t + 1 tokens from zeros costs; `warm[t]` what the same predictions cost with
    the state carried over all that the document has before; `tokens[t]` how many there are.
    """

    warm: NDArray[np.float64]
    cold: NDArray[np.float64]
    tokens: NDArray[np.int64]


def evaluate(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    block: int = BLOCK,
    counts: Counts | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a split both ways. A document's first token is predicted by nothing, so it is in neither score, and nor is
    what `split.scored` leaves out; both count in the text that is read.

    `counts`, of the text that the model learned from, give the bars. The model runs without dropout and is left in the
    mode in which it came. Raises ValueError for a split without a token to score, and for a tokenizer of another
    vocabulary.
    """
    both = (
        stateful(model, split, tokenizer, progress=progress),
        blocks(model, split, tokenizer, block=block, progress=progress),
    )
    return Evaluation(*both, None if counts is None else counts.bars(split, tokenizer))


def stateful(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    chunk: int = _CHUNK,
    progress: Progress | None = None,
) -> Score:
    """One lane: the state is carried over the whole split and starts from zeros at each document.

    `chunk`, the tokens of one call, changes nothing but rounding and memory.
    """
    check(model, split, tokenizer, chunk=chunk)
    costs = told(_carried(model, split, chunk), "stateful", split, progress)
    return score(sum(float(nats.sum()) for _, nats in costs), split, tokenizer)


def blocks(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> Score:
    """Blocks of `block` tokens side by side, each from zeros and none across documents, the shorter last ones too.

    Every prediction counts, a block's first included, so the tokens are those of `stateful`.
    """
    check(model, split, tokenizer, block=block)
    costs = told(_from_zeros(model, split, block), "blocks", split, progress)
    return score(sum(float(nats.sum()) for _, nats in costs), split, tokenizer)


def positions(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> PositionCurve:
    """What a token costs by its place in a block, from zeros and with the state carried. Errors as in `evaluate`."""
    check(model, split, tokenizer, block=block)
    sums, tokens = np.zeros((2, block)), np.zeros(block, np.int64)
    passes = (_carried(model, split, _CHUNK), _from_zeros(model, split, block))
    for total, costs, what in zip(sums, passes, ("warm", "cold"), strict=True):
        for places, nats in told(costs, what, split, progress):
            total += np.bincount(places % block, nats, block)
            tokens += np.bincount(places % block, minlength=block) if what == "cold" else 0
    with np.errstate(invalid="ignore"):
        warm, cold = sums / tokens
    return PositionCurve(warm, cold, tokens)


def part(split: Split, begin: int, end: int) -> Split:
    """Tokens `begin` to `end` of a split, without a copy. A document that is cut starts where the part does."""
    inside = split.starts[(split.starts > begin) & (split.starts < end)]
    scored = None if split.scored is None else split.scored[begin:end]
    return Split(split.ids[begin:end], np.append(0, inside - begin), scored)


def windows(split: Split, length: int, device: torch.device) -> Iterator[Window]:
    """All of a split in one lane, `length` tokens at a time and fewer at its end; each window continues the last."""
    for begin in range(0, len(split) - 1, length):
        end = min(begin + length, len(split) - 1)
        opens = np.zeros(end + 1 - begin, np.bool_)
        first, last = np.searchsorted(split.starts, (begin, end + 1))
        opens[split.starts[first:last] - begin] = True
        ids, openings = _tensor(split.ids[begin : end + 1], device)[None], torch.from_numpy(opens)[None].to(device)
        resets = openings[:, :-1] if opens[:-1].any() else None
        counting = split.counts(begin + 1, end + 1)
        scored = None if counting.all() else torch.from_numpy(counting)[None].to(device)
        yield Window(ids[:, :-1], ids[:, 1:], resets, scored)


def _carried(model: LanguageModel, split: Split, chunk: int) -> _Costs:
    state: LSTMState | None = None
    begin = 0
    for window in windows(split, max(1, min(chunk, _LOGITS // model.config.vocabulary)), device_of(model)):
        with torch.inference_mode(), evaluating(model):
            logits, state = model(window.inputs, state, resets=window.resets)
            nats = numbers(token_nats(logits, window.targets, window.scored))
        end = begin + window.targets.shape[1]
        targets = begin + 1 + np.flatnonzero(split.counts(begin + 1, end + 1))
        yield targets - split.starts[np.searchsorted(split.starts, targets, side="right") - 1] - 1, nats
        begin = end


def _from_zeros(model: LanguageModel, split: Split, block: int) -> _Costs:
    begins, sizes = _cut(split, block)
    batch = max(1, min(_BATCH, _LOGITS // (block * model.config.vocabulary)))
    device = device_of(model)
    for first in range(0, len(begins), batch):
        some, valid = begins[first : first + batch], sizes[first : first + batch]
        places = np.arange(int(valid.max()) + 1)
        # Behind a shorter block's end anything may stand, as long as it is inside the array.
        where = np.minimum(some[:, None] + places, len(split) - 1)
        ids = _tensor(split.ids[where], device)
        counting = places[:-1] < valid[:, None]
        lengths = None if counting.all() else torch.from_numpy(valid).to(device)
        if split.scored is not None:
            counting &= split.scored[where[:, 1:]]
        scored = None if counting.all() else torch.from_numpy(counting).to(device)
        with torch.inference_mode(), evaluating(model):
            logits, _ = model(ids[:, :-1], lengths=lengths)
            nats = numbers(token_nats(logits, ids[:, 1:], scored))
        yield np.broadcast_to(places[:-1], counting.shape)[counting], nats


def _cut(split: Split, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each block begins and how many predictions it makes, long blocks first so that they share batches."""
    ends = np.append(split.starts[1:], len(split)) - 1
    begins = np.concatenate([np.arange(a, b, block) for a, b in zip(split.starts, ends, strict=True)])
    lengths = np.minimum(ends[np.searchsorted(split.starts, begins, side="right") - 1] - begins, block)
    order = np.argsort(-lengths, kind="stable")
    return begins[order].astype(np.int64), lengths[order].astype(np.int64)


def told(costs: _Costs, what: str, split: Split, progress: Progress | None) -> _Costs:
    """The same costs; `progress` hears how far they are."""
    done, tokens = 0, split.predictions
    for places, nats in costs:
        yield places, nats
        done += len(nats)
        if progress is not None:
            progress(what, done, tokens)


def numbers(nats: Tensor) -> NDArray[np.float64]:
    """For sums in float64, on the CPU, since not every device has that."""
    return nats.detach().cpu().double().numpy()


def score(total: float, split: Split, tokenizer: Tokenizer) -> Score:
    """From the nats of all scored tokens of a split to its rates."""
    tokens = split.predictions
    return Score(total / tokens, bits_per_byte(total, split.bytes_scored(tokenizer)), perplexity(total, tokens), tokens)


def check(model: LanguageModel, split: Split, tokenizer: Tokenizer, **at_least_one: int) -> None:
    """ValueError for what can't be scored."""
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1 token")
    if tokenizer.size != model.config.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens and the model was built for {model.config.vocabulary}; "
            "use the tokenizer that is stored with the model"
        )
    if not split.predictions:
        masked = "" if split.scored is None else ", and all others are left out by `scored`"
        raise ValueError(
            f"the split has no token to score: {len(split)} tokens in {len(split.starts)} documents, whose first "
            f"tokens are predicted by nothing{masked}; use a longer text"
        )


def device_of(model: LanguageModel) -> torch.device:
    """Where its weights are."""
    return next(model.parameters()).device


def _tensor(ids: NDArray[np.integer[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)
