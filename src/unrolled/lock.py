"""One trainer at a time for a run's directory: a lock that ends with its process, whatever ends that."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from .disk import DiskWarning

LOCK_FILE = "lock"
# Of what `flock` and `locking` report: the lock is another's; there are no locks here.
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# On Windows a locked byte can't be read by others, so that it is one far behind what the file says.
_LOCKED_BYTE = 1 << 30


class LockedError(ValueError):
    """Another trainer writes into this run's directory; the message names it."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's directory, which exists. LockedError if another process, or a thread of this one, does.

    The file stays when the lock is gone: removing it would let two processes lock two files of one name.
    """
    path = directory / LOCK_FILE
    with open(path, "a+b", buffering=0) as file:
        if not _acquired(file, path):
            yield
            return
        _sign(file, {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"})
        try:
            yield
        finally:
            _sign(file, {})
            _release(file)


def _acquired(file: BinaryIO, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # A lock of the open file, not of the process (as fcntl.lockf's is): it is one between threads, too.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise LockedError(_taken(file, path)) from None
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            DiskWarning(
                f"the file system of {path.parent} has no locks ({error.strerror}): see to it that no second trainer "
                "writes there"
            ),
            stacklevel=4,
        )
        return False
    return True


def _release(file: BinaryIO) -> None:
    """Closing is not enough: a process that was forked meanwhile has the open file, too, and would keep the lock."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def _sign(file: BinaryIO, holder: dict[str, Any]) -> None:
    """Say who holds the lock. It holds without that, so that a full disk is no reason to stop."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(json.dumps(holder).encode())


def _taken(file: BinaryIO, path: Path) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read(1000))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        if (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname()):
            who = f"this process ({holder['pid']}), since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it is just being written, or was not for want of room
        who = "another process"
    return f"{path.parent} is being trained by {who}; wait until that has ended, or name another directory with --out"
