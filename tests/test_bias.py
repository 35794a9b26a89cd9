"""Biases in the recurrence's kernels: added as they are read, and their gradients summed as they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import normal
from tolerance import assert_close
from torch import Tensor
from worlds import needs_library

from unrolled.recurrence import kernels, native
from unrolled.recurrence.cell import Cell

pytestmark = needs_library
F32, F64 = torch.float32, torch.float64
SETS = native.instruction_sets()
# Steps, rows, hidden: slots that share rows, and units; more steps than are summed at a time.
SIZES = [(1, 1, 1), (3, 2, 5), (7, 9, 16), (5, 33, 130), (3, 2, 300), (200, 3, 20), (2, 300, 17)]
CELLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hard": {"hard_gates": True, "relu": True, "clip": 0.5},
    "held": {"zoneout_h": 0.3, "zoneout_c": 0.2},
    "projected": {"projected": 3},
}


def arguments(steps: int, rows: int, hidden: int, projected: int = 0, **options: Any) -> dict[str, Any]:
    width = projected or hidden
    given: dict[str, Any] = {
        "pre": normal(steps, rows, 4, hidden, seed=1, dtype=F32),
        "w_h": normal(width, 4, hidden, seed=2, dtype=F32) / (1 + width) ** 0.5,
        "state": (normal(rows, width, seed=3, dtype=F32), normal(rows, hidden, seed=4, dtype=F32)),
        "bias": normal(4, hidden, seed=5, dtype=F32),
        "w_hr": normal(hidden, projected, seed=6, dtype=F32) if projected else None,
        "masks": (torch.arange(steps * rows).view(steps, rows) % 5 == 3, torch.arange(rows) % (steps + 2)),
    }
    return given | {"cell": Cell(**options), "grad_h": normal(steps, rows, width, seed=7, dtype=F32)}


def forward(given: dict[str, Any], pre: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    steps, rows, _, hidden = pre.shape
    width = given["w_h"].shape[0]
    out = [torch.full(size, torch.nan) for size in ((steps, rows, width), (steps, rows, hidden), pre.shape)]
    h, c, gates = out
    options = {"w_hr": given["w_hr"], "cell": given["cell"]}
    kernels.forward(pre, given["w_h"], given["state"], given["masks"], (h, c, gates), bias=bias, **options)
    return h, c, gates


@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_a_bias_has_the_bits_of_one_added_before(
    name: str, sizes: tuple[int, int, int], options: dict[str, Any]
) -> None:
    given = arguments(*sizes, **options)
    with kernels.instruction_set(name):
        before = forward(given, given["pre"] + given["bias"], None)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for value, expected in zip(forward(given, given["pre"], given["bias"]), before, strict=True):
                assert torch.equal(value, expected)


@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("sizes", [*SIZES, (0, 3, 5), (3, 0, 5), (3, 2, 0)], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_its_gradient_is_the_sum_over_all_places(
    name: str, sizes: tuple[int, int, int], options: dict[str, Any]
) -> None:
    if "projected" in options and 0 in sizes[2:]:
        pytest.skip("a projection has at least one unit")
    given = arguments(*sizes, **options)
    _, c, gates = forward(given, given["pre"], given["bias"])
    call = (given["grad_h"], None, None), given["w_h"], c, gates, given["state"][1], given["masks"]
    with kernels.instruction_set(name):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            kernels.kept("bias_sums", 1).fill_(torch.nan)
            found = torch.full((4, sizes[2]), torch.nan)
            grad_pre, *_ = kernels.backward(*call, w_hr=given["w_hr"], cell=given["cell"], grad_bias=found)
            assert_close(found, grad_pre.sum((0, 1)), grad_pre.to(F64).sum((0, 1)), "grad_bias")
            again = torch.full((4, sizes[2]), torch.nan)
            kernels.backward(*call, w_hr=given["w_hr"], cell=given["cell"], grad_bias=again)
            assert torch.equal(found, again)


@pytest.mark.parametrize("wild", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_reaches_it(wild: float) -> None:
    given = arguments(130, 3, 5)
    given["grad_h"][70, 1, 2] = wild
    _, c, gates = forward(given, given["pre"], given["bias"])
    found = torch.empty(4, 5)
    call = (given["grad_h"], None, None), given["w_h"], c, gates, given["state"][1], (None, None)
    grad_pre, *_ = kernels.backward(*call, grad_bias=found)
    torch.testing.assert_close(found, grad_pre.sum((0, 1)), equal_nan=True)
    assert not found.isfinite().all()
