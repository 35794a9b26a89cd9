"""The log: whole lines, cut back to what a saved model vouches for."""

import json
from pathlib import Path

from unrolled.journal import Journal


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Journal(path) as journal:
        journal.write("step", step=1, loss=2.5, sample="é\n\ud800")
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "event": "step",
            "step": 1,
            "loss": 2.5,
            "sample": "é\n?",
        }


def test_what_came_after_the_saved_model_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Journal(path) as journal:
        journal.write("one")
        kept = journal.length()
        assert kept == path.stat().st_size
        journal.write("two")
    with path.open("ab") as file:
        file.write(b'{"event": "ha')
    with Journal(path, keep=kept) as journal:
        journal.write("three")
        assert journal.length() == path.stat().st_size
    assert events(path) == ["one", "three"]


def test_a_log_that_was_removed_or_shortened_grows_from_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for kept in (0, 5000):
        with Journal(path, keep=kept) as journal:
            journal.write("one")
    assert events(path) == ["one", "one"]
    assert b"\x00" not in path.read_bytes()
