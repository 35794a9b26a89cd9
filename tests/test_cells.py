"""The options of a cell on every backend, against the reference in float64, and that against plain autograd."""

from __future__ import annotations

import pytest
import torch
from cases import CELLS, OUTPUTS, PROJECTED, VARIANTS, Case, Shape, make, own_cell, run
from tolerance import assert_close
from worlds import KERNELS, needs_library

from unrolled.recurrence import Cell, reference, scan
from unrolled.recurrence.cell import PLAIN, TENSORS

F32, F64 = torch.float32, torch.float64


def named(shape: Shape) -> str:
    return shape.name


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", VARIANTS, ids=named)
@pytest.mark.parametrize("backend", KERNELS)
def test_within_twice_the_error_of_plain_torch(backend: str, shape: Shape) -> None:
    """The largest errors of four draws: of one alone, plain torch's may be a lucky one."""
    draws = [make(shape, seed) for seed in range(4)]

    def runs(backend: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        found = [run(backend, case, dtype) for case in draws]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]}

    exact, plain = runs("reference", F64), runs("reference", F32)
    for name, value in runs(backend, F32).items():
        assert_close(value, plain[name], exact[name], name)


@pytest.mark.parametrize("cell", CELLS, ids="+".join)
def test_with_a_projection(cell: tuple[str, ...]) -> None:
    case = make(Shape(6, 13, 3, 9, ("resets", "lengths"), proj=4, cell=cell))
    exact, ours = run("reference", case, F64), run("portable", case, F64)
    for name, value in ours.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-11, msg=name)


def plain_loop(case: Case) -> tuple[torch.Tensor, ...]:
    """The equations on their page, a step at a time, with torch's functions; no masks."""
    floats = {name: value.clone().requires_grad_() for name, value in case.floats.items()}
    x, h, c = floats["x"], floats["h0"], floats["c0"]
    p_i, p_f, p_o = floats.get("peephole", torch.zeros(3, c.shape[1], dtype=F64))
    # torch's own hardsigmoid has the slope of a float32's 1/6 in float64 too.
    gains, shifts = floats.get("norm", torch.zeros(2, 5, 0, dtype=F64))

    def normed(values: torch.Tensor, which: slice | int) -> torch.Tensor:
        if "norm" not in floats:
            return values
        standard = torch.nn.functional.layer_norm(values, values.shape[-1:])
        return standard * gains[which] + shifts[which]

    gate = (lambda v: (v / 6 + 0.5).clamp(0, 1)) if case.cell.hard_gates else torch.sigmoid
    squash = torch.relu if case.cell.relu else torch.tanh
    results: dict[str, list[torch.Tensor]] = {name: [] for name in OUTPUTS}
    for t in range(x.shape[1]):
        pre = torch.einsum("bi,igh->bgh", x[:, t], floats["w_x"]) + torch.einsum("bj,jgh->bgh", h, floats["w_h"])
        i, f, g, o = normed(pre + floats["bias"], slice(0, 4)).unbind(1)
        i, f, g = gate(i + p_i * c), gate(f + p_f * c), squash(g)
        c = f * c + i * g
        if case.cell.clip:
            c = c.clamp(-case.cell.clip, case.cell.clip)
        o = gate(o + p_o * c)
        h = o * squash(normed(c, 4))
        for name, value in zip(OUTPUTS, (h, c, torch.stack([i, f, g, o], 1)), strict=True):
            results[name].append(value)
    stacked = {name: torch.stack(values, 1) for name, values in results.items()}
    loss = sum((stacked[name] * case.cotangents[name]).sum() for name in OUTPUTS)
    grads = torch.autograd.grad(loss, list(floats.values()))
    return {**stacked, **{f"grad {name}": grad for name, grad in zip(floats, grads, strict=True)}}


@pytest.mark.parametrize("cell", CELLS, ids="+".join)
@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_equals_autograd_through_the_plain_equations(backend: str, cell: tuple[str, ...]) -> None:
    case = make(Shape(4, 11, 5, 6, cell=cell))
    expected, ours = plain_loop(case), run(backend, case, F64)
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("cell", CELLS, ids="+".join)
def test_each_option_changes_what_comes_out(cell: tuple[str, ...]) -> None:
    case = make(Shape(4, 11, 5, 6, cell=cell))
    with_it = run("reference", case, F64)
    own_cell(case, case.floats)
    without = run("reference", Case(case.name, case.floats, case.cotangents), F64)
    assert not torch.allclose(with_it["h"], without["h"], atol=1e-3)


