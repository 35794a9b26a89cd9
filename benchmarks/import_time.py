"""How long `from unrolled import MultiLayerLSTM` takes beyond `import torch` and `import numpy`, which it needs.

Each measurement is a fresh interpreter; those that import torch alone and those that import unrolled take turns, so
that whatever else the machine does falls on both. Within one process the two parts are timed one after the other: what
unrolled adds is then free of the spread of torch's own seconds.

    python benchmarks/import_time.py [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

BOUND = 0.150

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    seconds(TOGETHER)
    alone, with_unrolled, added = [], [], []
    for _ in range(rounds):
        alone += seconds(ALONE)
        torch, unrolled = seconds(TOGETHER)
        with_unrolled.append(torch + unrolled)
        added.append(unrolled)
    figures = {"torch and numpy": alone, "with unrolled": with_unrolled, "unrolled itself": added}
    print(f"Import time, medians of {rounds} processes each (smallest to largest)")
    for name, values in figures.items():
        low, middle, high = (1000 * pick(values) for pick in (min, statistics.median, max))
        print(f"  {name:<16} {middle:7.1f} ms  ({low:.1f} to {high:.1f})")
    within = statistics.median(added) < BOUND
    print(f"unrolled itself under {1000 * BOUND:.0f} ms: {'holds' if within else 'MISSED'}")
    sys.exit(not within)


if __name__ == "__main__":
    main()
