import math

import numpy as np
import pytest
import torch

from unrolled.relations import QUANTILES, Tables
from unrolled.text_features import Feature

TOKENS = 3000


def switching(seed, kinds, tokens=TOKENS, rate=0.02):
    """A feature that stays for about 50 tokens, and then is another kind."""
    draw = np.random.default_rng(seed)
    return (np.cumsum(draw.random(tokens) < rate) % kinds).astype(np.uint8)


def feature(kinds, name="switch"):
    return Feature(name, kinds, tuple(map(str, range(int(kinds.max()) + 1))))


def walks(seed, units, tokens=TOKENS):
    return torch.from_numpy(np.cumsum(np.random.default_rng(seed).standard_normal((tokens, units)), 0))


def tables(features, values, *, chunk=700, order=None, **options):
    found = Tables(features, **options)
    order = torch.arange(TOKENS) if order is None else order
    for places in order.split(chunk):
        found.add({key: each[places] for key, each in values.items()}, places)
    return found


def counted_by_hand(values, kinds, bins):
    """Mutual information in bits of one unit, from a table that is filled token by token."""
    table = np.zeros((len(bins) + 1, int(kinds.max()) + 1))
    for value, kind in zip(values.tolist(), kinds.tolist(), strict=True):
        table[sum(value > edge for edge in bins), kind] += 1
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    return sum(p * math.log2(p / rows[a] / columns[b]) for (a, b), p in np.ndenumerate(joint) if p)


def edges(values, first):
    """Where a unit's bins lie: values of the first rows that were added, at the nearest places to the quantiles."""
    ordered = np.sort(values[:first].numpy())
    found = [ordered[round(quantile * (first - 1))] for quantile in QUANTILES]
    return sorted([*found, (found[0] + found[-1]) / 2])


def test_mutual_information_and_bar_are_those_of_tables_filled_by_hand():
    kinds = switching(0, 3)
    values = {("c", 0): walks(1, 2), ("h", 0): walks(2, 2), ("c", 1): walks(3, 2), ("h", 1): walks(4, 2)}
    values["h", 1][:, 1] = torch.from_numpy(kinds).double() + 0.3 * torch.rand(TOKENS)
    found = tables([feature(kinds)], values, shifts=3)
    [relation] = found.results()
    assert relation.quantities == ("c", "h")
    assert relation.counted == TOKENS
    shares = np.bincount(kinds) / TOKENS
    assert relation.entropy == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-12)
    largest = np.zeros(3)
    for (name, layer), numbers in values.items():
        for unit in range(2):
            bins = edges(numbers[:, unit], 700)
            by_hand = counted_by_hand(numbers[:, unit], kinds, bins)
            got = float(relation.bits[relation.quantities.index(name), layer, unit])
            assert got == pytest.approx(by_hand, abs=1e-10)
            for k, shift in enumerate(found.shifts):
                moved = counted_by_hand(numbers[:, unit], np.roll(kinds, -shift), bins)
                largest[k] = max(largest[k], moved)
    assert relation.shifted.tolist() == pytest.approx(largest.tolist(), abs=1e-10)
    assert relation.bar == pytest.approx(largest.max(), abs=1e-10)


def test_more_tokens_than_one_float_counts_two_of():
    """Exact, however many: of 2 counts in a float each is below 4096, then they are taken apart."""
    tokens = 13_000
    kinds, numbers = switching(0, 2, tokens), walks(1, 3, tokens).float()
    found = Tables([feature(kinds)], shifts=2)
    for first in range(0, tokens, 5000):
        found.add({("c", 0): numbers[first : first + 5000]}, torch.arange(first, min(first + 5000, tokens)))
    counts = found._joint["c", 0].counts()
    places = torch.arange(tokens)[:, None] + torch.from_numpy(np.append(0, found.shifts))
    columns = torch.cat([torch.ones(tokens, 1), torch.from_numpy(kinds)[places % tokens]], 1).double()
    for edge, table in zip(found._joint["c", 0]._edges, counts, strict=True):
        assert torch.equal(table.double(), columns.T @ (numbers > edge).double())


def test_the_order_in_which_tokens_come_does_not_matter():
    kinds, values = switching(0, 3), {("c", 0): walks(1, 3)}
    first = torch.arange(700)
    mixed = torch.cat([first, 700 + torch.randperm(TOKENS - 700, generator=torch.Generator().manual_seed(0))])
    [straight], [shuffled] = (
        tables([feature(kinds)], values, order=order).results() for order in (torch.arange(TOKENS), mixed)
    )
    torch.testing.assert_close(straight.bits, shuffled.bits)
    torch.testing.assert_close(straight.shifted, shuffled.shifted)


