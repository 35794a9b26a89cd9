"""Per-sample gradients: Opacus' hooks on a stack of ours and on Opacus' own DPLSTM, and vmap(grad); time and memory.

All start from the same weights, and nothing is timed until the gradients of every row are equal.

    python benchmarks/per_sample.py [--seconds 8] [--write PAGE]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Times, alternate
from page import add_write, provenance, table, write_section
from stacks import GATES, Shape, closed_stack, demand_equal, open_stack
from torch import Tensor
from torch.func import functional_call, grad, vmap

SHAPES = (Shape(16, 64, 32, 64, 1), Shape(32, 64, 64, 128, 2), Shape(16, 128, 128, 256, 1))
DP, OURS, MAPPED, PLAIN = "Opacus' DPLSTM", "unrolled, Opacus' hooks", "unrolled, vmap(grad)", "unrolled, no privacy"
# Hooks and a summed backward pass against mapped ones: the order of the sums differs.
TOLERANCE = 5e-5

Step = Callable[[], list[Tensor]]


class Task:
    """One shape's weights and input, and every way to have the gradients of the sum of h, squared, of each row."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.model = shape, open_stack(shape)
        self.x = torch.randn(shape.batch, shape.steps, shape.input)

    def dp(self) -> Step:
        from opacus.grad_sample import GradSampleModule
        from opacus.layers import DPLSTM

        closed = closed_stack(self.model)
        twin = DPLSTM(self.shape.input, self.shape.hidden, self.shape.layers, batch_first=True)
        twin.load_state_dict(closed.state_dict())
        wrapped = GradSampleModule(twin, loss_reduction="sum")

        def step() -> list[Tensor]:
            wrapped.zero_grad()
            wrapped(self.x)[0].pow(2).sum().backward()
            own = dict(twin.named_parameters())
            found = []
            for k in range(self.shape.layers):
                w_x, w_h, bias = (own[f"{name}_l{k}"].grad_sample for name in ("weight_ih", "weight_hh", "bias_ih"))
                found += [w_x.mT, w_h.mT, bias]
            return found

        return step

    def hooked(self) -> Step:
        from opacus.grad_sample import GradSampleModule

        from unrolled.per_sample import prepare

        model = open_stack(self.shape)
        wrapped = GradSampleModule(prepare(model), loss_reduction="sum")

        def step() -> list[Tensor]:
            wrapped.zero_grad()
            wrapped(self.x)[0].pow(2).sum().backward()
            return self._packed({name: value.grad_sample for name, value in model.named_parameters()})

        return step

    def mapped(self) -> Step:
        params = {name: value.detach() for name, value in self.model.named_parameters()}

        def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, params, (x.unsqueeze(0),))[0].pow(2).sum()

        return lambda: self._packed(vmap(grad(loss), (None, 0))(params, self.x))

    def plain(self) -> Step:
        """The batch's gradient alone, as training without privacy takes it."""
        model = open_stack(self.shape)

        def step() -> list[Tensor]:
            model.zero_grad()
            model(self.x)[0].pow(2).sum().backward()
            return self._packed({name: value.grad for name, value in model.named_parameters()})

        return step

    def _packed(self, found: dict[str, Any]) -> list[Tensor]:
        """In torch's order of gates, layer by layer."""
        return [
            torch.cat([found[f"layers.{k}.{kind}{gate}"] for gate in GATES], -1)
            for k in range(self.shape.layers)
            for kind in ("W_x", "W_h", "b_")
        ]


WAYS: dict[str, Callable[[Task], Step]] = {DP: Task.dp, OURS: Task.hooked, MAPPED: Task.mapped, PLAIN: Task.plain}


def check(task: Task) -> None:
    """Exit unless all have the same gradients of every row, and these add up to the batch's."""
    expected = task.dp()()
    for name in (OURS, MAPPED):
        demand_equal(task.shape, name, WAYS[name](task)(), expected, TOLERANCE)
    demand_equal(task.shape, PLAIN, task.plain()(), [value.sum(0) for value in expected], TOLERANCE)


def times(shape: Shape, seconds: float) -> dict[str, Times]:
    task = Task(shape)
    check(task)
    return alternate({name: make(task) for name, make in WAYS.items()}, seconds=seconds)


def peak_megabytes(shape: Shape, name: str) -> float:
    """What three steps add to the peak of resident memory, in a process of its own (Linux: VmHWM)."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import per_sample as b; "
        f"print(b.added({tuple(shape)!r}, {name!r}, {torch.get_num_threads()}))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{shape}, {name}: {run.stderr}")
    return float(run.stdout.split()[-1])


def added(shape: tuple[int, ...], name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    # A first step at a tiny size loads what is loaded once.
    WAYS[name](Task(Shape(2, 2, 2, 2, 1)))()
    step = WAYS[name](Task(Shape(*shape)))
    before = _high_water()
    for _ in range(3):
        step()
    return _high_water() - before


def _high_water() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024 / 1e6


def row(shape: Shape, seconds: float, *, memory: bool) -> list[str]:
    taken = times(shape, seconds)
    cells = []
    for name, each in taken.items():
        added = f", {peak_megabytes(shape, name):.0f} MB" if memory else ""
        cells.append(f"{each.median:.1f} ms, {taken[DP].median / each.median:.1f}x{added}")
    return [str(shape), *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="for the times of each shape, at least")
    add_write(parser)
    arguments = parser.parse_args()
    if importlib.util.find_spec("opacus") is None:
        sys.exit("opacus is not installed: pip install 'unrolled[opacus]'")
    warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are computed")
    memory = Path("/proc/self/status").exists()
    print(*provenance(), flush=True)
    rows = [row(shape, arguments.seconds, memory=memory) for shape in SHAPES]
    lines = table(("batch x steps x input x hidden x layers", *WAYS), rows)
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "per_sample", lines)


if __name__ == "__main__":
    main()
