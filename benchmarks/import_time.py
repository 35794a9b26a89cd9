"""How long `from unrolled import MultiLayerLSTM` takes beyond `import torch` and `import numpy`, which it needs.

Each measurement is a fresh interpreter; those that import torch alone and those that import unrolled take turns, so
that whatever else the machine does falls on both. Within one process the two parts are timed one after the other: what
unrolled adds is then free of the spread of torch's own seconds.

    python benchmarks/import_time.py [--rounds N] [--write PAGE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from page import add_write, provenance, table, write_section

BOUND = 0.150
WITHOUT, WITH, ADDED = "torch and numpy", "torch, numpy and unrolled", "unrolled itself"

ALONE = """
import time
start = time.perf_counter()
import numpy, torch
print(time.perf_counter() - start)
"""
TOGETHER = """
import time
start = time.perf_counter()
import numpy, torch
between = time.perf_counter()
from unrolled import MultiLayerLSTM
print(between - start, time.perf_counter() - between)
"""


def seconds(program: str) -> list[float]:
    # Without cached bytecode every process would compile the sources anew, which no installed package does.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    return [float(value) for value in run.stdout.split()]


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of `rounds` processes each."""
    seconds(TOGETHER)
    figures: dict[str, list[float]] = {WITHOUT: [], WITH: [], ADDED: []}
    for _ in range(rounds):
        figures[WITHOUT] += seconds(ALONE)
        torch, unrolled = seconds(TOGETHER)
        figures[WITH].append(torch + unrolled)
        figures[ADDED].append(unrolled)
    return figures


def report(figures: Mapping[str, Sequence[float]]) -> list[str]:
    rows = []
    for name, values in figures.items():
        low, middle, high = (1e3 * pick(values) for pick in (min, statistics.median, max))
        rows.append([name, f"{middle:.1f} ms", f"{low:.1f} to {high:.1f} ms"])
    holds = "holds" if statistics.median(figures[ADDED]) < BOUND else "MISSED"
    return [
        *table(("importing", f"median of {len(figures[ADDED])} processes", "smallest to largest"), rows),
        "",
        f"unrolled itself under {1e3 * BOUND:.0f} ms: {holds}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance())
    figures = measure(arguments.rounds)
    lines = report(figures)
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "import_time", lines)
    sys.exit(statistics.median(figures[ADDED]) >= BOUND)


if __name__ == "__main__":
    main()
