"""What a built site must be: every link inside it leads somewhere, and nothing is fetched from anywhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# Attributes whose target a browser fetches by itself; a link that one has to click is not among them.
FETCHED = {"src", "srcset", "poster", "data"}
RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
IN_CSS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
# What a script would load with, followed by a whole address.
IN_SCRIPT = re.compile(r"(?:fetch|importScripts|import|Worker|open|src\s*=)\s*\(?\s*['\"`]((?:https?:)?//[^'\"`]+)")


class Page(NamedTuple):
    """The anchors of a page, the addresses that it links to, and those that it has a browser fetch."""

    anchors: set[str]
    links: list[str]
    fetched: list[str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), [], [])
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self._inside = tag
        self.page.anchors.update(given[name] for name in ("id", "name") if name in given)
        for name in FETCHED & given.keys():
            self.page.fetched.append(given[name])
        if "style" in given:
            self.page.fetched.extend(in_css(given["style"]))
        if tag == "link":
            fetches = RELATIONS & set(given.get("rel", "").split())
            (self.page.fetched if fetches else self.page.links).append(given.get("href", ""))
        elif "href" in given:
            self.page.links.append(given["href"])

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.page.fetched.extend(in_css(data))
        elif self._inside == "script":
            self.page.fetched.extend(IN_SCRIPT.findall(data))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def in_css(text: str) -> list[str]:
    return [first or second for first, second in IN_CSS.findall(text)]


def read(path: Path) -> Page:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def from_elsewhere(folder: Path) -> list[str]:
    """Whatever a page, a style sheet or a script of the site would fetch from another host."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            addresses = read(path).fetched
        elif path.suffix == ".css":
            addresses = in_css(path.read_text(encoding="utf-8"))
        elif path.suffix == ".js":
            addresses = IN_SCRIPT.findall(path.read_text(encoding="utf-8"))
        else:
            continue
        for address in addresses:
            if address.startswith("//") or urlsplit(address).scheme not in {"", "data"}:
                found.append(f"{path.relative_to(folder)} fetches {address}")
    return found


def broken(folder: Path) -> list[str]:
    """Links and fetched files of the site that are not in it, and anchors that a page does not have."""
    pages = {path.resolve(): read(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for address in [*page.links, *page.fetched]:
            parts = urlsplit(address)
            if parts.scheme or address.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            name = f"{path.relative_to(folder.resolve())}: {address}"
            if not target.exists() or not target.is_relative_to(folder.resolve()):
                found.append(f"{name} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: no such place on that page")
    return found
