"""Where stop strings end a text, and which part of a text may still turn out to be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Several strings, the first of which to be complete ends the text before it.

    So the end does not depend on how many characters come at a time. Raises ValueError for an empty string and
    TypeError for what is no string.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        for string in strings:
            if not isinstance(string, str):
                raise TypeError(f"stop must be a string or several, got {type(string).__name__} among them")
            if not string:
                raise ValueError('a stop string can\'t be empty: every text begins with ""; to stop nowhere, stop=()')
        # One that another is complete in, before its own end, is never the first.
        self._strings = tuple(string for string in strings if not any(other in string[:-1] for other in strings))
        self._longest = max(map(len, self._strings), default=0)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def begin(self, text: str) -> int | None:
        """Where the first stop string to be complete begins, the longest if two are at once; None without any."""
        found = [(place + len(string), place) for string in self._strings if (place := text.find(string)) >= 0]
        return min(found)[1] if found else None

    def undecided(self, text: str) -> int:
        """How many of the last characters are the beginning of a stop string, as many as may be."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(string.startswith(end) for string in self._strings):
                return length
        return 0