def test_the_planted_unit_is_first_and_random_walks_stay_under_the_bar():
    kinds = switching(0, 2)
    values = {("c", 0): walks(5, 40), ("h", 0): walks(6, 40)}
    values["h", 0][:, 17] = torch.from_numpy(kinds) + 0.5 * torch.randn(
        TOKENS, generator=torch.Generator().manual_seed(0)
    )
    [relation] = tables([feature(kinds)], values).results()
    first, second = relation.ranked(2)
    assert (first.layer, first.unit, first.quantity, first.above) == (0, 17, "h", True)
    assert not second.above
    assert relation.above.sum() == 1
    assert relation.chance(first.bits) == 1 / 20
    assert relation.chance(second.bits) > 1 / 20


def test_a_permutation_would_let_random_walks_pass():
    """Why the bar is from circular shifts: against tokens in another order most of these walks are significant."""
    kinds, numbers = switching(0, 2), walks(5, 40)
    [relation] = tables([feature(kinds)], {("c", 0): numbers}).results()
    permuted = np.random.default_rng(0).permutation(kinds)
    [by_permutation] = tables([feature(permuted)], {("c", 0): numbers}).results()
    bar = float(by_permutation.bits.max())
    assert (relation.bits > bar).double().mean() > 0.5
    assert not relation.above.any()


def test_the_bar_is_passed_by_chance_about_once_in_twenty_times():
    """40 searches for what is not there, each through units of a random walk: the bar holds for each as a whole."""
    passed = 0
    for seed in range(40):
        kinds = switching(100 + seed, 2, 1000)
        found = Tables([feature(kinds)], seed=seed)
        found.add({("c", 0): walks(200 + seed, 10, 1000)}, torch.arange(1000))
        passed += bool(found.results()[0].above.any())
    # Of 40 draws with p = 1/20 more than 6 are less likely than 1 in 100.
    assert passed <= 6


def test_shifts_are_far_from_where_the_text_is_itself_again():
    for seed in range(20):
        shifts = Tables([feature(switching(0, 2))], seed=seed).shifts
        assert len(shifts) == 19
        assert shifts.min() >= TOKENS // 40
        assert shifts.max() <= TOKENS - TOKENS // 40
        assert np.all(np.diff(shifts) > 0)


def test_of_a_long_text_some_tokens_are_counted():
    kinds = switching(0, 2)
    values = {("c", 0): torch.from_numpy(kinds)[:, None] + 0.1 * torch.rand(TOKENS, 1)}
    [all_], [some] = (tables([feature(kinds)], values, count=count).results() for count in (TOKENS, 1000))
    assert all_.counted == TOKENS
    assert 900 < some.counted < 1100
    assert float(some.bits) == pytest.approx(float(all_.bits), abs=0.05)


def test_units_that_do_not_move_share_nothing():
    [relation] = tables([feature(switching(0, 2))], {("c", 0): torch.zeros(TOKENS, 2)}).results()
    assert relation.bits.abs().max() < 1e-12
    assert not relation.above.any()


@pytest.mark.parametrize("share", [0.04, 0.1, 0.5, 0.7])
def test_a_unit_of_two_levels_has_all_bits_of_a_feature_of_two(share):
    kinds = (np.random.default_rng(0).random(TOKENS) < share).astype(np.uint8)
    values = torch.from_numpy(kinds)[:, None] + 1e-3 * walks(1, 1) / TOKENS
    [relation] = tables([feature(kinds)], {("c", 0): values}).results()
    assert float(relation.bits) > (0.99 if share > 0.05 else 0.75) * relation.entropy


def test_features_are_apart():
    first, second = switching(0, 2), switching(1, 4)
    values = {("c", 0): torch.stack([torch.from_numpy(first), torch.from_numpy(second)], 1).double()}
    of_first, of_second = tables([feature(first, "a"), feature(second, "b")], values).results()
    assert [of_first.ranked(1)[0].unit, of_second.ranked(1)[0].unit] == [0, 1]
    assert of_second.labels == ("0", "1", "2", "3")
    assert of_first.bits[0, 0, 0] == pytest.approx(of_first.entropy, abs=1e-9)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, "got no feature; pass at least one, and all of the same text"),
        ([switching(0, 2), switching(0, 2, 10)], {}, "got features of 10 and 3000 tokens"),
        ([switching(0, 2)], {"shifts": 0}, "shifts=0 must be at least 1"),
        ([switching(0, 2)], {"count": 2**25}, "count=33554432 from 1 to 16777216"),
        ([np.array([0, 1] * 19, np.uint8)], {}, "a text of 38 tokens is too short to be shifted 19 times, .* 40;"),
    ],
)
def test_what_cannot_be_compared(features, options, message):
    with pytest.raises(ValueError, match=message):
        Tables([feature(kinds) for kinds in features], **options)


def test_of_nothing_there_are_no_tables():
    with pytest.raises(ValueError, match="no tokens were added"):
        Tables([feature(switching(0, 2))]).results()


def test_kinds_that_cannot_be_written_to_are_read():
    kinds = switching(0, 2)
    kinds.flags.writeable = False
    [relation] = tables([feature(kinds)], {("c", 0): walks(1, 1)}).results()
    assert relation.counted == TOKENS
