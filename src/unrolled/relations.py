"""Which units follow which feature of a text: mutual information, against a bar that chance reaches over all units.

Values are counted in bins against the kinds of a feature, in tables that are streamed. The bar is what the same
values give against the same feature moved along the text in a circle. Both then still change as slowly as they do, and
slow signals that have nothing to do with each other look alike (Yule, "Why do we sometimes get nonsense-correlations
between time-series?", 1926; Harris, "Nonsense correlations in neuroscience", 2020): against a permutation of single
tokens, which makes both fast, any slow unit would pass. Of each shift the largest number over all units counts, for it
is among all of them that one looks (Westfall & Young, "Resampling-Based Multiple Testing", 1993).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .text_features import Feature

# Where a unit's bins end, as shares of the values that it had in the first stretch: the outer ones catch what is rare.
# One more bin ends halfway between these two, and parts the levels of a unit that has two, however often it has each.
QUANTILES = (0.05, 0.25, 0.75, 0.95)
SHIFTS = 19
# Tokens that are counted at most: more of them make a table finer than the bar is sharp.
COUNTED = 25_000
# Whole numbers up to here are exact in float32, in which tables are counted.
MOST_COUNTED = 2**24
# Two counts of one float: the second in multiples of this. Whole numbers below 2**24 are exact in float32.
_SECOND = 2**12
# Rows of the first stretch that the bins are found from.
_SAMPLE = 2**11
_DRAWS = 2**16


@dataclass(frozen=True)
class Found:
    """One unit's quantity (h, c or a gate), and the bits that it shares with a feature; `above` the bar, or not."""

    layer: int
    unit: int
    quantity: str
    bits: float
    above: bool


@dataclass(frozen=True, eq=False)
class Relation:
    """What every unit shares with one feature, over `counted` tokens.

    `bits` [quantities, layers, hidden]: mutual information in bits, of `entropy`, which is all that the feature has;
    where h is projected to fewer units than c has, NaN for those that it lacks.
    `shifted` [shifts]: for each circular shift of the feature, the most that any unit and quantity shared with it.
    """

    feature: str
    labels: tuple[str, ...]
    quantities: tuple[str, ...]
    bits: Tensor
    entropy: float
    shifted: Tensor
    counted: int

    @property
    def bar(self) -> float:
        """The largest of `shifted`: of 19 shifts, chance passes it once in 20 times."""
        return float(self.shifted.max())

    @property
    def above(self) -> Tensor:
        """Which of `bits` are above the bar."""
        return self.bits > self.bar

    def chance(self, bits: float) -> float:
        """How often the largest of all units shares as much by chance: the share of shifts, `bits` among them."""
        return (1 + int((self.shifted >= bits).sum())) / (1 + len(self.shifted))

    def ranked(self, most: int | None = None) -> list[Found]:
        """Units with the quantity of theirs that shares most, best first."""
        best, which = self.bits.nan_to_num(nan=-1.0).max(0)
        order = best.flatten().argsort(descending=True)[:most].tolist()
        places = [divmod(k, best.shape[1]) for k in order]
        return [
            Found(layer, unit, self.quantities[int(which[layer, unit])], bits, bits > self.bar)
            for layer, unit in places
            for bits in (float(best[layer, unit]),)
        ]


def shortest(shifts: int) -> int:
    """Tokens that a text has at least to be shifted so often."""
    return 2 * (shifts + 1)


