"""What a page shows: the most telling units of each layer at every token of a text, their values in 8 bits each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Progress, Split
from .evaluate import check, part
from .inspection import Inspection, inspect
from .model import LanguageModel
from .relations import Relation
from .stretches import stretches
from .text_features import Feature, text_features
from .tokens import Tokenizer
from .unit_statistics import NAMES, LayerStatistics

UNITS = 64
TOKENS = 5000
# Most probable tokens that are kept at each place.
ALTERNATIVES = 5
LEVELS = 255
_JOINER = "\N{ZERO WIDTH JOINER}"
_SKIN_TONES = range(0x1F3FB, 0x1F400)


@dataclass(frozen=True, eq=False)
class Quantised:
    """Numbers in 8 bits: `codes` uint8 [units, tokens], 0 at each unit's `low` and 255 at its `high`, float32 [units].

    A value lies within half a quantum, (high - low) / 510, of what it was.
    """

    codes: NDArray[np.uint8]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @staticmethod
    def of(values: NDArray[np.float32]) -> Quantised:
        """Of [tokens, units]. Raises ValueError for what is not finite."""
        if not np.isfinite(values).all():
            raise ValueError("the model's state is not finite on this text (inf or NaN), so there is nothing to draw")
        low, high = values.min(0), values.max(0)
        span = high.astype(np.float64) - low
        shares = (values.T.astype(np.float64) - low[:, None]) / np.where(span > 0, span, 1)[:, None]
        return Quantised(np.rint(shares * LEVELS).astype(np.uint8), low, high)

    def values(self) -> NDArray[np.float64]:
        """[units, tokens], to the quantum."""
        low = self.low.astype(np.float64)[:, None]
        return low + self.codes * ((self.high[:, None] - low) / LEVELS)


@dataclass(frozen=True, eq=False)
class PageLayer:
    """`units`, most telling first, and of each of h, c, i, f, g, o their `values`; h is missing where it is projected,
    for its numbers then belong to no unit. `statistics` are of all units, over the whole text.
    """

    units: tuple[int, ...]
    values: Mapping[str, Quantised]
    statistics: LayerStatistics


@dataclass(frozen=True, eq=False)
class PageData:
    """What a page shows of a text's first tokens; `inspection` and `features` are of as much as was read.

    `texts`: what each token completes, "" where a character is open or has a mark to come. `nats` [tokens]: what
    a token cost, NaN where nothing predicted it. `next_ids`, `next_shares` [tokens, alternatives]: the most probable
    next tokens after each, best first; `labels` is the text of every id.
    """

    inspection: Inspection
    ids: NDArray[np.uint32]
    texts: tuple[str, ...]
    nats: NDArray[np.float32]
    next_ids: NDArray[np.uint32]
    next_shares: NDArray[np.float32]
    labels: Mapping[int, str]
    features: tuple[Feature, ...]
    layers: tuple[PageLayer, ...]


def page_data(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    inspection: Inspection | None = None,
    features: Sequence[Feature] | None = None,
    units: int | None = UNITS,
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> PageData:
    """Read the first `tokens` of a text and keep what `units` of each layer do, the most telling ones (None: all).

    `inspection` is what `inspect` found in the same text, with the same `features`; if None, it is made. Memory is that
    of the values shown, in float32: 24 bytes for each token, unit and layer. Raises ValueError as `inspect` does, for
    numbers below 1, and for an inspection of another text or model.
    """
    check(model, split, tokenizer)
    for name, value in (("units", UNITS if units is None else units), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if features is None:
        features = () if tokenizer.name == "ids" else text_features(split, tokenizer)
    if inspection is None:
        inspection = inspect(model, split, tokenizer, features=features, progress=progress)
    if (inspection.tokens, len(inspection.layers)) != (len(split), model.config.layers):
        raise ValueError(
            f"the inspection is of {inspection.tokens} tokens and {len(inspection.layers)} layers, the text has "
            f"{len(split)} and the model {model.config.layers}; pass what inspect(model, split, tokenizer) gave"
        )
    shown = part(split, 0, min(tokens, len(split)))
    chosen = [telling(inspection, layer)[:units] for layer in range(model.config.layers)]
    read = _Read(model, shown, chosen)
    texts = tuple(_texts(shown, tokenizer))
    known = sorted({*read.next_ids.ravel().tolist(), *shown.ids.tolist()})
    return PageData(
        inspection,
        shown.ids.astype(np.uint32),
        texts,
        read.nats,
        read.next_ids,
        read.next_shares,
        {token: _label(token, tokenizer) for token in known},
        tuple(Feature(each.name, each.kinds[: len(shown)], each.labels) for each in _compared(features, inspection)),
        tuple(
            PageLayer(tuple(order), values, statistics)
            for order, values, statistics in zip(chosen, read.values(), inspection.layers, strict=True)
        ),
    )


def telling(inspection: Inspection, layer: int) -> list[int]:
    """The units of a layer, most telling first.

    First those that share more than the bar with a feature, by the most bits that lie above a bar; then all others by
    how far c swings, its standard deviation; dead ones come last.
    """
    statistics = inspection.layers[layer]
    above = torch.zeros(len(statistics.memory), dtype=torch.float64)
    for relation in inspection.relations:
        above = torch.maximum(above, excess(relation)[layer, : len(above)])
    swing = statistics.std["c"]
    dead = torch.zeros_like(swing, dtype=torch.bool)
    if len(statistics.dead) == len(dead):
        dead = statistics.dead
    keys = zip(dead.tolist(), (-above).tolist(), (-swing).tolist(), range(len(swing)), strict=True)
    return [unit for *_, unit in sorted(keys)]


def excess(relation: Relation) -> Tensor:
    """[layers, hidden]: the bits that each unit shares above the bar; 0 where it does not."""
    best = relation.bits.nan_to_num(nan=0.0).amax(0)
    return (best - relation.bar).clamp(min=0)


def _compared(features: Sequence[Feature], inspection: Inspection) -> list[Feature]:
    """Those of `features` that the inspection has relations for, in their order."""
    named = {each.name: each for each in features}
    missing = [each.feature for each in inspection.relations if each.feature not in named]
    if missing:
        raise ValueError(
            f"the inspection compared units with {missing[0]!r}, which is not among the features; pass the same "
            "features=... as to inspect"
        )
    return [named[each.feature] for each in inspection.relations]


class _Read:
    """The traces of a text, of the chosen units alone."""

    def __init__(self, model: LanguageModel, split: Split, chosen: Sequence[Sequence[int]]) -> None:
        projected = model.config.proj_dim is not None
        self._names = tuple(name for name in NAMES if not (projected and name == "h"))
        kept: dict[tuple[int, str], list[NDArray[np.float32]]] = {
            (layer, name): [] for layer in range(len(chosen)) for name in self._names
        }
        nats, ids, shares = [], [], []
        most = min(ALTERNATIVES, model.config.vocabulary)
        for stretch in stretches(model, split):
            for (layer, name), values in kept.items():
                values.append(stretch.values(layer, name)[:, list(chosen[layer])].float().cpu().numpy())
            best = stretch.trace.output[0].float().softmax(-1).topk(most, -1)
            ids.append(best.indices.cpu().numpy().astype(np.uint32))
            shares.append(best.values.cpu().numpy())
            nats.append(stretch.nats.float().cpu().numpy())
        self._kept = {key: np.concatenate(values) for key, values in kept.items()}
        self.nats: NDArray[np.float32] = np.concatenate(nats)
        self.next_ids: NDArray[np.uint32] = np.concatenate(ids)
        self.next_shares: NDArray[np.float32] = np.concatenate(shares)

    def values(self) -> list[dict[str, Quantised]]:
        layers = 1 + max(layer for layer, _ in self._kept)
        return [{name: Quantised.of(self._kept[layer, name]) for name in self._names} for layer in range(layers)]


def _texts(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
    """What each token completes; a mark on a character goes with it, at the later token."""
    found: list[str] = []
    for begin, end in pairwise([*split.starts.tolist(), len(split)]):
        decoder = tokenizer.decoder()
        found += [decoder.push(token) for token in split.ids[begin:end].tolist()]
        found[-1] += decoder.finish()
    last: int | None = None
    for place, text in enumerate(found):
        if text and last is not None and (_goes_on(text[0]) or found[last].endswith(_JOINER)):
            found[place], found[last] = found[last] + text, ""
        last = place if text else last
    return iter(found)


def _goes_on(character: str) -> bool:
    """Whether it changes the character before it: an accent, a variant, a skin tone, a joiner of two into one."""
    return unicodedata.category(character)[0] == "M" or character == _JOINER or ord(character) in _SKIN_TONES


def _label(token: int, tokenizer: Tokenizer) -> str:
    """The text of one id; a part of a character has none, and is called by its number."""
    text = tokenizer.decode([token])
    return text if text and "\N{REPLACEMENT CHARACTER}" not in text else f"#{token}"
