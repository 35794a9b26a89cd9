"""Every fused backend against the reference in float64: outputs, gates and all gradients, on a grid of cases."""

from __future__ import annotations

import pytest
import torch
from cases import OUTPUTS, PROJECTED, SHAPES, Case, Shape, make, run
from tolerance import assert_close
from worlds import KERNELS, dtype_of, needs_library

from unrolled.recurrence import scan

F32, F64 = torch.float32, torch.float64
# Sizes at which sums are long, blocks many, and threads share units as well as rows.
LARGE = (
    Shape(50, 30, 65, 100),
    Shape(2, 10, 1024, 1024),
    pytest.param(Shape(8, 40, 512, 512), marks=pytest.mark.slow),
)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("backend", KERNELS)
def test_within_twice_the_error_of_plain_torch(backend: str, shape: Shape) -> None:
    case = make(shape)
    exact, plain, fast = run("reference", case, F64), run("reference", case, F32), run(backend, case, F32)
    assert fast.keys() == exact.keys()
    for name, value in fast.items():
        assert_close(value, plain[name], exact[name], name)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    ("shape", "outputs"),
    # A single number may be exact in plain torch by luck: losses on some outputs are of larger ones.
    [*((shape, OUTPUTS) for shape in PROJECTED), *((PROJECTED[-3], (name,)) for name in OUTPUTS)],
    ids=lambda value: value.name if isinstance(value, Shape) else "+".join(value),
)
@pytest.mark.parametrize("backend", KERNELS)
def test_a_projection_within_twice_the_error_of_plain_torch(
    backend: str, shape: Shape, outputs: tuple[str, ...]
) -> None:
    case = make(shape)
    exact, plain = (run("reference", case, dtype, outputs) for dtype in (F64, F32))
    fast = run(backend, case, F32, outputs)
    assert "grad w_hr" in fast
    for name, value in fast.items():
        assert_close(value, plain[name], exact[name], name)


@pytest.mark.parametrize("shape", LARGE, ids=lambda s: s.name)
@pytest.mark.parametrize("backend", KERNELS)
def test_large_ones_are_within_twice_the_error_of_plain_torch(backend: str, shape: Shape) -> None:
    if (backend, shape.hidden) == ("portable", 1024):
        pytest.skip("torch's product of two rows with [4096, 1024] adds in order, with the transposed one in parts")
    case = make(shape)
    exact, plain, fast = run("reference", case, F64), run("reference", case, F32), run(backend, case, F32)
    for name, value in fast.items():
        assert_close(value, plain[name], exact[name], name)


@needs_library
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", [*SHAPES[:6], *SHAPES[-6:], LARGE[0]], ids=lambda s: s.name)
def test_strict_mode_is_as_near(shape: Shape) -> None:
    case = make(shape)
    exact, plain = run("reference", case, F64), run("reference", case, F32)
    for name, value in run("cpu", case, F32, strict=True).items():
        assert_close(value, plain[name], exact[name], name)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("outputs", [("h",), ("c",), ("gates",), ("h", "c")], ids="+".join)
@pytest.mark.parametrize("shape", [Shape(3, 11, 4, 6), Shape(5, 9, 4, 6, ("resets", "lengths"))], ids=lambda s: s.name)
@pytest.mark.parametrize("backend", KERNELS)
def test_a_loss_on_some_outputs_alone(backend: str, shape: Shape, outputs: tuple[str, ...]) -> None:
    case = make(shape, seed=2)
    exact, plain = (run("reference", case, dtype, outputs) for dtype in (F64, F32))
    for name, value in run(backend, case, F32, outputs).items():
        assert_close(value, plain[name], exact[name], name)


@pytest.mark.parametrize("proj", [0, 5])
def test_float64_agrees_to_its_own_rounding(proj: int) -> None:
    case = make(Shape(4, 21, 5, 12, ("resets", "lengths"), proj), seed=3)
    exact, ours = run("reference", case, F64), run("portable", case, F64)
    for name, value in ours.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("backend", KERNELS)
def test_non_contiguous_arguments(backend: str) -> None:
    case = make(Shape(4, 9, 6, 8, ("resets",)), seed=4)
    spread = {name: _spread(value) for name, value in case.floats.items()}
    assert not any(value.is_contiguous() for value in spread.values())
    dtype = dtype_of(backend)
    # What lies otherwise may be summed otherwise: some hundred roundings.
    near = 100 * torch.finfo(dtype).eps
    expected = run(backend, case, dtype)
    got = run(backend, Case(case.name, spread, case.cotangents, resets=case.resets.t().contiguous().t()), dtype)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=near, atol=near, msg=name)


@pytest.mark.parametrize("backend", KERNELS)
def test_nan_stays_in_its_row_and_stops_at_a_reset(backend: str) -> None:
    case = make(Shape(3, 8, 4, 5), seed=5)
    floats = {name: value.to(dtype_of(backend), copy=True) for name, value in case.floats.items()}
    floats["x"][1, 2] = float("nan")
    resets = torch.zeros(3, 8, dtype=torch.bool)
    resets[1, 5] = True
    h = scan(**floats, resets=resets, backend=backend).h
    assert torch.isnan(h[1, 2:5]).all()
    for whole in (h[[0, 2]], h[1, :2], h[1, 5:]):
        assert torch.isfinite(whole).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_infinity_saturates_and_nan_propagates(backend: str) -> None:
    for wild in (float("inf"), float("-inf"), float("nan"), 1e30, -1e30):
        case = make(Shape(1, 3, 1, 2), seed=6)
        dtype = dtype_of(backend)
        floats = {name: value.to(dtype) for name, value in case.floats.items()}
        floats["x"] = torch.full((1, 3, 1), wild, dtype=dtype)
        ours, exact = (scan(**floats, backend=name) for name in (backend, "reference"))
        near = 10 * torch.finfo(dtype).eps
        for name in OUTPUTS:
            torch.testing.assert_close(getattr(ours, name), getattr(exact, name), equal_nan=True, rtol=near, atol=near)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_same_call_gives_the_same_bits(backend: str) -> None:
    case = make(Shape(17, 12, 31, 65), seed=7)
    first, second = run(backend, case, F32), run(backend, case, F32)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("backend", KERNELS)
def test_inputs_and_trace_are_never_written(backend: str) -> None:
    case = make(Shape(4, 10, 5, 8, ("resets", "lengths")), seed=8)
    given = {name: value.to(dtype_of(backend)) for name, value in case.floats.items()}
    cotangents = {name: value.to(dtype_of(backend)) for name, value in case.cotangents.items()}
    floats = {name: value.clone().requires_grad_() for name, value in given.items()}
    scanned = scan(**floats, resets=case.resets, lengths=case.lengths, backend=backend)
    before = [getattr(scanned, name).detach().clone() for name in OUTPUTS]
    loss = sum((getattr(scanned, name) * cotangents[name]).sum() for name in OUTPUTS)
    first = torch.autograd.grad(loss, list(floats.values()), retain_graph=True)
    second = torch.autograd.grad(loss, list(floats.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(getattr(scanned, name), value) for name, value in zip(OUTPUTS, before, strict=True))
    assert all(torch.equal(floats[name], given[name]) for name in floats)


def _spread(value: torch.Tensor) -> torch.Tensor:
    """The same numbers, with every axis strided."""
    wide = torch.full([2 * size for size in value.shape], float("nan"), dtype=value.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in value.shape)]
    view.copy_(value)
    return view
