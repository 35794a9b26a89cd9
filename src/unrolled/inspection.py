"""What a model remembers of a text: statistics of all its units, and which of them follow which feature of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .corpus import Progress, Split
from .evaluate import check
from .model import LanguageModel
from .relations import COUNTED, SHIFTS, Relation, Tables, shortest
from .stretches import WARM_UP, Stretch, default_lanes, stretches
from .text_features import Feature, text_features
from .tokens import Tokenizer
from .unit_statistics import NAMES, LayerStatistics, UnitStatistics


@dataclass(frozen=True, eq=False)
class Inspection:
    """What `inspect` found. `tokens`: of the text; `nats`: mean over its `predicted` tokens.

    `layers`: statistics, bottom first. `relations`: one for each feature that is not the same throughout; `notes` are
    sentences on what there is not.
    """

    tokens: int
    nats: float
    predicted: int
    layers: tuple[LayerStatistics, ...]
    relations: tuple[Relation, ...]
    notes: tuple[str, ...] = ()


def inspect(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    quantities: Sequence[str] = ("c", "h"),
    features: Sequence[Feature] | None = None,
    shifts: int = SHIFTS,
    count: int = COUNTED,
    lanes: int | None = None,
    warm_up: int = WARM_UP,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inspection:
    """Read a text once and keep what its traces say; memory does not grow with the text, but for a byte a feature.

    `quantities`: what of a unit is compared with features, of h, c, i, f, g and o. `features`: those of `text_features`
    if None. `shifts`, `count` and `seed` are those of `Tables`; of `lanes` (None: up to 48, by the text's length) and
    `warm_up` `stretches` says what they do: `lanes=1` is exact, and takes several times as long.

    Raises ValueError for quantities that there are not, a text without a token to predict, a tokenizer of another
    vocabulary, and one without text (unless `features` are given).
    """
    check(model, split, tokenizer)
    if not quantities or not set(quantities) <= set(NAMES) or len(set(quantities)) < len(quantities):
        raise ValueError(f"quantities={tuple(quantities)!r} must be some of {', '.join(NAMES)}, each once")
    varying, notes = _compared(text_features(split, tokenizer) if features is None else features, shifts)
    tables = Tables(varying, shifts=shifts, count=count, seed=seed) if varying else None
    gathered = _Gathered(model.config.layers, quantities, tables)
    chosen = default_lanes(len(split)) if lanes is None else lanes
    for stretch in stretches(model, split, lanes=chosen, warm_up=warm_up):
        gathered.add(stretch)
        # Before the next one is made: memory is that of one.
        del stretch
        if progress is not None:
            progress("inspecting", gathered.tokens, len(split))
    if chosen > 1:
        notes.append(
            f"read as {chosen} parts side by side, each from zeros {warm_up} tokens before it; one lane carries one "
            "state through"
        )
    return gathered.result(tuple(notes))


def _compared(features: Sequence[Feature], shifts: int) -> tuple[list[Feature], list[str]]:
    """Those that units can be compared with, and why not with the others."""
    constant = [each for each in features if each.constant]
    varying = [each for each in features if not each.constant]
    notes = [f"{each.name} is {each.labels[int(each.kinds[0])]} throughout" for each in constant]
    if varying and len(varying[0].kinds) < shortest(shifts):
        notes = [
            f"no unit was compared with the text: it has {len(varying[0].kinds)} tokens, and {shifts} shifts take at "
            f"least {shortest(shifts)}"
        ]
        varying = []
    return varying, notes


class _Gathered:
    """What there is of a text so far."""

    def __init__(self, layers: int, quantities: Sequence[str], tables: Tables | None) -> None:
        self.tokens = self._predicted = 0
        self._nats = 0.0
        self._statistics = [UnitStatistics() for _ in range(layers)]
        self._quantities, self._tables = quantities, tables

    def add(self, stretch: Stretch) -> None:
        values = {(name, k): stretch.values(k, name) for name in NAMES for k in range(len(self._statistics))}
        for k, each in enumerate(self._statistics):
            each.add({name: values[name, k] for name in NAMES})
        if self._tables is not None:
            layers = range(len(self._statistics))
            chosen = {(name, k): values[name, k] for name in self._quantities for k in layers}
            self._tables.add(chosen, stretch.places)
        counting = ~stretch.nats.isnan()
        self._nats += float(stretch.nats[counting].double().sum())
        self._predicted += int(counting.sum())
        self.tokens += len(stretch.places)

    def result(self, notes: tuple[str, ...]) -> Inspection:
        layers = tuple(each.result() for each in self._statistics)
        relations = () if self._tables is None else self._tables.results()
        return Inspection(self.tokens, self._nats / self._predicted, self._predicted, layers, relations, notes)
