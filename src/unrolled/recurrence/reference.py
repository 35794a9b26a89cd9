"""The equations of the LSTM, step by step, in plain torch: the definition that every other backend is tested against.

With [batch, gate, hidden] pre-activations, the gate axis in the order i, f, g, o:

    pre_t = x_t W_x + b + h_{t-1} W_h
    i, f, o = sigmoid(pre_i), sigmoid(pre_f), sigmoid(pre_o);   g = tanh(pre_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; the forget gate f is from Gers,
Schmidhuber & Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural Computation 12(10), 2000.

A `Cell` with options has other functions or further terms in these places: see `cell`.

Everything here is out of place and differentiable to any order, forward mode included, in any floating dtype.
Masks select, they never multiply: 0 * NaN is NaN, and one bad row must not spoil what follows it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .cell import OF_C, OF_GATES, PLAIN, Cell, Drawn, held, standardized, through_norm, to_before, to_new

_NOTHING = Drawn()


def step(pre: Tensor, c: Tensor, cell: Cell = PLAIN, drawn: Drawn = _NOTHING) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the cell: `pre` [..., 4, H] and c_{t-1} [..., H] to h_t, c_t and the activated gates [..., 4, H].

    h_t is the new one, not yet held where `drawn` says so. A cell with layer normalisation takes the sums without a
    bias, and they are kept behind the gates, [..., 8, H].
    """
    i, f, g, o = cell.normed(pre, OF_GATES).unbind(-2)
    if cell.peephole is not None:
        p_i, p_f, p_o = cell.peephole.unbind(-2)
        i, f = i + p_i * c, f + p_f * c
    i, f, g = cell.gate(i), cell.gate(f), cell.squashed(g)
    new = cell.clipped(f * c + i * drawn.written(g))
    if cell.peephole is not None:
        o = o + p_o * new
    o = cell.gate(o)
    h = o * cell.squashed(cell.normed(new, OF_C))
    gates = torch.stack([i, f, g, o], -2)
    return h, held(new, c, drawn.held_c), gates if cell.norm is None else torch.cat([gates, pre], -2)


