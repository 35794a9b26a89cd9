"""The equations once more, with a hand in every step: what a function returns takes the place of what was computed.

Names and order are those of `reference`. A step is a dozen small operations of torch, so that this is as slow as any
loop over steps; but rows share them, and with a few hundred rows a step is its product with W_h again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .cell import OF_C, OF_GATES, PLAIN, Cell, held

# The values of one step, [..., width], its name and the step: to what takes their place, or None.
Edit = Callable[[Tensor, str, int], Tensor | None]


class Step(NamedTuple):
    """What one step made, [..., B, H] each; a projected h is [..., B, P]."""

    h: Tensor
    c: Tensor
    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor


def steps(
    inputs: Iterable[Tensor],
    w_h: Tensor,
    h0: Tensor,
    c0: Tensor,
    edit: Edit,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    start: tuple[Tensor, Tensor] | None = None,
) -> Iterator[Step]:
    """`reference.scan`, a step at a time; `edit` sees i, f, g, c, o and h, in this order and each as it is made,
    before any of c or h is held.

    `h0` and `c0` may have an axis in front, [variants, B, H], and every step then has it too: the same inputs, run as
    often as there are variants.
    """
    h, c = h0, c0
    if lengths is not None:
        h, c = _zero(h, lengths == 0), _zero(c, lengths == 0)
    for t, from_input in enumerate(inputs):
        if resets is not None:
            h, c = _zero(h, resets[t]), _zero(c, resets[t])
            if start is not None:
                fresh = resets[t].unsqueeze(-1)
                h, c = torch.where(fresh, start[0], h), torch.where(fresh, start[1], c)
        drawn = cell.drawn(t, 1, (h.shape[-1], c.shape[-1])).at(0)
        pre = from_input + (cell.dropped_h(h) @ w_h.flatten(1)).unflatten(-1, (4, w_h.shape[-1]))
        i, f, g, o = cell.normed(pre, OF_GATES).unbind(-2)
        if cell.peephole is not None:
            p_i, p_f, p_o = cell.peephole.unbind(-2)
            i, f = i + p_i * c, f + p_f * c
        i = _changed(cell.gate(i), "i", t, edit)
        f = _changed(cell.gate(f), "f", t, edit)
        g = _changed(cell.squashed(g), "g", t, edit)
        new_c = _changed(cell.clipped(f * c + i * drawn.written(g)), "c", t, edit)
        if cell.peephole is not None:
            o = o + p_o * new_c
        o = _changed(cell.gate(o), "o", t, edit)
        new_h = o * cell.squashed(cell.normed(new_c, OF_C))
        new_h = _changed(new_h if w_hr is None else new_h @ w_hr, "h", t, edit)
        h, c = held(new_h, h, drawn.held_h), held(new_c, c, drawn.held_c)
        made = Step(h, c, i, f, g, o)
        if lengths is not None:
            made = Step(*(_zero(values, lengths <= t) for values in made))
            h, c = made.h, made.c
        yield made


def _changed(values: Tensor, name: str, time: int, edit: Edit) -> Tensor:
    instead = edit(values, name, time)
    if instead is None:
        return values
    if not isinstance(instead, Tensor) or instead.shape != values.shape or instead.dtype != values.dtype:
        got = f"{instead.dtype} {list(instead.shape)}" if isinstance(instead, Tensor) else type(instead).__name__
        raise ValueError(
            f"the edit returned {got} for {name} of step {time}, expected {values.dtype} {list(values.shape)}, or None "
            "where nothing is changed"
        )
    return instead


def _zero(values: Tensor, rows: Tensor) -> Tensor:
    """By selection, as in `reference`; `rows` [B] is the axis before the units."""
    return values.masked_fill(rows.unsqueeze(-1), 0)
