"""N-grams against a slow dictionary of the definition, against numbers worked out by hand, and on degenerate texts."""

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unrolled.corpus import Split
from unrolled.ngram import NGram

VOCABULARY = 4


def split(*documents: list[int], dtype: type = np.int32) -> Split:
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
    return Split(np.concatenate([np.array(document, dtype) for document in documents]), starts)


class Oracle:
    """The definition, one gram at a time: a dictionary from each context to what followed it."""

    def __init__(self, documents: list[list[int]], vocabulary: int, order: int) -> None:
        self.vocabulary, self.order = vocabulary, order
        self.counts: list[dict[tuple[int, ...], dict[int, int]]] = []
        self.discounts = []
        for length in range(1, order + 1):
            seen: dict[tuple[int, ...], list[int | None]] = {}
            for document in documents:
                for begin in range(len(document) - length + 1):
                    before = document[begin - 1] if begin else None
                    seen.setdefault(tuple(document[begin : begin + length]), []).append(before)
            counts = {gram: len(befores if length == order else set(befores)) for gram, befores in seen.items()}
            self.counts.append({})
            for gram, count in counts.items():
                self.counts[-1].setdefault(gram[:-1], {})[gram[-1]] = count
            self.discounts.append(self._discounts(list(counts.values())))

    @staticmethod
    def _discounts(counts: list[int]) -> tuple[float, float, float]:
        n = [counts.count(times) for times in range(5)]
        if 0 in n[1:4]:
            return 0.5, 1.0, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        found = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
        return found if all(0 < d <= k for k, d in enumerate(found, 1)) else (0.5, 1.0, 1.5)

    def p(self, context: tuple[int, ...], token: int) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        followers, discounts = self.counts[len(context)].get(context, {}), self.discounts[len(context)]
        below = self.p(context[1:], token) if context else 1 / self.vocabulary
        total = sum(followers.values())
        if not total:
            return below
        taken = {follower: discounts[min(count, 3) - 1] for follower, count in followers.items()}
        own = followers[token] - taken[token] if token in followers else 0
        return (own + sum(taken.values()) * below) / total

    def nats(self, documents: list[list[int]]) -> list[float]:
        return [
            -math.log(self.p(tuple(document[:place]), document[place]))
            for document in documents
            for place in range(1, len(document))
        ]


def token_nats(model: NGram, text: Split) -> np.ndarray:
    return np.concatenate(list(model.token_nats(text)))


def after(model: NGram, context: tuple[int, ...]) -> np.ndarray:
    """The probability of every token after a context that begins a document, by scoring each of them."""
    text = split(*([*context, token] for token in range(model.vocabulary)))
    return np.exp(-token_nats(model, text).reshape(model.vocabulary, -1)[:, -1])


