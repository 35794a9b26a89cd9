"""How fast a model forgets where it came from: two states of different prefixes, reading the same text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .corpus import Split
from .evaluate import device_of
from .excerpts import excerpt, spread
from .loss import token_nats
from .model import LanguageModel, evaluating

_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class Convergence:
    """Two states side by side, of a text's own prefix and of another place's, over `length` tokens of that text.

    Means over `pairs`; float64, CPU. `c`, `h` [layers, length + 1]: |a - b| / sqrt((|a|^2 + |b|^2) / 2) over a layer's
    units, at k after k tokens that were the same: 0 where the states are one, about sqrt(2) where they have nothing in
    common. `nats` [length]: what the other prefix makes the k-th of these tokens cost more. `divergence` [length]: the
    Kullback-Leibler divergence of its prediction from the other one, in nats.
    """

    c: Tensor
    h: Tensor
    nats: Tensor
    divergence: Tensor
    pairs: int

    def below(self, share: float = 0.1, name: str = "c") -> list[int | None]:
        """For each layer after how many tokens the distance is, and stays, below this share of what it was at first.

        None where it does not get there.
        """
        distances = {"c": self.c, "h": self.h}[name]
        found: list[int | None] = []
        for row in distances:
            # With states that are one from the beginning on, every step is as far away as that one.
            last = int((row >= share * row[0]).nonzero()[-1]) + 1
            found.append(last if last < len(row) else None)
        return found


def convergence(
    model: LanguageModel, split: Split, *, prefix: int = 256, length: int = 256, pairs: int = 64
) -> Convergence:
    """Read the same `length` tokens from two states, at up to `pairs` places spread evenly over the text.

    One state is that of the `prefix` tokens before them, the other that of the `prefix` tokens before another of these
    places, both from zeros. ValueError for numbers below 1, and for a text with fewer than two such places.
    """
    for name, value in (("prefix", prefix), ("length", length)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    begins = spread(split, pairs, prefix + length + 1)
    if len(begins) < 2:
        raise ValueError(
            f"got {len(begins)} place with {prefix} tokens before it and {length} behind it, and two prefixes take at "
            "least two; pass a longer text, or pairs=2 and more"
        )
    config = model.config
    of_a_row = (6 * config.layers * config.hidden + 3 * config.vocabulary) * (length + 1)
    rows = max(1, _BYTES // (2 * of_a_row * next(model.parameters()).element_size()))
    sums: list[Tensor] | None = None
    # Halfway round, so that the other prefix is from far away.
    others = np.roll(begins, len(begins) // 2)
    for first in range(0, len(begins), rows):
        some = slice(first, first + rows)
        found = _read(model, split, (begins[some], others[some]), prefix, length)
        sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
    assert sums is not None, "there are at least two places"
    c, h, nats, divergence = (each / len(begins) for each in sums)
    return Convergence(c, h, nats, divergence, len(begins))


def _read(
    model: LanguageModel, split: Split, begins: tuple[np.ndarray, np.ndarray], prefix: int, length: int
) -> list[Tensor]:
    """Sums over pairs of c's and h's distance, of the nats that the second prefix costs more, and of the divergence."""
    device, pairs = device_of(model), len(begins[0])
    with torch.inference_mode(), evaluating(model):
        ids, resets = excerpt(split, np.concatenate(begins)[:, None] + np.arange(prefix), device)
        state = model(ids, resets=resets)[1]
        ids, resets = excerpt(split, begins[0][:, None] + np.arange(prefix, prefix + length + 1), device)
        ids, resets = ids.repeat(2, 1), resets.repeat(2, 1)
        trace = model.trace(ids[:, :-1], state, resets=resets[:, :-1])
        found = []
        for name, first in (("c", state.c), ("h", state.h)):
            every = torch.stack([getattr(layer, name) for layer in trace.layers])
            found.append(_distance(torch.cat([first[:, :, None], every], 2)).sum(1))
        nats = token_nats(trace.output, ids[:, 1:]).unflatten(0, (2, pairs, length))
        own, other = trace.output.log_softmax(-1).chunk(2)
        divergence = (own.exp() * (own - other)).sum(-1)
        found += [(nats[1] - nats[0]).sum(0), divergence.sum(0)]
    return [each.double().cpu() for each in found]


def _distance(states: Tensor) -> Tensor:
    """[layers, pairs, steps] from [layers, 2 * pairs, steps, units]; states that are both zero are one."""
    a, b = states.chunk(2, 1)
    size = ((a.square().sum(-1) + b.square().sum(-1)) / 2).sqrt()
    away: Tensor = (a - b).norm(dim=-1)
    return away / size.clamp(min=torch.finfo(size.dtype).tiny)
