"""Directories that are whole or absent, and the sentence for every way in which one can be damaged."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from unrolled import disk
from unrolled.manifest import (
    MANIFEST,
    CheckpointError,
    decode_json,
    is_leftover,
    read_directory,
    remove,
    replace_file,
    write_directory,
)

CONTENTS = {"a.json": b"{}\n", "b.bin": bytes(range(256)), "empty": b""}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_directory(tmp_path / "deep" / "model", {"unrolled": "1.2"}, CONTENTS)
    return tmp_path / "deep" / "model"


def changed(path: Path, **fields: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **fields}))


def test_what_is_written_is_read(written: Path) -> None:
    manifest, contents = read_directory(written, keep=["b.bin", "empty", "absent"])
    assert contents == {"b.bin": CONTENTS["b.bin"], "empty": b""}
    assert manifest["unrolled"] == "1.2"
    assert manifest["files"]["b.bin"] == {"bytes": 256, "sha256": hashlib.sha256(bytes(range(256))).hexdigest()}
    assert sorted(os.listdir(written)) == ["a.json", "b.bin", "empty", MANIFEST]
    assert os.listdir(written.parent) == ["model"], "nothing is left beside it"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_others_may_read_what_the_umask_lets_them(written: Path, tmp_path: Path) -> None:
    replace_file(tmp_path / "small", b"text")
    expected = 0o666 & ~_umask()
    assert stat.S_IMODE((written / "b.bin").stat().st_mode) == expected
    assert stat.S_IMODE((tmp_path / "small").stat().st_mode) == expected
    assert stat.S_IMODE(written.stat().st_mode) == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_everything_is_synced_and_the_name_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that makes it safe: parent, files, the manifest last, the directory, the rename, the parent."""
    happened: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(descriptor: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".tmp-")[0])
        fsync(descriptor)

    def recorded_rename(source: Path, target: Path) -> None:
        happened.append(f"rename to {target.name}")
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name a descriptor's file")
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    write_directory(tmp_path / "runs" / "model", {}, CONTENTS)
    assert happened == [tmp_path.name, "a.json", "b.bin", "empty", MANIFEST, "model", "rename to model", "runs"]


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        write_directory(tmp_path / "model", {}, CONTENTS)
    assert os.listdir(tmp_path) == []


def test_a_taken_place_is_refused_and_an_empty_directory_is_no_place_taken(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists, and a saved model is never overwritten; choose another name"):
        write_directory(written, {}, {})
    assert read_directory(written, keep=["a.json"])[1] == {"a.json": b"{}\n"}
    (tmp_path / "new").mkdir()
    write_directory(tmp_path / "new", {}, CONTENTS)
    read_directory(tmp_path / "new", keep=[])


def test_one_changed_byte_in_any_file_is_named(written: Path) -> None:
    for name in ("a.json", "b.bin"):
        data = (written / name).read_bytes()
        (written / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(CheckpointError, match=rf"{name} is not what was saved: its sha256"):
            read_directory(written, keep=[])
        with pytest.raises(CheckpointError, match=rf"{name} is not what was saved: its sha256"):
            read_directory(written, keep=[name])
        (written / name).write_bytes(data)
    read_directory(written, keep=[])


def test_a_shortened_file_is_named(written: Path) -> None:
    (written / "b.bin").write_bytes(b"ab")
    with pytest.raises(CheckpointError, match=r"b\.bin has 2 bytes, and manifest\.json says 256: it is damaged"):
        read_directory(written, keep=[])


def test_a_missing_file_is_named(written: Path) -> None:
    (written / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"b\.bin is missing; restore it, or use another model directory"):
        read_directory(written, keep=[])
    (written / "b.bin").mkdir()
    with pytest.raises(CheckpointError, match=r"b\.bin is not a file"):
        read_directory(written, keep=[])


def test_a_file_that_the_disk_does_not_give_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(CheckpointError, match=r"a\.json can't be read: Input/output error; restore it"):
        read_directory(written, keep=[])


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000, "null", '{"format": '])
def test_a_manifest_that_is_none(written: Path, text: str) -> None:
    (written / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"manifest\.json is not .*damaged"):
        read_directory(written, keep=[])


def test_a_missing_manifest(written: Path) -> None:
    (written / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json can't be read: No such file"):
        read_directory(written, keep=[])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, r"is of format version 2, and this version of unrolled reads 1; .*pip install --upgrade"),
        ({"version": None}, "is of format version None"),
        ({"format": "other"}, r'"format" must be "unrolled-model"'),
        ({"files": ["a.json"]}, "has no list of files"),
        ({"files": {"../a.json": {}}}, r"lists '\.\./a\.json', which is no plain file name"),
        ({"files": {"..": {}}}, r"lists '\.\.', which is no plain file name"),
        ({"files": {"/etc/passwd": {}}}, "which is no plain file name"),
        ({"files": {"a\\b": {}}}, "which is no plain file name"),
        ({"files": {"": {}}}, "which is no plain file name"),
        ({"files": {"a.json": 3}}, r'lists a\.json without its "bytes" and "sha256"'),
        ({"files": {"a.json": {"bytes": True, "sha256": ""}}}, r'without its "bytes"'),
        ({"files": {"a.json": {"bytes": 3, "sha256": 5}}}, r'without its "bytes"'),
    ],
)
def test_a_manifest_with_something_else_in_it(written: Path, fields: dict[str, object], message: str) -> None:
    changed(written, **fields)
    with pytest.raises(CheckpointError, match=message):
        read_directory(written, keep=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "a key is there twice"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "-Infinity is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
    ],
)
def test_json_means_one_thing_only(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"a\.json is not JSON \({message}\); it is damaged"):
        decode_json(Path("a.json"), text.encode())


def test_large_json_is_not_parsed() -> None:
    with pytest.raises(CheckpointError, match="larger than such a file ever is"):
        decode_json(Path("a.json"), b" " * (2**24 + 1))


def test_replacing_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_file(path, b"three")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["latest"]


def test_removal_and_its_leftovers(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "remove_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove(written)
    (left,) = written.parent.iterdir()
    assert is_leftover(left)
    assert not is_leftover(written)
    remove(left)
    assert os.listdir(written.parent) == []
