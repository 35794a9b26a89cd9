"""The fused recurrence in plain torch, for any device: in-place steps and manual backpropagation through time.

Per step it makes one product (with a projection of h two) and eight pointwise calls, all into buffers that were
allocated once; the backward pass computes everything that does not depend on later steps for a block of steps at once,
and leaves five calls to a step. Layer normalisation takes some more of both, and memory of its own.
The functions compute what `reference.scan` and `reference.scan_backward` define; names and order mirror them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference, seam
from .cell import EPSILON, OF_C, OF_GATES, Cell, Drawn, held, standardized, through_norm, to_before, to_new
from .masks import random_words

# Bytes of gates in one block of the backward pass: the block's seven buffers then stay within a 2 MiB cache.
_BLOCK_BYTES = 512 * 1024


def forward(
    pre: Tensor,
    w_h: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    cell = Cell(*options)
    steps, rows, _, hidden = pre.shape
    h, c = pre.new_empty(steps, rows, w_h.shape[0]), pre.new_empty(steps, rows, hidden)
    gates = pre.new_empty(steps, rows, cell.planes, hidden)
    weight = _transposed(w_h).t()
    squashed_c = torch.empty_like(c0, memory_format=torch.contiguous_format)
    # Views are made once for all steps: slicing inside the loop costs as much as the arithmetic at small sizes.
    inputs = pre.reshape(steps, rows, 4 * hidden).unbind(0)
    # Of a normed cell they lie behind the gates, else where the gates will be.
    sums = gates[:, :, -4:].view(steps, rows, 4 * hidden).unbind(0)
    i_and_f = gates[:, :, :2].unbind(0)
    i, f, g, o = (gate.unbind(0) for gate in gates[:, :, :4].unbind(2))
    reset_at, ended_at = _where(resets), _where(None if lengths is None else reference.ended(lengths, steps))
    h_before, c_before = h0, c0
    block, drawn = _block(rows, hidden, gates), Drawn()
    for t, (h_t, c_t) in enumerate(zip(h.unbind(0), c.unbind(0), strict=True)):
        if cell.is_held_or_dropped and t % block == 0:
            masks = cell.drawn(t, min(block, steps - t), (w_h.shape[0], hidden), random_words)
        if (mask := reset_at.get(t)) is not None:
            h_before, c_before = h_before.masked_fill(mask, 0), c_before.masked_fill(mask, 0)
        if cell.is_held_or_dropped:
            drawn = masks.at(t % block)
        torch.addmm(inputs[t], cell.dropped_h(h_before), weight, out=sums[t])
        if cell.norm is not None:
            _write_normed(cell, gates[t, :, 4:], OF_GATES, gates[t, :, :4])
        if cell.peephole is not None:
            i_and_f[t].addcmul_(cell.peephole[:2], c_before.unsqueeze(1))
        cell.gate_(i_and_f[t])
        cell.squash(g[t], g[t])
        torch.mul(f[t], c_before, out=c_t).addcmul_(i[t], drawn.written(g[t]))
        if cell.clip:
            c_t.clamp_(-cell.clip, cell.clip)
        if cell.peephole is not None:
            o[t].addcmul_(cell.peephole[2], c_t)
        cell.gate_(o[t])
        if cell.norm is None:
            cell.squash(c_t, squashed_c)
        else:
            _write_normed(cell, c_t, OF_C, squashed_c)
            cell.squash(squashed_c, squashed_c)
        if w_hr is None:
            torch.mul(o[t], squashed_c, out=h_t)
        else:
            torch.mm(squashed_c.mul_(o[t]), w_hr, out=h_t)
        if drawn.held_h is not None:
            h_t.copy_(held(h_t, h_before, drawn.held_h))
        if drawn.held_c is not None:
            c_t.copy_(held(c_t, c_before, drawn.held_c))
        if (mask := ended_at.get(t)) is not None:
            h_t.masked_fill_(mask, 0)
            c_t.masked_fill_(mask, 0)
            gates[t].masked_fill_(mask.unsqueeze(-1), 0)
        h_before, c_before = h_t, c_t
    return h, c, gates


def _write_normed(cell: Cell, x: Tensor, which: slice | int, out: Tensor) -> None:
    """`cell.normed`, into `out`."""
    assert cell.norm is not None
    standard = F.layer_norm(x, x.shape[-1:], eps=EPSILON)
    torch.addcmul(cell.norm[1, which], standard, cell.norm[0, which], out=out)


def backward(
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_gates: Tensor | None,
    w_h: Tensor,
    c: Tensor,
    gates: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    cell = Cell(*options)
    steps, rows, hidden = c.shape
    grad_pre = gates.new_empty(steps, rows, 4, hidden)
    weight = _transposed(w_h)
    # Explicitly contiguous: c0 may be an expanded or transposed view, and both are written in place.
    dc = torch.zeros_like(c0, memory_format=torch.contiguous_format)
    dh = dc.new_zeros(rows, w_h.shape[0])
    # Before the projection; without one, h itself.
    unprojected = dh if w_hr is None else torch.empty_like(dc)
    back = None if w_hr is None else w_hr.t()
    of_projected = dc.new_empty(steps, rows, 0 if w_hr is None else w_hr.shape[1])
    sums = grad_pre.view(steps, rows, 4 * hidden).unbind(0)
    through_c, through_h = grad_pre[:, :, :3].unbind(0), grad_pre[:, :, 3].unbind(0)
    f = gates[:, :, 1].unbind(0)
    dc_by_gate = dc.unsqueeze(1)
    reset_at, ended_at = _where(resets), _where(None if lengths is None else reference.ended(lengths, steps))
    of_cell = dc.new_zeros(rows, cell.gradient_planes, hidden)
    block = _block(rows, hidden, gates)
    for stop in range(steps, 0, -block):
        start = max(0, stop - block)
        masks = cell.drawn(start, stop - start, (w_h.shape[0], hidden), random_words)
        c_before = _before(c, c0, resets, start, stop)
        if masks.held_c is not None and lengths is not None:
            c_before = c_before.masked_fill(reference.ended(lengths, steps)[start:stop].unsqueeze(-1), 0)
        new_c = reference.new_c(c[start:stop], gates[start:stop], c_before, cell, masks)
        through_squash = _factors(cell, grad_pre[start:stop], new_c, c_before, gates[start:stop, :, :4], masks)
        norm = None if cell.norm is None else _Norm(cell, new_c, gates[start:stop, :, 4:])
        from_gates = None
        if grad_gates is not None:
            from_gates = _through_activations(cell, grad_gates[start:stop, :, :4], gates[start:stop, :, :4])
        clipped = cell.clips(new_c) if cell.clip else None
        for t in range(stop - 1, start - 1, -1):
            if grad_h is not None:
                dh.add_(grad_h[t])
            if grad_c is not None:
                dc.add_(grad_c[t])
            drawn = masks.at(t - start) if cell.is_held_or_dropped else masks
            dh_held, dc_held = to_before(dh, drawn.held_h), to_before(dc, drawn.held_c)
            if dc_held is not None:
                dc.copy_(to_new(dc, drawn.held_c))
            if back is not None:
                torch.mm(of_projected[t].copy_(to_new(dh, drawn.held_h)), back, out=unprojected)
            elif drawn.held_h is not None:
                unprojected = to_new(dh, drawn.held_h)
            if norm is None:
                dc.addcmul_(unprojected, through_squash[t - start])
            else:
                dc.add_(norm.through_c(through_squash[t - start].mul_(unprojected), t - start))
            through_h[t].mul_(unprojected)
            if from_gates is not None:
                through_h[t].add_(from_gates[t - start, :, 3])
            if cell.peephole is not None:
                dc.addcmul_(through_h[t], cell.peephole[2])
            if clipped is not None:
                dc.masked_fill_(clipped[t - start], 0)
            through_c[t].mul_(dc_by_gate)
            if from_gates is not None:
                through_c[t].add_(from_gates[t - start, :, :3])
            dc.mul_(f[t])
            if dc_held is not None:
                dc.add_(dc_held)
            if cell.peephole is not None:
                dc.addcmul_(through_c[t][:, 0], cell.peephole[0]).addcmul_(through_c[t][:, 1], cell.peephole[1])
            if (mask := ended_at.get(t)) is not None:
                sums[t].masked_fill_(mask, 0)
                dc.masked_fill_(mask, 0)
                of_projected[t].masked_fill_(mask, 0)
                dh_held = None if dh_held is None else dh_held.masked_fill(mask, 0)
            if norm is not None:
                norm.through_gates(grad_pre[t], t - start)
                if grad_gates is not None:
                    from_sums = grad_gates[t, :, 4:]
                    grad_pre[t].add_(from_sums if mask is None else from_sums.masked_fill(mask.unsqueeze(-1), 0))
            torch.mm(sums[t], weight, out=dh)
            if cell.h_mask is not None:
                dh.mul_(cell.h_mask)
            if dh_held is not None:
                dh.add_(dh_held)
            if (mask := reset_at.get(t)) is not None:
                dh.masked_fill_(mask, 0)
                dc.masked_fill_(mask, 0)
        if cell.gradient_planes:
            ended = None if lengths is None else reference.ended(lengths, steps)[start:stop].unsqueeze(-1)
            parts = [] if norm is None else norm.gradient(through_squash, ended)
            if cell.peephole is not None:
                behind = grad_pre[start:stop] if norm is None else norm.behind
                parts += _gradient_of_peephole(behind, new_c, c_before, ended)
            of_cell += torch.cat([part.sum(0) for part in parts], 1)
    return grad_pre, dh, dc, of_cell, of_projected


class _Norm:
    """Layer normalisation in a block of steps of the backward pass."""

    def __init__(self, cell: Cell, c: Tensor, sums: Tensor) -> None:
        assert cell.norm is not None
        self._gain = cell.norm[0]
        self._c, self._c_factor = standardized(c)
        self._sums, self._factor = standardized(sums)
        self.behind = torch.empty_like(sums, memory_format=torch.contiguous_format)

    def through_c(self, grad: Tensor, t: int) -> Tensor:
        """The gradient of c from that of the normed c."""
        return through_norm(grad * self._gain[OF_C], self._c[t], self._c_factor[t])

    def through_gates(self, grad: Tensor, t: int) -> None:
        """From the gradient of the normed sums [B, 4, H] to that of the sums, in place; the former is kept."""
        behind = self.behind[t].copy_(grad)
        grad.copy_(through_norm(behind * self._gain[OF_GATES], self._sums[t], self._factor[t]))

    def gradient(self, seen: Tensor, ended: Tensor | None) -> list[Tensor]:
        """Of each step and row, as `reference.scan_backward` has it; `seen` is the gradient of the normed c."""
        if ended is not None:
            seen = seen.masked_fill(ended, 0)
        behind = self.behind
        return [behind * self._sums, (seen * self._c).unsqueeze(2), behind, seen.unsqueeze(2)]


def _gradient_of_peephole(behind: Tensor, c: Tensor, c_before: Tensor, ended: Tensor | None) -> list[Tensor]:
    """Of each step and row; `behind` [T, B, 4, H]: the gradients behind the gates, 0 where a row has ended."""
    if ended is not None:
        c_before = c_before.masked_fill(ended, 0)
    return [behind[:, :, :2] * c_before.unsqueeze(2), (behind[:, :, 3] * c).unsqueeze(2)]


def _before(c: Tensor, c0: Tensor, resets: Tensor | None, start: int, stop: int) -> Tensor:
    """What the steps of a block started from."""
    before = c[start - 1 : stop - 1] if start else torch.cat([c0.unsqueeze(0), c[: stop - 1]])
    return before if resets is None else before.masked_fill(resets[start:stop].unsqueeze(-1), 0)


def _block(rows: int, hidden: int, gates: Tensor) -> int:
    """Steps that are computed at once, or whose masks are."""
    return max(1, _BLOCK_BYTES // max(1, rows * hidden * 4 * gates.element_size()))


def _factors(cell: Cell, grad_pre: Tensor, c: Tensor, c_before: Tensor, gates: Tensor, masks: Drawn) -> Tensor:
    """Fill `grad_pre` with d pre / d c_t (i, f, g) and d pre / d h_t (o); return d c_t / d h_t.

    `c` and h_t are those before any of them is held. With layer normalisation `pre` is behind it, and the last one is
    that of the normed c.
    """
    i, f, g, o = gates.unbind(2)
    di, df, dg, do = grad_pre.unbind(2)
    squashed_c = torch.empty_like(c)
    cell.squash(cell.normed(c, OF_C), squashed_c)
    _through_gate(cell, masks.written(g), i, di)
    _through_gate(cell, c_before, f, df)
    _through_squash(cell, i, g, dg)
    if masks.dropped_g is not None:
        dg.copy_(masks.written(dg))
    _through_gate(cell, squashed_c, o, do)
    return _through_squash(cell, o, squashed_c, torch.empty_like(squashed_c))


def _through_activations(cell: Cell, grad_gates: Tensor, gates: Tensor) -> Tensor:
    """The cotangents of the activated gates, taken to their pre-activations."""
    through = torch.empty_like(gates)
    _through_gate(cell, grad_gates[:, :, :2], gates[:, :, :2], through[:, :, :2])
    _through_squash(cell, grad_gates[:, :, 2], gates[:, :, 2], through[:, :, 2])
    _through_gate(cell, grad_gates[:, :, 3], gates[:, :, 3], through[:, :, 3])
    return through


def _through_gate(cell: Cell, grad: Tensor, y: Tensor, out: Tensor) -> None:
    """`grad` times the slope of `cell.gate`, where that returned `y`."""
    if cell.hard_gates:
        torch.mul(grad, cell.gate_slope(y), out=out)
    else:
        torch.ops.aten.sigmoid_backward.grad_input(grad, y, grad_input=out)


def _through_squash(cell: Cell, grad: Tensor, y: Tensor, out: Tensor) -> Tensor:
    if cell.relu:
        return torch.mul(grad, cell.squashed_slope(y), out=out)
    through: Tensor = torch.ops.aten.tanh_backward.grad_input(grad, y, grad_input=out)
    return through


def _transposed(w_h: Tensor) -> Tensor:
    """[4 H, H], contiguous: both passes multiply by it faster (1.1 and 1.4 times at H = 512) than by [H, 4 H]."""
    return w_h.reshape(w_h.shape[0], -1).t().contiguous()


def _where(mask: Tensor | None) -> dict[int, Tensor]:
    """The steps at which any row of a bool [T, B] is set, each with its rows as [B, 1]: other steps cost nothing."""
    if mask is None:
        return {}
    return {t: mask[t].unsqueeze(-1) for t, any_row in enumerate(mask.any(1).tolist()) if any_row}


scan = seam.operator("portable", forward, backward).scan
