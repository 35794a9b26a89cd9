"""How much memory a training run takes beside its text: a small and a large file, anonymous memory sampled to the end.

Anonymous memory (RssAnon, Linux) is what a process holds for itself; pages of the memory-mapped text are not in it, the
system takes those back as it needs them. The file is the text of Python's documentation, its lines in another order
each time with a line of its own between, until it is as large as asked; it is removed at the end.

    python benchmarks/text_memory.py [--sizes 20 2000] [--bpe-sizes 20 200] [--write PAGE]      in MB
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from page import add_write, provenance, table, write_section

from unrolled import builtin_text

# Megabytes by which the larger file's run may take more: what an allocator keeps or not.
BOUND = 16.0
STEPS, INTERVAL = 150, 0.2


class Curve(NamedTuple):
    """A run's samples: seconds, megabytes of RssAnon, and whether training had begun. `steps` is how many it made."""

    seconds: list[float]
    megabytes: list[float]
    training: list[bool]
    steps: int

    def peak(self, *, training: bool) -> float:
        return max((value for value, began in zip(self.megabytes, self.training, strict=True) if began == training))


def write_text(path: Path, megabytes: float) -> None:
    """As large a text as asked, in which no two stretches are the same."""
    lines, draw = builtin_text().splitlines(), random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            draw.shuffle(lines)
            words = " ".join(f"{draw.getrandbits(40):x}" for _ in range(20))
            file.write("\n".join(lines) + f"\n{words} \N{SNOWMAN}\n")
        file.truncate(int(megabytes * 1e6))


def train(text: Path, out: Path, tokens: str) -> Curve:
    """Run `unrolled train`, and sample it. Exits where it fails."""
    flags = {"tokens": tokens, "out": out, "steps": STEPS, "eval-every": STEPS, "save-every": STEPS, "split": 1}
    flags |= {"layers": 1, "hidden": 64, "embedding": 16, "lanes": 8, "window": 32, "threads": 1}
    named = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "unrolled", "train", str(text), "--quiet", *named]
    curve, began = Curve([], [], [], STEPS), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if (megabytes := anonymous(process.pid)) is not None:
                curve.seconds.append(time.monotonic() - began)
                curve.megabytes.append(megabytes)
                curve.training.append(out.exists())
            time.sleep(INTERVAL)
        if process.returncode:
            sys.exit(f"{' '.join(command)}: {process.stderr.read() if process.stderr else ''}")
    return curve


def anonymous(process: int) -> float | None:
    """Megabytes; None once the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else None


def measure(tokens: str, sizes: Sequence[float], folder: Path) -> list[Curve]:
    curves = []
    for megabytes in sizes:
        text = folder / f"{tokens}-{megabytes:g}.txt"
        write_text(text, megabytes)
        curves.append(train(text, folder / f"run-{tokens}-{megabytes:g}", tokens))
        text.unlink()
    return curves


def row(tokens: str, megabytes: float, curve: Curve) -> list[str]:
    encoding = sum(1 for began in curve.training if not began)
    return [
        f"{tokens}, {megabytes:g} MB",
        f"{curve.seconds[encoding - 1]:.1f} s",
        f"{curve.peak(training=False):.0f} MB",
        f"{curve.peak(training=True):.0f} MB",
        ", ".join(f"{value:.0f}" for value in along(curve.megabytes)),
    ]


def along(values: Sequence[float], points: int = 10) -> list[float]:
    """The largest value in each of `points` stretches of equal length."""
    edges = [len(values) * point // points for point in range(points + 1)]
    return [max(values[a : max(b, a + 1)]) for a, b in pairwise(edges)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[20, 2000], help="of the files read as bytes, in MB")
    parser.add_argument("--bpe-sizes", type=float, nargs="*", default=[20, 200], help="of those read as byte pairs")
    add_write(parser)
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("anonymous memory is read from /proc, which this system does not have")
    print(*provenance())
    rows, more = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for tokens, sizes in (("byte", arguments.sizes), ("bpe", arguments.bpe_sizes)):
            curves = measure(tokens, sizes, Path(folder))
            rows += [row(tokens, size, curve) for size, curve in zip(sizes, curves, strict=True)]
            peaks = [max(curve.megabytes) for curve in curves]
            more = max([more, *(peak - peaks[0] for peak in peaks)])
    header = ("text", "until encoded", "peak until then", "peak in training", f"MB of RssAnon over {STEPS} steps' run")
    lines = [
        *table(header, rows),
        "",
        f"At most {BOUND:.0f} MB more for the larger file: {'holds' if more <= BOUND else 'MISSED'} ({more:.1f} MB).",
    ]
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "text_memory", lines)
    sys.exit(more > BOUND)


if __name__ == "__main__":
    main()
