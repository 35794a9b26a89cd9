"""A Sphinx extension: docstrings here are Markdown as engineers write it; autodoc takes them for reStructuredText."""

from __future__ import annotations

import re
from typing import Any

# Code between backticks stays as it is; the rest is searched.
_CODE = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)
_BAR = re.compile(r"\|")
_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring's lines with bars and trailing underscores escaped, and a blank line before every list."""
    pieces = _CODE.split("\n".join(lines))
    for k in range(0, len(pieces), 2):
        pieces[k] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", _BAR.sub(r"\\|", pieces[k]))
        pieces[k] = re.sub(r"(?<!\*)\*(?!\*)", r"\\*", pieces[k])
    result: list[str] = []
    for line in "".join(pieces).split("\n"):
        begins = line.lstrip().startswith("- ")
        if begins and result and result[-1].strip() and not result[-1].lstrip().startswith(("- ", "  ")):
            result.append("")
        result.append(line)
    return result


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
