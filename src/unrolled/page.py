"""A text and what the network did in reading it, as one HTML file that opens from disk and asks no network."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Progress, Split
from .inspection import Inspection
from .manifest import replace_file
from .model import LanguageModel
from .page_data import TOKENS, UNITS, PageData, PageLayer, Quantised, excess, page_data
from .relations import Relation
from .text_features import Feature
from .tokens import Tokenizer
from .unit_statistics import GATES

_SHARES = 65535
_CHOICE = (
    "Units are chosen, and at first sorted, by how telling they are: first those that share more than the bar with a "
    "feature of the text, by their bits above it, then all others by how far c swings. Values are shown to 1/255 of "
    "each unit's range."
)


def write_page(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    title: str = "What the network does",
    inspection: Inspection | None = None,
    features: Sequence[Feature] | None = None,
    units: int | None = UNITS,
    tokens: int = TOKENS,
    progress: Progress | None = None,
) -> Path:
    """Write the page of a text into `path`, whole or not at all; a file that is there is replaced.

    The text's first `tokens` are shown, and of each layer `units`, the most telling ones (None: all), in about 8 bytes
    for each token, unit and layer. All else as in `page_data`, and so are the errors; OSError where `path` can't be
    written to.
    """
    data = page_data(
        model,
        split,
        tokenizer,
        inspection=inspection,
        features=features,
        units=units,
        tokens=tokens,
        progress=progress,
    )
    path = Path(path)
    replace_file(path, page_html(data, title).encode())
    return path


def page_html(data: PageData, title: str) -> str:
    """The whole page."""
    return _filled("page.html", ("paint.js", "page.js"), title, _as_json(data))


def live_html(title: str, facts: dict[str, Any]) -> str:
    """The page of a live session: `facts` are its secret and the model's sizes."""
    return _filled("live.html", ("paint.js", "live.js"), title, facts)


def _filled(template: str, scripts: Sequence[str], title: str, data: dict[str, Any]) -> str:
    parts = {
        "title": html.escape(title),
        "style": _file("page.css"),
        "script": "\n".join(map(_file, scripts)),
        "data": _embedded(data),
    }
    return Template(_file(template)).substitute(parts)


def _file(name: str) -> str:
    return (files("unrolled") / "inspector" / name).read_text(encoding="utf-8")


def _embedded(value: dict[str, Any]) -> str:
    """JSON that can stand between script tags: none of what ends them, and nothing that is not ASCII."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _as_json(data: PageData) -> dict[str, Any]:
    found = data.inspection
    places = [place for place, text in enumerate(data.texts) if text]
    shown, read = len(data.texts), found.tokens
    most = f"the {len(data.layers[0].units)} most telling units" if _chosen(data) else "all units"
    return {
        "about": f"{read:,} tokens, {found.nats:.3f} nats each. "
        + ("All of them" if shown == read else f"The first {shown:,}")
        + f" are shown, with {most} of each layer.",
        "notes": [_CHOICE, *(f"{note[0].upper()}{note[1:]}." for note in found.notes)],
        "tokens": shown,
        "ids": _packed(data.ids, "<u4"),
        "texts": [data.texts[place] for place in places],
        "places": places,
        "costs": _packed(data.nats, "<f4"),
        "next": {
            "count": data.next_ids.shape[1],
            "ids": _packed(data.next_ids, "<u4"),
            "shares": _packed(np.rint(data.next_shares * _SHARES), "<u2"),
        },
        "names": {str(token): text for token, text in data.labels.items()},
        "features": [
            {
                "name": each.name,
                "labels": each.labels,
                "kinds": _packed(each.kinds, "u1"),
                "bar": relation.bar,
                "entropy": relation.entropy,
            }
            for each, relation in zip(data.features, found.relations, strict=True)
        ],
        "first": _first(data),
        "layers": [_layer(number, layer, found.relations) for number, layer in enumerate(data.layers)],
    }


def _chosen(data: PageData) -> bool:
    return any(len(layer.units) < len(layer.statistics.memory) for layer in data.layers)


def _layer(number: int, layer: PageLayer, relations: Sequence[Relation]) -> dict[str, Any]:
    units, seen = list(layer.units), layer.statistics
    bits, by = [], []
    for relation in relations:
        best, which = relation.bits[:, number].nan_to_num(nan=0.0)[:, units].max(0)
        bits.append(_short(best))
        by.append([relation.quantities[k] for k in which.tolist()])
    return {
        "hidden": len(seen.memory),
        "units": units,
        "memory": _short(seen.memory[units]),
        "holding": _short(seen.holding[units]),
        "latching": seen.latching[units].tolist(),
        "dead": seen.dead[units].tolist() if len(seen.dead) == len(seen.memory) else [False] * len(units),
        "left": {gate: _short(seen.left[gate][units]) for gate in GATES},
        "right": {gate: _short(seen.right[gate][units]) for gate in GATES},
        "bits": bits,
        "by": by,
        "values": {name: _quantised(values) for name, values in layer.values.items()},
    }


def _first(data: PageData) -> dict[str, int]:
    """What the page begins with: the unit that shares most with a feature, and that feature."""
    best = {"layer": 0, "row": 0, "feature": 0}
    most = 0.0
    for number, relation in enumerate(data.inspection.relations):
        above = excess(relation)
        for k, layer in enumerate(data.layers):
            row = int(above[k, list(layer.units)].argmax())
            if float(above[k, layer.units[row]]) > most:
                most, best = float(above[k, layer.units[row]]), {"layer": k, "row": row, "feature": number}
    return best


def _quantised(values: Quantised) -> dict[str, str]:
    return {
        "codes": _packed(values.codes, "u1"),
        "low": _packed(values.low, "<f4"),
        "high": _packed(values.high, "<f4"),
    }


def _packed(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(dtype)).tobytes()).decode("ascii")


def _short(values: Tensor) -> list[float | None]:
    """To four digits; None for what is not finite."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]
