"""The table of features leads somewhere: every "yes" to a test or a benchmark that there is, every "no" to a reason.

A test that any page names must be there: in the file that its name is a link to, or, without a link, in one of them.
"""

from __future__ import annotations

import ast
import functools
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from markdown_it.token import Token
from test_docs import PAGES, ROOT, page_name, parse

FEATURES = ROOT / "docs/features.md"
BENCHMARKS = "performance.md#"
NAME = re.compile(r"test_\w+")
# "not written" and a few words on what to do instead: less is no reason.
SHORTEST_REASON = 10


class Link(NamedTuple):
    text: str
    target: str


class Row(NamedTuple):
    feature: str
    answer: str
    shown_by: str
    links: tuple[Link, ...]


def links(token: Token) -> list[Link]:
    found = []
    for opening, inside in pairwise(token.children or ()):
        if opening.type == "link_open":
            found.append(Link(inside.content, str(opening.attrGet("href"))))
    return found


def rows(text: str) -> list[Row]:
    """The rows of every table that has a column "Unrolled", which is the second of four."""
    found: list[Row] = []
    cells: list[Token] = []
    ours = False
    for token in parse(text):
        if token.type == "table_open":
            ours = False
        elif token.type == "tr_open":
            cells = []
        elif token.type == "inline":
            cells.append(token)
        elif token.type == "tr_close":
            words = [cell.content for cell in cells]
            if ours:
                found.append(Row(words[0], words[1], words[2], tuple(links(cells[2]))))
            ours = ours or words[:3] == ["feature", "Unrolled", "shown by, or why not"]
    return found


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return frozenset(name for name in functions if name.startswith("test_"))


@functools.cache
def all_names() -> frozenset[str]:
    return frozenset().union(*map(names_in, (ROOT / "tests").glob("*.py")))


def missing_tests(text: str, folder: Path) -> list[str]:
    """The links into files of tests whose text is neither a test of that file nor its name, and names of no test."""
    found = []
    for token in parse(text):
        for link in links(token):
            path = (folder / urlsplit(link.target).path).resolve()
            named = path.parent == ROOT / "tests" and path.name.startswith("test_") and link.text != path.name
            if named and not (path.exists() and link.text in names_in(path)):
                found.append(f"{link.text}: no such test in {link.target}")
        spans = {part.content for part in token.children or () if part.type == "code_inline"}
        names = {span for span in spans if NAME.fullmatch(span)} - {link.text for link in links(token)}
        found += [f"{name}: no such test" for name in sorted(names - all_names())]
    return found


def is_evidence(link: Link) -> bool:
    return bool(NAME.fullmatch(link.text)) or link.target.startswith(BENCHMARKS)


def unfounded(text: str) -> list[str]:
    """The rows whose answer lacks what it has to have."""
    found = []
    for row in rows(text):
        shown = any(is_evidence(link) for link in row.links)
        said = row.shown_by
        for link in row.links:
            said = said.replace(f"[`{link.text}`]({link.target})", "").replace(f"[{link.text}]({link.target})", "")
        reasoned = len(said.strip(" ,:;")) >= SHORTEST_REASON
        wanting = {
            "yes": () if shown else ("a test or a benchmark",),
            "no": () if reasoned else ("a reason",),
            "partly": (*(() if shown else ("a test or a benchmark",)), *(() if reasoned else ("a reason",))),
        }.get(row.answer, ('one of "yes", "partly" and "no"',))
        found += [f"{row.feature}: {row.answer!r} needs {what}" for what in wanting]
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    assert missing_tests(page.read_text(encoding="utf-8"), page.parent) == []


def test_every_feature_is_shown_or_has_a_reason() -> None:
    text = FEATURES.read_text(encoding="utf-8")
    assert unfounded(text) == []
    found = rows(text)
    assert len(found) == text.count("\n| ") - text.count("\n| feature |") - text.count("\n| short name |") - PEERS
    assert len({row.feature for row in found}) == len(found)


# Each has a row in the table of who else there is.
PEERS = 14

SAMPLE = """
| feature | Unrolled | shown by, or why not | elsewhere |
|---|---|---|---|
| one | yes | [`test_one_step_by_hand`](../tests/test_reference.py) | torch |
| two | yes | [benchmark](performance.md#training) | |
| three | no | not written yet | |
| four | partly | not on a GPU: [`test_one_step_by_hand`](../tests/test_reference.py) | |

| short name | version |
|---|---|
| torch | 2 |
"""


def test_rows_and_links_are_found() -> None:
    assert [(row.feature, row.answer) for row in rows(SAMPLE)] == [
        ("one", "yes"),
        ("two", "yes"),
        ("three", "no"),
        ("four", "partly"),
    ]
    assert rows(SAMPLE)[0].links == (Link("test_one_step_by_hand", "../tests/test_reference.py"),)
    assert unfounded(SAMPLE) == []
    assert missing_tests(SAMPLE, ROOT / "docs") == []


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        ("yes | [`test_one_step_by_hand`](../tests/test_reference.py)", "yes | of course it does", "a test or a bench"),
        ("yes | [benchmark](performance.md#training)", "yes | [docs](stack.md)", "two: 'yes' needs a test or a bench"),
        ("no | not written yet", "no | ", "three: 'no' needs a reason"),
        ("not on a GPU: [", "[", "four: 'partly' needs a reason"),
        (
            "partly | not on a GPU: [`test_one_step_by_hand`](../tests/test_reference.py)",
            "partly | not on a GPU",
            "four",
        ),
        ("three | no", "three | maybe", 'needs one of "yes", "partly" and "no"'),
    ],
)
def test_an_answer_without_what_it_needs_is_found(before: str, after: str, wrong: str) -> None:
    assert before in SAMPLE
    [found] = unfounded(SAMPLE.replace(before, after))
    assert wrong in found


@pytest.mark.parametrize("renamed", ["test_one_step_by_foot", "one_step_by_hand"])
def test_a_test_that_was_renamed_is_found(renamed: str) -> None:
    found = missing_tests(SAMPLE.replace("test_one_step_by_hand", renamed), ROOT / "docs")
    assert found == [f"{renamed}: no such test in ../tests/test_reference.py"] * 2
    assert missing_tests("See `test_one_step_by_hand` and `test_one_step_by_foot`.", ROOT / "docs") == [
        "test_one_step_by_foot: no such test"
    ]
