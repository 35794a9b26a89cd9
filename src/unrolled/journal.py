"""log.jsonl: one JSON object a line for what happened in a run, consistent with the model that the run goes on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO


class Journal:
    """A log to append to. Every line is flushed as it is written; `length` also syncs it to disk."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Open the log and cut off what was written after the first `keep` bytes, which a saved model vouches for."""
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115, closed by close()
        self._file.truncate(min(keep, path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._file.flush()

    def length(self) -> int:
        """Bytes that are safely on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
