"""The documentation site: every page has its place in it, links lead somewhere, nothing comes from another host."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_docs import ROOT

import unrolled

WEBSITE = ROOT / "docs/website"


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    """The modules that build it, which know each other by bare name."""
    pytest.importorskip("jupytext", reason='the site\'s tools are in the extra: pip install "unrolled[docs]"')
    sys.path.insert(0, str(WEBSITE))
    try:
        yield SimpleNamespace(
            **{name: importlib.import_module(name) for name in ("pages", "api_pages", "api_text", "built")}
        )
    finally:
        sys.path.remove(str(WEBSITE))


def test_every_page_is_in_the_table_of_contents(site: SimpleNamespace):
    listed = {f"{name}.md" for names in site.pages.CONTENTS.values() for name in names}
    assert listed | {"index.md"} == {
        at for at in site.pages.places().values() if at.count("/") == 0 and "#" not in at
    } | {
        "tutorials/index.md",
        "reference/index.md",
    }


def test_every_public_name_has_its_page(site: SimpleNamespace):
    site.api_pages.check_complete()
    placed = [name for _, _, modules in site.api_pages.PAGES.values() for name in site.api_pages.names_of(modules)]
    assert sorted(placed) == sorted(unrolled.__all__)


def test_a_module_without_a_page_is_found(site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(site.api_pages.PAGES, "steps")
    with pytest.raises(ValueError, match=re.escape("without a page ['calibration', 'stepper']")):
        site.api_pages.check_complete()


def test_links_are_moved_with_their_page(site: SimpleNamespace):
    copied: set[Path] = set()
    text = (
        "[a](docs/stack.md#both-directions) [b](CHANGELOG.md) [c](examples/carry_state.py) [d](LICENSE) [e](#own) "
        "[f](https://example.org/docs/stack.md)\n```text\n[g](docs/stack.md)\n```\n![h](docs/resets.svg) [i](gone.md)"
    )
    assert site.pages.relinked(text, ROOT / "README.md", "index.md", copied) == (
        "[a](stack.md#both-directions) [b](changelog.md) [c](examples.md#carry_statepy) [d](files/LICENSE) [e](#own) "
        "[f](https://example.org/docs/stack.md)\n```text\n[g](docs/stack.md)\n```\n"
        "![h](files/docs/resets.svg) [i](gone.md)"
    )
    assert copied == {ROOT / "LICENSE", ROOT / "docs/resets.svg"}
    tutorial = ROOT / "docs/tutorials/01-equations.ipynb"
    assert site.pages.relinked(
        "[a](../stack.md) [b](02-stack.ipynb)", tutorial, "tutorials/01-equations.md", copied
    ) == ("[a](../stack.md) [b](../tutorials/02-stack.md)")


@pytest.mark.parametrize(
    ("written", "for_sphinx"),
    [
        (
            "The `W_x*` of |x|, a * b, **bold** and names_ of `Model`s.",
            r"The `W_x*` of \|x\|, a \* b, **bold** and names\_ of `Model`\ s.",
        ),
        ("Lists:\n- one\n  more\n- two", "Lists:\n\n- one\n  more\n- two"),
        ("Lists:\n\n- one", "Lists:\n\n- one"),
    ],
)
def test_a_docstring_means_the_same_to_sphinx(site: SimpleNamespace, written: str, for_sphinx: str):
    assert "\n".join(site.api_text.as_rst(written.split("\n"))) == for_sphinx


def page(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", "<a href='b.html'>x</a>", "a.html: b.html is not there"),
        ("a.html", "<a href='#gone'>x</a><h1 id='here'></h1>", "a.html: #gone: no such place on that page"),
        ("a/b.html", "<img src='../../outside.png'>", "a/b.html: ../../outside.png is not there"),
        ("a.html", "<link rel='stylesheet' href='s.css'>", "a.html: s.css is not there"),
    ],
)
def test_a_broken_link_is_found(site: SimpleNamespace, tmp_path: Path, name: str, text: str, found: str):
    (tmp_path / "outside.png").touch()
    page(tmp_path / "site", name, text)
    assert site.built.broken(tmp_path / "site") == [found]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", "<script src='https://cdn.example/x.js'></script>", "https://cdn.example/x.js"),
        ("a.html", "<link rel='preconnect' href='//fonts.example'>", "//fonts.example"),
        ("a.html", "<img src='http://example.org/a.png'>", "http://example.org/a.png"),
        ("a.html", "<style>@import 'https://fonts.example/x'; b {}</style>", "https://fonts.example/x"),
        ("a.html", "<p style='background: url(https://example.org/b)'>", "https://example.org/b"),
        ("a.html", "<script>fetch('https://example.org/c')</script>", "https://example.org/c"),
        ("s.css", "@font-face { src: url('https://fonts.example/f.woff2') }", "https://fonts.example/f.woff2"),
        ("s.js", "element.src = '//cdn.example/y.js'", "//cdn.example/y.js"),
    ],
)
def test_what_would_be_fetched_is_found(site: SimpleNamespace, tmp_path: Path, name: str, text: str, found: str):
    page(tmp_path, name, text)
    assert site.built.from_elsewhere(tmp_path) == [f"{name} fetches {found}"]


def test_a_good_site_is_good(site: SimpleNamespace, tmp_path: Path):
    text = (
        "<h1 id='here'></h1><a href='#here'>x</a><a href='https://example.org'>y</a><img src='data:image/png;base64,'>"
    )
    page(tmp_path, "a.html", f"{text}<a href='b/c.html#there'>z</a><link rel='stylesheet' href='s.css'>")
    page(tmp_path, "b/c.html", "<h2 id='there'></h2><a href='../a.html?x=1#here'>x</a>")
    page(tmp_path, "s.css", "body { background: url(data:image/png;base64,AA) }")
    assert site.built.broken(tmp_path) == []
    assert site.built.from_elsewhere(tmp_path) == []


@pytest.mark.slow
def test_the_site_builds_with_every_public_name_and_searches_from_disk(site: SimpleNamespace):
    for package in ("sphinx", "furo", "myst_parser", "matplotlib", "onnxruntime"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, str(WEBSITE / "build.py")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    html = ROOT / "build/docs/html"
    reference = "".join(path.read_text(encoding="utf-8") for path in sorted((html / "reference").glob("*.html")))
    assert [name for name in unrolled.__all__ if f'id="unrolled.{name}"' not in reference] == []
    # A script, not a request: a browser lets a page from disk load one and not the other.
    search = (html / "search.html").read_text(encoding="utf-8")
    assert re.search(r'<script src="searchindex\.js"', search)
    assert "LSTMLayer" in (html / "searchindex.js").read_text(encoding="utf-8")
    outputs = (html / "tutorials/01-equations.html").read_text(encoding="utf-8")
    assert "h differs by at most" in outputs
    assert re.search(r'<img alt="The sigmoid and the tanh', outputs)
    assert site.built.broken(html) == []
    assert site.built.from_elsewhere(html) == []
