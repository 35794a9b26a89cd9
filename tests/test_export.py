"""torch.export with dynamic batch and time: one program for every size, with eager's values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from worlds import KERNELS, dtype_of

from unrolled import LSTMState, MultiLayerLSTM

# Some hundred roundings: eager calls may take other products than a program holds.
NEAR = {torch.float64: 1e-12, torch.float32: 2e-5}
WIDTH, HIDDEN, LAYERS = 7, 4, 2
BATCH, TIME = Dim("batch"), Dim("time")
SIZES = ((2, 9), (1, 9), (4, 1), (1, 1), (3, 300), (4, 2))

# An export takes seconds: what one kernel shows in one way, the slow suite shows of the other and in the other way.
slow = pytest.mark.slow
strict_or_not = pytest.mark.parametrize(
    "strict", [pytest.param(False, id="not strict"), pytest.param(True, id="strict", marks=slow)]
)
kernels = pytest.mark.parametrize("kernel", [KERNELS[0], pytest.param(KERNELS[1], marks=slow)])
kinds = pytest.mark.parametrize("kind", ["floats", "ids"])


class Whole(nn.Module):
    """A stack with every argument and result as a plain tensor, which is what a deployed program takes."""

    def __init__(self, kernel: str, **options: Any) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, dtype=dtype_of(kernel), **options)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, resets: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        output, state = self.lstm(x, LSTMState(h, c), resets=resets, lengths=lengths)
        return output, state.h, state.c


class Gates(nn.Module):
    """A trained stack's insides, from x alone."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, dtype=dtype_of(kernel))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        trace = self.lstm.trace(x)
        return trace.output, *(getattr(layer, name) for layer in trace.layers for name in "hcifgo")


DYNAMIC = ({0: BATCH, 1: TIME}, {1: BATCH}, {1: BATCH}, {0: BATCH, 1: TIME}, {0: BATCH})


def batch(kernel: str, kind: str, rows: int, steps: int) -> tuple[Tensor, ...]:
    generator, dtype = torch.Generator().manual_seed(100 * rows + steps), dtype_of(kernel)
    x = torch.randn(rows, steps, WIDTH, generator=generator, dtype=dtype)
    if kind == "ids":
        x = torch.randint(WIDTH, (rows, steps), generator=generator)
    h, c = torch.randn(2, LAYERS, rows, HIDDEN, generator=generator, dtype=dtype)
    lengths = torch.randint(steps + 1, (rows,), generator=generator)
    lengths[:2] = torch.tensor([steps, 0])[:rows]
    return x, h, c, torch.rand(rows, steps, generator=generator) < 0.2, lengths


def exported(model: nn.Module, kernel: str, kind: str, strict: bool, steps: int = 5) -> ExportedProgram:
    return export(model, batch(kernel, kind, 3, steps), dynamic_shapes=DYNAMIC, strict=strict)


def assert_same(value: Tensor, exact: Tensor, what: str = "") -> None:
    near, scale = NEAR[exact.dtype], 1 + float(exact.detach().abs().max())
    torch.testing.assert_close(value, exact, rtol=near, atol=near * scale, msg=lambda text: f"{what}: {text}")


def operators(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """By the parameters' names and the inputs' places."""
    inputs = tuple(value.clone().requires_grad_() if value.is_floating_point() else value for value in inputs)
    model.zero_grad()
    sum(value.pow(3).sum() for value in model(*inputs)).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return grads | {str(k): value.grad for k, value in enumerate(inputs) if value.requires_grad}


@strict_or_not
@kinds
@kernels
def test_one_program_for_every_size_with_its_gradients(kernel: str, kind: str, strict: bool) -> None:
    model = Whole(kernel)
    program = exported(model, kernel, kind, strict)
    names = operators(program)
    assert names.count(f"unrolled.{kernel}.default") == LAYERS
    assert names.count("unrolled.product.default") == 0
    assert names.count("unrolled.checked_range.default") == LAYERS + (kind == "ids")
    module = program.module()
    for rows, steps in SIZES:
        inputs = batch(kernel, kind, rows, steps)
        for value, exact in zip(module(*inputs), model(*inputs), strict=True):
            assert_same(value, exact)
        ours, expected = gradients(module, inputs), gradients(model, inputs)
        assert ours.keys() == expected.keys()
        for name, exact in expected.items():
            assert_same(ours[name], exact, f"{name} at {rows} x {steps}")


@strict_or_not
@kernels
def test_the_program_does_not_grow_with_the_steps(kernel: str, strict: bool) -> None:
    model = Whole(kernel)
    short, long = (operators(exported(model, kernel, "floats", strict, steps)) for steps in (8, 512))
    assert short == long


@strict_or_not
@kernels
def test_the_gates_can_be_exported(kernel: str, strict: bool) -> None:
    model = Gates(kernel)
    x, *_ = batch(kernel, "floats", 3, 5)
    program = export(model, (x,), dynamic_shapes=({0: BATCH, 1: TIME},), strict=strict)
    x, *_ = batch(kernel, "floats", 2, 17)
    for value, exact in zip(program.module()(x), model(x), strict=True):
        assert_same(value, exact)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
@kernels
def test_decompositions_leave_the_operator_whole(kernel: str) -> None:
    model = Whole(kernel).eval()
    program = exported(model, kernel, "ids", False).run_decompositions()
    assert operators(program).count(f"unrolled.{kernel}.default") == LAYERS
    inputs = batch(kernel, "ids", 4, 11)
    for value, exact in zip(program.module()(*inputs), model(*inputs), strict=True):
        assert_same(value, exact)


@kernels
def test_a_program_without_gradients_stores_no_gates(kernel: str) -> None:
    model = Whole(kernel).eval()
    with torch.no_grad():
        program = exported(model, kernel, "floats", False)
        assert operators(program).count("unrolled.states.default") == (LAYERS if kernel == "cpu" else 0)
        for rows, steps in SIZES:
            inputs = batch(kernel, "floats", rows, steps)
            for value, exact in zip(program.module()(*inputs), model(*inputs), strict=True):
                assert_same(value, exact, f"{rows} x {steps}")


@kernels
def test_a_program_checks_ranges_too(kernel: str) -> None:
    module = exported(Whole(kernel), kernel, "ids", False).module()
    x, h, c, resets, _ = batch(kernel, "ids", 3, 6)
    with pytest.raises(IndexError, match="ids must be from 0 to 6, got 7"):
        module(torch.full_like(x, WIDTH), h, c, resets, torch.tensor([6, 1, 2]))
    with pytest.raises(ValueError, match="lengths must be from 0 to 6, got -1"):
        module(x, h, c, resets, torch.tensor([6, -1, 2]))


def test_the_reference_is_exported_as_equations() -> None:
    model = Whole("portable", backend="reference")
    rows_only = ({0: BATCH}, {1: BATCH}, {1: BATCH}, {0: BATCH}, {0: BATCH})
    program = export(model, batch("portable", "floats", 3, 4), dynamic_shapes=rows_only)
    assert {name for name in operators(program) if name.startswith("unrolled")} == {"unrolled.checked_range.default"}
    inputs = batch("portable", "floats", 6, 4)
    for value, exact in zip(program.module()(*inputs), model(*inputs), strict=True):
        assert_same(value, exact)
