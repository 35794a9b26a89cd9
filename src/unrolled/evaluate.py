"""How well a model predicts a split: with its state carried over all of it, and in blocks from zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Split
from .loss import bits_per_byte, perplexity, token_nats
from .model import LanguageModel, evaluating
from .tokens import Tokenizer

BLOCK = 256
# Of one call: logits of 32 MiB in float32, whatever the vocabulary.
_LOGITS = 2**23
_CHUNK = 1024
_BATCH = 64


@dataclass(frozen=True)
class Score:
    """What a split costs: `nats` is the mean over its `tokens` scored tokens, in natural logarithms."""

    nats: float
    bits_per_byte: float
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """Both scores of the same tokens. `dataclasses.asdict` gives plain numbers for JSON."""

    stateful: Score
    blocks: Score


def evaluate(model: LanguageModel, split: Split, tokenizer: Tokenizer, *, block: int = BLOCK) -> Evaluation:
    """Score a split both ways. A document's first token is predicted by nothing, so it is in neither score.

    The model runs without dropout and is left in the mode in which it came. Raises ValueError for a split without a
    token to score, and for a tokenizer of another vocabulary.
    """
    return Evaluation(stateful(model, split, tokenizer), blocks(model, split, tokenizer, block=block))


def stateful(model: LanguageModel, split: Split, tokenizer: Tokenizer, *, chunk: int = _CHUNK) -> Score:
    """One lane: the state is carried over the whole split and starts from zeros at each document.

    `chunk`, the tokens of one call, changes nothing but rounding and memory.
    """
    _check(model, split, tokenizer, chunk=chunk)
    opens = np.zeros(len(split), dtype=np.bool_)
    opens[split.starts] = True
    chunk = max(1, min(chunk, _LOGITS // model.config.vocabulary))
    total, state, device = 0.0, model.zero_state(1), _device(model)
    with torch.inference_mode(), evaluating(model):
        for begin in range(0, len(split) - 1, chunk):
            end = min(begin + chunk, len(split) - 1)
            ids, openings = _tensor(split.ids[begin : end + 1], device), torch.from_numpy(opens[begin : end + 1])
            resets = openings[None, :-1].to(device) if openings[:-1].any() else None
            scored = ~openings[1:].to(device) if openings[1:].any() else None
            logits, state = model(ids[None, :-1], state, resets=resets)
            total += _sum(logits[0], ids[1:], scored)
    return _score(total, split, tokenizer)


def blocks(model: LanguageModel, split: Split, tokenizer: Tokenizer, *, block: int = BLOCK) -> Score:
    """Blocks of `block` tokens side by side, each from zeros and none across documents, the shorter last ones too.

    Every prediction counts, a block's first included, so the tokens are those of `stateful`.
    """
    _check(model, split, tokenizer, block=block)
    begins, lengths = _cut(split, block)
    batch = max(1, min(_BATCH, _LOGITS // (block * model.config.vocabulary)))
    total, device = 0.0, _device(model)
    with torch.inference_mode(), evaluating(model):
        for first in range(0, len(begins), batch):
            some, valid = begins[first : first + batch], lengths[first : first + batch]
            positions = some[:, None] + np.arange(int(valid.max()) + 1)
            # Behind a shorter block's end anything may stand, as long as it is inside the array.
            ids = _tensor(split.ids[np.minimum(positions, len(split) - 1)], device)
            whole = bool((valid == valid[0]).all())
            counts = None if whole else torch.from_numpy(valid).to(device)
            logits, _ = model(ids[:, :-1], lengths=counts)
            scored = None if counts is None else torch.arange(logits.shape[1], device=device) < counts[:, None]
            total += _sum(logits, ids[:, 1:], scored)
    return _score(total, split, tokenizer)


def _cut(split: Split, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each block begins and how many predictions it makes, long blocks first so that they share batches."""
    ends = np.append(split.starts[1:], len(split)) - 1
    begins = np.concatenate([np.arange(a, b, block) for a, b in zip(split.starts, ends, strict=True)])
    lengths = np.minimum(ends[np.searchsorted(split.starts, begins, side="right") - 1] - begins, block)
    order = np.argsort(-lengths, kind="stable")
    return begins[order].astype(np.int64), lengths[order].astype(np.int64)


def _sum(logits: Tensor, targets: Tensor, scored: Tensor | None) -> float:
    # On the CPU, since not every device has float64.
    return float(token_nats(logits, targets, scored).cpu().double().sum())


def _score(total: float, split: Split, tokenizer: Tokenizer) -> Score:
    tokens = len(split) - len(split.starts)
    return Score(total / tokens, bits_per_byte(total, split.bytes_scored(tokenizer)), perplexity(total, tokens), tokens)


def _check(model: LanguageModel, split: Split, tokenizer: Tokenizer, **at_least_one: int) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1 token")
    if tokenizer.size != model.config.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} tokens and the model was built for {model.config.vocabulary}; "
            "use the tokenizer that is stored with the model"
        )
    if len(split) == len(split.starts):
        raise ValueError(
            f"the split has no token to score: {len(split)} tokens in {len(split.starts)} documents, whose first "
            "tokens are predicted by nothing; use a longer text"
        )


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


def _tensor(ids: NDArray[np.integer[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)
