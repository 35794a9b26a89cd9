"""Encoded text on disk: written once, whole or not at all, verified when it is taken up, then memory-mapped.

A file `<key>.ids` holds the ids, padding to 8 bytes, the documents' starts (int64), a footer in JSON, and 48 bytes: the
footer's sha256, its length and a mark. The footer has the sha256 of all before it.
"""

import hashlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from . import disk
from .encoding import Encoded, Writable, dtype_for
from .sources import PIECE, CorpusError
from .tokenizer import Tokenizer, TokenizerError
from .tokens import LARGEST_FILE, parse_tokenizer, tokenizer_file

VERSION = 1
_MARK = b"unrolled"
_TAIL = 32 + 8 + len(_MARK)
# Seconds between a file's first moment and its lock, by far.
_JUST_MADE = 60


class _Damaged(Exception):
    """A file that can't be taken up; it is made anew."""


def key_of(description: Mapping[str, Any]) -> str:
    """The name of the encoding that `description` (plain values) decides."""
    return hashlib.sha256(json.dumps({"version": VERSION, **description}, sort_keys=True).encode()).hexdigest()[:24]


def take_up(directory: Path, name: str) -> tuple[Encoded, Tokenizer] | None:
    """The encoding of that key, memory-mapped; None where there is none, or none that is whole."""
    path = directory / f"{name}.ids"
    try:
        return _verified(path)
    except (FileNotFoundError, _Damaged):
        return None
    except OSError as error:
        raise CorpusError(f"{path} can't be read: {error.strerror}; remove it, and it is made anew") from None


def store(directory: Path, name: str, tokenizer: Tokenizer, encode: Callable[[Writable, Writable], int]) -> Encoded:
    """Have `encode(ids, starts)` write an encoding, give it its name, and memory-map it.

    Nobody sees it before it is whole, and several processes may do the same at once: the last one's file stays, and
    those of the others are as good. CorpusError where it can't be written.
    """
    path = directory / f"{name}.ids"
    temporary = directory / f"{name}.tmp-{secrets.token_hex(4)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clear(directory, name)
        try:
            with disk.create(temporary) as raw, tempfile.TemporaryFile(dir=directory) as starts:
                _lock(raw)
                file = BufferedWriter(raw, PIECE)
                _write(file, cast(BinaryIO, starts), tokenizer, encode)
                file.flush()
                disk.sync(raw)
                # Under its lock, so that nobody takes it for what a crash has left.
                disk.replace(temporary, path)
                file.detach()
            disk.sync_directory(directory)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return _verified(path)[0]
    except OSError as error:
        raise CorpusError(
            f"the encoded text can't be written to {directory}: {error.strerror or error}; make room there, or put the "
            "run elsewhere with --out"
        ) from None
    except _Damaged as error:
        raise CorpusError(f"{path} is not what was written to it ({error}); the disk may be failing") from None


def _write(file: BinaryIO, starts: BinaryIO, tokenizer: Tokenizer, encode: Callable[[Writable, Writable], int]) -> None:
    hashed = _Hashed(file)
    training = encode(hashed, starts)
    tokens = hashed.written // dtype_for(tokenizer.size).itemsize
    hashed.write(bytes(-hashed.written % 8))
    documents = starts.tell() // 8
    starts.seek(0)
    while piece := starts.read(PIECE):
        hashed.write(piece)
    footer = json.dumps(
        {
            "tokens": tokens,
            "documents": documents,
            "training": training,
            "sha256": hashed.digest.hexdigest(),
            "tokenizer": tokenizer_file(tokenizer).decode(),
        }
    ).encode()
    file.write(footer + hashlib.sha256(footer).digest() + len(footer).to_bytes(8, "little") + _MARK)


class _Hashed:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.written = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.written += len(data)


def _verified(path: Path) -> tuple[Encoded, Tokenizer]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        footer = _footer(file, size)
        try:
            tokenizer = parse_tokenizer(footer["tokenizer"].encode())
        except TokenizerError as error:
            raise _Damaged(str(error)) from None
        dtype, tokens, documents = dtype_for(tokenizer.size), footer["tokens"], footer["documents"]
        starts_at = -(-tokens * dtype.itemsize // 8) * 8
        end = starts_at + 8 * documents
        if end != footer["end"]:
            raise _Damaged("its size is not the one that it was written with")
        file.seek(0)
        digest = hashlib.sha256()
        for begin in range(0, end, PIECE):
            digest.update(file.read(min(PIECE, end - begin)))
        if digest.hexdigest() != footer["sha256"]:
            raise _Damaged("its ids are not those that were written")
        # Of the open file: its name may be another file's by now.
        ids = np.memmap(file, dtype, "r", 0, (tokens,))
        starts = np.memmap(file, np.int64, "r", starts_at, (documents,))
    return Encoded(ids, starts, footer["training"]), tokenizer


def _footer(file: BinaryIO, size: int) -> dict[str, Any]:
    """The footer, verified by its hash, with "end", where it begins."""
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[32:40], "little")
    if len(tail) < _TAIL or tail[40:] != _MARK or not 0 < length <= min(size - _TAIL, 2 * LARGEST_FILE):
        raise _Damaged("it does not end as such a file does")
    file.seek(size - _TAIL - length)
    raw = file.read(length)
    if hashlib.sha256(raw).digest() != tail[:32]:
        raise _Damaged("its footer is not the one that was written")
    return {**json.loads(raw), "end": size - _TAIL - length}


def _clear(directory: Path, name: str) -> None:
    """Remove what a crash has left of this encoding: files not just made, whose lock no process holds."""
    for leftover in directory.glob(f"{name}.tmp-*"):
        with suppress(OSError), open(leftover, "rb+") as file:
            if time.time() - leftover.stat().st_mtime > _JUST_MADE and _lock(file):
                leftover.unlink()


def _lock(file: BinaryIO) -> bool:
    """Take the lock of a file until it is closed; False where another process holds it, or the system has none."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
