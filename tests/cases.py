"""The grid of calls on which every backend is compared with the reference: sizes, masks, ids, one recipe for each."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unrolled.recurrence import Cell, scan
from unrolled.recurrence.cell import TENSORS

FLOATS = ("x", "w_x", "w_h", "bias", "h0", "c0")
OUTPUTS = ("h", "c", "gates")


@dataclass(frozen=True)
class Case:
    """One call of `scan`: float64 arguments, masks, and a random cotangent for each output."""

    name: str
    floats: dict[str, Tensor]
    cotangents: dict[str, Tensor]
    ids: Tensor | None = None
    resets: Tensor | None = None
    lengths: Tensor | None = None
    cell: Cell = Cell()  # noqa: RUF009 (a tuple)


@dataclass(frozen=True)
class Shape:
    rows: int
    steps: int
    width: int
    hidden: int
    masks: tuple[str, ...] = field(default=())
    # The width of h where it is projected; 0: it is not.
    proj: int = 0
    # Options of the cell: "peephole", "clip", "hard gates", "relu", "norm".
    cell: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        projected = [f"to {self.proj}"] if self.proj else []
        return "-".join([f"{self.rows}x{self.steps}x{self.width}x{self.hidden}", *projected, *self.cell, *self.masks])


SHAPES = (
    Shape(1, 1, 1, 1),
    Shape(2, 3, 4, 5),
    Shape(3, 17, 5, 7),
    Shape(1, 40, 3, 16),
    Shape(5, 1, 9, 33),
    Shape(17, 12, 31, 65),
    # One block of portable's backward pass holds 8 of these steps: several blocks, the first one short.
    Shape(32, 19, 8, 128),
    Shape(0, 4, 3, 5),
    Shape(3, 0, 3, 5),
    Shape(0, 0, 2, 2),
    Shape(3, 17, 5, 7, ("resets",)),
    Shape(3, 17, 5, 7, ("lengths",)),
    Shape(6, 23, 3, 9, ("resets", "lengths")),
    Shape(6, 23, 11, 9, ("ids", "resets", "lengths")),
    Shape(4, 9, 300, 8, ("ids",)),
    Shape(4, 9, 3, 8, ("all ended",)),
    Shape(4, 9, 3, 8, ("all reset",)),
    Shape(3, 0, 3, 5, ("resets", "lengths")),
    Shape(0, 4, 3, 5, ("resets", "lengths")),
)
# With a projection of h, narrower than c, as wide and wider.
PROJECTED = (
    Shape(1, 1, 1, 1, proj=1),
    Shape(3, 17, 5, 7, proj=3),
    Shape(2, 6, 3, 5, proj=5),
    Shape(2, 6, 3, 2, proj=9),
    Shape(32, 19, 8, 128, proj=33),
    Shape(0, 4, 3, 5, proj=2),
    Shape(3, 0, 3, 5, proj=2),
    Shape(6, 23, 3, 9, ("resets",), proj=4),
    Shape(6, 23, 3, 9, ("lengths",), proj=4),
    Shape(6, 23, 11, 9, ("ids", "resets", "lengths"), proj=4),
    Shape(4, 9, 3, 8, ("all ended",), proj=3),
    Shape(3, 0, 3, 5, ("resets", "lengths"), proj=2),
)

_ALL = ("peephole", "clip", "hard gates", "relu")
# Each option alone, and all of them; layer normalisation, which has passes of its own, with and without the others.
CELLS = (("peephole",), ("clip",), ("hard gates",), ("relu",), _ALL, ("norm",), (*_ALL, "norm"))
VARIANTS = tuple(
    shape
    for cell in CELLS
    for shape in (
        Shape(1, 1, 1, 1, cell=cell),
        Shape(3, 17, 5, 7, cell=cell),
        Shape(17, 12, 31, 65, cell=cell),
        # Sums of at most 64 terms: an h that is never negative, as with relu, makes one chain of 128 the worse one.
        Shape(35, 12, 8, 64, cell=cell),
        Shape(3, 0, 3, 5, ("resets", "lengths"), cell=cell),
        Shape(0, 4, 3, 5, cell=cell),
        Shape(6, 23, 3, 9, ("resets",), cell=cell),
        Shape(6, 23, 11, 9, ("ids", "resets", "lengths"), cell=cell),
    )
    # All of them at once are as slow in the reference as all of them in turn: that cell runs at whole sizes alone.
    if cell != CELLS[-1] or min(shape.rows, shape.steps, shape.hidden) > 4
)


def make(shape: Shape, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    rows, steps, width, hidden = shape.rows, shape.steps, shape.width, shape.hidden
    h_width = shape.proj or hidden
    floats = {
        "w_x": normal(width, 4, hidden, scale=width**-0.5),
        "w_h": normal(h_width, 4, hidden, scale=h_width**-0.5),
        "bias": normal(4, hidden, scale=0.3),
        "h0": normal(rows, h_width).tanh(),
        "c0": normal(rows, hidden),
    }
    if shape.proj:
        floats["w_hr"] = normal(hidden, shape.proj, scale=hidden**-0.5)
    if "peephole" in shape.cell:
        floats["peephole"] = normal(3, hidden, scale=0.7)
    if "norm" in shape.cell:
        floats["norm"] = torch.stack([1 + normal(5, hidden, scale=0.3), normal(5, hidden, scale=0.3)])
    # Of c, about one in five reaches this bound.
    clip = 0.75 if "clip" in shape.cell else 0.0
    cell = Cell(clip=clip, hard_gates="hard gates" in shape.cell, relu="relu" in shape.cell)
    ids = None
    if "ids" in shape.masks:
        ids = torch.randint(width, (rows, steps), generator=generator)
    else:
        floats["x"] = normal(rows, steps, width)
    resets = lengths = None
    if "resets" in shape.masks:
        resets = torch.rand(rows, steps, generator=generator) < 0.2
    if "all reset" in shape.masks:
        resets = torch.ones(rows, steps, dtype=torch.bool)
    if "lengths" in shape.masks:
        lengths = torch.randint(steps + 1, (rows,), generator=generator)
        lengths[:2] = torch.tensor([0, steps])[: lengths[:2].numel()]
    if "all ended" in shape.masks:
        lengths = torch.zeros(rows, dtype=torch.int64)
    cotangents = {
        "h": normal(rows, steps, h_width),
        "c": normal(rows, steps, hidden),
        "gates": normal(rows, steps, 4, hidden),
    }
    return Case(shape.name, floats, cotangents, ids, resets, lengths, cell)


def own_cell(case: Case, arguments: dict[str, Tensor]) -> Cell:
    """The case's cell with its tensors, which are taken out of the arguments."""
    return case.cell._replace(**{name: arguments.pop(name, None) for name in TENSORS})


def run(
    backend: str, case: Case, dtype: torch.dtype, outputs: tuple[str, ...] = OUTPUTS, *, strict: bool = False
) -> dict[str, Tensor]:
    """Outputs and every gradient of a call, with the loss made of the named outputs and their cotangents."""
    floats = {name: value.to(dtype).requires_grad_() for name, value in case.floats.items()}
    arguments = dict(floats)
    x = arguments.pop("x", case.ids)
    assert x is not None
    cell = own_cell(case, arguments)
    masks = {"resets": case.resets, "lengths": case.lengths}
    scanned = scan(x, **arguments, **masks, cell=cell, backend=backend, strict=strict)
    results = {name: getattr(scanned, name) for name in OUTPUTS}
    loss = sum((results[name] * case.cotangents[name].to(dtype)).sum() for name in outputs)
    grads = torch.autograd.grad(loss, list(floats.values()), allow_unused=True)
    for (name, value), grad in zip(floats.items(), grads, strict=True):
        results[f"grad {name}"] = torch.zeros_like(value) if grad is None else grad
    return {name: value.detach() for name, value in results.items()}
