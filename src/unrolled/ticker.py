"""How far something is, in one line at the terminal."""

from __future__ import annotations

import time
from typing import TextIO

# On a terminal a line that changes, elsewhere a new line now and then, and only where it takes long.
_FIRST_SECONDS, _REFRESH_SECONDS, _PLAIN_SECONDS, _WIDTH = 1.5, 0.2, 5.0, 72


class Ticker:
    """One line on `stream` that says how far something is; gone when it is left, Ctrl-C included."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._next, self._shown = time.monotonic() + _FIRST_SECONDS, False

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, what: str, done: int, of: int) -> None:
        """A `Progress`."""
        if time.monotonic() < self._next:
            return
        line = f"{what}: {done / of:.0%}"
        self._stream.write(f"\r{line[:_WIDTH]:{_WIDTH}}" if self._terminal else f"{line}\n")
        self._stream.flush()
        self._next, self._shown = time.monotonic() + (_REFRESH_SECONDS if self._terminal else _PLAIN_SECONDS), True

    def clear(self) -> None:
        """Make room for what is printed."""
        if self._shown and self._terminal:
            self._stream.write(f"\r{'':{_WIDTH}}\r")
            self._stream.flush()
        self._shown = False
