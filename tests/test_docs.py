"""Every page does what it says: its code runs, in order, offline; its commands exist; its links lead somewhere.

On a page, ```python and ```pycon blocks share one namespace and one temporary folder, and a ```pycon block prints what
it shows. `<!-- not run: reason -->` right above a block has it compiled only.
"""

from __future__ import annotations

import contextlib
import doctest
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from cyclopts import CycloptsError
from markdown_it import MarkdownIt
from markdown_it.token import Token

from unrolled.cli import app
from unrolled.config import ConfigError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# "py", "Python" or a title after the language would keep a block from being run, unseen.
LANGUAGES = {"", "python", "pycon", "sh", "console", "text", "toml", "json", "make", "diff"}
NOT_RUN = re.compile(r"<!--\s*not run:\s*(.*?)\s*-->", re.DOTALL)
EXPLICIT_ANCHOR = re.compile(r"<[^>]*\b(?:id|name)=[\"']([^\"']+)[\"']")


class Block(NamedTuple):
    """A fenced block: the line of its fence, counted from 1, and why it is not run ("" if it is)."""

    language: str
    source: str
    line: int
    not_run: str


def parse(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(text: str) -> list[Block]:
    found, reason = [], ""
    for token in parse(text):
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(token.info.strip(), token.content, line, reason))
        marked = NOT_RUN.fullmatch(token.content.strip()) if token.type == "html_block" else None
        if marked and not marked[1]:
            raise AssertionError("a block is marked as not run, and no reason is given")
        reason = marked[1] if marked else ""
    return found


def run_page(text: str, name: str) -> None:
    module = ModuleType("page")
    sys.modules["page"] = module
    try:
        for block in blocks(text):
            if block.language == "python":
                # The empty lines make a traceback point into the page.
                code = compile("\n" * block.line + block.source, name, "exec", dont_inherit=True)
                if not block.not_run:
                    exec(code, vars(module))
            elif block.language == "pycon" and not block.not_run:
                _run_session(block, vars(module), name)
    finally:
        del sys.modules["page"]


def _run_session(block: Block, namespace: dict[str, Any], name: str) -> None:
    session = doctest.DocTestParser().get_doctest(block.source, namespace, name, name, block.line)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(session, out=report.append, clear_globs=False)
    namespace.update(session.globs)
    if runner.failures:
        raise AssertionError("".join(report))


def inline(text: str) -> Iterator[Token]:
    for token in parse(text):
        yield from token.children or ()


def links(text: str) -> list[str]:
    return [
        str(target)
        for token in inline(text)
        for target in (token.attrGet("href"), token.attrGet("src"))
        if target is not None
    ]


def anchors(text: str) -> set[str]:
    """The anchors of a page as GitHub makes them: of headings, a repeated one numbered, and of explicit ids."""
    tokens = parse(text)
    found: set[str] = set()
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(t.content for t in content.children or () if t.type in {"text", "code_inline"})
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            free = (f"{slug}-{n}" if n else slug for n in range(len(tokens)))
            found.add(next(anchor for anchor in free if anchor not in found))
    return found | set(EXPLICIT_ANCHOR.findall(text))


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not (target.exists() and target.is_relative_to(ROOT)):
            broken.append(f"{link}: no such file in the repository")
        elif parts.fragment and unquote(parts.fragment) not in anchors(target.read_text(encoding="utf-8")):
            broken.append(f"{link}: no such heading")
    return broken


