"""Logits to nats, and nats to the rates that people compare."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def nats(logits: Tensor, targets: Tensor, scored: Tensor | None = None) -> Tensor:
    """The negative log-likelihood of the targets, summed over scored tokens: a scalar, 0 where none is scored.

    `logits` [..., vocabulary], `targets` [...] integers, `scored` [...] bool. Unscored tokens are left out by
    selection: whatever their logits hold, NaN included, reaches neither the sum nor a gradient. Computed in the
    logits' dtype, but at least float32.
    """
    return token_nats(logits, targets, scored).sum()


def token_nats(logits: Tensor, targets: Tensor, scored: Tensor | None = None) -> Tensor:
    """`nats` before the sum: one number for each scored token, [tokens], in the order of the flattened targets."""
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits is {list(logits.shape)} and targets {list(targets.shape)}; expected one target for each row of "
            f"logits: {list(logits.shape[:-1])}"
        )
    if scored is not None:
        if scored.shape != targets.shape or scored.dtype != torch.bool:
            raise ValueError(
                f"scored is {str(scored.dtype).removeprefix('torch.')} {list(scored.shape)}, expected a bool for each "
                f"target: {list(targets.shape)}"
            )
        logits, targets = logits[scored], targets[scored]
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long(), reduction="none")


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Compression rate of the predicted text, in bits per UTF-8 byte.

    `nats` is the sum (not the mean) over predicted tokens; `n_bytes` counts those tokens' bytes only. Raises ValueError
    where there are none: an empty text has no rate.
    """
    if n_bytes < 1:
        raise ValueError(f"n_bytes={n_bytes}: a text of no bytes has no rate; score at least one token")
    return nats / math.log(2) / n_bytes


def perplexity(nats: float, n_tokens: int) -> float:
    """exp of the mean nats per token; infinite where that is above the largest float.

    `nats` is the sum over predicted tokens. Raises ValueError where there are none.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens}: no tokens have no perplexity; score at least one")
    try:
        return math.exp(nats / n_tokens)
    except OverflowError:
        return math.inf
