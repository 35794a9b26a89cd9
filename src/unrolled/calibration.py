"""What smaller weights cost: a stepper beside the float32 model, on data of the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .loss import token_nats
from .parts import Parts

State = tuple[Tensor | None, Tensor | None]

# Of the float32 model's outputs at a time: 32 MiB.
_CHUNK = 2**23


@dataclass(frozen=True)
class Calibration:
    """A stepper's outputs beside those of the float32 model, step by step on the same inputs, each with its own state.

    `bits` and `bits_float32` are mean bits for each predicted token (with byte tokens a byte, with character tokens a
    character); both are None where the outputs are not logits over the ids that went in.
    """

    weights: str
    steps: int
    largest_difference: float
    bits: float | None
    bits_float32: float | None

    @property
    def bits_lost(self) -> float | None:
        """`bits` above `bits_float32`; below zero where the stepper happens to predict better."""
        return None if self.bits is None or self.bits_float32 is None else self.bits - self.bits_float32

    def __str__(self) -> str:
        lines = [
            f"{self.weights} beside float32, {self.steps:,} steps",
            f"  largest difference of an output  {self.largest_difference:.3g}",
        ]
        if self.bits_lost is not None:
            lines.append(
                f"  bits per token                   {self.bits:.4f}, float32 {self.bits_float32:.4f}, lost "
                f"{round(self.bits_lost, 4) + 0.0:+.4f}"
            )
        return "\n".join(lines)


def calibrate(weights: str, steps_of: Callable[[Tensor], Tensor], parts: Parts, x: Tensor) -> Calibration:
    """Run `steps_of` over `x`, ids [batch, time] or frames [batch, time, input], and the float32 model beside it."""
    rows, steps = x.shape[:2]
    scores = x.dim() == 2 and parts.output == parts.vocabulary
    chunk = max(1, _CHUNK // max(1, rows * max(parts.output, 4 * parts.layers[0].hidden_dim)))
    largest, nats, exact_nats = 0.0, 0.0, 0.0
    states: list[State] = [(None, None)] * len(parts.layers)
    with torch.no_grad():
        for begin in range(0, steps, chunk):
            some = x[:, begin : begin + chunk]
            ours = steps_of(some)
            exact, states = _float32(parts, some, states)
            largest = _larger(largest, (ours.double() - exact.double()).abs())
            if scores:
                targets = x[:, begin + 1 : begin + chunk + 1].long()
                predicted = targets.shape[1]
                nats += float(token_nats(ours[:, :predicted], targets).double().sum())
                exact_nats += float(token_nats(exact[:, :predicted], targets).double().sum())
    tokens = rows * (steps - 1)
    bits = (nats / tokens / math.log(2), exact_nats / tokens / math.log(2)) if scores and tokens > 0 else (None, None)
    return Calibration(weights, rows * steps, largest, *bits)


def _float32(parts: Parts, x: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
    """The model's outputs over some steps, [batch, time, output], and each layer's (h, c) behind them."""
    if parts.embedding is not None:
        x = parts.embedding(x)
    after: list[State] = []
    for k, (layer, before) in enumerate(zip(parts.layers, states, strict=True)):
        h, c = layer(x, *before)
        after.append((h[:, -1], c[:, -1]))
        x = h + x if parts.residual and k else h
    return x if parts.projection is None else parts.projection(x), after


def _larger(largest: float, differences: Tensor) -> float:
    found = float(differences.max()) if differences.numel() else 0.0
    # A NaN is larger than all, and stays.
    return largest if found <= largest or math.isnan(largest) else found
