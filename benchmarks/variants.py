"""What each option of a cell costs: beside the plain layer, and beside the loop over steps that one writes today.

A training step of one layer, all gradients taken; an option is timed only when its h and gradients are the loop's. If
masks are drawn, the loop is first given ours, and draws its own while it is timed, by torch's generator.

    python benchmarks/variants.py [--seconds 8] [--write PAGE]

Exits 1 where an option takes more than is promised of it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measure import Times, alternate, speed
from page import add_write, provenance, table, write_section
from torch import Tensor

from unrolled import LSTMLayer
from unrolled.recurrence import masks, row_keys, threefry

# Where something is held or dropped, with a probability: of h, c or g at a step, of x or h at all, of W_h.
Draw = Callable[[str, int, tuple[int, ...], float], Tensor]
SEED = torch.tensor(1997)

# Batch, steps, input, hidden: where the cell is dear beside its products, and where it is not.
SHAPES = ((16, 128, 64, 64), (32, 64, 256, 256))
PLAIN = "plain"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "peephole": {"peephole": True},
    "coupled": {"coupled": True},
    "cell_clip": {"cell_clip": 1.0},
    "hard_sigmoid": {"gate_activation": "hard_sigmoid"},
    "relu": {"activation": "relu"},
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.1},
    "recurrent_dropout": {"recurrent_dropout": 0.1},
    "variational_dropout": {"variational_dropout": 0.1},
    "weight_drop": {"weight_drop": 0.1},
    "proj_dim": {"proj_dim": 32},
}
# Of the plain layer's time, at most; nothing is promised of weight_drop, which masks all of W_h in each call, and of
# proj_dim, which has other products.
PROMISED = {"layer_norm": 1.2, "weight_drop": math.inf, "proj_dim": math.inf}
OTHERS = 1.05
# What rounding may do over the steps of the longest sequence, of the largest value.
NEAR = 1e-3


def by_torch(_: str, __: int, shape: tuple[int, ...], p: float) -> Tensor:
    return torch.rand(shape) < p


def as_the_layer(shape: tuple[int, ...]) -> Draw:
    """The masks that a layer draws from SEED, of a sequence of this batch, steps and hidden."""
    batch, steps, hidden = shape
    keys = row_keys(SEED, batch)
    words = threefry.words(keys, 0, steps, hidden)

    def draw(of: str, t: int, size: tuple[int, ...], p: float) -> Tensor:
        if of == "W_h":
            return masks.weight_mask(SEED, torch.Size(size), p, torch.float32) == 0
        if of in ("x", "h of all"):
            return masks.sequence_mask(keys, of[0], size[-1], p, torch.float32) == 0
        return threefry.below(words[:, t], ("h", "c", "g").index(of), threefry.threshold(p))

    return draw


def loop(layer: LSTMLayer, x: Tensor, draw: Draw = by_torch) -> Tensor:
    """The layer as plain torch, a step at a time: one product with x for all steps, one with h for each."""
    w_x, w_h, bias = layer._weights()
    options, hidden = layer.options, layer.hidden_dim
    rows = (x.shape[0], hidden)
    w_hr = layer.W_hr if layer.proj_dim is not None else None

    def dropped(values: Tensor, of: str, t: int, size: tuple[int, ...], p: float) -> Tensor:
        return values.masked_fill(draw(of, t, size, p), 0) / (1 - p) if p else values

    def held(new: Tensor, before: Tensor, of: str, t: int, p: float) -> Tensor:
        return torch.where(draw(of, t, rows, p), before, new) if p else new

    p_of_h, p_of_c = options.zoneouts
    x = dropped(x.transpose(0, 1), "x", 0, (x.shape[0], x.shape[2]), options.variational_dropout).transpose(0, 1)
    w_h = dropped(w_h, "W_h", 0, tuple(w_h.shape), options.weight_drop)
    h_mask = dropped(torch.ones(rows), "h of all", 0, rows, options.variational_dropout)
    p_i, p_f, p_o = (getattr(layer, f"p_{gate}", None) for gate in "ifo")
    gate = torch.nn.functional.hardsigmoid if options.gate_activation == "hard_sigmoid" else torch.sigmoid
    squash = torch.relu if options.activation == "relu" else torch.tanh
    gains, shifts = layer._norm() if options.layer_norm else (None, None)

    def normed(values: Tensor, which: slice | int) -> Tensor:
        if gains is None:
            return values
        return torch.nn.functional.layer_norm(values, values.shape[-1:]) * gains[which] + shifts[which]

    pre, w_h = x @ w_x.flatten(1) + bias.flatten(), w_h.flatten(1)
    h, c = x.new_zeros(x.shape[0], layer.h_dim), x.new_zeros(rows)
    hs = []
    for t, pre_t in enumerate(pre.unbind(1)):
        taken_in = h * h_mask if options.variational_dropout else h
        i, f, g, o = normed((pre_t + taken_in @ w_h).unflatten(-1, (4, hidden)), slice(0, 4)).unbind(-2)
        i = gate(i if p_i is None else i + p_i * c)
        f = 1 - i if options.coupled else gate(f if p_f is None else f + p_f * c)
        new = f * c + i * dropped(squash(g), "g", t, rows, options.recurrent_dropout)
        if options.cell_clip is not None:
            new = new.clamp(-options.cell_clip, options.cell_clip)
        seen = gate(o if p_o is None else o + p_o * new) * squash(normed(new, 4))
        h = held(seen if w_hr is None else seen @ w_hr, h, "h", t, p_of_h)
        c = held(new, c, "c", t, p_of_c)
        hs.append(h)
    return torch.stack(hs, 1)


def new_layer(shape: tuple[int, ...], options: dict[str, Any]) -> LSTMLayer:
    torch.manual_seed(1)
    layer = LSTMLayer(*shape[2:], **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.startswith("W_"):
                parameter.normal_(std=0.3)
    return layer


def step(layer: LSTMLayer, forward: Callable[[Tensor], Tensor], x: Tensor, into_h: Tensor) -> list[Tensor]:
    """A training step: h and the gradients of all parameters."""
    layer.zero_grad()
    h = forward(x)
    h.backward(into_h)
    return [h.detach(), *(parameter.grad for parameter in layer.parameters() if parameter.grad is not None)]


def check(name: str, ours: list[Tensor], theirs: list[Tensor]) -> None:
    if len(ours) != len(theirs):
        sys.exit(f"{name}: {len(ours)} results and {len(theirs)} of the loop")
    for value, expected in zip(ours, theirs, strict=True):
        if float((value - expected).abs().max()) > NEAR * (1 + float(expected.abs().max())):
            sys.exit(f"{name} is not what the loop computes")


def measured(shape: tuple[int, ...], seconds: float) -> dict[str, Times]:
    batch, steps, width, hidden = shape
    # Seeded: some inputs drive c of a cell with relu so far that rounding shows.
    torch.manual_seed(2)
    x, into_all = torch.randn(batch, steps, width), torch.randn(batch, steps, hidden)
    runs: dict[str, Callable[[], Any]] = {}
    for name, options in OPTIONS.items():
        layer = new_layer(shape, options)
        into_h = into_all[..., : layer.h_dim]

        def own(given: Tensor, layer: LSTMLayer = layer) -> Tensor:
            return layer(given)[0]

        def by_loop(given: Tensor, layer: LSTMLayer = layer) -> Tensor:
            return loop(layer, given)

        draw = as_the_layer((batch, steps, hidden))
        ours = step(layer, lambda given, layer=layer: layer(given, seed=SEED)[0], x, into_h)
        check(name, ours, step(layer, lambda given, layer=layer, draw=draw: loop(layer, given, draw), x, into_h))
        runs[name] = partial(step, layer, own, x, into_h)
        runs[f"{name}, loop"] = partial(step, layer, by_loop, x, into_h)
    return alternate(runs, seconds=seconds)


def rows_of(shape: tuple[int, ...], times: dict[str, Times]) -> tuple[list[list[str]], list[str]]:
    """The table's rows, and what takes more than promised."""
    rows, missed = [], []
    for name in OPTIONS:
        own, by_loop = times[name], times[f"{name}, loop"].median
        # Turn by turn: what slows a whole round slows both.
        share = speed(own, times[PLAIN]).median
        cells = (f"{own.median:.2f} ms", f"{share:.2f}", f"{by_loop:.1f} ms, {by_loop / own.median:.1f}x")
        rows.append(["x".join(map(str, shape)), name, *cells])
        if share > PROMISED.get(name, OTHERS):
            missed.append(f"{rows[-1][0]}: {name} takes {share:.2f} of the plain layer's time")
    return rows, missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each shape, at least")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance(), flush=True)
    rows, missed = [], []
    for shape in SHAPES:
        made, slow = rows_of(shape, measured(shape, arguments.seconds))
        rows, missed = [*rows, *made], [*missed, *slow]
    header = (
        "batch x steps x input x hidden",
        "option",
        "a step",
        "of the plain layer's",
        "the loop; ours is faster by",
    )
    lines = table(header, rows)
    print(*lines, *missed, sep="\n")
    if arguments.write:
        write_section(arguments.write, "variants", lines)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
