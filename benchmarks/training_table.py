"""The training table: forward and backward pass of a whole stack, closed, as a loop over cells, and open."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from measure import FEWEST_ROUNDS, Times, alternate, speed
from stacks import Shape, cells, closed_stack, demand_equal, gradients, open_stack
from torch import Tensor, nn

from unrolled import MultiLayerLSTM

# Rows with the speed to reach, in multiples of nn.LSTM's.
GOALS = {
    Shape(16, 128, 64, 64, 1): 2.5,
    Shape(32, 96, 16, 64, 2): 2.3,
    Shape(32, 50, 128, 128, 2): 1.4,
    Shape(8, 128, 64, 256, 1): 1.4,
    Shape(32, 64, 65, 256, 2): 1.4,
    Shape(32, 128, 512, 512, 2): 1.2,
    Shape(50, 50, 65, 512, 3): 1.2,
    Shape(4, 1024, 128, 128, 1): 2.2,
}
CLOSED, LOOP, LOOP_RESETS = "nn.LSTM", "LSTMCell loop", "LSTMCell loop + resets"
OPEN, OPENED, PORTABLE = "unrolled", "unrolled, opened, + resets", "portable"
HEADER = (
    "batch x steps x input x hidden x layers",
    CLOSED,
    LOOP,
    LOOP_RESETS,
    OPEN,
    OPENED,
    PORTABLE,
    f"share of peak: {CLOSED}, {OPEN}",
    "goal",
)
# About the share of first steps of an episode or a document in real batches.
RESET_SHARE = 0.02


class Contender(NamedTuple):
    """`step` clears the gradients, goes forward and backward and returns the outputs; `model` has the gradients."""

    step: Callable[[], Sequence[Tensor]]
    model: nn.Module

    def results(self) -> list[Tensor]:
        return [*[output.detach() for output in self.step()], *gradients(self.model)]


class Task:
    """The weights, the inputs and the cotangents of one row, and every way to go through them.

    The input requires no gradient, as in a trainer that reads data; the gradients of all weights are taken.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape, self.model = shape, open_stack(shape)
        rows, steps, width, hidden, layers = shape
        self.x = torch.randn(rows, steps, width)
        self.resets = torch.rand(rows, steps) < RESET_SHARE
        self.into_h = torch.randn(rows, steps, hidden)
        self.into_c = [torch.randn(rows, steps, hidden) for _ in range(layers)]

    def closed(self) -> Contender:
        model = closed_stack(self.model)
        return self._on_h(model, lambda: model(self.x)[0])

    def loop(self, *, resets: bool) -> Contender:
        stack = cells(self.model)
        keep = (~self.resets).float().unsqueeze(-1)

        def forward() -> Tensor:
            zero = torch.zeros(self.shape.batch, self.shape.hidden)
            states = [(zero, zero)] * self.shape.layers
            outputs = []
            for t in range(self.shape.steps):
                below = self.x[:, t]
                for k, cell in enumerate(stack):
                    h, c = states[k]
                    if resets:
                        h, c = h * keep[:, t], c * keep[:, t]
                    states[k] = cell(below, (h, c))
                    below = states[k][0]
                outputs.append(below)
            return torch.stack(outputs, 1)

        return self._on_h(stack, forward)

    def open(self, backend: str, *, resets: bool = False) -> Contender:
        model = self._copy(backend)
        mask = self.resets if resets else None
        return self._on_h(model, lambda: model(self.x, resets=mask)[0])

    def opened(self, backend: str) -> Contender:
        """With resets and every h, c and gate at hand, and a loss that reaches h of the top and c of every layer."""
        model = self._copy(backend)

        def step() -> Sequence[Tensor]:
            _clear(model)
            trace = model.trace(self.x, resets=self.resets)
            cs = [layer.c for layer in trace.layers]
            torch.autograd.backward([trace.output, *cs], [self.into_h, *self.into_c])
            gates = [gate for layer in trace.layers for gate in (layer.i, layer.f, layer.g, layer.o)]
            return [trace.output, *cs, *gates]

        return Contender(step, model)

    def _copy(self, backend: str) -> MultiLayerLSTM:
        model = copy.deepcopy(self.model)
        model.backend = backend
        return model

    def _on_h(self, model: nn.Module, forward: Callable[[], Tensor]) -> Contender:
        def step() -> Sequence[Tensor]:
            _clear(model)
            h = forward()
            h.backward(self.into_h)
            return [h]

        return Contender(step, model)


def contenders(task: Task) -> dict[str, Contender]:
    return {
        CLOSED: task.closed(),
        LOOP: task.loop(resets=False),
        LOOP_RESETS: task.loop(resets=True),
        OPEN: task.open("auto"),
        OPENED: task.opened("auto"),
        PORTABLE: task.open("portable"),
    }


def check(task: Task, contending: dict[str, Contender]) -> None:
    """Exit unless all compute the same: outputs and the gradients of all weights.

    The opened one has no closed peer; the reference, which is held to `nn.LSTM` by the tests, stands in for one.
    """
    expected = contending[CLOSED].results()
    for name in (LOOP, OPEN, PORTABLE):
        demand_equal(task.shape, name, contending[name].results(), expected)
    with_resets = task.open("auto", resets=True).results()
    demand_equal(task.shape, LOOP_RESETS, contending[LOOP_RESETS].results(), with_resets)
    demand_equal(task.shape, OPENED, contending[OPENED].results(), task.opened("reference").results())


def row(
    shape: Shape, peak: float, *, goal: float | None = None, seconds: float = 8.0, rounds: int = FEWEST_ROUNDS
) -> tuple[list[str], dict[str, Times]]:
    """The row's cells, and the times that they are made of. `peak`: float32 operations per second."""
    task = Task(shape)
    contending = contenders(task)
    check(task, contending)
    times = alternate({name: each.step for name, each in contending.items()}, seconds=seconds, rounds=rounds)
    ratios = {name: speed(times[CLOSED], each).median for name, each in times.items()}
    cells = [f"{times[CLOSED].median:.2f} ms"]
    cells += [f"{times[name].median:.2f} ms, {ratios[name]:.2f}x" for name in list(contending)[1:]]
    shares = [shape.training_flops / (times[name].median * 1e-3) / peak for name in (CLOSED, OPEN)]
    met = [ratios[name] >= (goal or 0) for name in (OPEN, OPENED)]
    verdict = "" if goal is None else f"{goal:g}x: {'reached' if all(met) else 'missed'}"
    return [str(shape), *cells, f"{shares[0]:.0%}, {shares[1]:.0%}", verdict], times


def _clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None
