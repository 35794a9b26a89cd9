"""What was named to be read (files, directories, patterns, arrays of ids), found, and read a piece at a time."""

import difflib
import glob
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError

import numpy as np

from .tokenizer import IntArray

# Read, checked and encoded at a time.
PIECE = 2**20
# A control byte here and there is a stray; in compressed or compiled data it is about one byte in ten.
BINARY_SHARE = 0.05
# Of a file in a directory, what is looked at to tell text from other data; and how many such files a note names.
_LOOKED_AT, _NAMED = 2**16, 3
# What numpy raises for a header that is none, which it reads as Python.
_UNREADABLE = (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, TokenError)
_CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\v\f\r\x1b"))) + b"\x7f"
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}

PathLike = str | os.PathLike[str]


class CorpusError(ValueError):
    """Text that can't be trained on as it is; the message says what to do about it."""


@dataclass(frozen=True, eq=False)
class Source:
    """One file. `raw` are the contents of what can be read only once, such as a pipe, or lies in no file."""

    name: str
    path: Path = Path()
    raw: bytes | None = None

    @property
    def holds_ids(self) -> bool:
        return self.raw is None and self.path.suffix == ".npy"

    @cached_property
    def size(self) -> int:
        return self._stamp[0] if self.raw is None else len(self.raw)

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def pieces(self) -> Iterator[bytes]:
        """The bytes, `PIECE` of them at a time. CorpusError where the file is no longer what it was at first."""
        if self.raw is not None:
            yield from (self.raw[begin : begin + PIECE] for begin in range(0, len(self.raw), PIECE))
            return
        before = self._stamp
        with open(self.path, "rb") as file:
            while piece := file.read(PIECE):
                yield piece
        if _stamp(self.path) != before:
            raise CorpusError(f"{self.name} changed while it was read; begin again when nothing writes to it")

    @cached_property
    def _stamp(self) -> tuple[int, int]:
        return _stamp(self.path)

    def ids(self) -> IntArray:
        """The memory-mapped ids of a .npy file."""
        try:
            array = np.lib.format.open_memmap(self.path, "r")
        except _UNREADABLE as error:
            raise CorpusError(
                f"{self.name} is no .npy file of ids ({str(error).splitlines()[0]}); write one with np.save"
            ) from None
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise CorpusError(
                f"{self.name} holds {array.dtype} {list(array.shape)}, and ids are one axis of integers; "
                "np.save(file, ids.ravel()) makes one of several"
            )
        if not array.size:
            raise CorpusError(f"{self.name} has no ids; leave it out")
        return array


def find(files: Sequence[PathLike]) -> tuple[list[Source], list[str]]:
    """Every file that is meant, in order, and a sentence for each directory of which something was left out.

    A directory stands for the text files in it and below, sorted by path; hidden ones and whole runs are not looked at.
    A pattern (`*`, `?`, `[...]`, `**`) that no file bears as its name stands for its matches, sorted. CorpusError for
    what is not there, can't be read or is empty.
    """
    sources, notes = list[Source](), list[str]()
    for file in files:
        for path in _matches(file):
            if path.is_dir():
                found, note = _inside(path)
                sources += found
                notes += note
            else:
                sources.append(_opened(path))
    return sources, notes


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def binary(name: str, raw: bytes, total: int, control: int) -> str | None:
    """Why `raw`, the bytes of a file from `total` on, is no text; `control` of the bytes before are control bytes."""
    if total == 0:
        for mark, encoding in _OTHER_MARKS.items():
            if raw.startswith(mark):
                return f"{name} is {encoding}, not UTF-8; {convert(name, encoding)}"
    if (nul := raw.find(0)) >= 0:
        return f"{name} is binary: it has a NUL byte at position {total + nul}; pass plain text"
    share = (control + control_bytes(raw)) / max(1, total + len(raw))
    return f"{name} is binary: {share:.0%} of it are control bytes; pass plain text" if share > BINARY_SHARE else None


def control_bytes(raw: bytes) -> int:
    return len(raw) - len(raw.translate(None, _CONTROL))


def convert(name: str, encoding: str) -> str:
    return f"convert it, for example with `iconv -f {encoding} -t UTF-8 {name} > {name}.utf8`"


def _matches(file: PathLike) -> list[Path]:
    path = Path(file)
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise CorpusError(f"{path}: no file matches this; looked from {Path.cwd()}")
    return [Path(match) for match in matches]


def _inside(directory: Path) -> tuple[list[Source], list[str]]:
    sources, others = list[Source](), list[str]()
    for folder, folders, names in os.walk(directory, onerror=_refuse):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_run(here / name))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = here / name
            reason = _no_text(path)
            if reason is None:
                sources.append(Source(str(path), path))
            else:
                others.append(f"{path} ({reason})")
    sources.sort(key=lambda source: source.path.parts)
    others.sort()
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    left = f"{', '.join(others[:_NAMED])}{more}"
    if not sources:
        raise CorpusError(f"{directory} has no text file in it or below" + (f"; left out: {left}" if others else ""))
    return sources, [f"{directory}: {len(sources)} text files; left out: {left}"] if others else []


def _is_run(directory: Path) -> bool:
    """A run's log grows with each step, so it is never text to train on."""
    return (directory / "config.toml").exists() and (directory / "log.jsonl").exists()


def _no_text(path: Path) -> str | None:
    """Why a file that was found in a directory is left out."""
    if path.suffix == ".npy":
        return "ids; name it, or a pattern such as '*.npy'"
    try:
        if not path.is_file():
            return "no file"
        with open(path, "rb") as file:
            raw = file.read(_LOOKED_AT)
    except OSError as error:
        raise CorpusError(f"{path} can't be read: {error.strerror}") from None
    if not raw:
        return "empty"
    return "no text" if binary(str(path), raw, 0, 0) else None


def _refuse(error: OSError) -> None:
    raise CorpusError(f"{error.filename} can't be read: {error.strerror}")


def _opened(path: Path) -> Source:
    try:
        with open(path, "rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            raw = file.read(1) if regular else file.read()
    except FileNotFoundError:
        folder = path.parent
        names = os.listdir(folder) if folder.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {folder / close[0]}?" if close else f"looked in {folder.resolve()}"
        raise CorpusError(f"{path}: there is no such file; {hint}") from None
    except OSError as error:
        raise CorpusError(f"{path} can't be read: {error.strerror}") from None
    if not raw:
        raise CorpusError(f"{path} is empty; leave it out, or pass a file with text in it")
    return Source(str(path), path, None if regular else raw)
