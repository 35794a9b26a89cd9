"""The system's Chromium, driven by Playwright, and axe-core; where one is missing, a sentence how to get it."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MACOS = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
# Seconds for a step, on a machine that has other work; nothing waits so long where all is well.
PATIENCE = 120
AXE = Path(__file__).parents[1] / "build/browser/node_modules/axe-core/axe.min.js"


def executable() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), str(MACOS) if MACOS.exists() else None)
    if found is None:
        pytest.fail(
            f"no browser: none of {', '.join(NAMES)} is on the PATH. On Debian: sudo apt install chromium; on Ubuntu: "
            "sudo snap install chromium; elsewhere install Chrome or Chromium",
            pytrace=False,
        )
    return found


def axe() -> str:
    if not AXE.exists():
        pytest.fail("axe-core is not there: make test-browser fetches it, with npm (Node.js)", pytrace=False)
    return AXE.read_text(encoding="utf-8")


@contextmanager
def launched() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("Playwright is not installed: pip install 'unrolled[browser-test]'", pytrace=False)
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as who containers run.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable(), args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page that is open: what it asked the network for, and what went wrong in it, is counted."""

    def __init__(self, browser: Any, url: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=width < 500,
        )
        self.context.set_default_timeout(PATIENCE * 1000)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.url = url
        self.settle()

    def settle(self) -> None:
        """Wait until what is due has been drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def wait(self, expression: str) -> None:
        """Until it holds. Playwright's wait_for_function would evaluate text in the page, which the page forbids."""
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(20)

    def violations(self) -> list[str]:
        """What axe-core finds, of all rules that are on by default."""
        self.page.evaluate(axe())
        found = self.page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{each['id']}: {node['html'][:200]} ({node['failureSummary']})" for each in found for node in each["nodes"]
        ]

    def close(self, site: str | None = None) -> None:
        """Nothing may have gone wrong, and nothing have been asked for but the page, or what lies on its `site`."""
        self.context.close()
        assert self.errors == []
        here = self.url.partition("#")[0]
        foreign = [
            url for url in self.requests if url.partition("#")[0] != here and not (site and url.startswith(site))
        ]
        assert [url for url in foreign if not url.startswith("data:")] == []
