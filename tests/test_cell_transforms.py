"""Cells with options under torch's transforms: mapped, compiled, checked as operators, bit for bit in strict mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CELLS, Shape, make, own_cell, run
from plain import layer_inputs, normal, redraw
from torch.func import functional_call, grad, vmap
from worlds import KERNELS, dtype_of, needs_library

from unrolled import LSTMLayer
from unrolled.recurrence import kernels, native, reference

F32, F64 = torch.float32, torch.float64
ALL: dict[str, Any] = {
    "peephole": True,
    "coupled": True,
    "cell_clip": 0.5,
    "gate_activation": "hard_sigmoid",
    "activation": "relu",
    "layer_norm": True,
}


def new_layer(backend: str) -> LSTMLayer:
    layer = redraw(LSTMLayer(5, 7, backend=backend, dtype=dtype_of(backend), **ALL))
    assert isinstance(layer, LSTMLayer)
    return layer


@pytest.mark.parametrize("backend", KERNELS)
def test_gradients_of_each_row_are_those_of_the_row_alone(backend: str) -> None:
    layer, x = new_layer(backend), normal(4, 9, 5, seed=1).to(dtype_of(backend))
    weight = normal(9, 7, seed=2).to(dtype_of(backend))
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(own: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        h, c = functional_call(layer, own, (row.unsqueeze(0),))
        return ((h + c) * weight).sum()

    mapped = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    near = 1e-11 if dtype_of(backend) == F64 else 1e-4
    for k in range(4):
        alone = grad(loss)(weights, x[k])
        for name, value in alone.items():
            torch.testing.assert_close(mapped[name][k], value, rtol=near, atol=near, msg=name)


@pytest.mark.parametrize("backend", KERNELS)
def test_members_of_an_ensemble_have_their_own_peepholes(backend: str) -> None:
    layers, x = [new_layer(backend) for _ in range(3)], normal(4, 9, 5, seed=1).to(dtype_of(backend))
    for k, layer in enumerate(layers):
        redraw(layer, seed=k)
    stacked = {
        name: torch.stack([dict(layer.named_parameters())[name].detach() for layer in layers])
        for name in dict(layers[0].named_parameters())
    }
    found = vmap(lambda own: functional_call(layers[0], own, (x,))[0])(stacked)
    for k, layer in enumerate(layers):
        near = 1e-11 if dtype_of(backend) == F64 else 1e-5
        torch.testing.assert_close(found[k], layer(x)[0].detach(), rtol=near, atol=near)


@pytest.mark.parametrize("backend", KERNELS)
def test_compiled_as_one_graph_it_trains_the_same(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    leaves = [*given.values(), *layer.parameters()]
    into = normal(4, 9, 7, seed=3).to(dtype_of(backend))

    def results(call: Any) -> list[torch.Tensor]:
        h, c = call(**given)
        return [h, c, *torch.autograd.grad((h * into).sum() + c.sum(), leaves)]

    torch._dynamo.reset()
    near = 1e-11 if dtype_of(backend) == F64 else 1e-4
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(results(compiled), results(layer), strict=True):
        torch.testing.assert_close(ours, eager, rtol=near, atol=near)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [CELLS[0], CELLS[-1]], ids="+".join)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_operators_pass_torchs_check(kernel: str, cell: tuple[str, ...]) -> None:
    case, dtype = make(Shape(3, 3, 2, 4, ("resets", "lengths"), cell=cell)), dtype_of(kernel)
    floats = {name: value.to(dtype).requires_grad_() for name, value in case.floats.items()}
    own = own_cell(case, dict(floats))
    pre = case.cotangents["gates"].transpose(0, 1).contiguous().to(dtype).requires_grad_()
    assert case.resets is not None
    masks = (case.resets.t(), case.lengths)
    arguments = (pre, floats["w_h"], floats["h0"], floats["c0"], *masks, None, *own)
    torch.library.opcheck(getattr(torch.ops.unrolled, kernel).default, arguments)
    with torch.no_grad():
        _, c, gates = reference.scan(*arguments[:6], None, own)
    cotangents = [torch.randn_like(value).requires_grad_() for value in (c, c, gates)]
    saved = (floats["w_h"], c.requires_grad_(), gates.requires_grad_(), floats["c0"])
    backward = getattr(torch.ops.unrolled, f"{kernel}_backward").default
    torch.library.opcheck(backward, (*cotangents, *saved, *masks, None, *own))


@needs_library
@pytest.mark.parametrize("cell", CELLS, ids="+".join)
def test_every_instruction_set_and_thread_count_has_the_same_numbers(cell: tuple[str, ...]) -> None:
    """The bits within a set; between sets what rounding differs in."""
    case = make(Shape(9, 11, 5, 37, ("resets", "lengths"), cell=cell))
    best = run("cpu", case, F32, strict=True)
    for name in native.instruction_sets():
        with kernels.instruction_set(name):
            torch.set_num_threads(1)
            alone = run("cpu", case, F32, strict=True)
            torch.set_num_threads(3)
            several = run("cpu", case, F32, strict=True)
        for key, value in alone.items():
            torch.testing.assert_close(value, best[key], rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
            if key in ("h", "c", "gates", "grad h0", "grad c0"):
                assert torch.equal(value, several[key]), f"{name}: {key}"
