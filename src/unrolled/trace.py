"""A look inside for the terminal: each character coloured by one unit's cell state, its four gates below."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from rich.cells import cell_len
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text
from torch import Tensor

from .stack import Trace

_ROWS = {"c": "cell", "i": "input", "f": "forget", "g": "candidate", "o": "output"}
# These lie between -1 and 1, the others between 0 and 1.
_SIGNED = frozenset("cg")
# On a narrower screen the rows are named by their letter, so that the text has the room.
_ROOM_FOR_WORDS = 48
_RGB = tuple[int, int, int]
_DIVERGING: tuple[_RGB, _RGB, _RGB] = ((33, 102, 172), (247, 247, 247), (178, 24, 43))
_SEQUENTIAL: tuple[_RGB, _RGB, _RGB] = ((247, 247, 247), (145, 203, 154), (0, 90, 50))
_RAMP = 9


@dataclass(frozen=True)
class Column:
    """One character on the screen (or one token of several), with what the unit did there; `c` is tanh(c)."""

    text: str
    c: float
    i: float
    f: float
    g: float
    o: float


@dataclass(frozen=True)
class Picture:
    """A rich renderable: `rich.print(picture)`. Wraps at the console's width; digits stand in for missing colours."""

    columns: tuple[Column, ...]
    layer: int
    unit: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Sixteen colours are too few to tell the values apart.
        digits = console.no_color or console.color_system in (None, "standard", "windows")
        names = _ROWS if options.max_width >= _ROOM_FOR_WORDS else {name: name for name in _ROWS}
        margin = 2 + max(map(len, names.values()))
        yield Text(f"layers[{self.layer}], unit {self.unit}", style="bold")
        for line in _lines(self.columns, options.max_width - margin, ascii_only=options.ascii_only):
            if digits:
                yield Text(" " * margin + "".join(sign for sign, _ in line), no_wrap=True, overflow="crop")
            for name, label in names.items():
                yield _strip(name, label.ljust(margin), line, digits=digits)
            yield Text()
        yield _legend(digits=digits)


def picture(trace: Trace, symbols: Sequence[str], *, layer: int = -1, unit: int | None = None, row: int = 0) -> Picture:
    """Draw one unit of `trace` over the text that was read.

    `symbols[t]` is the text that step t completes; a step that completes none (the first bytes of a character) has ""
    and is drawn with the character that it belongs to, which shows the unit after its last step. `unit=None` takes
    `telling_unit`. Raises ValueError if the symbols are not as many as the steps, IndexError for a layer, unit or row
    that does not exist.
    """
    layers = len(trace.layers)
    _check("layer", layer + layers if layer < 0 else layer, layers, layer)
    opened = trace.layers[layer]
    rows, steps, hidden = opened.c.shape
    _check("row", row, rows, row)
    if len(symbols) != steps:
        raise ValueError(f"{len(symbols)} symbols for a trace of {steps} steps; pass one for each step")
    if unit is None:
        unit = telling_unit(opened.c[row])
    _check("unit", unit, hidden, unit)
    shown = {name: getattr(opened, name)[row, :, unit].detach().double() for name in _ROWS}
    shown["c"] = shown["c"].tanh()
    columns = _columns(symbols, {name: values.tolist() for name, values in shown.items()})
    return Picture(columns, layer % layers, unit)


def telling_unit(c: Tensor) -> int:
    """The unit of `c` [time, hidden] that swings far and holds what it has: a memory rather than a flicker.

    The measure is the covariance of tanh(c) at neighbouring steps, largest first; of a single step, |tanh(c)|.
    """
    seen = c.detach().double().tanh()
    if seen.shape[0] < 2:
        return int(seen.abs().sum(0).argmax())
    away = seen - seen.mean(0)
    return int((away[1:] * away[:-1]).mean(0).argmax())


def _check(what: str, index: int, size: int, given: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"{what} {given} of a trace with {size} {what}s; {what}s are 0 to {size - 1}")


def _columns(symbols: Sequence[str], values: dict[str, list[float]]) -> tuple[Column, ...]:
    """A column for each completed character; a combining mark shares that of its letter, at the later step."""
    placed: list[tuple[str, int]] = []
    for step, symbol in enumerate(symbols):
        if placed and symbol and not cell_len(_sign(symbol, ascii_only=False)):
            placed[-1] = (placed[-1][0] + symbol, step)
        elif symbol:
            placed.append((symbol, step))
    return tuple(Column(text, **{name: numbers[step] for name, numbers in values.items()}) for text, step in placed)


def _lines(columns: Sequence[Column], width: int, *, ascii_only: bool) -> Iterator[list[tuple[str, Column]]]:
    """Columns and what stands for them on the screen, as many as fit in `width` cells and at least one a line."""
    line: list[tuple[str, Column]] = []
    used = 0
    for column in columns:
        sign = _sign(column.text, ascii_only=ascii_only)
        if line and used + cell_len(sign) > width:
            yield line
            line, used = [], 0
        line.append((sign, column))
        used += cell_len(sign)
    if line:
        yield line


def _sign(text: str, *, ascii_only: bool) -> str:
    """`text` with a visible sign for every control character, each of which would otherwise have no width."""
    named = {"\n": "$", "\t": ">"} if ascii_only else {"\n": "↵", "\t": "→"}
    other = "?" if ascii_only else "·"
    return "".join(
        named.get(sign, other) if unicodedata.category(sign) == "Cc" or (ascii_only and not sign.isascii()) else sign
        for sign in text
    )


def _strip(name: str, label: str, line: list[tuple[str, Column]], *, digits: bool) -> Text:
    """One row of cells; with colours, the row of the cell state carries the text itself."""
    strip = Text(label, no_wrap=True, overflow="crop")
    for sign, column in line:
        value = getattr(column, name)
        share = (value + 1) / 2 if name in _SIGNED else value
        cover = (_digit(share) if digits else " ") * cell_len(sign)
        cell = sign if name == "c" and not digits else cover
        strip.append(cell, _style(_DIVERGING if name in _SIGNED else _SEQUENTIAL, round(share, 2)))
    return strip


def _legend(*, digits: bool) -> Text:
    if digits:
        return Text("cell is tanh(c). cell, candidate: 0 is -1, 9 is +1; input, forget, output: 0 shut, 9 open")
    legend = Text("cell is tanh(c). cell, candidate -1 ")
    for scale, after in ((_DIVERGING, " +1; input, forget, output shut "), (_SEQUENTIAL, " open")):
        for step in range(_RAMP):
            legend.append(" ", _style(scale, step / (_RAMP - 1)))
        legend.append(after)
    return legend


def _digit(share: float) -> str:
    """0 to 9, tenths of the scale."""
    return str(min(9, int(share * 10)))


@cache
def _style(scale: tuple[_RGB, _RGB, _RGB], share: float) -> Style:
    """A background at `share` (0 to 1) of the scale, under black or white, whichever reads better on it."""
    low, high = scale[:2] if share < 0.5 else scale[1:]
    part = share * 2 % 1 if share < 1 else 1.0
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    # Perceived brightness, ITU-R BT.601.
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    ink = Color.from_rgb(0, 0, 0) if bright else Color.from_rgb(255, 255, 255)
    return Style(color=ink, bgcolor=Color.from_rgb(red, green, blue))