documents = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(train=documents, text=documents, order=st.integers(1, 6))
def test_every_prediction_is_that_of_the_definition(train, text, order):
    model = NGram.fit(split(*train), VOCABULARY, order)
    expected = Oracle(train, VOCABULARY, order).nats(text)
    if expected:
        np.testing.assert_allclose(token_nats(model, split(*text)), expected, rtol=1e-12)
        assert model.nats(split(*text)) == pytest.approx(sum(expected), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_a_text_with_discounts_of_its_own(order):
    """Drawn so that counts of 1, 2, 3 and 4 all occur: the fallback is not what is tested here."""
    random = np.random.default_rng(0)
    train, text = ([list(map(int, random.zipf(1.3, 2000) % 400))] for _ in range(2))
    oracle = Oracle(train, 400, order)
    assert set(oracle.discounts) != {(0.5, 1.0, 1.5)}
    expected = oracle.nats(text)
    np.testing.assert_allclose(token_nats(NGram.fit(split(*train), 400, order), split(*text)), expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(train=documents, order=st.integers(1, 4))
def test_probabilities_sum_to_one_after_every_context_seen_or_not(train, order):
    model = NGram.fit(split(*train), VOCABULARY, order)
    for length in range(1, order + 1):
        for context in itertools.product(range(VOCABULARY), repeat=length):
            p = after(model, context)
            assert (p > 0).all()
            assert p.sum() == pytest.approx(1, abs=1e-13)


def test_by_hand():
    """0 1 0 1 0: both pairs occur twice, so the discounts are the fallback's, here 1 for each pair.

    0 follows 1 and the document's beginning, 1 follows 0 alone: counts 2 and 1, less 1 and a half, of 3.
    """
    model = NGram.fit(split([0, 1, 0, 1, 0]), 2, 2)
    p0, p1 = 1 / 3 + 1.5 / 3 / 2, 0.5 / 3 + 1.5 / 3 / 2
    assert after(model, (0,)) == pytest.approx([p0 / 2, 1 / 2 + p1 / 2], rel=1e-15)
    assert after(model, (1,)) == pytest.approx([1 / 2 + p0 / 2, p1 / 2], rel=1e-15)
    single = NGram.fit(split([0, 1, 0, 1, 0]), 2, 1)
    assert after(single, (0,)) == pytest.approx([1.5 / 5 + 2.5 / 5 / 2, 1 / 5 + 2.5 / 5 / 2], rel=1e-15)


def test_discounts_by_hand():
    """Pairs occurring 1, 1, 2, 3 and 4 times: Y = 2 / (2 + 2), and the discounts are 1/2, 1/2 and 1."""
    pairs = [[0, 1]] + [[0, 2]] + 2 * [[0, 3]] + 3 * [[0, 4]] + 4 * [[0, 5]]
    p = after(NGram.fit(split(*pairs), 7, 2), (0,))
    taken = 0.5 + 0.5 + 0.5 + 1 + 1
    lost, unseen = taken / 11, p[6]
    # Each of 1 to 5 follows one token, 0 none but the beginning: six counts of 1, with the fallback's half of each.
    below = 0.5 / 6 + 0.5 / 7
    assert unseen == pytest.approx(lost * 0.5 / 7, rel=1e-15)
    assert p[1:6] == pytest.approx(
        [(c - d) / 11 + lost * below for c, d in zip((1, 1, 2, 3, 4), (0.5, 0.5, 0.5, 1, 1), strict=True)]
    )


def test_documents_are_not_read_across():
    """What a document ends with says nothing about the next one, in training as in scoring."""
    apart, whole = split([0, 1], [2, 3], [0, 1], [2, 3]), split([0, 1, 2, 3, 0, 1, 2, 3])
    assert after(NGram.fit(whole, 4, 3), (0, 1))[2] > 0.5
    assert after(NGram.fit(apart, 4, 3), (0, 1))[2] == pytest.approx(0.25)
    model = NGram.fit(whole, 4, 3)
    joined = token_nats(model, split([0, 1], [2, 3]))
    np.testing.assert_array_equal(joined, [token_nats(model, split(d))[0] for d in ([0, 1], [2, 3])])


@pytest.mark.parametrize(
    ("train", "vocabulary", "order"),
    [
        ([[0] * 50], 1, 5),
        ([[0] * 50], 3, 5),
        ([[0]], 3, 5),
        ([[0, 1]], 3, 6),
        ([[0], [1], [2]], 3, 3),
        ([list(range(10))], 10, 4),
        ([[0, 1, 2] * 20], 3, 5),
    ],
    ids=["one symbol", "one of three", "one token", "shorter than the order", "no pairs", "all once", "a cycle"],
)
def test_degenerate_texts(train, vocabulary, order):
    model = NGram.fit(split(*train), vocabulary, order)
    text = [[0, *(token % vocabulary for token in range(7)), 0, 0]]
    np.testing.assert_allclose(
        token_nats(model, split(*text)), Oracle(train, vocabulary, order).nats(text), rtol=1e-12, atol=1e-15
    )
    for context in ((0,), (0, 0, 0, 0), tuple(range(vocabulary))):
        assert after(model, context).sum() == pytest.approx(1, abs=1e-13)


def test_a_large_vocabulary_does_not_overflow():
    """65,536 ids: five of them are 80 bits, and keys are 64."""
    random = np.random.default_rng(0)
    train = [list(map(int, 65_535 - random.zipf(1.5, 3000) % 65_536))]
    expected = Oracle(train, 65_536, 5).nats(train)
    np.testing.assert_allclose(
        token_nats(NGram.fit(split(*train, dtype=np.uint16), 65_536), split(*train, dtype=np.uint16)),
        expected,
        rtol=1e-12,
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_chunks_change_nothing(chunk, monkeypatch):
    random = np.random.default_rng(0)
    text = split(*(list(map(int, random.integers(4, size=n))) for n in (20, 1, 2, 30)))
    model = NGram.fit(text, 4, 4)
    whole = token_nats(model, text)
    monkeypatch.setattr(sys.modules["unrolled.ngram"], "_CHUNK", chunk)
    np.testing.assert_array_equal(token_nats(model, text), whole)


def test_refusals():
    with pytest.raises(ValueError, match="ids must be from 0 to 2, the vocabulary of these n-grams, got 3"):
        NGram.fit(split([0, 3, 1]), 3)
    model = NGram.fit(split([0, 1, 2]), 3)
    with pytest.raises(ValueError, match="from 0 to 2, the vocabulary of these n-grams, got -1"):
        model.nats(split([0, -1]))
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        NGram.fit(split([0, 1]), 3, 0)
    with pytest.raises(ValueError, match="vocabulary must be at least 1, got 0"):
        NGram.fit(split([0, 1]), 0)
