"""Kernels for some of a cell's options compute, bit for bit, what the one with code for every option does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import needs_library

from unrolled.recurrence import kernels, native
from unrolled.recurrence.cell import Cell

pytestmark = needs_library

T, B, H = 5, 9, 19
KEYS = torch.arange(B) * 7919
ONES, NO_PEEPHOLE = torch.ones(B, H), torch.zeros(3, H)

# What changes no bit, but is in no set together with the options.
CELLS: dict[str, tuple[Cell, dict[str, Any]]] = {
    "plain": (Cell(), {"h_mask": ONES, "peephole": NO_PEEPHOLE}),
    "peephole": (Cell(peephole=torch.linspace(-1, 1, 3 * H).reshape(3, H)), {"h_mask": ONES}),
    "clip": (Cell(clip=0.3), {"h_mask": ONES}),
    "zoneout": (Cell(keys=KEYS, zoneout_h=0.3, zoneout_c=0.2), {"peephole": NO_PEEPHOLE}),
    "zoneout, evaluated": (Cell(zoneout_h=0.3, zoneout_c=0.2), {"peephole": NO_PEEPHOLE}),
    "dropout": (Cell(keys=KEYS, recurrent_dropout=0.4), {"peephole": NO_PEEPHOLE}),
    "mask of h": (Cell(h_mask=(torch.arange(B * H) % 3 > 0).float().reshape(B, H) * 1.5), {"peephole": NO_PEEPHOLE}),
    "norm": (Cell(norm=torch.linspace(0.5, 1.5, 10 * H).reshape(2, 5, H)), {"h_mask": ONES}),
}


def run(cell: Cell) -> dict[str, Tensor]:
    """Everything that both passes leave, but for the gradient of the cell's own tensors."""
    draw = torch.Generator().manual_seed(5)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw)

    pre, w_h, h0, c0 = random(T, B, 4, H), random(H, 4, H) / 4, random(B, H), random(B, H)
    resets, lengths = random(T, B) > 1, torch.tensor([T, 0, 3, T, T, 1, T, T, T])
    h, c, gates = (torch.full((T, B, *size), float("nan")) for size in ((H,), (H,), (cell.planes, H)))
    kernels.forward(pre, w_h, (h0, c0), (resets, lengths), (h, c, gates), cell=cell)
    into = random(T, B, H), random(T, B, H), None
    found = kernels.backward(into, w_h, c, gates, c0, (resets, lengths), cell=cell)
    return {"h": h, "c": c, "gates": gates, **dict(zip(("pre", "h0", "c0"), found, strict=False))}


@pytest.mark.parametrize("instructions", native.instruction_sets())
@pytest.mark.parametrize("name", CELLS)
def test_a_kernel_for_some_options_has_the_bits_of_the_one_for_all(name: str, instructions: str) -> None:
    cell, neutral = CELLS[name]
    with kernels.instruction_set(instructions):
        own, by_all = run(cell), run(cell._replace(**neutral))
    for value in own:
        assert torch.equal(own[value], by_all[value]), value
    assert own["h"].isfinite().all()
    assert own["h"].abs().sum() > 1
