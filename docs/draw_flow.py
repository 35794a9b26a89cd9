"""Draws docs/flow.svg: two calls of a stack in training, a small model's own numbers in the order they are made."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unrolled import LSTMState, MultiLayerLSTM

INPUT, HIDDEN, LAYERS, STEPS, CALLS = 2, 3, 2, 3, 2
RATE = 0.4

# A cell of the picture, what a column of it takes, and where rows of vectors begin, from the top.
WIDE, HIGH, COLUMN, LEFT = 40, 17, 112, 92
LOGITS, ABOVE, UPPER, BETWEEN, LOWER, INPUTS, HEIGHT = 62, 166, 262, 372, 468, 578, 668
# Seconds of a tick, ticks of a call, and how many the whole picture stays at the end.
TICK, OF_A_CALL, STAYS = 0.7, 11, 6
TICKS = CALLS * OF_A_CALL + STAYS

STYLE = """
svg { --paper: #ffffff; --ink: #1b1f24; --quiet: #5b6570; --line: #9aa4af;
  --now: #b3261e; --plus: #e8832a; --minus: #3f7fd0 }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0f1419; --ink: #eef2f6; --quiet: #a9b4bf; --line: #66717d;
    --now: #ff8a80; --plus: #b85f10; --minus: #2f66b0 }
}
text { fill: var(--ink); font: 11px ui-monospace, monospace; text-anchor: middle }
.say { fill: var(--quiet); font: 12px sans-serif }
.side { text-anchor: end }
.box { fill: none; stroke: var(--line); rx: 6px }
.state { stroke-dasharray: 4 3 }
.cell { fill: var(--paper); stroke: var(--line); stroke-width: .7 }
.plus { fill: var(--plus) }
.minus { fill: var(--minus) }
.gone { stroke: var(--quiet); stroke-width: 1.2 }
.way { fill: none; stroke: var(--line); stroke-width: 1.5; marker-end: url(#tip) }
"""


class GivenDropout(nn.Module):
    """The stack's dropout with masks that NumPy draws: torch's are others on other processors."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = np.random.Generator(np.random.PCG64(4))
        self.made: list[tuple[Tensor, Tensor]] = []

    def forward(self, h: Tensor) -> Tensor:
        kept = torch.from_numpy(self.draw.random(tuple(h.shape)) >= RATE)
        dropped = torch.where(kept, h / (1 - RATE), 0.0)
        self.made.append((kept, dropped))
        return dropped


class Called(NamedTuple):
    """One call: x and logits [steps, width], of each layer h and c [steps, hidden], what went on and what was kept."""

    x: Tensor
    h: list[Tensor]
    c: list[Tensor]
    dropped: list[Tensor]
    kept: list[Tensor]
    logits: Tensor
    before: LSTMState
    after: LSTMState


def model() -> MultiLayerLSTM:
    """A stack in float64, whose weights are NumPy's draws."""
    stack = MultiLayerLSTM(INPUT, HIDDEN, LAYERS, backend="reference", dtype=torch.float64)
    draw = np.random.Generator(np.random.PCG64(1))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.copy_(torch.from_numpy(draw.normal(0, 0.9, tuple(parameter.shape))))
    stack.dropout = GivenDropout()
    return stack


def inputs() -> Tensor:
    """[calls, steps, input]: one sequence of six steps, cut in two."""
    return torch.from_numpy(np.random.Generator(np.random.PCG64(2)).normal(0, 1, (CALLS, STEPS, INPUT)))


def calls() -> list[Called]:
    """The calls one after the other, each from the state that the one before it left."""
    stack, made = model(), []
    state = stack.zero_state(1)
    for x in inputs():
        before, stack.dropout.made = state, []
        with torch.no_grad():
            trace = stack.trace(x[None], state)
        kept, dropped = ([each[0] for each in both] for both in zip(*stack.dropout.made, strict=True))
        state = trace.state
        h, c = [layer.h[0] for layer in trace.layers], [layer.c[0] for layer in trace.layers]
        made.append(Called(x, h, c, dropped, kept, trace.output[0], before, state))
    return made


def cells(name: str, x: int, y: int, values: Tensor, tick: int, kept: Tensor | None = None) -> str:
    """A vector, a cell for each number, coloured by sign and size; what was dropped is crossed out."""
    parts = [f'<g id="{name}" class="t{tick}">']
    for k, value in enumerate(values.tolist()):
        top, middle = y + HIGH * k, f'x="{x + WIDE // 2}" y="{y + HIGH * k + 12}"'
        at = f'x="{x}" y="{top}" width="{WIDE}" height="{HIGH}"'
        parts.append(f'<rect class="cell" {at}/>')
        if kept is not None and not kept[k]:
            parts.append(
                f'<path class="gone" d="M{x + 3} {top + HIGH - 3}L{x + WIDE - 3} {top + 3}"/><text {middle}>0</text>'
            )
            continue
        sign = "plus" if value > 0 else "minus"
        parts.append(f'<rect class="{sign}" {at} fill-opacity="{min(1.0, abs(value)) * 0.75:.2f}"/>')
        parts.append(f"<text {middle}>{value:.2f}</text>")
    return "\n".join([*parts, "</g>"])


def way(points: str, tick: int) -> str:
    return f'<path class="way t{tick} now{tick}" d="M{points}"/>'


def say(x: int, y: int, text: str, side: str = "") -> str:
    return f'<text class="say{side}" x="{x}" y="{y}">{text}</text>'


def state(name: str, column: int, held: LSTMState, tick: int) -> list[str]:
    """h and c of both layers, as they are handed from call to call."""
    x, parts = LEFT + COLUMN * column, []
    for k, y in enumerate((LOWER, UPPER)):
        parts.append(f'<rect class="box state t{tick}" x="{x - 5}" y="{y - 20}" width="{2 * WIDE + 14}" height="78"/>')
        parts.append(cells(f"{name}-layer{k}-c", x, y, held.c[k, 0], tick))
        parts.append(cells(f"{name}-layer{k}-h", x + WIDE + 4, y, held.h[k, 0], tick))
        parts += [say(x + WIDE // 2, y - 6, f"c[{k}]"), say(x + WIDE + 4 + WIDE // 2, y - 6, f"h[{k}]")]
    return parts


def step(called: Called, number: int, t: int) -> list[str]:
    """One step of a call, from x at the bottom to the logits at the top."""
    first, column = OF_A_CALL * number, 1 + t + (STEPS + 1) * number
    x, name = LEFT + COLUMN * column, f"call{number}-step{t}"
    up = x + WIDE + 4
    middle = up + WIDE // 2
    parts = [cells(f"{name}-x", up, INPUTS, called.x[t], first), say(middle, INPUTS + 50, f"x[:, {t}]")]
    for k, (y, below, above, last) in enumerate(((LOWER, INPUTS, BETWEEN, 4), (UPPER, BETWEEN, ABOVE, 8))):
        tick = first + 1 + 4 * k + t
        parts.append(way(f"{middle} {below - 4}V{y + 60}", tick))
        parts.append(way(f"{x - 24} {y + 25}H{x - 7}", tick))
        parts.append(
            f'<rect class="box t{tick} now{tick}" x="{x - 5}" y="{y - 20}" width="{2 * WIDE + 14}" height="78"/>'
        )
        parts += [say(x + WIDE // 2, y - 6, "c"), say(middle, y - 6, "h")]
        parts.append(cells(f"{name}-layer{k}-c", x, y, called.c[k][t], tick))
        parts.append(cells(f"{name}-layer{k}-h", up, y, called.h[k][t], tick))
        parts.append(way(f"{middle} {y - 22}V{above + 3 * HIGH + 5}", first + last))
        parts.append(cells(f"{name}-dropped{k}", up, above, called.dropped[k][t], first + last, called.kept[k][t]))
    parts.append(way(f"{middle} {ABOVE - 4}V{LOGITS + 2 * HIGH + 5}", first + 9))
    parts.append(cells(f"{name}-logits", up, LOGITS, called.logits[t], first + 9))
    return parts


def timing() -> str:
    """Everything is shown from its tick on, and is red in it; without motion everything is shown."""
    rules = []
    for tick in range(CALLS * OF_A_CALL + 1):
        share, after = 100 * tick / TICKS, 100 * (tick + 1) / TICKS
        before = f"0%, {max(0.0, share - 0.5):.2f}% {{ opacity: .13 }} " if tick else ""
        rules.append(f".t{tick} {{ animation: a{tick} {TICK * TICKS:.1f}s infinite }}")
        rules.append(f"@keyframes a{tick} {{ {before}{share:.2f}%, 98% {{ opacity: 1 }} 100% {{ opacity: .13 }} }}")
        rules.append(
            f".now{tick} {{ animation: a{tick} {TICK * TICKS:.1f}s infinite, n{tick} {TICK * TICKS:.1f}s infinite }}"
        )
        still = "stroke: var(--line); stroke-width: 1.5"
        rules.append(
            f"@keyframes n{tick} {{ 0%, {max(0.0, share - 0.01):.2f}% {{ {still} }} {share:.2f}%, {after:.2f}% "
            f"{{ stroke: var(--now); stroke-width: 2.5 }} {after + 0.5:.2f}%, 100% {{ {still} }} }}"
        )
    stands = "@media (prefers-reduced-motion: reduce) { * { animation: none !important } }"
    return "\n".join([*rules, stands])


def picture() -> str:
    made = calls()
    columns = CALLS * (STEPS + 1) + 1
    width = LEFT + COLUMN * columns + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img">',
        "<title>Two calls of a stack of two layers: the state is carried from one to the other</title>",
        f"<style>{STYLE}{timing()}\n</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="context-stroke"/></marker></defs>',
        f'<rect width="{width}" height="{HEIGHT}" fill="var(--paper)"/>',
    ]
    labels = {
        LOGITS: "logits",
        ABOVE: "dropout",
        UPPER: "layer 1",
        BETWEEN: "dropout",
        LOWER: "layer 0",
        INPUTS: "input",
    }
    parts += [say(LEFT - 18, y + 30, text, " side") for y, text in labels.items()]
    parts.append(say(LEFT - 18, (LOGITS + ABOVE) // 2 + 34, "proj", " side"))
    parts += state("before", 0, made[0].before, 0)
    for number, called in enumerate(made):
        first, last = OF_A_CALL * number, OF_A_CALL * number + 10
        begin = LEFT + COLUMN * (1 + (STEPS + 1) * number)
        given = "state" if number else "zeros"
        parts.append(say(begin + COLUMN * STEPS // 2 - 12, 24, f"call {number + 1}: logits, state = model(x, {given})"))
        parts.append(
            f'<path class="way t{first}" style="marker-end: none" d="M{begin} 34H{begin + COLUMN * STEPS - 24}"/>'
        )
        for t in range(STEPS):
            parts += step(called, number, t)
        end = LEFT + COLUMN * (STEPS + 1) * (number + 1)
        parts += [way(f"{end - 24} {y + 25}H{end - 7}", last) for y in (LOWER, UPPER)]
        parts += state(f"after{number}", (STEPS + 1) * (number + 1), called.after, last)
        parts.append(say(end + WIDE + 2, 24, "state, carried" if number == 0 else "state, returned"))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("flow.svg").write_text(picture(), encoding="utf-8")
