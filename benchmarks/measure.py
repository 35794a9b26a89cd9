"""Times of contenders that take turns, and the machine's peak to hold them against."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

# Fifteen turns hold the median of ratios that scatter by 5% to about 3%, with 95% confidence.
FEWEST_ROUNDS, MOST_ROUNDS = 15, 99
# A call that is shorter than this is repeated until a turn takes as long: single calls of microseconds would be timed
# with the caches that the contender before left behind.
TURN_SECONDS = 0.020
# After a call, the threads of OpenMP and of ONNX Runtime wait in a loop for the next one, on the cores that the next
# contender wants; after this pause they sleep.
PAUSE_SECONDS = 0.010
PEAK_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 2048), (4096, 1024, 2048))

Run = Callable[[], Any]


class Times(NamedTuple):
    """Milliseconds of one call: the median, the quantiles that a fifth of the turns lies below and above, and all."""

    median: float
    p20: float
    p80: float
    turns: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.median:.4g} ms (p20 {self.p20:.4g}, p80 {self.p80:.4g})"


class Ratio(NamedTuple):
    """The median over the turns, and its interval of 95% confidence."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def alternate(runs: Mapping[str, Run], *, seconds: float, rounds: int = FEWEST_ROUNDS) -> dict[str, Times]:
    """Time all of `runs`, in turns, in about `seconds` but at least `rounds` rounds.

    Each round has an order of its own, drawn with a fixed seed. Going back and forth, whoever is first, as the one that
    the others are compared with, would follow itself in every other round, and find in the cache what it left there.
    """
    repeats = {name: _repeats(run) for name, run in runs.items()}
    turns: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    order, shuffle = list(runs), random.Random(2).shuffle
    while len(turns[order[0]]) < MOST_ROUNDS:
        shuffle(order)
        for name in order:
            turns[name].append(_turn(runs[name], repeats[name]))
        if len(turns[order[0]]) >= rounds and time.perf_counter() - began >= seconds:
            break
    return {name: summary(values) for name, values in turns.items()}


def summary(seconds: list[float]) -> Times:
    """Of at least one measurement, in seconds."""
    fifths = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else seconds * 4
    return Times(1e3 * statistics.median(seconds), 1e3 * fifths[0], 1e3 * fifths[-1], tuple(1e3 * s for s in seconds))


def speed(peer: Times, contender: Times) -> Ratio:
    """How many times as fast as `peer` a contender was, turn by turn: what slows a whole round slows both.

    The interval is that of the sign test, whatever the ratios' distribution; below six turns it is all of them.
    """
    ratios = sorted(theirs / ours for theirs, ours in zip(peer.turns, contender.turns, strict=True))
    beyond, cut = 0.0, 0
    while (beyond := beyond + math.comb(len(ratios), cut) / 2 ** len(ratios)) <= 0.025:
        cut += 1
    cut = max(0, cut - 1)
    return Ratio(statistics.median(ratios), ratios[cut], ratios[-1 - cut])


def sgemm_peak(seconds: float = 1.0) -> float:
    """The most float32 operations per second that torch's own product reaches here, over several large shapes."""
    best = 0.0
    for m, k, n in PEAK_SHAPES:
        a, b, product = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
        torch.mm(a, b, out=product)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds / len(PEAK_SHAPES):
            start = time.perf_counter()
            torch.mm(a, b, out=product)
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def _repeats(run: Run) -> int:
    run()
    start = time.perf_counter()
    run()
    return max(1, math.ceil(TURN_SECONDS / max(1e-7, time.perf_counter() - start)))


def _turn(run: Run, repeats: int) -> float:
    """Seconds for one call."""
    time.sleep(PAUSE_SECONDS)
    if repeats > 1:
        run()  # wakes the threads, fills the caches; a long call needs neither
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
