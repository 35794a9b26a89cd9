"""Scores at the terminal: how far they are, and the tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TextIO

from .evaluate import BLOCK, Evaluation, PositionCurve, Score

_NAMES = 16
# On a terminal a line that changes, elsewhere a new line now and then, and only where it takes long.
_FIRST_SECONDS, _REFRESH_SECONDS, _PLAIN_SECONDS, _WIDTH = 1.5, 0.2, 5.0, 72


def score_table(evaluation: Evaluation) -> str:
    """Both scores and, where there are bars, what counting reaches on the same tokens; a line each."""
    lines = [
        f"{'':{_NAMES}}  {'nats':>8}  {'bits per byte':>13}  {'perplexity':>10}  {'tokens':>11}",
        score_line("model, stateful", evaluation.stateful),
        score_line("model, blocks", evaluation.blocks),
    ]
    bars = evaluation.bars
    if bars is not None:
        lines += [score_line("unigram", bars.unigram), score_line(f"{bars.order}-gram", bars.ngram)]
    lines.append(f"nats: mean of a token; stateful: state carried over the text; blocks: {BLOCK} tokens from zeros")
    if bars is not None:
        of = f"the last {bars.counted:,} of {bars.tokens:,}" if bars.counted < bars.tokens else f"{bars.tokens:,}"
        lines.append(f"unigram, {bars.order}-gram: counted in the training text ({of} tokens), modified Kneser-Ney")
        if evaluation.stateful.nats >= bars.ngram.nats:
            lines.append(f"This model predicts no better than counting {bars.order} tokens in a row does.")
    return "\n".join(lines)


def score_line(name: str, score: Score) -> str:
    """One row of the table."""
    numbers = f"{score.nats:8.4f}  {score.bits_per_byte:13.4f}  {score.perplexity:10.4g}  {score.tokens:11,}"
    return f"{name:{_NAMES}}  {numbers}"


def position_table(curve: PositionCurve) -> str:
    """Mean nats by the place in a block, places 1, 2, 3 to 4, 5 to 8 and so on, each line twice as wide as the last."""
    lines = [f"{'place in block':{_NAMES}}  {'warm':>8}  {'cold':>8}  {'tokens':>11}"]
    for first, last in _octaves(len(curve.tokens)):
        here = slice(first - 1, last)
        tokens = int(curve.tokens[here].sum())
        if tokens:
            some = curve.tokens[here] > 0
            warm, cold = ((kind[here][some] @ curve.tokens[here][some]) / tokens for kind in (curve.warm, curve.cold))
            place = str(first) if first == last else f"{first} to {last}"
            lines.append(f"{place:{_NAMES}}  {warm:8.4f}  {cold:8.4f}  {tokens:11,}")
    lines.append("the same tokens twice, mean nats; warm: state carried from before the block; cold: from zeros")
    return "\n".join(lines)


def _octaves(length: int) -> Iterator[tuple[int, int]]:
    last = 0
    while last < length:
        first, last = last + 1, min(max(1, 2 * last), length)
        yield first, last


class Ticker:
    """One line on `stream` that says how far something is; gone when it is left, Ctrl-C included."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._next, self._shown = time.monotonic() + _FIRST_SECONDS, False

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, what: str, done: int, of: int) -> None:
        """A `Progress`."""
        if time.monotonic() < self._next:
            return
        line = f"{what}: {done / of:.0%}"
        self._stream.write(f"\r{line[:_WIDTH]:{_WIDTH}}" if self._terminal else f"{line}\n")
        self._stream.flush()
        self._next, self._shown = time.monotonic() + (_REFRESH_SECONDS if self._terminal else _PLAIN_SECONDS), True

    def clear(self) -> None:
        """Make room for what is printed."""
        if self._shown and self._terminal:
            self._stream.write(f"\r{'':{_WIDTH}}\r")
            self._stream.flush()
        self._shown = False
