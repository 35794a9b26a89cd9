"""A layer with random masks as a plain loop over steps, its masks by the keys and places that the docs name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unrolled import LSTMLayer
from unrolled.recurrence import threefry

# Steps of a row that no sequence reaches, and the row whose key is the weights'.
OF_H, OF_X, WEIGHTS = -1, -2, 2**32 - 1


class Loop(NamedTuple):
    """h and c of every step, [batch, time, width], and of every step the tensors whose gradients are the total ones.

    Where nothing of c is held, o and h see it.
    """

    h: Tensor
    c: Tensor
    with_grad_h: list[Tensor]
    with_grad_c: list[Tensor]


def below(keys: Tensor, step: int, units: int, which: int, p: float) -> Tensor:
    """Bool [keys, units]: where the number `which` of a place is below p, in steps of 2^-16."""
    words = threefry.words(keys, step, 1, units)[:, 0].to(torch.int64) & 0xFFFFFFFF
    number = words[which // 2] >> 16 if which % 2 else words[which // 2] & 0xFFFF
    return number < round(p * 2**16)


def _multiplier(keys: Tensor, step: int, units: int, p: float) -> Tensor:
    return (~below(keys, step, units, 0, p)).double() / (1 - p)


def _weight(layer: LSTMLayer, seed: Tensor, gate: str) -> Tensor:
    """W_h of a gate, dropped out."""
    w: Tensor = getattr(layer, f"W_h{gate}")
    p, hidden = layer.options.weight_drop, layer.hidden_dim
    if not (layer.training and p):
        return w
    key = threefry.row_keys(seed, torch.tensor([WEIGHTS]))
    rows = torch.stack([_multiplier(key, k, 4 * hidden, p)[0] for k in range(w.shape[0])])
    return w * rows.unflatten(1, (4, hidden))[:, "ifgo".index(gate)].to(w.dtype)


def _normed(p: dict[str, Any], gate: str, values: Tensor) -> Tensor:
    """Normalised, where there is a gain, and with the bias, where there is one."""
    if f"gain_{gate}" in p:
        values = F.layer_norm(values, values.shape[-1:]) * p[f"gain_{gate}"]
    return values + p.get(f"b_{gate}", 0)


def run(
    layer: LSTMLayer, seed: Tensor, x: Tensor, h: Tensor, c: Tensor, *, resets: Any = None, lengths: Any = None
) -> Loop:
    """`layer` in its mode; x [batch, time, input] floats; gradients flow to whatever requires them."""
    p, options, training = dict(layer.named_parameters()), layer.options, layer.training
    keys = threefry.row_keys(seed, torch.arange(len(x)))
    of_h, of_c = options.zoneouts

    w_h = {gate: _weight(layer, seed, gate) for gate in "ifgo" if f"W_h{gate}" in p}
    x_mask = h_mask = torch.ones((), dtype=x.dtype)
    if training and options.variational_dropout:
        x_mask = _multiplier(keys, OF_X, x.shape[2], options.variational_dropout).to(x.dtype)
        h_mask = _multiplier(keys, OF_H, h.shape[1], options.variational_dropout).to(x.dtype)

    def pre(gate: str, x_t: Tensor, h: Tensor) -> Tensor:
        return _normed(p, gate, (x_t * x_mask) @ p[f"W_x{gate}"] + (h * h_mask) @ w_h[gate])

    def held(new: Tensor, before: Tensor, which: int, probability: float, t: int) -> Tensor:
        if not training:
            return probability * before + (1 - probability) * new
        return torch.where(below(keys, t, new.shape[1], which, probability), before, new)

    zero, hs, cs = torch.zeros((), dtype=x.dtype), [], []
    with_grad_h: list[Tensor] = []
    with_grad_c: list[Tensor] = []
    for t in range(x.shape[1]):
        live = torch.ones(len(x), 1, dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
        if resets is not None:
            start = p.get("h_init", zero), p.get("c_init", zero)
            h, c = (torch.where(resets[:, t, None], s, value) for s, value in zip(start, (h, c), strict=True))
        i, g, o = pre("i", x[:, t], h), pre("g", x[:, t], h).tanh(), pre("o", x[:, t], h)
        i = (i + p.get("p_i", 0) * c).sigmoid()
        f = 1 - i if options.coupled else (pre("f", x[:, t], h) + p.get("p_f", 0) * c).sigmoid()
        if training and options.recurrent_dropout:
            dropped = below(keys, t, g.shape[1], 2, options.recurrent_dropout)
            g = torch.where(dropped, zero, g / (1 - options.recurrent_dropout))
        new = f * c + i * g
        if options.cell_clip is not None:
            new = new.clamp(-options.cell_clip, options.cell_clip)
        new_h = (o + p.get("p_o", 0) * new).sigmoid() * _normed(p, "c", new).tanh()
        if "W_hr" in p:
            new_h = new_h @ p["W_hr"]
        h = torch.where(live, held(new_h, h, 0, of_h, t) if of_h else new_h, zero)
        c = torch.where(live, held(new, c, 1, of_c, t) if of_c else new, zero)
        of_step = h, c, h, c if of_c else new
        for value, kept in zip(of_step, (hs, cs, with_grad_h, with_grad_c), strict=True):
            if value.requires_grad:
                value.retain_grad()
            kept.append(value)
    return Loop(torch.stack(hs, 1), torch.stack(cs, 1), with_grad_h, with_grad_c)
