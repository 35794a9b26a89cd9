"""The inference table: one step at a time with a carried state, and whole sequences, closed and open."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import peers
import torch
from measure import FEWEST_ROUNDS, Times, alternate, speed
from peers import Contender
from stacks import Shape, demand_equal, open_stack

from unrolled import BackendUnavailable, MultiLayerLSTM

CLOSED, ONNX, INT8, JAX = "nn.LSTM", "ONNX Runtime", "torch int8", "JAX scan"
OURS = ("float32", "bfloat16", "int8")
# Rows with the speed to reach, in multiples of nn.LSTM's: the time it took when the goal was set over the goal's.
GOALS: dict[Shape, dict[str, float]] = {
    Shape(1, 1, 256, 256, 2): {"float32": 0.450 / 0.042, "bfloat16": 0.450 / 0.018, "int8": 0.450 / 0.010},
    Shape(1, 1, 512, 512, 2): {"float32": 1.33 / 0.30, "bfloat16": 1.33 / 0.155, "int8": 1.33 / 0.045},
    Shape(1, 1, 1024, 1024, 2): {"float32": 4.60 / 1.18, "bfloat16": 4.60 / 0.62, "int8": 4.60 / 0.30},
    Shape(16, 1, 512, 512, 2): {"float32": 1.67 / 0.60, "int8": 1.67 / 0.25},
    Shape(256, 1, 512, 512, 2): {"float32": 8.03 / 7.0, "int8": 8.03 / 2.6},
    Shape(1, 512, 512, 512, 2): {"float32": 55.0 / 27, "bfloat16 or int8": 55.0 / 12},
    Shape(32, 128, 512, 512, 2): {"float32": 126 / 115},
}
HEADER = (
    "batch x steps x input x hidden x layers",
    CLOSED,
    ONNX,
    INT8,
    JAX,
    *[f"unrolled {precision}" for precision in OURS],
    f"share of peak: {CLOSED}, unrolled float32",
    "goal",
)
# Steps, each from the state of the one before, over which a stateful contender is compared.
CHECKED_STEPS = 8
NOT_INSTALLED, NEEDS_KERNEL, NOT_MEASURED = "not installed", "needs the native kernel", ""


def contenders(model: MultiLayerLSTM, shape: Shape) -> dict[str, Contender | str]:
    """By name; a string says why there is none.

    Single steps and single rows are a stepper's; a sequence of many rows is the module's, in float32 alone.
    """
    found: dict[str, Contender | str] = {
        CLOSED: peers.closed(model, shape),
        ONNX: peers.onnx_runtime(model, shape) or NOT_INSTALLED,
        INT8: peers.closed_int8(model, shape) or "not in this torch",
        JAX: peers.jax_scan(model, shape) or NOT_INSTALLED,
    }
    for precision in OURS:
        if shape.steps == 1 or shape.batch == 1:
            found[precision] = _or_why_not(lambda precision=precision: peers.stepper(model, shape, precision))
        else:
            found[precision] = peers.whole(model) if precision == "float32" else NOT_MEASURED
    return found


def _or_why_not(make: Callable[[], Contender]) -> Contender | str:
    try:
        return make()
    except BackendUnavailable:
        return NEEDS_KERNEL


def check(shape: Shape, contending: Mapping[str, Contender]) -> None:
    """Exit unless all compute the same h, each within its own tolerance, from a state of zeros on."""
    torch.manual_seed(1)
    for step in range(CHECKED_STEPS if shape.steps == 1 else 1):
        x = torch.randn(shape.batch, shape.steps, shape.input)
        found = {name: each.read(each.run(each.prepare(x))).clone() for name, each in contending.items()}
        for name, h in found.items():
            demand_equal(f"{shape}, call {step}", name, [h], [found[CLOSED]], contending[name].tolerance)


@torch.no_grad()
def row(
    shape: Shape,
    peak: float,
    *,
    goals: Mapping[str, float] | None = None,
    seconds: float = 6.0,
    rounds: int = FEWEST_ROUNDS,
) -> tuple[list[str], dict[str, Times]]:
    """The row's cells, and the times that they are made of. `peak`: float32 operations per second."""
    found = contenders(open_stack(shape).eval(), shape)
    contending = {name: each for name, each in found.items() if isinstance(each, Contender)}
    check(shape, contending)
    x = torch.randn(shape.batch, shape.steps, shape.input)
    prepared = {name: each.prepare(x) for name, each in contending.items()}
    runs = {name: (lambda run=each.run, x=prepared[name]: run(x)) for name, each in contending.items()}
    times = alternate(runs, seconds=seconds, rounds=rounds)
    ratios = {name: speed(times[CLOSED], each).median for name, each in times.items()}
    cells = [f"{times[CLOSED].median:.3g} ms"]
    for name, each in list(found.items())[1:]:
        timed = isinstance(each, Contender)
        cells.append(f"{times[name].median:.3g} ms, {ratios[name]:.2f}x" if timed else each)
    shares = [shape.forward_flops / (times[name].median * 1e-3) / peak for name in (CLOSED, "float32")]
    verdict = "; ".join(_verdict(name, goal, ratios) for name, goal in (goals or {}).items())
    return [str(shape), *cells, f"{shares[0]:.0%}, {shares[1]:.0%}", verdict], times


def _verdict(name: str, goal: float, ratios: Mapping[str, float]) -> str:
    reached = max((ratios.get(precision, 0.0) for precision in name.split(" or ")), default=0.0) >= goal
    return f"{name} {goal:.1f}x: {'reached' if reached else 'missed'}"
