"""What torch's transforms cost, each in training steps of the same batch without it; docs/transforms.md lists them.

Nothing is timed before its values are those of the reference backend, the equations step by step.

    python benchmarks/transforms.py [--seconds 2] [--write PAGE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import alternate
from page import add_write, provenance, table, write_section
from stacks import Shape, demand_equal, open_stack
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

SHAPE = Shape(16, 128, 64, 64, 1)
MEMBERS = 4
BASE = "a training step"
# Of the largest value of each tensor: second derivatives go twice through all steps, low precision rounds on its own.
HIGHER, LOW = 1e-3, 5e-2
# As a GradScaler's: a gradient of one of 131,072 means is among float16's subnormal numbers, which have few digits.
LOSS_SCALE = 2.0**12


class Task:
    """A layer, a batch, and the mean of h, squared, as a loss of parameters and batch."""

    def __init__(self, shape: Shape, backend: str) -> None:
        self.model = open_stack(shape)
        self.model.backend = backend
        self.x = torch.randn(shape.batch, shape.steps, shape.input, generator=torch.Generator().manual_seed(1))

    @property
    def params(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.model.named_parameters()}

    def loss(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.model, params, (x,))[0].pow(2).mean()

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(self.model.parameters())))


Step = Callable[[], list[Tensor]]


def training(task: Task) -> Step:
    return lambda: task.gradients(task.model(task.x)[0].pow(2).mean())


def evaluation(task: Task) -> Step:
    task.model.eval()
    return training(task)


def by_func(task: Task) -> Step:
    return lambda: list(grad(task.loss)(task.params, task.x).values())


def penalty(task: Task) -> Step:
    def step() -> list[Tensor]:
        x = task.x.requires_grad_()
        loss = task.model(x)[0].pow(2).mean()
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return task.gradients(loss + 10 * (1e3 * slope.flatten(1).norm(dim=1) - 1).pow(2).mean())

    return step


def inner_step(task: Task) -> Step:
    def step() -> list[Tensor]:
        first = dict(task.model.named_parameters())
        slopes = torch.autograd.grad(task.loss(first, task.x), list(first.values()), create_graph=True)
        adapted = {name: w - 10 * slope for (name, w), slope in zip(first.items(), slopes, strict=True)}
        return task.gradients(task.loss(adapted, task.x.flip(0)))

    return step


def forward_mode(task: Task) -> Step:
    return lambda: list(jvp(lambda params: task.loss(params, task.x), (task.params,), (task.params,)))


def mapped_batches(task: Task) -> Step:
    batches = torch.stack([task.x] * MEMBERS)
    return lambda: task.gradients(vmap(task.loss, (None, 0))(dict(task.model.named_parameters()), batches).mean())


def per_sample(task: Task) -> Step:
    samples = task.x.unsqueeze(1)
    return lambda: list(vmap(grad(task.loss), (None, 0))(task.params, samples).values())


def ensemble(task: Task) -> Step:
    members = {name: value.detach() for name, value in stack_module_state([task.model] * MEMBERS)[0].items()}
    return lambda: list(vmap(grad(task.loss), (0, None))(members, task.x).values())


def checkpointed(task: Task) -> Step:
    return lambda: task.gradients(checkpoint(task.model, task.x, use_reentrant=False)[0].pow(2).mean())


def recomputed(task: Task) -> Step:
    task.model.recompute = True
    return training(task)


def autocast(task: Task) -> Step:
    def step() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = task.model(task.x)
        return task.gradients(output.float().pow(2).mean())

    return step


def of_dtype(dtype: torch.dtype) -> Callable[[Task], Step]:
    def way(task: Task) -> Step:
        task.model.to(dtype)
        x = task.x.to(dtype)

        def step() -> list[Tensor]:
            loss = LOSS_SCALE * task.model(x)[0].float().pow(2).mean()
            return [value.float() / LOSS_SCALE for value in task.gradients(loss)]

        return step

    return way


def weight_norm(task: Task) -> Step:
    parametrizations.weight_norm(task.model.layers[0], "W_hf")
    return training(task)


def exported(task: Task) -> Step:
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    program = torch.export.export(task.model, (task.x,), dynamic_shapes=({0: batch, 1: time},)).module()

    def step() -> list[Tensor]:
        loss = program(task.x)[0].pow(2).mean()
        return list(torch.autograd.grad(loss, list(program.parameters())))

    return step


# Each with how far it may be off the reference.
WAYS: dict[str, tuple[Callable[[Task], Step], float]] = {
    BASE: (training, HIGHER),
    "backward in `eval()`": (evaluation, HIGHER),
    "`torch.func.grad`": (by_func, HIGHER),
    "a gradient penalty": (penalty, HIGHER),
    "an inner step learned through (MAML)": (inner_step, HIGHER),
    "`jvp` in every parameter": (forward_mode, HIGHER),
    f"`vmap` over {MEMBERS} batches": (mapped_batches, HIGHER),
    "per-sample gradients, `vmap(grad)`": (per_sample, HIGHER),
    f"an ensemble of {MEMBERS}, `vmap(grad)`": (ensemble, HIGHER),
    "`torch.utils.checkpoint`": (checkpointed, HIGHER),
    "`recompute=True`": (recomputed, HIGHER),
    "autocast, bfloat16": (autocast, LOW),
    "float64 parameters": (of_dtype(torch.float64), HIGHER),
    "bfloat16 parameters": (of_dtype(torch.bfloat16), LOW),
    "float16 parameters": (of_dtype(torch.float16), LOW),
    "`weight_norm` on one gate": (weight_norm, HIGHER),
    "`torch.export`": (exported, HIGHER),
}


def steps(shape: Shape) -> dict[str, Step]:
    """Every way to its gradients, each on a layer of its own; exits unless all are those of the reference."""
    found = {}
    for name, (way, tolerance) in WAYS.items():
        found[name] = way(Task(shape, "auto"))
        # An exported graph of the reference would hold every step: its values are those of training.
        expected = (training if way is exported else way)(Task(shape, "reference"))
        demand_equal(shape, name, found[name](), expected(), tolerance)
    return found


def lines(shape: Shape, seconds: float) -> list[str]:
    times = {}
    for name, step in (ways := steps(shape)).items():
        pair = {BASE: ways[BASE], name: step}
        times[name] = alternate(pair, seconds=seconds)
        print(f"{name}: {times[name][name]}", flush=True)
    body = [
        [name, f"{each[name].median:.2f} ms", f"{each[name].median / each[BASE].median:.2f}"]
        for name, each in times.items()
    ]
    return [
        f"{shape}, float32 where nothing else is said; the gradients of all weights, of the mean of h squared.",
        "",
        *table(("transform", "time", "in training steps"), body),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each transform, at least")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance(), flush=True)
    made = lines(SHAPE, arguments.seconds)
    print(*made, sep="\n")
    if arguments.write:
        write_section(arguments.write, "transforms", made)


if __name__ == "__main__":
    main()
