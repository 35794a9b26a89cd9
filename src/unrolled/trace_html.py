"""How a trace shows itself in a notebook: small pictures of every layer, as HTML without ids or scripts."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

# Steps and units that a picture has at most: the first ones.
STEPS, UNITS = 256, 64
_WIDTH, _HEIGHT = 260, 64
_NAMES = ("c", "h", "i", "f", "g", "o")
_SIGNED = ("h", "c", "g")
_RGB = tuple[int, int, int]
# As on the page: around zero for what has a sign, else from shut to open.
_SIGNED_STOPS: tuple[_RGB, ...] = ((27, 79, 156), (111, 168, 220), (255, 255, 255), (242, 147, 111), (168, 28, 43))
_SHARE_STOPS: tuple[_RGB, ...] = ((255, 255, 255), (212, 238, 221), (127, 202, 160), (35, 135, 90), (0, 67, 43))


def fragment(title: str, layers: Sequence[object]) -> str:
    """A table, a row for each layer's trace: of c, h, i, f, g and o what it has, the first row, units downwards.

    c is coloured by its tanh. Everything is inside, so that any number of them may stand on one page.
    """
    rows = []
    for number, layer in enumerate(layers):
        name = f"layer {number}"
        cells = "".join(_cell(name, each, getattr(layer, each)) for each in _NAMES if hasattr(layer, each))
        rows.append(f'<tr><th style="text-align:left">{name}</th>{cells}</tr>')
    return (
        f'<div><div><b>{html.escape(title)}</b></div><div style="overflow-x:auto"><table>{"".join(rows)}</table></div>'
        "<div>Steps to the right, units downwards; blue is -1, white 0, red +1 (c by its tanh), gates i, f, o from "
        "white, shut, to green, open.</div></div>"
    )


def _cell(layer: str, quantity: str, values: Tensor) -> str:
    batch, time, units = values.shape
    if not values.numel():
        return f"<td>{quantity}<br>{list(values.shape)}</td>"
    seen = values[0, :STEPS, :UNITS].detach().double().cpu()
    told = f"{quantity} of {layer}: units 0 to {seen.shape[1] - 1} of {units}, steps 0 to {seen.shape[0] - 1} of {time}"
    told += f", row 0 of {batch}" if batch > 1 else ""
    data = base64.b64encode(png(_positions(quantity, seen).t(), _ramp(quantity))).decode("ascii")
    return (
        f'<td style="text-align:left">{quantity}, mean {float(seen.mean()):.3g}<br>'
        f'<img alt="{html.escape(told)}" title="{html.escape(told)}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'style="image-rendering:pixelated;border:1px solid #8888" src="data:image/png;base64,{data}"></td>'
    )


def _positions(quantity: str, values: Tensor) -> Tensor:
    """0 to 255 on the ramp; what is no number lies in the middle."""
    shown = values.tanh() if quantity == "c" else values
    share = (shown + 1) / 2 if quantity in _SIGNED else shown
    return (share.nan_to_num(nan=0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def _ramp(quantity: str) -> bytes:
    """256 colours, three bytes each."""
    stops: Sequence[_RGB] = _SIGNED_STOPS if quantity in _SIGNED else _SHARE_STOPS
    colours = bytearray()
    for k in range(256):
        at = k / 255 * (len(stops) - 1)
        left = min(len(stops) - 2, math.floor(at))
        low, high = stops[left], stops[left + 1]
        colours += bytes(round(a + (at - left) * (b - a)) for a, b in zip(low, high, strict=True))
    return bytes(colours)


def png(codes: Tensor, palette: bytes) -> bytes:
    """A picture of [height, width] uint8 codes of a palette (PNG specification, ISO/IEC 15948, colour type 3)."""
    height, width = codes.shape
    raw = b"".join(b"\0" + bytes(row) for row in codes.tolist())
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
