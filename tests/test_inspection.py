import numpy as np
import pytest
import torch
from planted import SYMBOLS, planted, text

from unrolled import CharTokenizer, IdTokenizer, LanguageModel, ModelConfig, Split, stateful
from unrolled.inspection import inspect
from unrolled.text_features import Feature


@pytest.fixture(scope="module")
def found():
    tokenizer = CharTokenizer(SYMBOLS)
    return inspect(planted(), Split(tokenizer.encode(text()), np.array([0])), tokenizer)


def test_the_unit_that_counts_characters_is_found_first(found):
    column = next(each for each in found.relations if each.feature == "column")
    best = column.ranked(1)[0]
    assert (best.layer, best.unit, best.quantity, best.above) == (0, 2, "c", True)
    assert best.bits > 5 * column.bar


def test_the_unit_that_latches_on_quotes_is_found_first(found):
    quoted = next(each for each in found.relations if each.feature == "quoted")
    best = quoted.ranked(1)[0]
    assert (best.layer, best.unit, best.above) == (0, 5, True)
    assert best.bits == pytest.approx(quoted.entropy, rel=0.02)
    assert found.layers[0].latching[5]


def test_statistics_say_what_the_planted_units_do(found):
    layer = found.layers[0]
    assert layer.memory[5] > 20
    assert layer.right["f"][2] > 0.9
    # An o of 1/2 and a c of 0.05 for each character: h moves.
    assert not layer.dead[2]
    assert not layer.latching[2]


def test_the_surprise_is_that_of_the_score(found):
    tokenizer = CharTokenizer(SYMBOLS)
    split = Split(tokenizer.encode(text()), np.array([0]))
    score = stateful(planted(), split, tokenizer)
    assert found.nats == pytest.approx(score.nats, abs=1e-9)
    assert (found.tokens, found.predicted) == (len(split), len(split) - 1)


def test_parts_side_by_side_say_so():
    tokenizer = CharTokenizer(SYMBOLS)
    split = Split(tokenizer.encode(text()), np.array([0]))
    found = inspect(planted(), split, tokenizer, lanes=3, warm_up=100)
    assert found.notes[-1] == (
        "read as 3 parts side by side, each from zeros 100 tokens before it; one lane carries one state through"
    )
    assert found.predicted == len(split) - 1
    assert next(each for each in found.relations if each.feature == "column").ranked(1)[0].unit == 2


def test_features_that_do_not_vary_are_named(found):
    assert {each.feature for each in found.relations} == {"column", "quoted", "word", "newline"}
    assert "brackets is 0 throughout" in found.notes
    assert "indent is 0 throughout" in found.notes


def test_own_features_and_quantities():
    tokenizer = CharTokenizer(SYMBOLS)
    split = Split(tokenizer.encode(text(30)), np.array([0]))
    own = Feature("is a", (split.ids == SYMBOLS.index("a")).astype(np.uint8), ("other", "a"))
    heard = []
    found = inspect(
        planted(),
        split,
        tokenizer,
        features=[own],
        quantities=("i", "f"),
        shifts=4,
        progress=lambda *how_far: heard.append(how_far),
    )
    assert [each.feature for each in found.relations] == ["is a"]
    assert found.relations[0].quantities == ("i", "f")
    assert len(found.relations[0].shifted) == 4
    assert heard[-1] == ("inspecting", len(split), len(split))


def test_a_projected_h_has_units_of_its_own():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(len(SYMBOLS), hidden=4, layers=1, embedding=0, proj_dim=2), dtype=torch.float64)
    tokenizer = CharTokenizer(SYMBOLS)
    found = inspect(model, Split(tokenizer.encode(text(30)), np.array([0])), tokenizer)
    assert (len(found.layers[0].mean["h"]), len(found.layers[0].mean["c"])) == (2, 4)
    c, h = found.relations[0].bits[:, 0]
    assert not c.isnan().any()
    assert h.isnan().tolist() == [False, False, True, True]
    assert {each.unit for each in found.relations[0].ranked()} == {0, 1, 2, 3}
    assert found.relations[0].bar > 0


def test_what_cannot_be_inspected():
    model = planted()
    split = Split(np.arange(len(SYMBOLS)), np.array([0]))
    with pytest.raises(ValueError, match="must be some of h, c, i, f, g, o, each once"):
        inspect(model, split, CharTokenizer(SYMBOLS), quantities=("x",))
    with pytest.raises(ValueError, match="have no text"):
        inspect(model, split, IdTokenizer(len(SYMBOLS)))
    with pytest.raises(ValueError, match="use the tokenizer that is stored with the model"):
        inspect(model, split, IdTokenizer(3))
    assert inspect(model, split, IdTokenizer(len(SYMBOLS)), features=()).relations == ()
