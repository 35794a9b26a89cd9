"""What a run begins with: an earlier model's weights and tokens, a given tokenizer, ids that were made elsewhere."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from unrolled.beginning import begin
from unrolled.checkpoint import load
from unrolled.cli import main
from unrolled.config import ConfigError, TrainConfig
from unrolled.corpus import CorpusError
from unrolled.lanes import TooShortError
from unrolled.tokens import CharTokenizer, TokenizerError
from unrolled.train import StepDone, Trainer

SMALL = {"layers": 1, "hidden": 8, "embedding": 4, "lanes": 2, "window": 8, "threads": 1, "steps": 2, "eval_every": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("the cat sat on the mat. " * 40)
    Path("b.txt").write_text("a hat on the cat. " * 40)
    return tmp_path


def config(*files: str, **fields: object) -> TrainConfig:
    return TrainConfig(files=files, **{**SMALL, **fields})  # type: ignore[arg-type]


def test_a_finished_model_is_trained_on(here: Path) -> None:
    list(Trainer(config("a.txt", tokens="char", out="first")).run())
    fine = TrainConfig(
        files=("b.txt",), init_from="first", out="second", dropout=0.5, lanes=2, window=8, steps=2, threads=1
    )
    trainer = Trainer(fine)
    first = load("first")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name])
    assert trainer.corpus.tokenizer == first.tokenizer
    resolved = trainer.config
    assert (resolved.hidden, resolved.layers, resolved.embedding, resolved.tokens) == (8, 1, 4, "char")
    assert (resolved.dropout, resolved.init_from) == (0.5, "first")
    list(trainer.run())
    shutil.rmtree("first")
    assert [event.step for event in Trainer(dataclasses.replace(fine, steps=4)).run()][-1] == 4, "it stands by itself"
    assert TrainConfig.load("second/config.toml").init_from == "first"


def test_tied_weights_are_trained_taken_up_and_trained_on(here: Path) -> None:
    apart = Trainer(config("a.txt", embedding=8, out="apart"))
    whole = Trainer(config("a.txt", embedding=None, tie_weights=True, out="whole"))
    assert whole.config.embedding == 8
    matrices = [sum(p.numel() for p in trainer.model.parameters()) for trainer in (apart, whole)]
    assert matrices[0] - matrices[1] == 256 * 8
    list(whole.run())
    for step in (1, 2):
        part = Trainer(config("a.txt", embedding=None, tie_weights=True, out="part"))
        for event in part.run():
            if isinstance(event, StepDone) and event.step == step:
                part.stop()
    found = [load(name).model for name in ("whole", "part")]
    for name, value in found[0].state_dict().items():
        assert torch.equal(value, found[1].state_dict()[name])
    fine = Trainer(TrainConfig(files=("b.txt",), init_from="whole", out="fine", lanes=2, window=8, steps=1, threads=1))
    assert fine.config.tie_weights
    assert fine.model.embedding.weight is fine.model.lstm.proj.weight
    with pytest.raises(ConfigError, match="tie_weights=False is not what the model in whole has: True"):
        begin(config("b.txt", init_from="whole", embedding=None, tie_weights=False))
    with pytest.raises(ConfigError, match="tie_weights must be true or false, got 'yes'"):
        config("a.txt", tie_weights="yes")


def test_what_a_model_that_is_trained_on_cannot_become(here: Path) -> None:
    list(Trainer(config("a.txt", tokens="char", out="first")).run())
    with pytest.raises(ConfigError, match=r"hidden=16 is not what the model in first has: 8; .* leave --hidden out"):
        begin(config("b.txt", init_from="first", hidden=16))
    with pytest.raises(ConfigError, match=r"hidden=256 is not what the model in first has: 8"):
        begin(config("b.txt", init_from="first", hidden=256))
    with pytest.raises(
        ConfigError, match="tokens=bpe is not what first reads: its tokens are char; leave --tokens out"
    ):
        begin(config("b.txt", init_from="first", tokens="bpe"))
    with pytest.raises(ConfigError, match="init_from and tokenizer both say what the tokens are"):
        begin(config("b.txt", init_from="first", tokenizer="first"))
    Path("c.txt").write_text("the zoo " * 50)
    with pytest.raises(CorpusError) as raised:
        begin(config("c.txt", init_from="first"))
    assert str(raised.value) == (
        "c.txt: character 'z' (U+007A) at position 4 is not among the 11 symbols of this tokenizer, which is fixed; "
        "replace the character, or take a model of bytes or byte pairs, which reads any text"
    )


def test_a_given_tokenizer(here: Path) -> None:
    CharTokenizer(" .acehmnostz").save("tokenizer.json")
    known, corpus, model = begin(config("a.txt", tokenizer="tokenizer.json"))
    assert (known.tokens, corpus.tokenizer.size, model) == ("char", 12, None)
    with pytest.raises(ConfigError, match=r"tokens=byte is not what tokenizer\.json reads: its tokens are char"):
        begin(config("a.txt", tokenizer="tokenizer.json", tokens="byte"))
    with pytest.raises(ConfigError, match=r"tokenizer none\.json can't be read: No such file"):
        begin(config("a.txt", tokenizer="none.json"))
    Path("bad.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"bad\.json: this is not a tokenizer file"):
        begin(config("a.txt", tokenizer="bad.json"))


def test_ids_that_were_made_elsewhere(here: Path) -> None:
    np.save("ids.npy", np.arange(400) % 7)
    for fields, size in (({}, 7), ({"vocabulary": 20}, 20)):
        known, corpus, _ = begin(config("ids.npy", **fields))
        assert (known.tokens, corpus.tokenizer.size) == ("ids", size)
        assert corpus.train.ids[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    with pytest.raises(CorpusError, match=r"ids\.npy holds ids and other files hold text: give the tokenizer"):
        begin(config("a.txt", "ids.npy"))
    _, mixed, _ = begin(config("ids.npy", "b.txt", tokenizer=_chars(), split=(1,)))
    assert mixed.train.starts.tolist() == [0, 400]
    list(Trainer(config("ids.npy", out="run")).run())
    assert load("run").tokenizer.decode([3, 5]) == "3 5 "


def _chars() -> str:
    CharTokenizer.from_text("a hat on the cat. ").save("chars.json")
    return "chars.json"


def test_byte_pairs_and_their_number_are_written_out(here: Path) -> None:
    pytest.importorskip("tokenizers")
    known, corpus, _ = begin(config("a.txt", tokens="bpe", out="runs/x"))
    assert (known.tokens, known.vocabulary, corpus.tokenizer.name) == ("bpe", 4096, "bpe")
    assert [path.suffix for path in Path("runs/encoded").iterdir()] == [".ids"]
    assert begin(known)[1].notes[0].startswith("encoded text taken up")


def test_a_document_ends_with_its_file_and_behind_a_separator(here: Path) -> None:
    _, corpus, _ = begin(config("a.txt", "b.txt", document_separator=". ", split=(1,)))
    assert corpus.train.starts[:3].tolist() == [0, 24, 48]
    trainer = Trainer(config("a.txt", "b.txt", document_separator=". ", split=(1,)), corpus=corpus)
    window = trainer.lanes.window(0, 2)
    assert window.resets is not None
    assert window.scored is not None
    text = corpus.tokenizer.decode(corpus.train.ids)
    for row, inputs in enumerate(window.inputs.tolist()):
        for step, token in enumerate(inputs):
            if not window.scored[row, step]:
                assert chr(token) == " ", "the last of a document is followed by nothing that it could know"
    assert text.count(". ") == len(corpus.train.starts)


def test_a_text_too_short_is_told_in_the_callers_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TooShortError, match="use lanes=28 with window=29 or lanes=64 with window=13, or a longer text"):
        Trainer(TrainConfig(files=("a.txt",), window=29))
    with pytest.raises(SystemExit):
        main(["train", "a.txt", "--window", "29"])
    assert "use --lanes 28 --window 29 or --lanes 64 --window 13, or a longer text" in capsys.readouterr().err
