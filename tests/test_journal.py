"""The log: whole lines, cut back to what a saved model vouches for."""

import errno
import json
from pathlib import Path
from typing import BinaryIO

import pytest

from unrolled import disk
from unrolled.disk import DiskWarning
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


@pytest.mark.parametrize("cuttable", [True, False])
def test_a_full_disk_costs_lines_and_leaves_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuttable: bool
) -> None:
    def torn(file: BinaryIO, data: bytes) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def stuck(file: BinaryIO, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "log.jsonl"
    with Journal(path) as journal:
        journal.write("one")
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write", torn)
            with pytest.warns(DiskWarning, match=r"log\.jsonl can't be written: No space left on device") as said:
                journal.write("two")
            if not cuttable:
                patch.setattr(disk, "truncate", stuck)
            journal.write("three")  # a second warning would be an error
            assert len(said) == 1
        assert journal.length() == len(b'{"event": "one"}\n')
        journal.write("four")
        journal.write("five")
        assert journal.length() == path.stat().st_size
    assert events(path) == ["one", "missing", "four", "five"]
    assert json.loads(path.read_text().splitlines()[1]) == {"event": "missing", "lines": 2}


def test_half_a_line_is_not_vouched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model saved while the disk is full has the length of the whole lines; the rest is cut off later."""

    def torn(file: BinaryIO, data: bytes) -> None:
        file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "log.jsonl"
    with Journal(path) as journal:
        journal.write("one")
        monkeypatch.setattr(disk, "write", torn)
        with pytest.warns(DiskWarning):
            journal.write("two")
        kept = journal.length()
    monkeypatch.undo()
    with Journal(path, keep=kept) as journal:
        journal.write("three")
    assert events(path) == ["one", "three"]
