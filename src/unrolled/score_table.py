"""Scores at the terminal: the tables."""

from __future__ import annotations

from collections.abc import Iterator

from .evaluate import BLOCK, Evaluation, PositionCurve, Score

_NAMES = 16


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
