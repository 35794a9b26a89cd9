"""torch.compile against eager calls: a training step and an inference of whole stacks, static and dynamic sizes.

A compiled call must give eager's outputs and gradients before it is timed. No slower than eager is what is promised:
a row misses it where the median of the turns' ratios is below 0.97, and the whole of its interval below 1.

    python benchmarks/compiled.py [--seconds 20] [--write PAGE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

import torch
from measure import Times, alternate, speed
from page import add_write, provenance, table, write_section
from stacks import Shape, demand_equal, gradients, open_stack
from torch import Tensor

from unrolled import MultiLayerLSTM

SHAPES = (Shape(16, 128, 64, 64, 1), Shape(32, 96, 16, 64, 2), Shape(32, 64, 65, 256, 2), Shape(32, 128, 512, 512, 2))
EAGER, STATIC, DYNAMIC = "eager", "compiled, static", "compiled, dynamic"
# What noise may take from a ratio of 1.
FLOOR = 0.97

Call = Callable[..., tuple[Tensor, object]]


def calls(model: MultiLayerLSTM) -> dict[str, Call]:
    """Dynamo keeps its graphs by function: two forms of one function would both run the one that was compiled first."""

    def static(x: Tensor) -> tuple[Tensor, object]:
        return model(x)

    def dynamic(x: Tensor) -> tuple[Tensor, object]:
        return model(x)

    return {
        EAGER: model,
        STATIC: torch.compile(static, fullgraph=True, dynamic=False),
        DYNAMIC: torch.compile(dynamic, fullgraph=True, dynamic=True),
    }


class Task:
    """One stack, its input and its cotangent; the gradients of all weights are taken, the input's is not."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.model = shape, open_stack(shape)
        self.x = torch.randn(shape.batch, shape.steps, shape.input)
        self.into_h = torch.randn(shape.batch, shape.steps, shape.hidden)

    def train(self, call: Call) -> list[Tensor]:
        self.model.zero_grad()
        h, _ = call(self.x)
        h.backward(self.into_h)
        return [h.detach()]

    @torch.no_grad()
    def infer(self, call: Call) -> list[Tensor]:
        return [call(self.x)[0]]


def check(task: Task, ways: Mapping[str, Call]) -> None:
    """Exit unless every way has eager's output, with and without gradients, and its gradients."""

    def results(call: Call) -> list[Tensor]:
        outputs = [*task.infer(call), *task.train(call)]
        return [*outputs, *gradients(task.model)]

    expected = results(ways[EAGER])
    for name in (STATIC, DYNAMIC):
        demand_equal(task.shape, name, results(ways[name]), expected)


def row(shape: Shape, seconds: float) -> tuple[list[list[str]], bool]:
    """The shape's two rows, and whether the compiled calls are no slower than eager ones."""
    torch._dynamo.reset()
    task = Task(shape)
    ways = calls(task.model)
    check(task, ways)
    rows, holds = [], True
    for kind, step in (("training", task.train), ("inference", task.infer)):
        runs = {name: lambda call=call, step=step: step(call) for name, call in ways.items()}
        times = alternate(runs, seconds=seconds / 2)
        rows.append([f"{shape}, {kind}", *cells(times)])
        holds = holds and met(times)
    return rows, holds


def cells(times: Mapping[str, Times]) -> list[str]:
    return [
        f"{times[EAGER].median:.2f} ms",
        *(f"{times[name].median:.2f} ms, {speed(times[EAGER], times[name])}" for name in (STATIC, DYNAMIC)),
    ]


def met(times: Mapping[str, Times]) -> bool:
    ratios = [speed(times[EAGER], times[name]) for name in (STATIC, DYNAMIC)]
    return all(ratio.median >= FLOOR or ratio.high >= 1 for ratio in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each shape, at least")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance(), flush=True)
    rows, holds = [], True
    for shape in SHAPES:
        made, good = row(shape, arguments.seconds)
        rows, holds = [*rows, *made], holds and good
    verdict = f"No slower than eager: {'holds' if holds else 'MISSED'}."
    lines = [*table(("batch x steps x input x hidden x layers", EAGER, STATIC, DYNAMIC), rows), "", verdict]
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "compiled", lines)
    sys.exit(not holds)


if __name__ == "__main__":
    main()
