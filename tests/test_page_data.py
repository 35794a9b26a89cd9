import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from planted import known

from unrolled import (
    ByteTokenizer,
    CharTokenizer,
    IdTokenizer,
    LanguageModel,
    ModelConfig,
    Split,
    inspect,
    text_features,
)
from unrolled.page_data import NAMES, Quantised, page_data, telling


@pytest.fixture(scope="module")
def world():
    model, split, tokenizer = known()
    return model, split, tokenizer, inspect(model, split, tokenizer)


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_a_value_lies_within_half_a_quantum_of_what_it_was(values):
    found = Quantised.of(values)
    quantum = (found.high.astype(np.float64) - found.low) / 255
    away = np.abs(found.values() - values.T)
    assert (away <= quantum[:, None] / 2 * (1 + 1e-6) + 1e-12).all()
    assert found.codes.dtype == np.uint8
    assert found.codes.shape == values.T.shape


def test_ends_are_exact_and_a_constant_is_itself():
    found = Quantised.of(np.array([[0.25, -3], [0.25, 5], [0.25, 0]], np.float32))
    assert found.values()[0].tolist() == [0.25] * 3
    assert found.values()[1, :2].tolist() == [-3, 5]


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"not finite on this text \(inf or NaN\)"):
        Quantised.of(np.array([[1, np.nan]], np.float32))


def test_the_numbers_are_those_of_a_trace(world):
    model, split, tokenizer, inspection = world
    data = page_data(model, split, tokenizer, inspection=inspection, units=3, tokens=700)
    ids = torch.from_numpy(split.ids[:700].astype(np.int64))[None]
    with torch.no_grad():
        trace = model.trace(ids)
    logs = trace.output[0].log_softmax(-1)
    for layer, traced in zip(data.layers, trace.layers, strict=True):
        assert len(layer.units) == 3
        assert set(layer.values) == set(NAMES)
        for name, values in layer.values.items():
            expected = getattr(traced, name)[0][:, list(layer.units)].T.numpy()
            half = (values.high.astype(np.float64) - values.low) / 510
            assert (np.abs(values.values() - expected) <= half[:, None] * (1 + 1e-6) + 1e-7).all()
    assert np.isnan(data.nats[0])
    np.testing.assert_allclose(data.nats[1:], -logs[:-1].gather(-1, ids[0, 1:, None])[:, 0].numpy(), rtol=1e-5)
    best = logs.exp().topk(5, -1)
    np.testing.assert_allclose(data.next_shares, best.values.numpy(), rtol=1e-5)
    assert (data.next_ids == best.indices.numpy()).all()
    assert "".join(data.texts) == tokenizer.decode(split.ids[:700])
    assert all(data.labels[int(token)] == tokenizer.decode([token]) for token in data.next_ids.ravel())


def test_features_are_those_of_the_whole_text_cut(world):
    model, split, tokenizer, inspection = world
    data = page_data(model, split, tokenizer, inspection=inspection, tokens=300)
    whole = {each.name: each for each in text_features(split, tokenizer)}
    assert [each.name for each in data.features] == [each.feature for each in inspection.relations]
    for each in data.features:
        assert each.labels == whole[each.name].labels
        assert (each.kinds == whole[each.name].kinds[:300]).all()


def test_the_planted_units_are_the_most_telling_ones(world):
    *_, inspection = world
    assert set(telling(inspection, 0)[:2]) == {2, 5}
    assert sorted(telling(inspection, 0)) == list(range(8))


def test_without_features_far_swings_tell_and_dead_units_come_last():
    torch.manual_seed(1)
    model = LanguageModel(ModelConfig(9, hidden=6, layers=1, embedding=0), dtype=torch.float64)
    with torch.no_grad():
        model.lstm.layers[0].b_o[4] = -30
        model.lstm.layers[0].b_g[1] = model.lstm.layers[0].b_i[1] = model.lstm.layers[0].b_f[1] = 3
    draw = np.random.default_rng(0)
    found = inspect(model, Split(draw.integers(0, 9, 500), np.array([0])), IdTokenizer(9), features=())
    order = telling(found, 0)
    assert order[-1] == 4
    swings = found.layers[0].std["c"][order[:-1]].tolist()
    assert swings == sorted(swings, reverse=True)


def test_all_units_are_kept_on_request_and_no_more_than_there_are(world):
    model, split, tokenizer, inspection = world
    for units in (None, 64):
        data = page_data(model, split, tokenizer, inspection=inspection, units=units, tokens=50)
        assert [sorted(layer.units) for layer in data.layers] == [list(range(8))] * 2


def test_a_projected_h_belongs_to_no_unit():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(4, hidden=5, layers=2, embedding=0, proj_dim=2))
    tokenizer = CharTokenizer("ab\n ")
    split = Split(tokenizer.encode("ab a\nb" * 30), np.array([0]))
    data = page_data(model, split, tokenizer)
    assert all(set(layer.values) == set("cifgo") for layer in data.layers)
    assert sorted(data.layers[0].units) == list(range(5))


@pytest.mark.parametrize("text", ["e\u0301a", "\U0001f469\u200d\U0001f680!", "\U0001f44d\U0001f3fd.", "\u0301x"])
def test_marks_go_with_their_character_at_the_later_token(text):
    tokenizer = CharTokenizer(text)
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(tokenizer.size, hidden=2, layers=1, embedding=0))
    data = page_data(model, Split(tokenizer.encode(text), np.array([0])), tokenizer, features=())
    assert "".join(data.texts) == text
    assert data.texts[-2:] == (text[:-1], text[-1])


def test_bytes_of_a_character_are_shown_at_its_last_one():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(256, hidden=2, layers=1, embedding=0))
    ids = np.frombuffer("a\u00e9\U0001f600".encode() + b"\xe2\x82", np.uint8)
    data = page_data(model, Split(ids, np.array([0])), ByteTokenizer(), features=())
    assert data.texts == ("a", "", "\u00e9", "", "", "", "\U0001f600", "", "\ufffd")
    assert data.labels[0xE2] == "#226"


def test_two_documents_start_afresh(world):
    model, split, tokenizer, _ = world
    two = Split(np.concatenate([split.ids[:60], split.ids[:60]]), np.array([0, 60]))
    data = page_data(model, two, tokenizer, features=())
    for layer in data.layers:
        codes = layer.values["c"].codes
        assert (codes[:, :60] == codes[:, 60:]).all()
    assert np.isnan(data.nats[[0, 60]]).all()


def test_what_cannot_be_shown_is_refused(world):
    model, split, tokenizer, inspection = world
    half = Split(split.ids[:100], np.array([0]))
    with pytest.raises(ValueError, match="units=0 must be at least 1"):
        page_data(model, split, tokenizer, inspection=inspection, units=0)
    with pytest.raises(ValueError, match="tokens=0 must be at least 1"):
        page_data(model, split, tokenizer, inspection=inspection, tokens=0)
    with pytest.raises(ValueError, match=r"the inspection is of \d+ tokens and 2 layers, the text has 100"):
        page_data(model, half, tokenizer, inspection=inspection)
    with pytest.raises(ValueError, match="compared units with 'column', which is not among the features"):
        page_data(model, split, tokenizer, inspection=inspection, features=())
