"""Training end to end: the same Trainer on the open stack and on nn.LSTM, block by block in turns.

The configuration is the recorded one of docs/results.md, two layers of 256, without dropout: then both compute the
same, and their loss curves are compared first. What counts is how much faster a whole step is; also printed is which
share of it the LSTM takes.

    python benchmarks/trainer.py [--text FILE] [--steps N] [--write PAGE]

Exits 1 where the curves part, and where the native kernel misses the goal.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import torch
from measure import Run, Times, alternate, summary
from page import add_write, provenance, table, write_section
from stacks import closed_stack
from torch import Tensor, nn

from unrolled import (
    Corpus,
    LSTMState,
    MultiLayerLSTM,
    Started,
    StepDone,
    TrainConfig,
    Trainer,
    backends,
    read_corpus,
)
from unrolled.beginning import fresh
from unrolled.events import Event

OPEN, CLOSED = "unrolled", "nn.LSTM"
# In turns of so many steps the two trainers advance: long enough to run warm, short enough to share all noise.
BLOCK = 10
CURVE_STEPS, CURVE_TOLERANCE = 200, 1e-3
GOAL = 1.2


class ClosedStack(nn.Module):
    """nn.LSTM and a projection, called as a MultiLayerLSTM is, with the weights of one. For this comparison only.

    nn.LSTM adds two biases, and an optimiser would move both: twice the step. The second one stays at zero.
    """

    def __init__(self, opened: MultiLayerLSTM) -> None:
        super().__init__()
        self.lstm, self.proj = closed_stack(opened), copy.deepcopy(opened.proj)
        for name, parameter in self.lstm.named_parameters():
            parameter.requires_grad_("bias_hh" not in name)

    def forward(
        self,
        x: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        # Where a lane begins with the document, its reset at step 0 changes nothing: the state is zeros already.
        if lengths is not None or (resets is not None and (state is not None or bool(resets[:, 1:].any()))):
            sys.exit("nn.LSTM can neither reset nor end a row: compare on a text that is one document")
        h, after = self.lstm(x, None if state is None else tuple(state))
        return h if self.proj is None else self.proj(h), LSTMState(*after)


class Side(NamedTuple):
    """One of the two trainers, in the middle of its run, with the seconds and the loss of each step so far."""

    trainer: Trainer
    events: Generator[Event]
    seconds: list[float]
    losses: list[float]

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            start = time.perf_counter()
            event = next(event for event in self.events if isinstance(event, StepDone))
            self.seconds.append(time.perf_counter() - start)
            self.losses.append(event.loss)


def recorded(files: tuple[str, ...], out: str) -> TrainConfig:
    """The configuration of docs/results.md, two layers of 256, without dropout and with no stop on the way."""
    never = 10**9
    return TrainConfig(
        files=files,
        out=out,
        tokens="char",
        split=(0.9, 0.1),
        epochs=20,
        dropout=0.0,
        ema=0.998,
        seed=1,
        eval_every=never,
        save_every=never,
        quiet=True,
    )


def side(config: TrainConfig, corpus: Corpus, *, closed: bool) -> Side:
    model = fresh(config, corpus.tokenizer.size)
    if closed:
        model.lstm = ClosedStack(model.lstm)
    trainer = Trainer(config, corpus, model)
    events = trainer.run()
    assert isinstance(next(events), Started)
    return Side(trainer, events, [], [])


def race(sides: dict[str, Side], steps: int) -> None:
    """`steps` steps of each, in turns of a block, the one that begins changing every time."""
    order = list(sides.values())
    for done in range(0, steps, BLOCK):
        for each in order:
            each.advance(min(BLOCK, steps - done))
        order.reverse()


def demand_one_curve(sides: dict[str, Side]) -> float:
    """The largest difference of two losses in the first steps; exit where it is more than rounding makes it."""
    ours, theirs = (sides[name].losses[:CURVE_STEPS] for name in (OPEN, CLOSED))
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if not apart <= CURVE_TOLERANCE:
        sys.exit(
            f"the loss curves come {apart:.2g} nats apart in {len(ours)} steps, and at most {CURVE_TOLERANCE:g} is "
            "rounding; the two do not train the same, so their times are not compared"
        )
    return apart


def lstm_times(sides: dict[str, Side], *, seconds: float) -> dict[str, Times]:
    """Forward and backward pass of each stack alone, without embedding and projection, on inputs of a step's shape."""

    def passes(stack: nn.Module, x: Tensor, into_h: Tensor) -> Run:
        parameters = [x, *stack.parameters()]

        def run() -> None:
            for parameter in parameters:
                parameter.grad = None
            stack(x)[0].backward(into_h)

        return run

    runs = {}
    for name, each in sides.items():
        stack, config = copy.deepcopy(each.trainer.model.lstm), each.trainer.config
        stack.proj = None
        x = torch.randn(config.lanes, config.window, config.embedding, requires_grad=True)
        into_h = torch.randn(config.lanes, config.window, config.hidden)
        runs[name] = passes(stack, x, into_h)
    return alternate(runs, seconds=seconds)


