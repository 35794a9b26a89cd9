import sys

import numpy as np
import pytest
import torch

from unrolled import LanguageModel, ModelConfig, Split
from unrolled.loss import token_nats
from unrolled.stretches import LANES, default_lanes, stretches


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(5, hidden=3, layers=2, embedding=0, dropout=0.3), dtype=torch.float64)


def text(length=41, starts=(0, 13, 30), scored=None):
    ids = np.random.default_rng(1).integers(0, 5, length)
    return Split(ids, np.array(starts), scored)


def whole(model, split):
    """One trace of everything, and the nats of every token, NaN where nothing predicts it."""
    ids = torch.tensor(split.ids)[None]
    resets = torch.zeros(1, len(split), dtype=torch.bool)
    resets[0, split.starts] = True
    model.eval()
    with torch.no_grad():
        trace = model.trace(ids, resets=resets)
    nats = torch.full((len(split),), torch.nan, dtype=torch.float64)
    nats[1:] = token_nats(trace.output[:, :-1], ids[:, 1:])
    nats[split.starts] = torch.nan
    if split.scored is not None:
        nats[~torch.tensor(split.scored)] = torch.nan
    model.train()
    return trace, nats


def gathered(model, split, **options):
    """Everything of all stretches at its place in the text, and how often each place came."""
    width = model.config.hidden
    values = {(k, name): torch.zeros(len(split), width, dtype=torch.float64) for k in (0, 1) for name in "hcifgo"}
    nats, seen = torch.zeros(len(split), dtype=torch.float64), torch.zeros(len(split), dtype=torch.int64)
    for stretch in stretches(model, split, **options):
        for (layer, name), found in values.items():
            found[stretch.places] = stretch.values(layer, name).clone()
        nats[stretch.places] = stretch.nats.clone()
        seen[stretch.places] += 1
    return values, nats, seen


@pytest.mark.parametrize("steps", [1, 4, 7, 100, None])
def test_one_lane_is_one_trace(model, steps):
    scored = np.random.default_rng(2).random(41) < 0.7
    split = text(scored=scored)
    trace, costs = whole(model, split)
    values, nats, seen = gathered(model, split, steps=steps)
    assert (seen == 1).all()
    for (layer, name), found in values.items():
        torch.testing.assert_close(found, getattr(trace.layers[layer], name)[0])
    torch.testing.assert_close(nats, costs, equal_nan=True)


@pytest.mark.parametrize("lanes", [2, 3, 4, 12, 41])
def test_lanes_that_warm_up_long_enough_are_one_trace(model, lanes):
    """Documents of 30 tokens at most: a warm-up of 30 reaches every lane's document's beginning."""
    split = text()
    trace, costs = whole(model, split)
    values, nats, seen = gathered(model, split, lanes=lanes, warm_up=30, steps=5)
    assert (seen == 1).all()
    for (layer, name), found in values.items():
        torch.testing.assert_close(found, getattr(trace.layers[layer], name)[0])
    torch.testing.assert_close(nats, costs, equal_nan=True)


def test_without_a_warm_up_a_lane_begins_from_zeros_and_predicts_nothing_at_first(model):
    split = text(20, (0,))
    values, nats, _ = gathered(model, split, lanes=2, warm_up=0)
    second, costs = whole(model, Split(split.ids[10:], np.array([0])))
    torch.testing.assert_close(values[1, "c"][10:], second.layers[1].c[0])
    torch.testing.assert_close(nats[10:], costs, equal_nan=True)


def test_a_learned_initial_state_and_a_projection():
    torch.manual_seed(0)
    config = ModelConfig(5, hidden=3, layers=2, embedding=0, learn_initial_state=True, proj_dim=2)
    model, split = LanguageModel(config, dtype=torch.float64), text()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    trace, costs = whole(model, split)
    for stretch in stretches(model, split, lanes=3, warm_up=30, steps=5):
        torch.testing.assert_close(stretch.values(1, "h"), trace.layers[1].h[0, stretch.places])
        torch.testing.assert_close(stretch.nats, costs[stretch.places], equal_nan=True)


def test_the_model_reads_as_in_evaluation_and_keeps_its_mode(model):
    split = text()
    first, _, _ = gathered(model, split)
    assert model.training
    again, _, _ = gathered(model, split)
    assert torch.equal(first[1, "h"], again[1, "h"])


def test_memory_is_that_of_a_stretch(model, monkeypatch):
    monkeypatch.setattr(sys.modules["unrolled.stretches"], "_BYTES", 8 * (6 * 2 * 3 + 3 * 5) * 10)
    assert {len(stretch.places) for stretch in stretches(model, text())} == {9, 5}
    assert max(len(stretch.places) for stretch in stretches(model, text(), lanes=5)) == 10


def test_lengths_of_lanes_differ_by_one_token_at_most(model):
    firsts = [stretch.places[: min(6, len(stretch.places))] for stretch in stretches(model, text(), lanes=6, steps=1)]
    assert firsts[0].tolist() == [0, 7, 14, 21, 28, 35]
    assert firsts[-1].tolist() == [6, 13, 20, 27, 34]


def test_whoever_reads_is_not_in_the_models_mode(model):
    for stretch in stretches(model, text(), steps=20):
        assert not torch.is_inference_mode_enabled()
        assert model.training
        assert torch.zeros(1, requires_grad=True).mul(2).requires_grad
        assert len(stretch.places) in (20, 1)


def test_long_texts_have_lanes():
    assert [default_lanes(tokens) for tokens in (1, 4095, 4096, 10**5, 10**9)] == [1, 1, 2, LANES, LANES]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0}, "lanes=0 must be at least 1"),
        ({"warm_up": -1}, "warm_up=-1 must be at least 0"),
        ({"steps": 0}, "steps=0 must be at least 1"),
    ],
)
def test_numbers_that_are_too_small(model, options, message):
    with pytest.raises(ValueError, match=message):
        stretches(model, text(), **options)
