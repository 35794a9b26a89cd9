"""The tutorials: their sources to notebooks for learners, to notebooks with outputs, and to pages of the site.

`python docs/website/notebooks.py` writes a notebook beside each source in docs/tutorials.

A source is py:percent (jupytext). Three cells make an exercise, by their tags: "exercise" is what one starts from,
"solution" one way to do it, "check" the assertions that say whether it is right. `alt="..."` on a code cell describes
its figure.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TUTORIALS = Path(__file__).parents[1] / "tutorials"
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# A cell that takes longer hangs.
CELL_SECONDS = 900
LINK = re.compile(r"\]\((\d\d-[\w-]+)\.ipynb")


def sources() -> list[Path]:
    return sorted(TUTORIALS.glob("*.py"))


def tags(cell: NotebookNode) -> list[str]:
    found: list[str] = cell.metadata.get("tags", [])
    return found


def read(source: Path) -> NotebookNode:
    """A source's cells; ValueError for exercises without a solution and a check behind them."""
    notebook = jupytext.read(source, fmt="py:percent")
    marked = [tag for cell in notebook.cells for tag in tags(cell)]
    if marked != ["exercise", "solution", "check"] * (len(marked) // 3):
        raise ValueError(f"{source.name}: an exercise is three cells, exercise, solution and check; found {marked}")
    return notebook


def for_learners(source: Path) -> NotebookNode:
    """Without outputs; the check right behind the exercise, and then the solution, folded."""
    cells, waiting = [], None
    for cell in read(source).cells:
        if cell.cell_type == "markdown":
            cells.append(new_markdown_cell(cell.source))
        elif tags(cell) == ["solution"]:
            waiting = cell
        else:
            cells.append(new_code_cell(cell.source, metadata={"tags": tags(cell)} if tags(cell) else {}))
        if waiting is not None and tags(cell) == ["check"]:
            cells.append(new_markdown_cell(folded(waiting.source)))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02}"
    return new_notebook(cells=cells, metadata=KERNEL)


def folded(code: str) -> str:
    return f"<details>\n<summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"


def as_text(notebook: NotebookNode) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def shipped(source: Path) -> Path:
    return source.with_suffix(".ipynb")


def with_unsolved_checks(notebook: NotebookNode) -> NotebookNode:
    """The same, and each check once more before its solution: there it has to fail."""
    cells = []
    for position, cell in enumerate(notebook.cells):
        if tags(cell) == ["solution"]:
            early = copy.deepcopy(notebook.cells[position + 1])
            early.id = f"{early.id}-early"
            early.metadata["tags"] = ["raises-exception", "early"]
            cells.append(early)
        cells.append(cell)
    return new_notebook(cells=cells, metadata=KERNEL)


def executed(notebook: NotebookNode) -> NotebookNode:
    """With outputs, from an empty folder. nbclient's CellExecutionError where a cell raises."""
    notebook.metadata.update(KERNEL)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        return NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources).execute()


def page(notebook: NotebookNode, folder: Path, name: str) -> str:
    """Of an executed notebook, MyST Markdown; its figures are written to `folder`. ValueError for one without `alt`."""
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(LINK.sub(r"](\1.md", cell.source))
            continue
        parts.append(folded(cell.source) if tags(cell) == ["solution"] else f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            parts.append(_shown(output, cell, folder, f"{name}-{number:02}"))
    title, rest = parts[0].split("\n", 1)
    download = f"{{download}}`This page as a notebook, with open exercises <{name}.ipynb>`"
    return "\n\n".join([title, download, rest.lstrip(), *parts[1:]]) + "\n"


def _shown(output: NotebookNode, cell: NotebookNode, folder: Path, stem: str) -> str:
    data: dict[str, Any] = output.get("data", {})
    if "image/png" in data:
        alt = cell.metadata.get("alt")
        if not alt:
            raise ValueError(f'{stem}: a figure without a description; write # %% alt="..." above its cell')
        (folder / f"{stem}.png").write_bytes(base64.b64decode(data["image/png"]))
        return f"![{alt}]({stem}.png)"
    text = output.text if output.output_type == "stream" else data["text/plain"]
    return f"```{{code-block}} text\n:class: output\n\n{text.rstrip()}\n```"


def main() -> None:
    for source in sources():
        shipped(source).write_text(as_text(for_learners(source)), encoding="utf-8")
        sys.stdout.write(f"{shipped(source).name}\n")


if __name__ == "__main__":
    main()
