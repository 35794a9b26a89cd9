"""What the site is made of, laid out for the builder: the pages, in their order, with links that fit their new places.

The pages themselves stay plain Markdown that also reads well where the repository is hosted.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import api_pages
import notebooks

ROOT = Path(__file__).parents[2]

# The table of contents. A page of docs/ that is missing here stops the build.
CONTENTS: dict[str, tuple[str, ...]] = {
    "Tutorials": ("tutorials/index",),
    "How it works": ("equations", "stack", "h-and-c", "next-call", "truncated-bptt", "look-inside", "check"),
    "How to": (
        *("training", "evaluation", "generation", "from-torch", "step-by-step", "reinforcement-learning"),
        *("cell", "change-the-cell", "transforms", "onnx", "interop", "crash-safety", "examples"),
    ),
    "To look up": ("reference/index", "api", "features"),
    "Measured": ("performance", "results", "string-units", "numerics", "experiments"),
    "The project": ("architecture", "contributing", "changelog"),
}
AT_THE_ROOT = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^\s*(```+|~~~+)")


def places() -> dict[Path, str]:
    """Where each file of the repository that is a page, or part of one, is on the site."""
    found = {ROOT / name: page for name, page in AT_THE_ROOT.items()}
    found |= {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    found |= {notebooks.shipped(path): f"tutorials/{path.stem}.md" for path in notebooks.sources()}
    found |= {notebooks.TUTORIALS / "README.md": "tutorials/index.md", ROOT / "examples": "examples.md"}
    found |= {path: f"examples.md#{path.stem}py" for path in sorted((ROOT / "examples").glob("*.py"))}
    return found


def relinked(text: str, page: Path, at: str, copied: set[Path]) -> str:
    """Links for a page that moves to `at`; files that are no pages are added to `copied`, and linked as downloads."""
    known, depth, lines, fence = places(), at.count("/"), [], ""

    def moved(match: re.Match[str]) -> str:
        link = urlsplit(match[1])
        if link.scheme or not link.path:
            return match[1]
        target = (page.parent / link.path).resolve()
        if target in known:
            new = known[target]
        elif target.is_file():
            copied.add(target)
            new = f"files/{target.relative_to(ROOT)}"
        else:
            return match[1]  # the builder says that it leads nowhere
        anchor = f"#{link.fragment}" if link.fragment else ""
        return "../" * depth + new + anchor

    for line in text.split("\n"):
        marker = FENCE.match(line)
        if marker and not fence:
            fence = marker[1]
        elif marker and marker[1].startswith(fence):
            fence = ""
        lines.append(line if fence or marker else LINK.sub(moved, line))
    return "\n".join(lines)


def examples() -> str:
    parts = ["# Examples", "Programs that run as they stand; the repository has them in `examples/`."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts.append(f"## {path.name}\n\n```python\n{path.read_text(encoding='utf-8').rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def contents() -> str:
    trees = []
    for caption, names in CONTENTS.items():
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]))
    return "\n\n".join(trees) + "\n"


def tutorial_contents() -> str:
    return "\n".join(["", "```{toctree}", ":hidden:", "", *(path.stem for path in notebooks.sources()), "```", ""])


def lay_out(folder: Path, tutorials: dict[str, str]) -> None:
    """Write all sources of the site into an empty folder; `tutorials`: their pages, by name, as already made."""
    copied: set[Path] = set()
    for path, at in places().items():
        if path.suffix == ".md":
            text = relinked(path.read_text(encoding="utf-8"), path, at, copied)
            more = {"index.md": "\n" + contents(), "tutorials/index.md": tutorial_contents()}.get(at, "")
            _write(folder / at, text + more)
    for name, text in tutorials.items():
        source = notebooks.TUTORIALS / f"{name}.ipynb"
        _write(folder / f"tutorials/{name}.md", relinked(text, source, f"tutorials/{name}.md", copied))
        shutil.copy(source, folder / "tutorials")
    _write(folder / "examples.md", examples())
    api_pages.check_complete()
    _write(folder / "reference/index.md", api_pages.index())
    for key in api_pages.PAGES:
        _write(folder / f"reference/{key}.md", api_pages.page(key))
    for path in copied:
        _copy(path, folder / "files" / path.relative_to(ROOT))
    here = Path(__file__).parent
    for name in ("conf.py", "api_text.py"):
        _copy(here / name, folder / name)
    _copy(here / "unrolled.css", folder / "_static/unrolled.css")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
