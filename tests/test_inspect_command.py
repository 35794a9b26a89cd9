import json
import math
import sys
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


def test_a_page_and_figures_are_written_beside_the_tables(trained, call, tmp_path):
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    code, out, _ = call(trained, "--page", page, "--png", figures, "--page-tokens", "90", "--tokens", "400")
    assert code == 0
    assert "bar above it" in " ".join(out.split())
    assert f"written: {page}, " in out
    html = page.read_text(encoding="utf-8")
    assert "<title>run reads validation text</title>" in html
    assert "The first 90 are shown, with all units of each layer." in html
    names = ["gates.png", "gradient-flow.png", "memory.png", "saturation.png"]
    assert sorted(path.name for path in figures.iterdir()) == names
    assert all(f"written: {figures / name}, " in out for name in names)


def test_with_json_what_was_written_is_said_elsewhere(trained, call, tmp_path):
    code, out, err = call(trained, "--text", "12 goose, 13 fox", "--page", tmp_path / "p.html", "--json", "--all-units")
    assert code == 0
    assert json.loads(out)["tokens"] == 16
    assert f"written: {tmp_path / 'p.html'}" in err


def test_a_sentence_has_figures_too(trained, call, tmp_path):
    code, _, _ = call(trained, "--text", "12 goose, 13 fox", "--png", tmp_path)
    assert code == 0
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--page", "page.txt"), "--page page.txt is no .html file; name it so: --page page.html"),
        (("--page", "no/page.html"), "--page no/page.html: there is no directory no; make it first"),
        (("--all-units",), "--all-units is about the page; give it a name, too: --page page.html"),
        (("--page", "p.html", "--page-tokens", "0"), "--page-tokens 0 must be at least 1"),
    ],
)
def test_what_cannot_be_a_page_is_one_sentence(trained, call, flags, message):
    code, out, err = call(trained, *flags)
    assert (code, out, err) == (1, "", f"unrolled: {message}\n")


def test_without_matplotlib_nothing_is_computed_for_figures(trained, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = call(trained, "--png", tmp_path / "figures")
    assert (code, out, err) == (1, "", "unrolled: matplotlib is not installed: pip install 'unrolled[plots]'\n")
    assert not (tmp_path / "figures").exists()
