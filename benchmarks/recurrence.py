"""Time of whole stacks, open and closed: a training table and an inference table, with goals.

All contenders of a row have the same weights and inputs, run in this process and take turns; times are medians, and
only ratios mean anything (2x: half the time of nn.LSTM in the same turn; the median over the turns, with its interval
of 95% confidence). A row is timed only when all its contenders were found to compute the same.

    python benchmarks/recurrence.py [--rows ROW ...] [--rounds N] [--seconds S] [--write PAGE]

Exits 1 where the native kernel is slower than nn.LSTM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import inference_table
import training_table
from measure import FEWEST_ROUNDS, Times, sgemm_peak, speed
from page import add_write, provenance, table, write_section
from stacks import Shape

from unrolled import backends

# What noise may take from a ratio of 1.
FLOOR = 0.97
OURS = (training_table.OPEN, training_table.OPENED, *inference_table.OURS)
ROWS = {str(shape): shape for shape in (*training_table.GOALS, *inference_table.GOALS)}


def shown(shape: Shape, times: dict[str, Times]) -> None:
    closed = times[training_table.CLOSED]
    print(f"{shape}, {len(closed.turns)} turns")
    for name, each in times.items():
        print(f"  {name:<26} {speed(closed, each)!s:<24} {each}")
    sys.stdout.flush()


def slower(shape: Shape, times: dict[str, Times]) -> list[str]:
    """Where ours take longer than nn.LSTM, by more than noise."""
    closed = times[training_table.CLOSED]
    ratios = {name: speed(closed, times[name]) for name in OURS if name in times}
    return [
        f"{shape}: {name} runs at {ratio} the speed of nn.LSTM"
        for name, ratio in ratios.items()
        if ratio.median < FLOOR
    ]


def training(shapes: Sequence[Shape], peak: float, *, rounds: int, seconds: float) -> tuple[list[str], list[str]]:
    """The table's lines, and what is slower than nn.LSTM."""
    rows, missed = [], []
    for shape in shapes:
        goal = training_table.GOALS.get(shape)
        cells, times = training_table.row(shape, peak, goal=goal, rounds=rounds, seconds=seconds)
        shown(shape, times)
        rows.append(cells)
        missed += slower(shape, times)
    return table(training_table.HEADER, rows), missed


def inference(shapes: Sequence[Shape], peak: float, *, rounds: int, seconds: float) -> tuple[list[str], list[str]]:
    """The table's lines, and what is slower than nn.LSTM."""
    rows, missed = [], []
    for shape in shapes:
        goals = inference_table.GOALS.get(shape)
        cells, times = inference_table.row(shape, peak, goals=goals, rounds=rounds, seconds=seconds)
        shown(shape, times)
        rows.append(cells)
        missed += slower(shape, times)
    return table(inference_table.HEADER, rows), missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help="some of the rows, as 16x128x64x64x1")
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS, help="turns of each contender, at least")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row, unless its rounds take longer")
    add_write(parser)
    arguments = parser.parse_args()
    if arguments.write and arguments.rows:
        parser.error("--write puts whole tables into the page; leave --rows out")
    chosen = [ROWS[name] for name in arguments.rows or ROWS]
    peak = sgemm_peak()
    reached = f"sgemm peak in this run: {peak / 1e9:.0f} GFLOP/s."
    print(*provenance(), reached, sep="\n")
    budget = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    missed = []
    for name, make, goals in (
        ("recurrence, training", training, training_table.GOALS),
        ("recurrence, inference", inference, inference_table.GOALS),
    ):
        lines, too_slow = make([shape for shape in chosen if shape in goals], peak, **budget)
        missed += too_slow
        print("", *lines, "", sep="\n", flush=True)
        if arguments.write:
            write_section(arguments.write, name, [reached, "", *lines])
    print(*missed, sep="\n")
    if missed and backends().backend == "cpu":
        sys.exit("the native kernel is to be no slower than nn.LSTM on any of these rows")


if __name__ == "__main__":
    main()
