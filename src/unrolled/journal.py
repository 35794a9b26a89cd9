"""log.jsonl: one JSON object a line for what happened in a run, consistent with the model that the run goes on from."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from . import disk
from .disk import DiskWarning


class Journal:
    """A log to append to. Every line is handed to the system as it is written; `length` also syncs it to disk.

    A line for which there is no room is left out, with a DiskWarning; the next one for which there is room comes after
    one that says how many are missing.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open the log and cut off what was written after the first `keep` bytes, which a saved model vouches for."""
        self._path, self._missing = path, 0
        self._file = disk.append(path)
        self._length = min(keep, path.stat().st_size)
        disk.truncate(self._file, self._length)

    def write(self, event: str, **values: Any) -> None:
        line = _line(event, values)
        if self._missing:
            line = _line("missing", {"lines": self._missing}) + line
        try:
            if self._missing:
                disk.truncate(self._file, self._length)  # the beginning of a line for which there was no room
            disk.write(self._file, line)
        except OSError as error:
            self._missing += 1
            if self._missing == 1:
                said = f"{self._path} can't be written: {error.strerror}; what happens now is missing in it"
                warnings.warn(DiskWarning(said), stacklevel=2)
        else:
            self._missing = 0
            self._length = os.fstat(self._file.fileno()).st_size

    def length(self) -> int:
        """Bytes that are safely on disk."""
        disk.sync(self._file)
        return self._length

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(event: str, values: dict[str, Any]) -> bytes:
    return json.dumps({"event": event, **values}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
