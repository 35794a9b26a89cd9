"""Which texts `unrolled eval` finds, beside which bars, and what it says where something can't be had."""

import dataclasses
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import run, small

from unrolled.checkpoint import Run, load, save_model
from unrolled.corpus import Corpus, read_corpus
from unrolled.dynamic import Dynamic, dynamic, gradient_rms, tuned
from unrolled.evaluate import Counts, PositionCurve, evaluate, part, positions
from unrolled.score_request import ScoreRequest
from unrolled.scoring import Result, results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a validation and a test part."""
    directory = tmp_path_factory.mktemp("scoring")
    with pytest.MonkeyPatch.context() as monkeypatch:
        config = dataclasses.replace(small(directory, monkeypatch), split=(0.8, 0.1, 0.1))
        run(config)
    return directory / "run"


@pytest.fixture
def there(trained: Path) -> tuple[Run, Corpus]:
    torch.set_num_threads(1)
    loaded = load(trained)
    return loaded, read_corpus(trained.parent / "tale.txt", split=(0.8, 0.1, 0.1), tokenizer=loaded.tokenizer)


def ask(trained: Path, *files: Path, **asked: object) -> list[Result]:
    return list(results(trained, files, ScoreRequest(**asked)))


def test_without_a_file_the_part_that_was_held_back_is_scored(trained: Path, there: tuple[Run, Corpus]) -> None:
    loaded, corpus = there
    counts = Counts.of(corpus.train, loaded.tokenizer)
    for asked, split, name in (
        ({}, corpus.val, "validation part"),
        ({"split": "val"}, corpus.val, "validation part"),
        ({"split": "test"}, corpus.test, "test part"),
    ):
        assert split is not None
        (result,) = ask(trained, **asked)
        assert result.text == f"the run's own text, {name}"
        assert result.evaluation == evaluate(loaded.model, split, loaded.tokenizer, counts=counts)
        assert (result.notes, result.dynamic, result.curve) == ((), None, None)


def test_files_one_after_the_other(trained: Path, there: tuple[Run, Corpus], tmp_path: Path) -> None:
    loaded, corpus = there
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file, text in zip(files, ("1 goose, 2 goose, ", "33 fox, "), strict=True):
        file.write_text(text)
    counts = Counts.of(corpus.train, loaded.tokenizer)
    for result, file in zip(ask(trained, *files), files, strict=True):
        text = read_corpus(file, tokenizer=loaded.tokenizer, split=(1.0,)).train
        assert result.text == str(file)
        assert result.evaluation == evaluate(loaded.model, text, loaded.tokenizer, counts=counts)


def test_the_training_text_is_recognised(trained: Path) -> None:
    (result,) = ask(trained, trained.parent / "tale.txt")
    assert len(result.notes) == 1
    assert "is the text that the run was made from, so most of it is no news to the model" in result.notes[0]
    assert result.notes[0] in result.table()


def test_positions_and_dynamic_stand_apart(trained: Path, there: tuple[Run, Corpus]) -> None:
    loaded, corpus = there
    assert corpus.val is not None
    settings = Dynamic(lr=0.01, decay=0.1, segment=16)
    (result,) = ask(trained, positions=True, dynamic=True, dynamic_lr=0.01, dynamic_decay=0.1, dynamic_segment=16)
    scales = gradient_rms(loaded.model, corpus.train, 16)
    expected = dynamic(loaded.model, corpus.val, loaded.tokenizer, scales=scales, settings=settings)
    assert (result.dynamic, result.settings) == (expected, settings)
    curve = positions(loaded.model, corpus.val, loaded.tokenizer)
    assert isinstance(result.curve, PositionCurve)
    np.testing.assert_array_equal(result.curve.warm, curve.warm)
    static, places, apart = result.table().split("\n\n")
    assert "dynamic" not in static
    assert places.startswith("place in block")
    assert apart.splitlines()[0].split()[:3] == ["model,", "dynamic", f"{expected.nats:.4f}"]
    assert "settings: rms, lr 0.01, decay 0.1, segments of 16 tokens" in apart
    found = json.loads(result.as_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["stateful"] == asdict(result.evaluation.stateful)
    assert found["bars"] == asdict(result.evaluation.bars)
    assert found["dynamic"] == {**asdict(expected), "settings": asdict(settings)}
    assert found["positions"]["tokens"] == curve.tokens.tolist()
    assert [math.nan if x is None else x for x in found["positions"]["warm"]] == pytest.approx(
        curve.warm.tolist(), nan_ok=True, rel=1e-15
    )


def test_learning_that_does_harm_is_told(trained: Path) -> None:
    said = "Learning from this text made it no better: try a smaller --dynamic-lr, or --dynamic-tune."
    (harmed,) = ask(trained, dynamic=True, dynamic_lr=1.0)
    assert harmed.table().splitlines()[-1] == said
    (helped,) = ask(trained, dynamic=True, dynamic_lr=0.005)
    assert said not in helped.table()


def test_plain_gradient_descent_needs_no_training_text(
    trained: Path, there: tuple[Run, Corpus], tmp_path: Path
) -> None:
    loaded, corpus = there
    assert corpus.val is not None
    bare = tmp_path / "bare"
    save_model(bare, loaded.model, loaded.tokenizer)
    text = tmp_path / "a.txt"
    text.write_text("1 goose, 2 goose, ")
    with pytest.raises(
        ValueError, match=r"bare does not say what it was trained on; name it, --train FILE, or do with"
    ):
        ask(bare, text, dynamic=True)
    (result,) = ask(bare, text, dynamic=True, dynamic_sgd=True)
    assert result.settings == Dynamic(method="sgd")
    assert result.evaluation.bars is None
    (named,) = ask(bare, text, dynamic=True, train=(trained.parent / "tale.txt",))
    assert named.settings == Dynamic()
    assert named.evaluation.bars is not None


def test_tuning_reads_the_validation_part_alone(trained: Path, there: tuple[Run, Corpus]) -> None:
    loaded, corpus = there
    assert corpus.val is not None
    (result,) = ask(trained, split="test", dynamic=True, dynamic_tune=True, dynamic_lr=0.02)
    scales = gradient_rms(loaded.model, corpus.train, Dynamic.segment)
    some = part(corpus.val, 0, min(20_000, len(corpus.val)))
    expected = tuned(loaded.model, some, loaded.tokenizer, scales=scales, settings=Dynamic(lr=0.02))
    assert result.settings == expected


def test_what_became_of_the_text_is_said(trained: Path, tmp_path: Path) -> None:
    text, tale = tmp_path / "a.txt", trained.parent / "tale.txt"
    text.write_text("1 goose, 2 goose, ")
    before = tale.read_bytes()
    try:
        tale.write_bytes(before + b"3 goose, ")
        (result,) = ask(trained, text)
        assert result.evaluation.bars is None
        assert result.notes == (
            f"no n-grams to compare with: {tale} has changed since the run was made; "
            "--train FILE names the training text",
        )
        with pytest.raises(
            ValueError, match=r"tale.txt has changed since the run was made; name a text to score: unro"
        ):
            ask(trained)
        tale.unlink()
        (result,) = ask(trained, text)
        assert "tale.txt: there is no such file" in result.notes[0]
        assert result.notes[0].endswith("--train FILE names the training text")
    finally:
        tale.write_bytes(before)
    (result,) = ask(trained, text, train=(tale,))
    assert (result.notes, result.evaluation.bars is None) == ((), False)


def test_a_part_that_the_run_does_not_have(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path, monkeypatch)
    run(config)
    with pytest.raises(ValueError, match=r"has no test part: its text was divided into train, val; name a text"):
        ask(tmp_path / "run", split="test")


def test_a_large_text_is_encoded_once_beside_the_run_and_mapped(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "large.txt"
    text.write_text("1 goose, 2 goose, " * 20)
    (in_memory,) = ask(trained, text)
    kept = trained.parent / "encoded"
    assert not kept.exists()
    monkeypatch.setattr(sys.modules["unrolled.corpus"], "SMALL", 200)
    seen: list[object] = []
    monkeypatch.setattr(
        sys.modules["unrolled.scoring"],
        "evaluate",
        lambda model, split, *rest, **more: seen.append(split.ids) or evaluate(model, split, *rest, **more),
    )
    (first,), (second,) = ask(trained, text, train=(text,)), ask(trained, text, train=(text,))
    (file,) = kept.glob("*.ids")
    assert all(isinstance(ids, np.memmap) for ids in seen)
    assert first.evaluation.stateful == second.evaluation.stateful == in_memory.evaluation.stateful
    assert first.notes == (f"encoded text kept in {file}",)
    assert second.notes == (f"encoded text taken up from {file}",)
    monkeypatch.setattr(sys.modules["unrolled.scoring"].os, "access", lambda path, mode: path != kept)
    (unwritable,) = ask(trained, text, train=(text,))
    assert not isinstance(seen[-1], np.memmap)
    assert (unwritable.evaluation, unwritable.notes) == (first.evaluation, ())


def test_a_model_that_is_in_no_run_has_the_text_beside_it(
    there: tuple[Run, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _ = there
    save_model(tmp_path / "alone", loaded.model, loaded.tokenizer)
    text = tmp_path / "large.txt"
    text.write_text("1 goose, 2 goose, " * 20)
    monkeypatch.setattr(sys.modules["unrolled.corpus"], "SMALL", 200)
    (result,) = ask(tmp_path / "alone", text)
    assert result.notes[0] == f"encoded text kept in {next((tmp_path / 'encoded').glob('*.ids'))}"


def test_threads_are_those_that_were_asked_for(trained: Path) -> None:
    torch.set_num_threads(1)
    asked = results(trained, (), ScoreRequest(threads=2))
    next(asked)
    assert torch.get_num_threads() == 2
    assert list(asked) == []
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        ask(trained, threads=0)