def shell_lines(text: str) -> list[str]:
    """What a page tells its reader to type: inline code, the lines of ```sh, and those after "$ " in ```console."""
    lines = [token.content for token in inline(text) if token.type == "code_inline"]
    for block in blocks(text):
        joined = block.source.replace("\\\n", " ").splitlines()
        if block.language == "sh":
            lines += joined
        elif block.language == "console":
            lines += [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
    return lines


def make_targets(text: str) -> set[str]:
    return {found[1] for line in shell_lines(text) if (found := re.match(r"make ([a-z][a-z-]*)", line))}


def commands(text: str) -> list[list[str]]:
    """The arguments of every `unrolled` that a page shows, up to a pipe, a redirection or a comment."""
    found = []
    for line in shell_lines(text):
        if called := re.match(r"(?:\S*/)?(?:python3? -m )?unrolled (.*)", line):
            words = list(shlex.shlex(called[1], posix=True, punctuation_chars=True))
            end = next((n for n, word in enumerate(words) if set(word) <= set("|&;<>()")), len(words))
            found.append(words[:end])
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("the code of a page must work without a network")

    monkeypatch.chdir(tmp_path)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_code_of_a_page_runs(page: Path):
    run_page(page.read_text(encoding="utf-8"), str(page))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_blocks_name_their_language(page: Path):
    assert {block.language for block in blocks(page.read_text(encoding="utf-8"))} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_make_targets_exist(page: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert make_targets(page.read_text(encoding="utf-8")) <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_their_flags_exist(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        # A file that the command names need not be there.
        with contextlib.suppress(OSError, ConfigError):
            app.parse_args(words, exit_on_error=False, print_error=False)


SAMPLE = """
# A `page`, with code!

```python
from dataclasses import dataclass

@dataclass
class Two:
    number: int = 2
```

Then, in a list and on the same names:

- item

  ```pycon
  >>> Two().number + 1
  3
  >>> later = 5
  ```

<!-- not run: needs a network -->

```python
fetch()
```

```python
assert later == 5
```

## A `page`, with code!
See [here](#a-page-with-code-1), [there](docs/api.md#nowhere), [gone](gone.md), `make tea`, `unrolled info RUN`.

```sh
.venv/bin/unrolled train "a b.txt" \\
    --steps 5 | tee log  # a comment
make coffee ARGS="x"
```

```console
$ unrolled generate runs/x --prompt "It's"
unrolled trains no more
```

| a table |
|---|
| [in it](#x) |
"""


@pytest.mark.usefixtures("offline")
def test_blocks_share_a_namespace_in_order():
    run_page(SAMPLE, "sample.md")
    assert [(block.language, block.line, block.not_run) for block in blocks(SAMPLE)] == [
        ("python", 4, ""),
        ("pycon", 16, ""),
        ("python", 24, "needs a network"),
        ("python", 28, ""),
        ("sh", 35, ""),
        ("console", 41, ""),
    ]
    assert "page" not in sys.modules


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("page", "error", "message"),
    [
        ("```python\nraise KeyError('x')\n```", KeyError, "x"),
        ("```python\nundefined\n```", NameError, "undefined"),
        ("<!-- not run: slow -->\n```python\nx = = 1\n```", SyntaxError, "sample.md, line 3"),
        ("<!-- not run: -->\n```python\nx = 1\n```", AssertionError, "no reason"),
        ("<!-- not run: slow -->\ntext between\n```python\nundefined\n```", NameError, "undefined"),
        ("```pycon\n>>> 1 + 1\n3\n```", AssertionError, "Got:\n    2"),
        ("```pycon\n>>> undefined\n3\n```", AssertionError, "NameError"),
        ("```python\nimport urllib.request as r\nr.urlopen('http://localhost:9')\n```", OSError, "without a network"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```", UserWarning, "old"),
    ],
)
def test_a_page_that_lies_is_found(page: str, error: type[Exception], message: str):
    with pytest.raises(error) as caught:
        run_page(page, "sample.md")
    assert message in str(caught.value)


def test_anchors_are_those_of_github():
    assert anchors(SAMPLE) == {"a-page-with-code", "a-page-with-code-1"}
    assert anchors('## dL/dh_t — "total"\n<a id="own"></a>') == {"dldh_t--total", "own"}


def test_broken_links_and_targets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/api.md").write_text("# The API", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"{SAMPLE}\n[out](../x.md) [ok](docs/api.md#the-api) [web](https://example.org)", encoding="utf-8")
    assert broken_links(page) == [
        "docs/api.md#nowhere: no such heading",
        "gone.md: no such file in the repository",
        "#x: no such heading",
        "../x.md: no such file in the repository",
    ]


def test_what_a_page_tells_to_type_is_found():
    assert make_targets(SAMPLE) == {"tea", "coffee"}
    assert commands(SAMPLE) == [
        ["info", "RUN"],
        ["train", "a b.txt", "--steps", "5"],
        ["generate", "runs/x", "--prompt", "It's"],
    ]


@pytest.mark.parametrize("wrong", ["trian x.txt", "train x.txt --stepps 5", "train --steps five", "eval --split"])
def test_a_wrong_command_is_found(wrong: str):
    [words] = commands(f"`unrolled {wrong}`")
    with pytest.raises(CycloptsError):
        app.parse_args(words, exit_on_error=False, print_error=False)
