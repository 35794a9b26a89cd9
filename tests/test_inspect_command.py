import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import TALE, run, small

from unrolled import IdTokenizer, LanguageModel, ModelConfig, inspect, load, read_corpus, save_model
from unrolled.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inspect")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(small(directory, monkeypatch))
    return directory / "run"


@pytest.fixture
def call(capsys):
    def call(*tokens):
        code = 0
        try:
            main(["inspect", *map(str, tokens)])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_json_has_the_numbers_of_the_objects(trained, call, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TALE, encoding="utf-8")
    code, out, _ = call(trained, "--file", file, "--json", "--tokens", "2000", "--gates")
    assert code == 0
    found = json.loads(out)
    loaded = load(trained)
    split = read_corpus(file, tokenizer=loaded.tokenizer, split=(1.0,)).train
    cut = type(split)(split.ids[:2000], np.zeros(1, np.int64))
    expected = inspect(loaded.model, cut, loaded.tokenizer, quantities=("h", "c", "i", "f", "g", "o"))
    assert found["tokens"] == 2000
    assert found["nats"] == expected.nats
    for layer, each in zip(found["layers"], expected.layers, strict=True):
        assert layer["memory"] == [value if math.isfinite(value) else None for value in each.memory.tolist()]
        assert layer["left"]["o"] == each.left["o"].tolist()
        assert layer["latching"] == each.latching.tolist()
    for relation, of in zip(found["relations"], expected.relations, strict=True):
        assert (relation["feature"], relation["bar"], relation["bits"]) == (of.feature, of.bar, of.bits.tolist())
    assert found["relations"][0]["quantities"] == list("hcifgo")


def test_all_parts_as_tables_and_json(trained, call, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TALE, encoding="utf-8")
    flags = ("--file", file, "--reach", "--ablate", "--convergence", "--positions")
    code, out, _ = call(trained, *flags, "--top", "2")
    assert code == 0
    for heading in (
        "layer 1 mean below 0.1 above 0.9 over units and steps",
        "feature bits of bar above it",
        "steps back layer 0 layer 1 |dL_t/dc| there",
        "more with c of a unit held at its mean:",
        "tokens read layer 0 layer 1 costs more divergence",
        "place in block warm cold tokens",
    ):
        assert heading in " ".join(out.split())
    code, out, _ = call(trained, *flags, "--json")
    found = json.loads(out)
    assert len(found["reach"]["c"]) == 2
    assert len(found["reach"]["c"][0]) == 128
    assert len(found["ablation"]["costs"][1]) == 12
    assert len(found["convergence"]["nats"]) == 256
    assert len(found["positions"]["warm"]) == 256


def test_without_a_text_it_is_the_validation_part(trained, call):
    code, out, _ = call(trained, "--lanes", "1")
    assert code == 0
    loaded = load(trained)
    corpus = read_corpus(trained.parent / "tale.txt", tokenizer=loaded.tokenizer, split=(0.8, 0.1))
    assert f"validation text: {len(corpus.val):,} tokens" in out


def test_a_short_text_has_statistics_alone(trained, call):
    code, out, _ = call(trained, "--text", "12 goose, 13 fox")
    assert code == 0
    assert "the given text: 16 tokens" in out
    assert "no unit was compared with the text: it has 16 tokens, and 19 shifts take at least 40" in out
    assert "feature " not in out


def test_ids_have_statistics_alone(call, tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "ids", LanguageModel(ModelConfig(9, hidden=3, layers=1, embedding=0)), IdTokenizer(9))
    code, out, _ = call(tmp_path / "ids", "--text", " ".join("012345678" * 20))
    assert code == 0
    assert "180 tokens" in out
    assert "feature " not in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "a", "--file", "b"), "--text and --file both say what to read; give one"),
        (("--text", ""), "--text is empty; give at least two tokens, or a --file"),
        (("--tokens", "0"), "--tokens 0 must be at least 1"),
        (("--text", "1"), "the split has no token to score"),
        (("--text", "1, 2", "--reach"), "no document is as long as 129 tokens, the longest has 4"),
        (("--file", "missing.txt"), "missing.txt"),
    ],
)
def test_what_cannot_be_inspected_is_one_sentence(trained, call, flags, message):
    code, out, err = call(trained, *flags)
    assert (code, out) == (1, "")
    assert err.startswith("unrolled: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_model_of_unknown_text_says_how_to_name_one(call, tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path / "m", LanguageModel(ModelConfig(9, hidden=3, layers=1, embedding=0)), IdTokenizer(9))
    code, _, err = call(tmp_path / "m")
    assert code == 1
    assert f"name a text: unrolled inspect {tmp_path / 'm'} --file FILE" in err
