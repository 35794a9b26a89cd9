import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unrolled.samplers import Sampler, Sampling, exponentials, probabilities, uniforms

LOGITS = np.array([0.3, -1.2, 2.0, 0.9, -0.4, 1.1, -3.0, 0.0])
READ, WRITTEN = (6, 1, 1), (2, 2, 5, 2)

# The 99.9th percentiles of chi-square with 1, 2, ... degrees of freedom. The seed is fixed, so a test fails always or
# never; with other seeds, one in a thousand would fail for no reason.
QUANTILES = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32]


def softmax(logits):
    """By the definition, to compare with."""
    powers = np.exp(np.asarray(logits, dtype=np.float64))
    return powers / powers.sum()


def of(*shares):
    return np.log(np.array(shares, dtype=np.float64))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


# What is drawn from, to the last digits


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature):
    close(probabilities(LOGITS, Sampling(temperature)), softmax(LOGITS / temperature))


def test_temperature_0_is_the_most_probable_token_and_the_lower_id_of_two():
    close(probabilities(LOGITS, Sampling(0)), np.eye(8)[2])
    close(probabilities(np.array([1.0, 3.0, 3.0]), Sampling(0)), [0, 1, 0])


@pytest.mark.parametrize("k", range(1, 10))
def test_top_k_keeps_the_k_most_probable(k):
    order = np.argsort(-LOGITS)
    expected = np.zeros(8)
    expected[order[:k]] = softmax(LOGITS[order[:k]])
    close(probabilities(LOGITS, Sampling(top_k=k)), expected)


