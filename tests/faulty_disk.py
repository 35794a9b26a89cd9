"""A disk that fails on demand, and that knows what a power cut would leave: it takes the place of `unrolled.disk`.

It does everything on the real file system and keeps a second account: what of each file has been synced, and which
names of each directory have. A power cut puts on the real file system what that account says, and from then on no
operation does anything.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pytest

from unrolled import disk

OPERATIONS = (
    *("create", "append", "write", "truncate", "sync", "sync_directory"),
    *("make_directory", "rename", "replace", "remove_file", "remove_directory"),
)
# What may happen at one operation. The errors leave the process alive, the others end it there:
#   EIO, ENOSPC      the operation does nothing and raises
#   torn             a write stops half-way and raises ENOSPC
#   torn and off     a write stops half-way, and the power goes; what was written and named happens to be on disk
#   killed           the process ends just after the operation, as with SIGKILL: the system has everything
#   off              the power goes just after it: what was not synced is lost, data and names
#   off, names kept  the power goes; names have reached the disk and data has not: files are as long as last synced
#   off, at random   the power goes; of what was not synced, each change of a name and each file's data may be there
Fault = Literal["EIO", "ENOSPC", "torn", "torn and off", "killed", "off", "off, names kept", "off, at random"]
ERRORS: tuple[Fault, ...] = ("EIO", "ENOSPC", "torn")
ENDS: tuple[Fault, ...] = ("torn and off", "killed", "off", "off, names kept", "off, at random")


class PowerCut(BaseException):
    """The process has ended; nothing catches this, and no operation after it does anything."""


@dataclass(eq=False)
class File:
    synced: bytes = b""
    now: bytes = b""


@dataclass(eq=False)
class Directory:
    synced: dict[str, Any] = field(default_factory=dict)
    now: dict[str, Any] = field(default_factory=dict)
    # Changes of `now` that are not in `synced`: name taken away, name given, what has it.
    pending: list[tuple[str | None, str | None, Any]] = field(default_factory=list)

    def change(self, old: str | None, new: str | None, node: Any) -> None:
        self.pending.append((old, new, node))
        _apply(self.now, self.pending[-1])

    def sync(self) -> None:
        self.synced, self.pending = dict(self.now), []


def _apply(names: dict[str, Any], change: tuple[str | None, str | None, Any]) -> None:
    old, new, node = change
    if old is not None:
        names.pop(old, None)
    if new is not None:
        names[new] = node


class FaultyDisk:
    """Everything below `root`, which is on disk when this begins. `at` counts operations from 0; `seed`: of "random".

    `done` lists the operations that were begun: names and paths below `root`, without the random ends of names.
    `without`: "sync" or "sync_directory", which then does nothing.
    """

    def __init__(
        self, root: Path, fault: Fault | None = None, at: int = -1, *, seed: int = 0, without: str = ""
    ) -> None:
        self.without, self.root, self.fault, self.at, self.random = without, root, fault, at, random.Random(seed)
        self.done: list[tuple[str, str]] = []
        self.off = False
        self._tree = _read(root)

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(disk, name, self._operation(name, getattr(disk, name)))
            yield

    def _operation(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def operation(subject: Path | BinaryIO, *arguments: Any) -> Any:
            if self.off:
                raise PowerCut
            path = Path(subject if isinstance(subject, Path) else subject.name)
            hit = len(self.done) == self.at
            self.done.append((name, _plain(path.relative_to(self.root))))
            if hit and self.fault in ("EIO", "ENOSPC"):
                raise OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)))
            torn = hit and self.fault in ("torn", "torn and off") and name == "write"
            if torn:
                arguments = (arguments[0][: len(arguments[0]) // 2],)
            result = None
            if name not in ("sync", "sync_directory"):  # the account says what a sync does; waiting for it is no test
                result = really(subject, *arguments)
            if name != self.without:
                self._account(name, path, *arguments)
            if torn and self.fault == "torn":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if hit and self.fault in ENDS:
                if result is not None:
                    result.close()
                self.cut()
            return result

        return operation

    def _account(self, name: str, path: Path, *arguments: Any) -> None:
        if name == "sync_directory":
            self._at(path).sync()
            return
        parent = self._at(path.parent)
        match name:
            case "create" | "append" if path.name not in parent.now:
                parent.change(None, path.name, File())
            case "make_directory":
                parent.change(None, path.name, Directory())
            case "write" | "truncate":
                parent.now[path.name].now = path.read_bytes()
            case "sync":
                parent.now[path.name].synced = parent.now[path.name].now
            case "rename" | "replace":
                assert arguments[0].parent == path.parent, "names change within a directory only"
                parent.change(path.name, arguments[0].name, parent.now[path.name])
            case "remove_file" | "remove_directory":
                parent.change(path.name, None, None)

    def _at(self, path: Path) -> Directory:
        node = self._tree
        for part in path.relative_to(self.root).parts:
            node = node.now[part]
        return node

    def cut(self) -> None:
        """The power goes, now."""
        self.off = True
        if self.fault not in ("killed", "torn and off"):
            survived = self._survived(self._tree)
            for entry in self.root.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            _put(self.root, survived)
        raise PowerCut

    def _survived(self, node: Directory | File) -> Any:
        if isinstance(node, File):
            if self.fault == "off, at random" and node.synced != node.now:
                half = node.now[: len(node.now) // 2]
                return self.random.choice([node.synced, node.now, half, bytes(len(node.now))])
            return node.synced
        names = dict(node.now if self.fault == "off, names kept" else node.synced)
        if self.fault == "off, at random":
            for change in node.pending:
                if self.random.random() < 0.5:
                    _apply(names, change)
        return {name: self._survived(below) for name, below in names.items()}


def _read(path: Path) -> Any:
    if path.is_dir():
        entries = {entry.name: _read(entry) for entry in sorted(path.iterdir())}
        return Directory(dict(entries), entries)
    data = path.read_bytes()
    return File(data, data)


def _put(path: Path, contents: Any) -> None:
    if isinstance(contents, bytes):
        path.write_bytes(contents)
        return
    path.mkdir(exist_ok=True)
    for name, below in contents.items():
        _put(path / name, below)


def _plain(path: Path) -> str:
    return "/".join(part.partition(".tmp-")[0] + ("~" if ".tmp-" in part else "") for part in path.parts)