@pytest.mark.parametrize("cell", CELLS, ids="+".join)
@pytest.mark.parametrize("masks", [(), ("resets", "lengths")], ids=["whole", "masked"])
def test_hand_written_backward_equals_autograd(cell: tuple[str, ...], masks: tuple[str, ...]) -> None:
    case = make(Shape(5, 9, 3, 7, masks, cell=cell))
    pre = torch.randn(9, 5, 4, 7, dtype=F64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    h0, c0 = (case.floats[name].clone().requires_grad_() for name in ("h0", "c0"))
    of_cell = {name: case.floats[name].clone().requires_grad_() for name in TENSORS if name in case.floats}
    own = case.cell._replace(**of_cell)
    given = (None if case.resets is None else case.resets.t(), case.lengths, None, own)
    h, c, gates = reference.scan(pre, case.floats["w_h"], h0, c0, *given)
    cotangents = [case.cotangents[name].transpose(0, 1) for name in OUTPUTS]
    # Those of the sums, which come with every second derivative.
    more = torch.randn(gates[:, :, 4:].shape, dtype=F64, generator=torch.Generator().manual_seed(2))
    cotangents[2] = torch.cat([cotangents[2], more], 2)
    loss = sum((out * cot).sum() for out, cot in zip((h, c, gates), cotangents, strict=True))
    expected = torch.autograd.grad(loss, (pre, h0, c0, *of_cell.values()))
    weights = (case.floats["w_h"], c.detach(), gates.detach(), c0.detach())
    *found, of_rows, _ = (value.detach() for value in reference.scan_backward(*cotangents, *weights, *given))
    planes = {"norm": slice(0, 10), "peephole": slice(-3, None)}
    found += [of_rows.sum(0)[planes[name]].reshape(of_cell[name].shape) for name in of_cell]
    for name, ours, theirs in zip(("pre", "h0", "c0", *of_cell), found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("cell", CELLS, ids="+".join)
@pytest.mark.parametrize("backend", [pytest.param("portable", marks=pytest.mark.slow), "reference"])
def test_gradients_by_finite_differences(backend: str, cell: tuple[str, ...]) -> None:
    case = make(Shape(2, 3, 1, 2, ("resets",), cell=cell))
    names = list(case.floats)

    def function(*floats: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arguments = dict(zip(names, floats, strict=True))
        own = own_cell(case, arguments)
        scanned = scan(
            arguments.pop("x"), **arguments, resets=case.resets, lengths=case.lengths, cell=own, backend=backend
        )
        return scanned.h, scanned.c, scanned.gates

    inputs = [case.floats[name].clone().requires_grad_() for name in names]
    # Entry by entry the ten more numbers of a unit would take ten seconds each time; so, along random directions.
    fast = "norm" in cell
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=backend == "reference", fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


@needs_library
@pytest.mark.parametrize("cell", CELLS, ids="+".join)
def test_second_order_of_the_native_kernel(cell: tuple[str, ...]) -> None:
    case = make(Shape(3, 6, 3, 5, ("resets",), cell=cell))

    def penalty(backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
        floats = {name: value.to(dtype).requires_grad_() for name, value in case.floats.items()}
        arguments = dict(floats)
        own = own_cell(case, arguments)
        h = scan(arguments.pop("x"), **arguments, resets=case.resets, cell=own, backend=backend).h
        grads = torch.autograd.grad(
            (h * case.cotangents["h"].to(dtype)).sum(), list(floats.values()), create_graph=True
        )
        return list(torch.autograd.grad(sum(grad.square().sum() for grad in grads), list(floats.values())))

    for ours, plain, exact in zip(
        penalty("cpu", F32), penalty("reference", F32), penalty("reference", F64), strict=True
    ):
        assert_close(ours, plain, exact, "second order")


@pytest.mark.parametrize("backend", KERNELS)
def test_nan_is_no_number_for_any_function(backend: str) -> None:
    case = make(Shape(2, 3, 1, 5, cell=CELLS[-1]))
    dtype = F32 if backend == "cpu" else F64
    arguments = {name: value.to(dtype) for name, value in case.floats.items()}
    own = own_cell(case, arguments)
    arguments["x"][0, 1] = float("nan")
    scanned = scan(**arguments, cell=own, backend=backend)
    for value in (scanned.h, scanned.c, scanned.gates):
        assert torch.isnan(value[0, 1:]).all()
        assert torch.isfinite(value[1]).all()
        assert torch.isfinite(value[0, 0]).all()


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_where_c_reaches_its_bound_no_gradient_passes(backend: str) -> None:
    dtype = F32 if backend == "cpu" else F64
    pre = torch.tensor([9.0, 9.0, 9.0, 9.0], dtype=dtype).reshape(4, 1)
    x = torch.ones(1, 1, 1, dtype=dtype)
    w_x = pre.unsqueeze(0).clone().requires_grad_()
    weights = (torch.zeros(1, 4, 1, dtype=dtype), torch.zeros(4, 1, dtype=dtype))
    state = (torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype, requires_grad=True))
    scanned = scan(x, w_x, *weights, *state, cell=Cell(clip=1.5), backend=backend)
    assert scanned.c.item() == 1.5
    grads = torch.autograd.grad(scanned.h.sum(), (w_x, state[1]))
    assert grads[0].flatten()[:3].tolist() == [0, 0, 0]
    assert grads[0].flatten()[3] > 0
    assert grads[1].item() == 0


def test_hard_gates_are_torchs() -> None:
    x = torch.tensor([-1e30, -3.5, -3, -2.9, 0, 0.1, 3, 4, 1e30])
    torch.testing.assert_close(Cell(hard_gates=True).gate(x), torch.nn.functional.hardsigmoid(x), rtol=0, atol=1e-7)


def test_a_plain_cell_is_the_default() -> None:
    assert Cell(None, 0.0, False, False) == PLAIN
    assert {shape.cell for shape in (*VARIANTS, *PROJECTED)} == {(), *CELLS}
