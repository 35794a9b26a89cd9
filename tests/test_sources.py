"""What is found where it was named: files, directories, patterns, pipes, arrays; what is left out, and why."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from unrolled import sources
from unrolled.sources import CorpusError, Source, find


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "data/b.txt": b"b",
        "data/a.md": b"a",
        "data/sub/c.txt": b"c",
        "data/sub/.hidden": b"hidden",
        "data/.git/config": b"hidden",
        "data/empty": b"",
        "data/image.png": b"\x89PNG\x00\x01",
        "data/wide.txt": "wide".encode("utf-16"),
        "data/run/config.toml": b"seed = 0",
        "data/run/log.jsonl": b"{}",
        "data/run/step-00000001/config.json": b"{}",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    np.save("data/ids.npy", np.arange(3))
    return tmp_path


def names(*files: str) -> list[str]:
    return [source.name.replace(os.sep, "/") for source in find(files)[0]]


def complaint(*files: str) -> str:
    with pytest.raises(CorpusError) as caught:
        find(files)
    return str(caught.value)


def test_a_directory_is_its_text_files(here: Path) -> None:
    assert names("data") == ["data/a.md", "data/b.txt", "data/sub/c.txt"]
    assert names("data/sub", "data/b.txt") == ["data/sub/c.txt", "data/b.txt"], "in the order in which they are named"


def test_what_of_a_directory_was_left_out_is_said(here: Path) -> None:
    (note,) = find(["data"])[1]
    assert note.replace(os.sep, "/") == (
        "data: 3 text files; left out: data/empty (empty), data/ids.npy (ids; name it, or a pattern such as '*.npy'), "
        "data/image.png (no text) and 1 more"
    )
    assert find(["data/sub"])[1] == [], "hidden files are not spoken of"


def test_a_directory_without_text(here: Path) -> None:
    Path("nothing/below").mkdir(parents=True)
    assert complaint("nothing") == "nothing has no text file in it or below"
    Path("nothing/below/x").write_bytes(b"\x00")
    assert complaint("nothing") == (
        f"nothing has no text file in it or below; left out: {Path('nothing/below/x')} (no text)"
    )


def test_links_to_directories_are_not_followed(here: Path) -> None:
    Path("data/sub/up").symlink_to(here / "data", target_is_directory=True)
    Path("data/sub/gone").symlink_to(here / "nowhere")
    found, notes = find(["data/sub"])
    assert [source.name for source in found] == [str(Path("data/sub/c.txt"))]
    assert "gone (no file)" in notes[0]


def test_patterns(here: Path) -> None:
    assert names("data/*.txt") == ["data/b.txt", "data/wide.txt"]
    assert names("data/**/[bc].txt") == ["data/b.txt", "data/sub/c.txt"]
    assert complaint("data/*.tex") == f"{Path('data/*.tex')}: no file matches this; looked from {here}"
    Path("odd[1].txt").write_bytes(b"odd")
    Path("odd1.txt").write_bytes(b"other")
    assert names("odd[1].txt") == ["odd[1].txt"], "a file of that very name goes before its meaning as a pattern"


def test_what_is_named_is_not_left_out_silently(here: Path) -> None:
    assert complaint("data/empty") == f"{Path('data/empty')} is empty; leave it out, or pass a file with text in it"
    assert names("data/image.png") == ["data/image.png"]


def test_a_pipe_is_read_once(here: Path) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(b"through a pipe"))
    writer.start()
    (source,) = find(["pipe"])[0]
    writer.join()
    assert [b"".join(source.pieces()) for _ in range(2)] == [b"through a pipe"] * 2
    assert source.size == 14


def test_a_file_in_pieces(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 4)
    Path("file").write_bytes(b"0123456789")
    (source,) = find(["file"])[0]
    assert list(source.pieces()) == list(Source("x", raw=b"0123456789").pieces()) == [b"0123", b"4567", b"89"]
    assert source.sha256 == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"


def test_a_file_that_changes_meanwhile(here: Path) -> None:
    (source,) = find(["data/b.txt"])[0]
    assert source.size == 1
    Path("data/b.txt").write_bytes(b"longer")
    with pytest.raises(CorpusError, match=r"b\.txt changed while it was read; begin again when nothing writes to it"):
        source.sha256


def test_ids_are_mapped(here: Path) -> None:
    (source,) = find(["data/ids.npy"])[0]
    assert source.holds_ids
    assert isinstance(source.ids(), np.memmap)
    assert source.ids().tolist() == [0, 1, 2]


def array(name: str, value: object, **options: bool) -> Source:
    np.save(name, value, **options)  # type: ignore[arg-type]
    return Source(name, Path(name))


def test_arrays_that_are_no_ids(here: Path) -> None:
    for value, says in (
        (
            np.zeros(3),
            r"a.npy holds float64 \[3\], and ids are one axis of integers; np.save\(file, ids",
        ),
        (np.zeros((2, 3), np.int8), r"a.npy holds int8 \[2, 3\], and ids are one axis of integers"),
        (np.zeros(3, bool), r"a.npy holds bool \[3\], and ids are one axis"),
        (np.array(7), r"a.npy holds int64 \[\], and ids are one axis"),
        (np.zeros(0, np.int8), "a.npy has no ids; leave it out"),
    ):
        with pytest.raises(CorpusError, match=says):
            array("a.npy", value).ids()


def test_objects_are_never_unpickled(here: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.npy is no \.npy file of ids"):
        array("a.npy", np.array([{}], dtype=object), allow_pickle=True).ids()


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_damaged_arrays(here: Path) -> None:
    raw = bytearray(Path("data/ids.npy").read_bytes())
    contents = [raw[:end] for end in (1, 9, 60, len(raw) - 1)] + [b"PK\x03\x04" + raw, b"text", b"\x80\x04N."]
    for at in range(0, 128, 3):
        for value in (0, 40, 123, 255):
            contents.append(raw[:at] + bytes([value]) + raw[at + 1 :])
    refused = 0
    for content in contents:
        Path("a.npy").write_bytes(content)
        try:
            assert np.issubdtype(Source("a.npy", Path("a.npy")).ids().dtype, np.integer)
        except CorpusError:
            refused += 1
    assert refused > len(contents) // 2
