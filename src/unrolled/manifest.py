"""A directory that is written whole or not at all, and whose manifest tells damage before a byte of it is used.

Every file is synced to disk before the manifest, which is the last one; the directory gets its name only then. All
writing of saved models goes through here, and from here through `disk`. docs/crash-safety.md explains the order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import secrets
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from . import disk

MANIFEST = "manifest.json"
FORMAT = "unrolled-model"
VERSION = 1
# JSON here is small; more than this is not ours and would only cost memory to parse.
_LARGEST_JSON = 2**24
_LEFTOVER = re.compile(r".+\.tmp-[0-9a-f]{8}")
_ELSE = "restore it, or use another model directory of this run"


class CheckpointError(ValueError):
    """A directory that isn't a whole and undamaged model; the message names the file and what is wrong with it."""


def write_directory(target: Path, header: Mapping[str, str], contents: Mapping[str, bytes]) -> None:
    """Write the files of a new directory, then a manifest: the format, `header`, every file's size and sha256.

    Atomic: beside its place, synced to disk, then renamed. Raises CheckpointError if the place is taken.
    """
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if target.exists():
        raise CheckpointError(f"{target} exists, and a saved model is never overwritten; choose another name")
    make_directories(target.parent)
    sums = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    temporary = _beside(target)
    disk.make_directory(temporary)
    try:
        for name, data in contents.items():
            _write(temporary / name, data)
        _write(temporary / MANIFEST, encode_json(versioned({**header, "files": sums})))
        disk.sync_directory(temporary)
        disk.rename(temporary, target)
    except BaseException:
        # What can't be removed now is what the next save removes.
        with contextlib.suppress(OSError):
            _remove_tree(temporary)
        raise
    disk.sync_directory(target.parent)


def make_directories(path: Path) -> None:
    """A directory and those above it, where they are missing, each safely on disk."""
    if path.is_dir():
        return
    make_directories(path.parent)
    with contextlib.suppress(FileExistsError):
        disk.make_directory(path)
    disk.sync_directory(path.parent)


def read_directory(path: Path, *, keep: Collection[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Check every file that the manifest lists; return the manifest and the contents of those in `keep`, as checked.

    Files that the manifest does not list are not looked at.
    """
    manifest = decode_json(path / MANIFEST, _small(path / MANIFEST))
    check_version(path / MANIFEST, manifest)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f'{path / MANIFEST} has no list of files ("files"); it is damaged')
    contents = {}
    for name, entry in files.items():
        if name in (".", "..") or not re.fullmatch(r"[\w.-]+", name):
            raise CheckpointError(f"{path / MANIFEST} lists {name[:80]!r}, which is no plain file name; it is damaged")
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
            raise CheckpointError(f'{path / MANIFEST} lists {name} without its "bytes" and "sha256"; it is damaged')
        data = _checked(path / name, entry["bytes"], entry["sha256"], keep=name in keep)
        if data is not None:
            contents[name] = data
    return manifest, contents


def replace_file(path: Path, data: bytes) -> None:
    """Give a small file new contents: after a crash it has the old ones or the new ones."""
    temporary = _beside(path)
    try:
        _write(temporary, data)
        disk.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove_file(temporary)
        raise
    disk.sync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a directory, under another name first: what a crash leaves half-removed must not look like a model."""
    doomed = path
    if not is_leftover(path):
        doomed = _beside(path)
        disk.rename(path, doomed)
        # Else a power cut might keep the removal of its files and lose its new name.
        disk.sync_directory(path.parent)
    _remove_tree(doomed)


def is_leftover(path: Path) -> bool:
    """Whether this is what a crash left of a write or a removal."""
    return _LEFTOVER.fullmatch(path.name) is not None


def versioned(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, **value}


def check_version(path: Path, value: Mapping[str, Any]) -> None:
    """CheckpointError unless `value`, the contents of `path`, is of this format and of a version that is known."""
    if value.get("format") != FORMAT:
        raise CheckpointError(f'{path} is not of a model of this library: "format" must be "{FORMAT}"')
    if value.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is of format version {value.get('version')!r}, and this version of unrolled reads {VERSION}; a "
            "newer unrolled may read it: pip install --upgrade unrolled"
        )


def encode_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode_json(path: Path, raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, the contents of the file `path`. Finite numbers only, and no key twice."""
    if len(raw) > _LARGEST_JSON:
        raise CheckpointError(f"{path} is larger than such a file ever is ({_LARGEST_JSON} bytes); it is damaged")
    try:
        value = json.loads(raw, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); it is damaged") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; it is damaged")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")


def _write(path: Path, data: bytes) -> None:
    with disk.create(path) as file:
        disk.write(file, data)
        disk.sync(file)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            _remove_tree(entry)
        disk.remove_directory(path)
    else:
        disk.remove_file(path)


def _small(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_JSON + 1)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from None


def _checked(path: Path, size: int, sha256: str, *, keep: bool) -> bytes | None:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(f"{path} is not a file; {_ELSE}")
        if info.st_size != size:
            raise CheckpointError(
                f"{path} has {info.st_size} bytes, and {MANIFEST} says {size}: it is damaged; {_ELSE}"
            )
        with open(path, "rb") as file:
            data = file.read() if keep else None
            digest = hashlib.file_digest(file, "sha256") if data is None else hashlib.sha256(data)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; {_ELSE}") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}; {_ELSE}") from None
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"{path} is not what was saved: its sha256 is not the one in {MANIFEST}; it is damaged; {_ELSE}"
        )
    return data