def test_top_k_keeps_the_lower_ids_of_equals():
    close(probabilities(np.array([0.0, 1.0, 1.0, 1.0]), Sampling(top_k=2)), [0, 0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("p", "kept"), [(1e-9, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.9, 4), (0.99999, 4), (1.0, 4)]
)
def test_top_p_keeps_the_fewest_that_reach_it(p, kept):
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        expected = np.zeros(4)
        # Of equals the lower id comes first, so its place among the four decides.
        best = sorted(range(4), key=lambda place: (-shares[order][place], place))[:kept]
        expected[best] = shares[order][best] / shares[order][best].sum()
        close(probabilities(of(*shares[order]), Sampling(top_p=p)), expected)


@pytest.mark.parametrize(
    ("p", "kept"), [(0.05, [0, 1, 2, 3]), (0.2, [0, 1, 2]), (0.5, [0, 1]), (0.51, [0]), (1.0, [0])]
)
def test_min_p_keeps_what_is_that_share_as_probable_as_the_most_probable(p, kept):
    shares = np.array([0.5, 0.25, 0.2, 0.05])
    expected = np.zeros(4)
    expected[kept] = shares[kept] / shares[kept].sum()
    close(probabilities(of(*shares), Sampling(min_p=p)), expected)


def test_the_repetition_penalty_counts_prompt_and_text_once_each():
    expected = LOGITS.copy()
    expected[[2, 5]] /= 1.5
    expected[[1, 6]] *= 1.5  # negative ones: dividing would raise them
    found = probabilities(LOGITS, Sampling(repetition_penalty=1.5), read=READ, written=WRITTEN)
    close(found, softmax(expected))
    assert (found[[1, 2, 5, 6]] < softmax(LOGITS)[[1, 2, 5, 6]]).all()


def test_presence_and_frequency_count_what_was_written():
    presence = probabilities(LOGITS, Sampling(presence_penalty=0.7), read=READ, written=WRITTEN)
    close(presence, softmax(LOGITS - 0.7 * np.isin(range(8), WRITTEN)))
    frequency = probabilities(LOGITS, Sampling(frequency_penalty=0.7), read=READ, written=WRITTEN)
    close(frequency, softmax(LOGITS - 0.7 * np.bincount(WRITTEN, minlength=8)))
    rewarded = probabilities(LOGITS, Sampling(presence_penalty=-1, frequency_penalty=0.5), written=WRITTEN)
    close(rewarded, softmax(LOGITS + np.isin(range(8), WRITTEN) - 0.5 * np.bincount(WRITTEN, minlength=8)))


@pytest.mark.parametrize(
    ("window", "seen", "counted"),
    [
        (0, {1, 2, 5, 6}, {2: 3, 5: 1}),
        (2, {5, 2}, {5: 1, 2: 1}),
        (4, {2, 5}, {2: 3, 5: 1}),
        (5, {1, 2, 5}, {2: 3, 5: 1}),
    ],
)
def test_penalties_look_at_the_last_tokens_of_a_window(window, seen, counted):
    chosen = Sampling(repetition_penalty=2.0, frequency_penalty=0.25, penalty_window=window)
    expected = LOGITS.copy()
    for token in seen:
        expected[token] *= 2.0 if expected[token] < 0 else 0.5
    for token, count in counted.items():
        expected[token] -= 0.25 * count
    close(probabilities(LOGITS, chosen, read=READ, written=WRITTEN), softmax(expected))


def test_penalties_move_the_most_probable_token_too():
    assert probabilities(LOGITS, Sampling(0, presence_penalty=1.5), written=[2])[5] == 1
    assert probabilities(LOGITS, Sampling(0, repetition_penalty=10), read=[2, 5])[3] == 1


# The order


def test_repetition_comes_before_presence_and_both_before_temperature():
    chosen = Sampling(0.5, repetition_penalty=2.0, presence_penalty=0.3)
    expected = LOGITS.copy()
    expected[2] = expected[2] / 2 - 0.3
    close(probabilities(LOGITS, chosen, written=[2]), softmax(expected / 0.5))


def test_temperature_comes_before_top_p_and_min_p():
    logits = of(0.4, 0.3, 0.2, 0.1)
    # Sharpened to 16, 9, 4 and 1 of 30: the first alone reaches a half, and of all only two are half as probable.
    close(probabilities(logits, Sampling(0.5, top_p=0.5)), [1, 0, 0, 0])
    close(probabilities(logits, Sampling(0.5, min_p=0.5)), [16 / 25, 9 / 25, 0, 0])
    close(probabilities(logits, Sampling(1.0, min_p=0.5)), [4 / 9, 3 / 9, 2 / 9, 0])


def test_top_k_comes_before_top_p():
    # Of the two best, the first holds 4/7; of all four it holds 0.4, and two would be needed for a half.
    close(probabilities(of(0.4, 0.3, 0.2, 0.1), Sampling(top_k=2, top_p=0.5)), [1, 0, 0, 0])


def test_top_p_comes_before_min_p():
    # 0.64 of all four is two. Had min_p taken away the last two before, 0.64 of the rest would be the first alone.
    close(probabilities(of(0.45, 0.25, 0.2, 0.1), Sampling(top_p=0.64, min_p=0.5)), [45 / 70, 25 / 70, 0, 0])


def test_penalties_come_before_top_k():
    close(probabilities(LOGITS, Sampling(top_k=1, presence_penalty=1.0), written=[2]), np.eye(8)[5])


# Draws

SETTINGS = [
    Sampling(),
    Sampling(0.8),
    Sampling(2.5),
    Sampling(2.0, top_k=4),
    Sampling(2.0, top_p=0.8),
    Sampling(1.5, min_p=0.15),
    Sampling(repetition_penalty=1.7),
    Sampling(presence_penalty=0.9),
    Sampling(frequency_penalty=0.4),
    Sampling(1.4, 6, 0.95, 0.1, 1.2, 0.2, 0.1, 5),
]


@pytest.mark.parametrize("chosen", SETTINGS, ids=str)
def test_draws_follow_the_probabilities(chosen):
    """Chi-squared over 10,000 draws at one place of a text."""
    exact = probabilities(LOGITS, chosen, read=READ, written=WRITTEN)
    sampler = Sampler(chosen, 8, uniforms(20, 0), READ)
    for token in WRITTEN:
        sampler.take(token)
    _, powers = exponentials(LOGITS)
    observed = np.bincount([sampler.choose(LOGITS, powers) for _ in range(10_000)], minlength=8)
    possible = exact > 0
    assert observed[~possible].sum() == 0
    expected = 10_000 * exact[possible]
    assert expected.min() > 5
    assert ((observed[possible] - expected) ** 2 / expected).sum() < QUANTILES[possible.sum() - 2]


def test_a_draw_is_the_first_token_whose_sum_lies_above():
    logits = of(0.25, 0.5, 0.25)
    _, powers = exponentials(logits)
    for number, token in [(0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 1), (0.75, 2), (1 - 2**-53, 2)]:
        assert Sampler(Sampling(), 3, lambda number=number: number).choose(logits, powers) == token


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("size", [2, 65, 1000])
def test_what_has_no_chance_is_never_drawn(number, size):
    logits = np.full(size, -math.inf)
    logits[[size // 2, size // 2 - 1]] = [0.1, -0.3]
    _, powers = exponentials(logits)
    for chosen in (Sampling(), Sampling(top_p=0.999), Sampling(min_p=0.1), Sampling(top_k=size)):
        drawn = Sampler(chosen, size, lambda: number).choose(logits, powers)
        assert drawn in (size // 2, size // 2 - 1)


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.integers(-640, 640), min_size=1, max_size=30),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
# All tokens by top_k, the most probable of which are just short of top_p.
@example(logits=[0, 52, 74], top_k=3, top_p=0.625, min_p=0.0)
def test_truncation_is_what_sorting_everything_gives(logits, top_k, top_p, min_p):
    logits = np.array(logits) / 32
    found = probabilities(logits, Sampling(top_k=top_k, top_p=top_p, min_p=min_p))
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    shares = softmax(logits[order])
    order = order[(shares.cumsum() - shares < top_p) | (np.arange(len(order)) == 0)]
    order = order[np.exp(logits[order] - logits.max()) >= min_p]
    expected = np.zeros(len(logits))
    expected[order] = softmax(logits[order])
    # A token at the edge of a nucleus may fall to either side by rounding.
    edge = np.abs((shares.cumsum() - shares) - top_p).min() < 1e-12
    assert edge or np.allclose(found, expected, rtol=1e-9, atol=0)


def test_uniforms_are_these_numbers():
    """The same seed gives the same text with every NumPy and on every machine: so these must not change."""
    first = uniforms(0, 0)
    numbers = [first() for _ in range(4)]
    assert numbers == [0.9429375528828794, 0.3163371523854981, 0.7223425886498254, 0.12560308543269327]
    assert [uniforms(0, 0, 2)() for _ in range(2)] == [numbers[2]] * 2
    others = [uniforms(0, 1)(), uniforms(1, 0)(), uniforms(2**63 - 1, 0)()]
    assert len({*numbers, *others}) == 7
    drawn = np.array([first() for _ in range(20_000)])
    assert (drawn >= 0).all()
    assert (drawn < 1).all()
    # 20 equal parts, the 99.9th percentile of chi-square with 19 degrees of freedom.
    assert ((np.bincount((drawn * 20).astype(int)) - 1000) ** 2 / 1000).sum() < 43.82


# Edges


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9, 1e300])
def test_extreme_temperatures_stay_finite(temperature):
    expected = np.eye(8)[2] if temperature < 1 else np.full(8, 1 / 8)
    np.testing.assert_allclose(probabilities(LOGITS * 1e30, Sampling(temperature)), expected, atol=1e-6)


@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf], [math.nan, math.inf]])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"logits are not finite.*an earlier checkpoint"):
        exponentials(np.array(bad))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be 0 .the most probable token. or a positive number"),
        ({"temperature": math.nan}, "temperature=nan must be"),
        ({"temperature": math.inf}, "temperature=inf must be"),
        ({"top_k": -2}, "top_k=-2 must be 0 .all tokens. or the number of tokens to keep"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"top_p": math.nan}, "top_p=nan must be"),
        ({"min_p": -0.1}, "min_p=-0.1 must be from 0 .all tokens. to 1"),
        ({"min_p": 1.1}, "min_p=1.1 must be from 0"),
        ({"min_p": math.nan}, "min_p=nan must be from 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a positive number; 1 is none"),
        ({"repetition_penalty": math.inf}, "repetition_penalty=inf must be a positive number"),
        ({"presence_penalty": math.nan}, "presence_penalty=nan must be a finite number; 0 is none"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty=-inf must be a finite number"),
        ({"penalty_window": -1}, "penalty_window=-1 must be 0 .all tokens. or a number of tokens"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


def test_logits_are_left_as_they_were():
    given = LOGITS.copy()
    probabilities(given, SETTINGS[-1], read=READ, written=WRITTEN)
    assert (given == LOGITS).all()


def test_a_hundred_thousand_tokens_are_truncated_as_a_few_are():
    logits = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy() * 3
    found = probabilities(logits, Sampling(top_p=0.9))
    order = np.argsort(-logits, kind="stable")
    shares = softmax(logits[order])
    kept = order[shares.cumsum() - shares < 0.9]
    assert set(np.flatnonzero(found)) == set(kept)
    close(found[kept], softmax(logits[kept]))