def report(sides: dict[str, Side], apart: float, lstm: dict[str, Times]) -> tuple[list[str], float]:
    """The page's lines, and how many times as fast as with nn.LSTM a step is."""
    step = {name: summary(each.seconds) for name, each in sides.items()}
    ratio = step[CLOSED].median / step[OPEN].median
    config, tokens = sides[OPEN].trainer.config, sides[OPEN].trainer.corpus.sizes["train"]
    text = ", ".join(Path(file).name for file in config.files) or "the built-in text"
    rows = [
        [
            name,
            f"{step[name].median:.1f} ms",
            f"{step[name].p20:.1f} to {step[name].p80:.1f} ms",
            f"{config.lanes * config.window / step[name].median * 1e3:,.0f}",
            f"{lstm[name].median:.1f} ms, {lstm[name].median / step[name].median:.0%}",
        ]
        for name in (OPEN, CLOSED)
    ]
    header = ("stack", "a step", "p20 to p80", "tokens per second", "of it the LSTM, forward and backward")
    verdict = "reached" if ratio >= GOAL else "missed"
    return [
        f"{config.layers} layers of {config.hidden}, embedding {config.embedding}, {config.lanes} lanes x "
        f"{config.window}, AdamW, no dropout; {len(sides[OPEN].seconds)} steps of each on {text}, {tokens:,} tokens.",
        "",
        *table(header, rows),
        "",
        f"End to end {ratio:.2f}x (goal {GOAL}x: {verdict}); the LSTM alone "
        f"{lstm[CLOSED].median / lstm[OPEN].median:.2f}x. Loss curves at most {apart:.1g} nats apart over "
        f"{min(CURVE_STEPS, len(sides[OPEN].losses))} steps.",
    ], ratio


def compare(config: TrainConfig, corpus: Corpus, *, steps: int, seconds: float = 5.0) -> tuple[list[str], float]:
    """Race the two sides; the page's lines, and the ratio. Runs are written below `config.out`."""
    sides = {
        name: side(
            TrainConfig.from_dict({**config.as_dict(), "out": f"{config.out}/{name}"}), corpus, closed=name == CLOSED
        )
        for name in (OPEN, CLOSED)
    }
    if steps > (most := sides[OPEN].trainer.steps):
        sys.exit(
            f"the recorded run of {config.epochs:g} epochs is {most} steps on this text; give at most --steps {most}"
        )
    race(sides, steps)
    for each in sides.values():
        each.events.close()
    return report(sides, demand_one_curve(sides), lstm_times(sides, seconds=seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="what to train on; without it, the built-in text")
    parser.add_argument("--steps", type=int, default=CURVE_STEPS, help="of each side")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance())
    with tempfile.TemporaryDirectory() as out:
        config = recorded((str(arguments.text),) if arguments.text else (), out)
        corpus = read_corpus(config.files, tokens=config.tokens, split=config.split)
        lines, ratio = compare(config, corpus, steps=arguments.steps)
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "trainer", lines)
    if ratio < GOAL and backends().backend == "cpu":
        sys.exit(f"the native kernel is to make a step of training {GOAL}x as fast as nn.LSTM does")


if __name__ == "__main__":
    main()
