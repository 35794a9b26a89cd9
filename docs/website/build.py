"""Builds the site: `make docs`. It stands in build/docs/html, and opens from disk.

Tutorials are executed, which takes minutes; their outputs are kept in build/docs/executed, and made again when a
tutorial or the library has changed. Anything wrong stops the build: a warning of Sphinx, a link that leads nowhere, a
file that would be fetched from another host.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import nbformat
from sphinx.cmd.build import main as sphinx

sys.path.insert(0, str(Path(__file__).parent))
import built
import notebooks
import pages

FOLDER = pages.ROOT / "build/docs"


def outputs(source: Path) -> nbformat.NotebookNode:
    """A tutorial, executed, now or since it and the library last changed."""
    digest = hashlib.sha256(source.read_bytes())
    for path in sorted((pages.ROOT / "src").rglob("*.py")):
        digest.update(path.read_bytes())
    kept = FOLDER / f"executed/{source.stem}-{digest.hexdigest()[:16]}.ipynb"
    if not kept.exists():
        sys.stdout.write(f"running {source.name}\n")
        sys.stdout.flush()
        notebook = notebooks.executed(notebooks.read(source))
        kept.parent.mkdir(parents=True, exist_ok=True)
        for older in kept.parent.glob(f"{source.stem}-*.ipynb"):
            older.unlink()
        nbformat.write(notebook, kept)
    return nbformat.read(kept, as_version=4)


def main() -> int:
    source, html = FOLDER / "source", FOLDER / "html"
    for folder in (source, html):
        shutil.rmtree(folder, ignore_errors=True)
    (source / "tutorials").mkdir(parents=True)
    tutorials = {
        path.stem: notebooks.page(outputs(path), source / "tutorials", path.stem) for path in notebooks.sources()
    }
    pages.lay_out(source, tutorials)
    failed = sphinx(["-b", "html", "-W", "--keep-going", "-q", "-d", str(FOLDER / "doctrees"), str(source), str(html)])
    if failed:
        return failed
    wrong = [*built.broken(html), *built.from_elsewhere(html)]
    sys.stdout.write("\n".join([*wrong, f"the site: {html / 'index.html'}" if not wrong else "not a good site"]) + "\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
