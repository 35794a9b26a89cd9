"""The tutorials do what they say: every cell runs, every exercise can be solved, and no check passes before it is."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from test_docs import ROOT, anchors, links, offline

FOLDER = ROOT / "docs/tutorials"
SOURCES = sorted(FOLDER.glob("*.py"))
# Of a few seconds each, so that every run of the tests has them; those that train for longer are in the slow suite.
QUICK = ("01-equations", "02-stack", "03-state")
NEEDS = {"06-out-of-the-notebook": ("onnx", "onnxruntime")}

__all__ = ["offline"]


@pytest.fixture(scope="module")
def notebooks() -> Iterator[ModuleType]:
    pytest.importorskip("jupytext", reason='the tutorials\' tools are in the extra: pip install "unrolled[docs]"')
    sys.path.insert(0, str(ROOT / "docs/website"))
    try:
        yield importlib.import_module("notebooks")
    finally:
        sys.path.remove(str(ROOT / "docs/website"))


def by_name(sources: list[Path]) -> list[Any]:
    return [pytest.param(source, id=source.stem) for source in sources]


def test_they_are_numbered():
    assert [source.stem[:2] for source in SOURCES] == [f"{number:02}" for number in range(1, len(SOURCES) + 1)]


@pytest.mark.parametrize("source", by_name(SOURCES))
def test_the_notebook_beside_it_is_made_from_the_source(source: Path, notebooks: ModuleType):
    made = notebooks.as_text(notebooks.for_learners(source))
    kept = notebooks.shipped(source).read_text(encoding="utf-8")
    assert made == kept, "make notebooks"


@pytest.mark.parametrize("source", by_name(SOURCES))
def test_a_notebook_has_exercises_and_no_outputs(source: Path, notebooks: ModuleType):
    cells = notebooks.for_learners(source).cells
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert tags
    assert tags == ["exercise", "check"] * (len(tags) // 2)
    folded = [cell for cell in cells if cell.cell_type == "markdown" and "<summary>Solution" in cell.source]
    assert len(folded) == len(tags) // 2
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.parametrize("source", by_name(SOURCES))
def test_links_of_a_tutorial_lead_somewhere(source: Path, notebooks: ModuleType):
    markdown = [cell.source for cell in notebooks.read(source).cells if cell.cell_type == "markdown"]
    inside = [link for text in markdown for link in links(text) if not urlsplit(link).scheme]
    assert inside
    assert [link for link in inside if leads_nowhere(link)] == []


def leads_nowhere(link: str) -> bool:
    parts = urlsplit(link)
    target = (FOLDER / unquote(parts.path)).resolve()
    if not target.is_file():
        return True
    return bool(parts.fragment) and parts.fragment not in anchors(target.read_text(encoding="utf-8"))


def test_a_link_that_leads_nowhere_is_found():
    assert leads_nowhere("../gone.md")
    assert leads_nowhere("../stack.md#gone")
    assert not leads_nowhere("../stack.md#both-directions")


@pytest.mark.parametrize("source", by_name(SOURCES))
def test_a_tutorial_claims_things_and_shows_them(source: Path, notebooks: ModuleType):
    """Plain asserts, and figures with a description each; every figure is of the tutorial's own making."""
    code = [cell for cell in notebooks.read(source).cells if cell.cell_type == "code"]
    asserts = [node for cell in code for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
    figures = [cell for cell in code if "plt.show()" in cell.source]
    assert len(asserts) >= 10
    assert figures
    assert all(cell.metadata.get("alt") for cell in figures)


def test_the_list_of_tutorials_has_each():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [source.stem for source in SOURCES if f"]({source.stem}.ipynb)" not in text] == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", by_name([source for source in SOURCES if source.stem in QUICK]))
def test_a_quick_tutorial_runs_as_a_program(source: Path, monkeypatch: pytest.MonkeyPatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    module = ModuleType("tutorial")
    monkeypatch.setitem(sys.modules, "tutorial", module)
    exec(compile(source.read_text(encoding="utf-8"), str(source), "exec", dont_inherit=True), vars(module))


@pytest.mark.slow
@pytest.mark.parametrize("source", by_name(SOURCES))
def test_a_tutorial_runs_as_a_notebook(source: Path, notebooks: ModuleType):
    """Every cell, in a kernel of its own; and a check that comes before its solution fails with a sentence."""
    for package in ("matplotlib", "ipykernel", *NEEDS.get(source.stem, ())):
        pytest.importorskip(package)
    done = notebooks.executed(notebooks.with_unsolved_checks(notebooks.read(source)))
    shown, early = 0, 0
    for cell in done.cells:
        kinds = [output.output_type for output in cell.get("outputs", [])]
        if "early" in notebooks.tags(cell):
            early += 1
            [error] = [output for output in cell.outputs if output.output_type == "error"]
            assert error.ename == "AssertionError", f"{error.ename}: {error.evalue}\n{cell.source}"
            assert len(error.evalue.split()) > 3, f"a check says what is wrong; this one does not:\n{cell.source}"
            continue
        assert "error" not in kinds
        complaints = [output.text for output in cell.get("outputs", []) if output.get("name") == "stderr"]
        assert complaints == [], cell.source
        if notebooks.tags(cell) == ["check"]:
            assert any(output.get("text", "").startswith("right") for output in cell.outputs), cell.source
        shown += sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    assert early >= 2
    assert shown >= 1
