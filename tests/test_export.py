"""torch.export with dynamic batch and time: one program for every size, with eager's values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from unrolled import LSTMState, MultiLayerLSTM

F64 = torch.float64
WIDTH, HIDDEN, LAYERS = 7, 4, 2
BATCH, TIME = Dim("batch"), Dim("time")
SIZES = ((2, 9), (1, 9), (4, 1), (1, 1), (3, 300), (4, 2))

strict_or_not = pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
kinds = pytest.mark.parametrize("kind", ["floats", "ids"])


class Whole(nn.Module):
    """A stack with every argument and result as a plain tensor, which is what a deployed program takes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, dtype=F64, **options)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, resets: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        output, state = self.lstm(x, LSTMState(h, c), resets=resets, lengths=lengths)
        return output, state.h, state.c


class Gates(nn.Module):
    """A trained stack's insides, from x alone."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, dtype=F64)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        trace = self.lstm.trace(x)
        return trace.output, *(getattr(layer, name) for layer in trace.layers for name in "hcifgo")


DYNAMIC = ({0: BATCH, 1: TIME}, {1: BATCH}, {1: BATCH}, {0: BATCH, 1: TIME}, {0: BATCH})


def batch(kind: str, rows: int, steps: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(100 * rows + steps)
    x = torch.randn(rows, steps, WIDTH, generator=generator, dtype=F64)
    if kind == "ids":
        x = torch.randint(WIDTH, (rows, steps), generator=generator)
    h, c = torch.randn(2, LAYERS, rows, HIDDEN, generator=generator, dtype=F64)
    lengths = torch.randint(steps + 1, (rows,), generator=generator)
    lengths[:2] = torch.tensor([steps, 0])[:rows]
    return x, h, c, torch.rand(rows, steps, generator=generator) < 0.2, lengths


def exported(model: nn.Module, kind: str, strict: bool, steps: int = 5) -> ExportedProgram:
    return export(model, batch(kind, 3, steps), dynamic_shapes=DYNAMIC, strict=strict)


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
def test_one_program_for_every_size_with_its_gradients(kind: str, strict: bool) -> None:
    model = Whole()
    program = exported(model, kind, strict)
    names = operators(program)
    assert names.count("unrolled.portable.default") == LAYERS
    assert names.count("unrolled.checked_range.default") == LAYERS + (kind == "ids")
    module = program.module()
    for rows, steps in SIZES:
        inputs = batch(kind, rows, steps)
        for value, exact in zip(module(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
        ours, expected = gradients(module, inputs), gradients(model, inputs)
        assert ours.keys() == expected.keys()
        for name, exact in expected.items():
            torch.testing.assert_close(ours[name], exact, rtol=1e-12, atol=1e-12, msg=f"{name} at {rows} x {steps}")


@strict_or_not
def test_the_program_does_not_grow_with_the_steps(strict: bool) -> None:
    model = Whole()
    assert operators(exported(model, "floats", strict, 8)) == operators(exported(model, "floats", strict, 512))


@strict_or_not
def test_the_gates_can_be_exported(strict: bool) -> None:
    model = Gates()
    x, *_ = batch("floats", 3, 5)
    program = export(model, (x,), dynamic_shapes=({0: BATCH, 1: TIME},), strict=strict)
    x, *_ = batch("floats", 2, 17)
    for value, exact in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
def test_decompositions_leave_the_operator_whole() -> None:
    model = Whole().eval()
    program = exported(model, "ids", False).run_decompositions()
    assert operators(program).count("unrolled.portable.default") == LAYERS
    inputs = batch("ids", 4, 11)
    for value, exact in zip(program.module()(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)


def test_a_program_checks_ranges_too() -> None:
    module = exported(Whole(), "ids", False).module()
    x, h, c, resets, _ = batch("ids", 3, 6)
    with pytest.raises(IndexError, match="ids must be from 0 to 6, got 7"):
        module(torch.full_like(x, WIDTH), h, c, resets, torch.tensor([6, 1, 2]))
    with pytest.raises(ValueError, match="lengths must be from 0 to 6, got -1"):
        module(x, h, c, resets, torch.tensor([6, -1, 2]))


def test_the_reference_is_exported_as_equations() -> None:
    model = Whole(backend="reference")
    rows_only = ({0: BATCH}, {1: BATCH}, {1: BATCH}, {0: BATCH}, {0: BATCH})
    program = export(model, batch("floats", 3, 4), dynamic_shapes=rows_only)
    assert not any("portable" in name for name in operators(program))
    inputs = batch("floats", 6, 4)
    for value, exact in zip(program.module()(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
