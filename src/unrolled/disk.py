"""Every operation by which a run is written to disk, one function each: tests put a disk in their place that fails.

All raise OSError. What is written is not on disk before `sync`, and a name is not before its directory is synced.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO


class DiskWarning(UserWarning):
    """What training or loading goes on in spite of: a damaged model, a full disk, a file system without locks."""


def create(path: Path) -> BinaryIO:
    """A new file to write to; FileExistsError if the name is taken. Unbuffered: nothing fails later, at `close`."""
    return open(path, "xb", buffering=0)


def append(path: Path) -> BinaryIO:
    """A file to write to behind what it holds; it is made where it is missing."""
    return open(path, "ab", buffering=0)


def write(file: BinaryIO, data: bytes) -> None:
    """All of `data`, in as many pieces as the system takes it."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def truncate(file: BinaryIO, size: int) -> None:
    file.truncate(size)


def sync(file: BinaryIO) -> None:
    """Wait until what was written would survive a power cut."""
    if sys.platform == "darwin":
        import fcntl

        try:
            # There, fsync leaves the data in the drive's own cache.
            fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
        except OSError:
            os.fsync(file.fileno())
    else:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory would survive a power cut."""
    if os.name == "nt":  # Windows has no handle to a directory that could be synced
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Not tempfile.mkdtemp, whose directories only their owner may read."""
    os.mkdir(path)


def rename(source: Path, target: Path) -> None:
    """Give a file or directory another name in its directory, one that is not taken."""
    os.rename(source, target)


def replace(source: Path, target: Path) -> None:
    """Give a file another name, and take it from the file that had it."""
    os.replace(source, target)


def remove_file(path: Path) -> None:
    os.unlink(path)


def remove_directory(path: Path) -> None:
    """The directory must be empty."""
    os.rmdir(path)