class _Joint:
    """How many of a quantity's numbers lie above each edge, for each unit and column: products with columns of 0 and 1.

    Two columns are counted in one float32, as `_packed` has them, and taken apart before the first count could reach
    the second: half as many products, and every count exact.
    """

    def __init__(self, edges: Tensor, width: int) -> None:
        """`edges` [edges, units], ascending; `width`: how many columns there are."""
        self._edges = edges
        self._counts = torch.zeros(width, *edges.shape, device=edges.device)
        self._pairs = torch.zeros(-(-width // 2), edges.numel(), device=edges.device)
        self._rows = 0

    def add(self, packed: Tensor, numbers: Tensor) -> None:
        """`packed` [rows, pairs], `numbers` [rows, units], fewer than _SECOND."""
        if self._rows + len(numbers) >= _SECOND:
            self._take_apart()
        self._rows += len(numbers)
        above = torch.empty(len(numbers), *self._edges.shape, device=numbers.device)
        torch.gt(numbers[:, None], self._edges, out=above)
        self._pairs.addmm_(packed.t(), above.flatten(1))

    def counts(self) -> Tensor:
        """[edges, width, units] of all numbers so far."""
        if self._rows:
            self._take_apart()
        return self._counts.transpose(0, 1)

    def _take_apart(self) -> None:
        second = self._pairs.div(_SECOND).floor_()
        first = self._pairs.sub_(second, alpha=_SECOND)
        pairs = len(first)
        self._counts[:pairs] += first.view(pairs, *self._edges.shape)
        self._counts[pairs:] += second.view(pairs, *self._edges.shape)[: len(self._counts) - pairs]
        self._pairs.zero_()
        self._rows = 0


def _packed(columns: Tensor) -> Tensor:
    """[rows, pairs]: of columns [rows, width] of 0 and 1 the second half on top of the first, _SECOND for each 1."""
    pairs = -(-columns.shape[1] // 2)
    packed = columns[:, :pairs].clone()
    packed[:, : columns.shape[1] - pairs].add_(columns[:, pairs:], alpha=_SECOND)
    return packed


class Tables:
    """Contingency tables of units against features as they are and shifted, to which tokens are added in any order.

    `shifts` of them are drawn from `seed`, one from each of so many equal parts of the text. Of a text of more than
    `count` tokens about so many are counted, drawn at random: every tenth one would see lines of equal length at some
    of their columns alone. Memory: 4 bytes for each unit, quantity, bin, kind and shift, however long the text is.

    Raises ValueError for no features, for features of texts of several lengths, and for a text that is too short.
    """

    def __init__(
        self, features: Sequence[Feature], *, shifts: int = SHIFTS, count: int = COUNTED, seed: int = 0
    ) -> None:
        lengths = sorted({len(feature.kinds) for feature in features})
        if len(lengths) != 1:
            got = f"features of {' and '.join(map(str, lengths))} tokens" if lengths else "no feature"
            raise ValueError(f"got {got}; pass at least one, and all of the same text")
        if shifts < 1 or not 1 <= count <= MOST_COUNTED:
            raise ValueError(f"shifts={shifts} must be at least 1, and count={count} from 1 to {MOST_COUNTED}")
        tokens = lengths[0]
        if tokens < shortest(shifts):
            raise ValueError(
                f"a text of {tokens} tokens is too short to be shifted {shifts} times, which takes at least "
                f"{shortest(shifts)}; pass a longer text, or fewer shifts"
            )
        draw = np.random.Generator(np.random.PCG64(seed))
        # From the middle of one part to that of the next: never near 0, where the text is itself again.
        self.shifts = ((np.arange(shifts) + 0.5 + draw.random(shifts)) * (tokens / (shifts + 1))).astype(np.int64)
        self._chosen = _chosen(draw, count, tokens) if tokens > count else None
        self._features = tuple(features)
        self._kinds = [torch.from_numpy(np.require(feature.kinds, requirements="W")) for feature in features]
        # A column for each kind but the first, which is what the others leave.
        columns = [(k, kind) for k, feature in enumerate(features) for kind in range(1, len(feature.labels))]
        self._of, self._kind = (torch.tensor(each, dtype=torch.int64) for each in zip(*columns, strict=True))
        self._moved = torch.from_numpy(np.append(0, self.shifts))
        self._joint: dict[tuple[str, int], _Joint] = {}
        self._margin = torch.zeros(self._width)

    @property
    def counted(self) -> int:
        """Tokens in the tables so far."""
        return int(self._margin[0])

    def add(self, values: Mapping[tuple[str, int], Tensor], places: Tensor) -> None:
        """Count tokens: of each (quantity, layer) the units' values [tokens, units], and where the tokens stand.

        The first call's values also say where the bins lie, for good: at each unit's quantiles. Every later call has
        to bring the same quantities and layers.
        """
        if not self._joint:
            self._joint = {key: _Joint(_edges(numbers), self._width) for key, numbers in values.items()}
        chosen = None
        if self._chosen is not None:
            chosen = self._chosen[places.cpu()].nonzero().squeeze(-1)
            places = places.cpu()[chosen]
        columns = self._columns(places)
        self._margin += columns.sum(0)
        packed = _packed(columns)
        for key, joint in self._joint.items():
            numbers = values[key] if chosen is None else values[key].index_select(0, chosen.to(values[key].device))
            for rows, here in zip(numbers.split(_SECOND - 1), packed.split(_SECOND - 1), strict=True):
                joint.add(here.to(rows.device), rows)

    def results(self) -> tuple[Relation, ...]:
        """One relation for each feature. Raises ValueError where nothing was counted."""
        if not self.counted:
            raise ValueError("no tokens were added, and of none there are no tables")
        quantities = tuple(dict.fromkeys(quantity for quantity, _ in self._joint))
        layers = 1 + max(layer for _, layer in self._joint)
        found = []
        for k, feature in enumerate(self._features):
            bits = [[self._bits(k, (name, layer)) for layer in range(layers)] for name in quantities]
            largest = torch.stack([each[1:].amax(1) for of_layers in bits for each in of_layers]).amax(0)
            widest = max(each.shape[1] for of_layers in bits for each in of_layers)
            shared = torch.stack([torch.stack([_padded(each[0], widest) for each in of_layers]) for of_layers in bits])
            entropy = _entropy(self._kinds_of(k)[:, 0] / self.counted, 0)
            relation = Relation(feature.name, feature.labels, quantities, shared, float(entropy), largest, self.counted)
            found.append(relation)
        return tuple(found)

    @property
    def _width(self) -> int:
        """A column of ones, and then for each shift those of all kinds."""
        return 1 + len(self._moved) * len(self._of)

    def _columns(self, places: Tensor) -> Tensor:
        """[tokens, width] of 0 and 1: the kinds at these places and at the shifted ones."""
        where = (places[:, None].cpu() + self._moved) % len(self._kinds[0])
        kinds = torch.stack([each[where] for each in self._kinds], -1)
        columns = torch.ones(len(places), self._width)
        columns[:, 1:] = (kinds[:, :, self._of] == self._kind).flatten(1)
        return columns

    def _kinds_of(self, feature: int) -> Tensor:
        """[kinds, 1 + shifts]: how many tokens were of each kind."""
        return self._with_first(feature, self._margin[:, None].double())[..., 0]

    def _with_first(self, feature: int, table: Tensor) -> Tensor:
        """[kinds, 1 + shifts, units] from [width, units], the first kind being what the others leave."""
        of_all = table[1:].unflatten(0, (len(self._moved), -1))[:, self._of == feature]
        return torch.cat([table[:1] - of_all.sum(1, keepdim=True), of_all], 1).transpose(0, 1)

    def _bits(self, feature: int, key: tuple[str, int]) -> Tensor:
        """Mutual information [1 + shifts, units]."""
        above = torch.stack([self._with_first(feature, table.double().cpu()) for table in self._joint[key].counts()])
        total = self._kinds_of(feature)[None, :, :, None].expand(1, -1, -1, above.shape[-1])
        # What lies above one edge and not above the next.
        joint = -torch.diff(torch.cat([total, above, torch.zeros_like(total)]), dim=0) / self.counted
        return _entropy(joint.sum(0), 0) + _entropy(joint.sum(1), 0) - _entropy(joint.flatten(0, 1), 0)


def _chosen(draw: np.random.Generator, count: int, tokens: int) -> Tensor:
    """Bool [tokens], about `count` of them true, drawn in pieces: of the text's length there is a byte a token."""
    chosen, most = np.empty(tokens, np.bool_), max(1, round(count / tokens * _DRAWS))
    for begin in range(0, tokens, _DRAWS):
        piece = chosen[begin : begin + _DRAWS]
        np.less(draw.integers(0, _DRAWS, len(piece), dtype=np.uint16), most, out=piece)
    return torch.from_numpy(chosen)


def _padded(bits: Tensor, width: int) -> Tensor:
    return torch.cat([bits, bits.new_full((width - len(bits),), torch.nan)])


def _edges(values: Tensor) -> Tensor:
    """[bins - 1, units] ascending, from at most so many rows."""
    sample = values[:: -(-len(values) // _SAMPLE)]
    # NumPy's sort is many times as fast as torch's on the CPU.
    ordered = np.sort(sample.cpu().numpy().T.copy(), axis=1)
    places = np.round(np.array(QUANTILES) * (len(sample) - 1)).astype(np.int64)
    edges = ordered[:, [*places, 0]]
    edges[:, -1] = (edges[:, 0] + edges[:, -2]) / 2
    return torch.from_numpy(np.sort(edges, axis=1).T.copy()).to(values.device)


def _entropy(shares: Tensor, dim: int) -> Tensor:
    """In bits; nothing is as much as 0 log 0."""
    entropy: Tensor = torch.special.entr(shares).sum(dim) / math.log(2)
    return entropy
