"""Generated sections of a page: what is between their markers is replaced, and nothing else is touched."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import unrolled

ROOT = Path(__file__).parents[1]
END = "<!-- end -->"
MEASURED = ("src", "csrc", "benchmarks")


def add_write(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the result between this page's markers")


def write_section(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace section `name` of the page by where and when it was made, and `lines`."""
    text = path.read_text(encoding="utf-8")
    path.write_text(with_section(text, name, [*provenance(), "", *lines]), encoding="utf-8")


def with_section(text: str, name: str, lines: Sequence[str]) -> str:
    """`text` with `lines` as its section `name`. Exits where there is no such section."""
    marker = f"<!-- made by: {name} -->"
    before, found, rest = text.partition(f"{marker}\n")
    _, ended, after = rest.partition(END)
    if not (found and ended):
        sys.exit(f"the page has no section for {name}: put {marker} and {END} into it, each on a line of its own")
    body = "\n".join(lines).strip("\n")
    return f"{before}{marker}\n{body}\n{END}{after}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def provenance() -> list[str]:
    """What the figures of a section belong to: the machine, the versions, the backend, the revision, the day."""
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "onnxruntime", "jax"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return [
        f"{_processor()}, {torch.get_num_threads()} threads; {', '.join(versions)}; unrolled on its "
        f"`{unrolled.backends().backend}` backend{_revision()}; {datetime.date.today()}."
    ]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _revision() -> str:
    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)

    try:
        commit = git("rev-parse", "--short", "HEAD")
    except FileNotFoundError:
        return ""
    if commit.returncode:
        return ""
    changed = git("status", "--porcelain", "--", *MEASURED).stdout.strip()
    return f"; revision {commit.stdout.strip()}{', with uncommitted changes' if changed else ''}"