def scan(
    inputs: Iterable[Tensor],
    w_h: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps in turn: h [T, B, H], c [T, B, H] and gates [T, B, 4, H], of a normed cell [T, B, 8, H] (see `step`).

    `inputs` yields x_t W_x + b, [B, 4, H], once for each step; `w_h` [H, 4, H]; `h0`, `c0` [B, H]; `resets` bool
    [T, B]: the row starts from zeros, or from `start`, h and c [H] each, before that step; `lengths` int64 [B]: from
    that step on the row is zero.

    With `w_hr` [H, P], h_t = (o * tanh(c_t)) W_hr, of width P, is what goes on: `w_h` is [P, 4, H] and `h0` [B, P]
    (Sak, Senior & Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic
    Modeling", Interspeech 2014).
    """
    h, c = h0, c0
    if lengths is not None:
        # A row without steps never reads its state: were it NaN, the weights' gradients would be.
        h, c = _zero(h, lengths == 0), _zero(c, lengths == 0)
    hs, cs, gates = [], [], []
    for t, from_input in enumerate(inputs):
        if resets is not None:
            h, c = _zero(h, resets[t]), _zero(c, resets[t])
            if start is not None:
                fresh = resets[t].unsqueeze(-1)
                h, c = torch.where(fresh, start[0], h), torch.where(fresh, start[1], c)
        pre = from_input + (cell.dropped_h(h) @ w_h.flatten(1)).unflatten(-1, (4, w_h.shape[-1]))
        drawn = cell.drawn(t, 1, (h.shape[-1], c.shape[-1])).at(0)
        new_h, c, gate = step(pre, c, cell, drawn)
        if w_hr is not None:
            new_h = new_h @ w_hr
        h = held(new_h, h, drawn.held_h)
        if lengths is not None:
            ended = lengths <= t
            h, c, gate = _zero(h, ended), _zero(c, ended), _zero(gate, ended)
        hs.append(h)
        cs.append(c)
        gates.append(gate)
    if not hs:
        # Empty, but hanging on the graph: a loss over no steps still has a backward pass.
        nothing = (h0 @ w_h.flatten(1)).unflatten(-1, (4, w_h.shape[-1])).unsqueeze(0)[:0]
        no_h = nothing[:, :, 0] if w_hr is None else nothing[:, :, 0] @ w_hr
        return no_h + h0, nothing[:, :, 1] + c0, nothing.repeat(1, 1, cell.planes // 4, 1)
    return torch.stack(hs), torch.stack(cs), torch.stack(gates)


def scan_backward(
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
    cell: Cell = PLAIN,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Backpropagation through time: the gradients of the pre-activations [T, B, 4, H], of h0, of c0, of the cell, and
    of what the projection made.

    `grad_h`, `grad_c` and `grad_gates` are the cotangents of what `scan` returned (None is zeros). The gradients of the
    weights are products of these results with x and h, taken once for all steps.

    Of a cell with layer normalisation the pre-activations are the sums before it. The gradient of the cell, [B, N, H],
    is for each row that of the gains and shifts, if there are any, in ten planes, and of a peephole in three more. The
    last result, [T, B, P], is the gradient of each h_t before any of it is held; without a projection [T, B, 0].
    """
    grad_h = _zeros_like_h(c, w_h) if grad_h is None else grad_h
    grad_c = torch.zeros_like(c) if grad_c is None else grad_c
    grad_gates = torch.zeros_like(gates) if grad_gates is None else grad_gates
    dh, dc = _zeros_like_h(c0, w_h), torch.zeros_like(c0)
    dpres, dprojected, of_cell = [], [], c0.new_zeros(c0.shape[0], cell.gradient_planes, c0.shape[1])
    for t in reversed(range(c.shape[0])):
        i, f, g, o = gates[t, :, :4].unbind(-2)
        di, df, dg, do = grad_gates[t, :, :4].unbind(-2)
        before = c[t - 1] if t else c0
        ended_rows = None if lengths is None else lengths <= t
        for fresh in (None if resets is None else resets[t], ended_rows):
            before = before if fresh is None else _zero(before, fresh)
        drawn = cell.drawn(t, 1, (dh.shape[-1], dc.shape[-1])).at(0)
        new = new_c(c[t], gates[t], before, cell, drawn)
        squashed_c = cell.squashed(cell.normed(new, OF_C))

        dh, dc = dh + grad_h[t], dc + grad_c[t]
        dh_held, dc_held = to_before(dh, drawn.held_h), to_before(dc, drawn.held_c)
        dh, dc = to_new(dh, drawn.held_h), to_new(dc, drawn.held_c)
        through = dh if w_hr is None else dh @ w_hr.mT
        dprojected.append(dh if ended_rows is None else _zero(dh, ended_rows))
        dpre_o = (do + through * squashed_c) * cell.gate_slope(o)
        dseen = through * o * cell.squashed_slope(squashed_c)
        dc = dc + _through_norm_of_c(dseen, new, cell)
        if cell.peephole is not None:
            dc = dc + dpre_o * cell.peephole[2]
        if cell.clip:
            dc = dc.masked_fill(cell.clips(new), 0)
        dpre_i = (di + dc * drawn.written(g)) * cell.gate_slope(i)
        dpre_f = (df + dc * before) * cell.gate_slope(f)
        dpre_g = (dg + drawn.written(dc * i)) * cell.squashed_slope(g)
        dpre = torch.stack([dpre_i, dpre_f, dpre_g, dpre_o], -2)
        dc = dc * f if dc_held is None else dc * f + dc_held
        if cell.peephole is not None:
            dc = dc + dpre_i * cell.peephole[0] + dpre_f * cell.peephole[1]
        if ended_rows is not None:
            dpre, dc, dseen = _zero(dpre, ended_rows), _zero(dc, ended_rows), _zero(dseen, ended_rows)
        parts: list[Tensor] = []
        if cell.peephole is not None:
            parts += [dpre[:, :2] * before.unsqueeze(1), (dpre[:, 3] * new)[:, None]]
        if cell.norm is not None:
            sums, factor = standardized(gates[t, :, 4:])
            seen, _ = standardized(new)
            parts = [dpre * sums, (dseen * seen)[:, None], dpre, dseen[:, None], *parts]
            from_sums = grad_gates[t, :, 4:] if ended_rows is None else _zero(grad_gates[t, :, 4:], ended_rows)
            dpre = through_norm(dpre * cell.norm[0, OF_GATES], sums, factor) + from_sums
        if parts:
            of_cell = of_cell + torch.cat(parts, 1)
        dh = cell.dropped_h(dpre.flatten(-2) @ w_h.flatten(1).mT)
        if dh_held is not None:
            dh = dh + (dh_held if ended_rows is None else _zero(dh_held, ended_rows))
        if resets is not None:
            dh, dc = _zero(dh, resets[t]), _zero(dc, resets[t])
        dpres.append(dpre)
    none = c.new_zeros(*c.shape[:2], 0 if w_hr is None else w_hr.shape[1])
    if not dpres:
        return torch.zeros_like(gates[:, :, :4]), dh, dc, of_cell, none
    return torch.stack(dpres[::-1]), dh, dc, of_cell, none if w_hr is None else torch.stack(dprojected[::-1])


def _through_norm_of_c(dseen: Tensor, c: Tensor, cell: Cell) -> Tensor:
    """The gradient of c from that of what h sees of it."""
    return dseen if cell.norm is None else through_norm(dseen * cell.norm[0, OF_C], *standardized(c))


def total_gradients(
    grad_h: Tensor,
    grad_c: Tensor,
    grad_gates: Tensor,
    grad_pre: Tensor,
    w_h: Tensor,
    c: Tensor,
    gates: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    drawn: Drawn = _NOTHING,
) -> tuple[Tensor, Tensor]:
    """dL/dh_t and dL/dc_t through every path, [T, B, H] each; with `w_hr`, dL/dh_t is [T, B, P].

    `grad_h`, `grad_c` and `grad_gates` are the explicit parts (the uses of h, c and the gates outside the recurrence),
    `grad_pre` [T, B, 4, H] the total gradient of the pre-activations, which `scan_backward` returns; `drawn` the masks
    of all steps. Where c can be held, o and h do not see the c_t of which this is the gradient.
    """
    steps = c.shape[0]
    dh = total_gradient_of_h(grad_h, grad_pre, w_h, resets, lengths, cell, drawn)
    if lengths is not None:
        grad_c = _zero(grad_c, ended(lengths, steps))
    before = c_before(c, c0, resets, lengths)
    new, through = new_c(c, gates, before, cell, drawn), to_new(dh, drawn.held_h)
    i, f, g, o = gates.unbind(2)
    di, df, _, do = grad_gates.unbind(2)
    squashed_c = cell.squashed(cell.normed(new, OF_C))
    through = through if w_hr is None else through @ w_hr.mT
    into_new = _through_norm_of_c(through * o * cell.squashed_slope(squashed_c), new, cell)
    if cell.peephole is not None:
        into_new = into_new + (do + through * squashed_c) * cell.gate_slope(o) * cell.peephole[2]
    dcs: list[Tensor] = []
    carried = torch.zeros_like(into_new[:1].sum(0))
    for t in reversed(range(steps)):
        where = drawn.at(t).held_c
        dc = carried + grad_c[t]
        of_new = to_new(dc, where) + into_new[t]
        dcs.append(of_new if where is None else dc)
        of_new = of_new.masked_fill(cell.clips(new[t]), 0) if cell.clip else of_new
        carried = of_new * f[t]
        if (of_held := to_before(dc, where)) is not None:
            carried = carried + of_held
        if cell.peephole is not None:
            dpre_i = (di[t] + of_new * drawn.at(t).written(g[t])) * cell.gate_slope(i[t])
            dpre_f = (df[t] + of_new * before[t]) * cell.gate_slope(f[t])
            carried = carried + dpre_i * cell.peephole[0] + dpre_f * cell.peephole[1]
        if resets is not None:
            carried = _zero(carried, resets[t])
    return dh, torch.stack(dcs[::-1]) if dcs else torch.zeros_like(c)


def total_gradient_of_h(
    grad_h: Tensor,
    grad_pre: Tensor,
    w_h: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    cell: Cell = PLAIN,
    drawn: Drawn = _NOTHING,
) -> Tensor:
    """dL/dh_t of `total_gradients`."""
    # Reshaped, not flattened: batched cotangents (`is_grads_batched`) know no flatten.
    later = cell.dropped_h(grad_pre.reshape(*grad_pre.shape[:-2], 4 * grad_pre.shape[-1]) @ w_h.flatten(1).mT)
    if resets is not None:
        later = _zero(later, resets)
    dh = grad_h + torch.cat([later, torch.zeros_like(later[:1])])[1:]
    if lengths is not None:
        dh = _zero(dh, ended(lengths, grad_pre.shape[0]))
    if drawn.held_h is None or len(dh) == 0:
        return dh
    dhs = [dh[-1]]
    for t in reversed(range(1, len(dh))):
        # Of a row that has ended it is 0.
        of_held = to_before(dhs[-1], drawn.at(t).held_h)
        assert of_held is not None
        dhs.append(dh[t - 1] + (of_held if resets is None else _zero(of_held, resets[t])))
    return torch.stack(dhs[::-1])


def c_before(c: Tensor, c0: Tensor, resets: Tensor | None, lengths: Tensor | None) -> Tensor:
    """c_{t-1} [T, B, H] of every step; of a row that has ended 0, whatever c0 is."""
    before = torch.cat([c0.unsqueeze(0), c])[:-1]
    before = before if resets is None else _zero(before, resets)
    return before if lengths is None else _zero(before, ended(lengths, len(c)))


def new_c(c: Tensor, gates: Tensor, before: Tensor, cell: Cell, drawn: Drawn) -> Tensor:
    """c_t [..., H] as o and h see it: as it is before any of it is held."""
    if drawn.held_c is None:
        return c
    i, f, g = gates.unbind(-2)[:3]
    return cell.clipped(f * before + i * drawn.written(g))


def ended(lengths: Tensor, steps: int) -> Tensor:
    """Bool [T, B]: the steps at or after each row's length."""
    return lengths <= torch.arange(steps, device=lengths.device).unsqueeze(-1)


def _zeros_like_h(c: Tensor, w_h: Tensor) -> Tensor:
    """[..., P] for c [..., H] and w_h [P, 4, H]."""
    return torch.zeros_like(c) if w_h.shape[0] == w_h.shape[-1] else c.new_zeros(*c.shape[:-1], w_h.shape[0])


def _zero(values: Tensor, rows: Tensor) -> Tensor:
    """`values` with the chosen rows (leading axes) set to 0, whatever they held; their gradient is exactly 0."""
    return values.masked_fill(rows.reshape(rows.shape + (1,) * (values.dim() - rows.dim())), 0)
