"""Encoded text on disk: taken up bit for bit, made anew where it is damaged, safe when several make it at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from unrolled import cache, corpus, disk
from unrolled.corpus import Corpus, CorpusError, read_corpus

pytest.importorskip("tokenizers")
WORDS = "the cat sat on the mat and the dog lay there \N{SNOWMAN} " * 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus, "SMALL", 100)
    Path("a.txt").write_text(WORDS, encoding="utf-8")
    Path("b.txt").write_text(WORDS[::-1], encoding="utf-8")
    return tmp_path


def read(tokens: str = "byte", **options: object) -> Corpus:
    return read_corpus(["a.txt", "b.txt"], tokens=tokens, cache="kept", **options)  # type: ignore[arg-type]


def kept() -> list[Path]:
    return sorted(Path("kept").iterdir())


def same(one: Corpus, other: Corpus) -> bool:
    pairs = zip((one.train, one.val, one.test), (other.train, other.val, other.test), strict=True)
    return one.tokenizer == other.tokenizer and all(
        a is not None and b is not None and np.array_equal(a.ids, b.ids) and np.array_equal(a.starts, b.starts)
        for a, b in pairs
    )


@pytest.mark.parametrize("tokens", ["byte", "char", "bpe"])
def test_mapped_and_in_memory_are_one_text(here: Path, tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = read_corpus(["a.txt", "b.txt"], tokens=tokens, separator="dog")
    made = read(tokens, separator="dog")
    assert made.notes == (f"encoded text kept in {kept()[0]}",)
    monkeypatch.setattr(corpus, "encode", None)
    again = read(tokens, separator="dog")
    assert again.notes == (f"encoded text taken up from {kept()[0]}",)
    for mapped in (made, again):
        assert same(mapped, memory)
        assert isinstance(mapped.train.ids, np.memmap)
        assert not mapped.train.ids.flags.writeable
    assert len(kept()) == 1


def test_the_key_is_all_that_decides_the_ids(here: Path) -> None:
    read()
    read(split=(0.5, 0.5))
    assert len(kept()) == 1, "shares are cut afterwards"
    read("char")
    read("bpe", vocabulary=260)
    read("bpe", vocabulary=270)
    read(separator="dog")
    read_corpus(["b.txt", "a.txt"], cache="kept")
    read_corpus(["a.txt"], val="b.txt", cache="kept")
    assert len(kept()) == 7
    Path("c.txt").write_text(WORDS, encoding="utf-8")
    read_corpus(["c.txt", "b.txt"], cache="kept")
    assert len(kept()) == 7, "contents count, names do not"


def test_small_texts_are_in_memory_and_byte_pairs_are_kept_all_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SMALL", 2**24)
    assert not isinstance(read().train.ids, np.memmap)
    assert not Path("kept").exists()
    assert isinstance(read("bpe").train.ids, np.memmap)


def test_learned_byte_pairs_are_taken_up_without_learning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read("bpe")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert same(read("bpe"), first)


def test_a_damaged_file_is_made_anew(here: Path) -> None:
    read()
    first = read_corpus(["a.txt", "b.txt"])
    (path,) = kept()
    raw = path.read_bytes()
    for content in (
        b"",
        raw[:-1],
        raw[1:],
        raw[: len(raw) // 2],
        bytes([raw[0] ^ 1]) + raw[1:],
        raw[:-60] + bytes([raw[-60] ^ 1]) + raw[-59:],
        raw[:-20] + b"\xff" * 12 + raw[-8:],
        raw + raw[-48:],
    ):
        path.unlink()  # not in place, where others may have mapped it
        path.write_bytes(content)
        again = read()
        assert "kept in" in again.notes[0]
        assert same(again, first)
        assert path.read_bytes() == raw


def test_a_mapped_text_outlives_its_file(here: Path) -> None:
    first = read()
    ids = first.train.ids[:].tolist()
    kept()[0].unlink()
    assert "kept in" in read().notes[0]
    assert first.train.ids.tolist() == ids


def test_what_fails_leaves_nothing_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", full)
        with pytest.raises(CorpusError, match="can't be written to kept: No space left on device; make room there, or"):
            read()
    assert kept() == []
    Path("a.txt").write_bytes(b"caf\xe9" * 100)
    with pytest.raises(CorpusError, match="isn't UTF-8"):
        read("char")
    assert not Path("kept").exists() or kept() == []


def test_what_a_crash_left_is_removed_and_what_another_writes_is_not(here: Path) -> None:
    read()
    name = kept()[0].stem
    kept()[0].unlink()
    old = time.time() - 3600
    crashed, busy, new = (Path("kept") / f"{name}.tmp-{digit * 8}" for digit in "abc")
    for path in (crashed, busy, new):
        path.write_bytes(b"half")
        if path != new:
            os.utime(path, (old, old))
    with open(busy, "rb+") as file:
        assert cache._lock(file)
        read()
    assert [path.name for path in kept()] == sorted([f"{name}.ids", busy.name, new.name])


def test_several_processes_at_once(here: Path) -> None:
    Path("a.txt").write_text(WORDS * 2000, encoding="utf-8")
    program = (
        "import hashlib; from unrolled import corpus; corpus.SMALL = 0;"
        "c = corpus.read_corpus('a.txt', cache='kept', tokens='char', split=(1,));"
        "print(hashlib.sha256(c.train.ids.tobytes()).hexdigest())"
    )
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(sums) == 1
    assert len(kept()) == 1
