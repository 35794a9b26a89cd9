"""A Sphinx extension: docstrings here are Markdown as engineers write it; autodoc takes them for reStructuredText."""

from __future__ import annotations

import re
from typing import Any

# What stands between backticks stays as it is.
_CODE = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)
# In reStructuredText a bar begins a substitution, a star an emphasis, and an underscore behind a word makes it a link.
_ESCAPED = re.compile(r"\||(?<!\*)\*(?!\*)|(?<=\w)_(?!\w)")
_ITEM = "- "


def as_rst(lines: list[str]) -> list[str]:
    """A docstring's lines: its text with nothing in it that means something else, and a blank line before each list."""
    pieces = _CODE.split("\n".join(lines))
    for k in range(0, len(pieces), 2):
        text = _ESCAPED.sub(lambda found: f"\\{found[0]}", pieces[k])
        # `Name`s: code ends only before something that is no letter.
        pieces[k] = f"\\ {text}" if k and text[:1].isalnum() else text
    result: list[str] = []
    for line in "".join(pieces).split("\n"):
        before = result[-1].lstrip() if result else ""
        if line.lstrip().startswith(_ITEM) and before and not before.startswith(_ITEM) and not _continues(result):
            result.append("")
        result.append(line)
    return result


def _continues(lines: list[str]) -> bool:
    """Whether the last line belongs to a list item above it."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if line.lstrip().startswith(_ITEM):
            return True
    return False


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
