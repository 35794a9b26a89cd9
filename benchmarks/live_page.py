"""How long a key of the live page takes, from the key to the picture in which its answer stands.

A model of random weights, by default two layers of 512 over characters, is served by `unrolled inspect --live`'s own
server in a process of its own, and a page is typed into in Chromium, key by key, each when the one before was answered.
A key begins where the browser dates it, and ends when the frame with the changed probabilities has been painted.

    python benchmarks/live_page.py [--keys 80] [--hidden 512] [--write PAGE]

Exits 1 where the median is above what is promised. Needs Playwright and a Chromium (`make test-browser` sets them up);
where one is missing nothing is measured, and it says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time

from page import add_write, provenance, write_section

# Milliseconds, with two layers of 512.
PROMISED, PROMISED_HIDDEN = 50.0, 512
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TEXT = "The seas rose up, and she said: (nothing here) is as it was.\n"
# Seconds for a key, on a machine that has other work.
PATIENCE = 60
# Keys that are not counted: the first ones compile the page's script.
FIRST = 5
# In the page: a list of times. Its own handlers run after the key's listener, which captures.
LISTEN = """() => {
  window.taken = [];
  let began = null;
  document.addEventListener("keydown", (event) => { began = event.timeStamp; }, true);
  const painted = new MessageChannel();
  let first = 0;
  painted.port1.onmessage = () => taken.push(performance.now() - first);
  new MutationObserver(() => {
    if (began === null) return;
    first = began;
    began = null;
    requestAnimationFrame(() => painted.port2.postMessage(0));
  }).observe(document.getElementById("next"), { childList: true, characterData: true, subtree: true });
}"""


def serve(hidden: int) -> None:
    """The page's server, which says where it is; until it is killed."""
    import torch

    from unrolled import CharTokenizer, LanguageModel, ModelConfig, builtin_text
    from unrolled.live_server import LiveApp, LiveServer
    from unrolled.live_session import LiveSession

    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text(builtin_text())
    model = LanguageModel(ModelConfig(tokenizer.size, hidden=hidden, layers=2))
    shape = {"layers": 2, "hidden": hidden, "h_dim": hidden}
    with LiveServer(LiveApp(LiveSession(model, tokenizer), tokenizer), "live", shape) as server:
        print(server.url, flush=True)
        server.serve_forever()


def typed(url: str, browser: str, keys: int) -> list[float]:
    """Milliseconds of each key."""
    from playwright.sync_api import sync_playwright

    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as who containers run.
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"] if root else [])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        while not page.evaluate("turn !== null"):
            page.wait_for_timeout(20)
        page.evaluate(LISTEN)
        page.locator("#text-0").focus()
        for key in range(keys + FIRST):
            page.keyboard.type(TEXT[key % len(TEXT)])
            end = time.monotonic() + PATIENCE
            while page.evaluate("busy || waiting ? 0 : taken.length") != key + 1:
                if time.monotonic() > end:
                    sys.exit(f"key {key + 1} was not answered within {PATIENCE} seconds")
                page.wait_for_timeout(20)
        found: list[float] = page.evaluate("taken")
        chromium.close()
    return found[FIRST:]


def report(taken: list[float], hidden: int) -> tuple[list[str], bool]:
    """The section's lines, and whether it keeps what it promises."""
    median, ninth = statistics.median(taken), statistics.quantiles(taken, n=10)[-1]
    lines = [
        f"Two layers of {hidden}, {len(taken)} keys: median {median:.1f} ms, a tenth of them above {ninth:.1f} ms."
    ]
    if hidden != PROMISED_HIDDEN:
        return lines, True
    kept = median < PROMISED
    return [*lines, "", f"Under {PROMISED:.0f} ms from key to picture: {'holds' if kept else 'MISSED'}."], kept


def lacking() -> str | None:
    """What is not there to measure with."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "Playwright is not installed: pip install 'unrolled[browser-test]'"
    return None if any(map(shutil.which, BROWSERS)) else f"none of {', '.join(BROWSERS)} is on the PATH"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=80)
    parser.add_argument("--hidden", type=int, default=PROMISED_HIDDEN)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_write(parser)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.hidden)
        return
    if arguments.keys < 2:
        parser.error(f"--keys {arguments.keys}: a median takes at least 2")
    if missing := lacking():
        print(f"not measured: {missing}")
        return
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    print(*provenance(), flush=True)
    command = [sys.executable, __file__, "--serve", "--hidden", str(arguments.hidden)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip() if server.stdout else ""
            if not url:
                sys.exit(f"{' '.join(command)} failed")
            taken = typed(url, browser, arguments.keys)
        finally:
            server.terminate()
    lines, kept = report(taken, arguments.hidden)
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "live_page", lines)
    sys.exit(not kept)


if __name__ == "__main__":
    main()
