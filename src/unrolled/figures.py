"""What a network does with a text as figures: gates over a sentence, saturation, memory lengths, gradient flow."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .inspection import Inspection
from .manifest import make_directories, replace_file
from .page_data import PageData, excess
from .reach import Reach
from .unit_statistics import GATES, LEFT, RIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Tokens of the sentence in the figure of one unit's gates.
SENTENCE = 72
_NAMES = {
    "c": "cell state c",
    "h": "hidden state h",
    "i": "input gate i",
    "f": "forget gate f",
    "g": "candidate g",
    "o": "output gate o",
}
_COLOURS = {"c": "#b5382b", "h": "#8a4bb0", "i": "#1f7a4d", "f": "#1d5fd1", "g": "#9a6200", "o": "#0b7285"}
_LAYERS = ("#1d5fd1", "#d1495b", "#1f7a4d", "#9a6200", "#8a4bb0", "#0b7285")
_SIGNED = ("c", "h", "g")


class FiguresError(ValueError):
    """Figures that can't be drawn; the message says what to install."""


def write_figures(directory: str | Path, data: PageData, reach: Reach) -> list[Path]:
    """Draw gates.png, saturation.png, memory.png and gradient-flow.png into `directory`; it is made if it is missing.

    Raises FiguresError without matplotlib.
    """
    require()
    directory = Path(directory)
    make_directories(directory)
    drawn: dict[str, Callable[[], Figure]] = {
        "gates.png": lambda: gates(data),
        "saturation.png": lambda: saturation(data.inspection),
        "memory.png": lambda: memory(data.inspection),
        "gradient-flow.png": lambda: gradient_flow(reach),
    }
    for name, draw in drawn.items():
        picture = io.BytesIO()
        draw().savefig(picture, format="png", dpi=150)
        replace_file(directory / name, picture.getvalue())
    return [directory / name for name in drawn]


def require() -> None:
    """FiguresError without matplotlib, before anything is computed for a figure."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise FiguresError("matplotlib is not installed: pip install 'unrolled[plots]'") from None


def gates(data: PageData, *, layer: int | None = None, unit: int | None = None, begin: int | None = None) -> Figure:
    """h, c and the gates of one unit over a sentence of up to 72 tokens.

    `unit` (its number in the layer, one of those that the data have) and `begin` if None: the most telling unit, and
    where its tanh(c) changes most. IndexError for a layer or a token, ValueError for a unit that there is not.
    """
    if layer is None:
        layer = _first_layer(data)
    if not 0 <= layer < len(data.layers):
        raise IndexError(f"layer {layer} of {len(data.layers)}; layers are 0 to {len(data.layers) - 1}")
    shown = data.layers[layer]
    if unit is None:
        unit = shown.units[0]
    if unit not in shown.units:
        raise ValueError(
            f"unit {unit} of layer {layer} is not among the {len(shown.units)} that were kept; units=None keeps all"
        )
    row = shown.units.index(unit)
    values = {name: shown.values[name].values()[row] for name in _NAMES if name in shown.values}
    length = min(SENTENCE, len(data.texts))
    if begin is None:
        begin = _liveliest(np.tanh(values["c"]), length)
    if not 0 <= begin < len(data.texts):
        raise IndexError(f"token {begin} of {len(data.texts)}; tokens are 0 to {len(data.texts) - 1}")
    end = min(begin + length, len(data.texts))
    figure = _figure(11, 6.2)
    strips = figure.subplots(len(values), 1, sharex=True)
    for axes, (name, numbers) in zip(strips, values.items(), strict=True):
        _strip(axes, name, numbers[begin:end])
    strips[0].set_title(f"layer {layer}, unit {unit}, tokens {begin} to {end - 1}", loc="left")
    strips[-1].set_xticks(range(end - begin), _signs(data.texts[begin:end]), family="monospace", parse_math=False)
    return figure


def saturation(inspection: Inspection) -> Figure:
    """Units by the share of time that each gate is saturated left and right (Karpathy, Johnson & Fei-Fei 2015)."""
    figure = _figure(11, 3.4)
    for axes, gate in zip(figure.subplots(1, len(GATES), sharex=True, sharey=True), GATES, strict=True):
        for number, layer in enumerate(inspection.layers):
            left, right = layer.left[gate].numpy(), layer.right[gate].numpy()
            colour = _LAYERS[number % len(_LAYERS)]
            axes.scatter(left, right, s=14, alpha=0.55, color=colour, linewidths=0, label=f"layer {number}")
        axes.plot([0, 1], [1, 0], color="#00000030", linewidth=1)
        axes.set(
            title=_NAMES[gate], xlabel=f"share below {LEFT}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal"
        )
    first = figure.axes[0]
    first.set_ylabel(f"share above {RIGHT}")
    first.legend(frameon=False, loc="upper right")
    return figure


def memory(inspection: Inspection) -> Figure:
    """How many units of each layer remember for how long, 1 / (1 - mean f), on a logarithmic scale."""
    lengths = [layer.memory[layer.memory.isfinite()].numpy() for layer in inspection.layers]
    figure = _figure(8, 4)
    axes = figure.subplots()
    largest = max((float(each.max()) for each in lengths if each.size), default=1.0)
    edges = np.geomspace(1, max(largest, 2.0) * 1.001, 33)
    for number, (each, layer) in enumerate(zip(lengths, inspection.layers, strict=True)):
        endless = len(layer.memory) - each.size
        label = f"layer {number}, median {float(layer.memory.median()):.3g}" + (
            f", {endless} for ever" if endless else ""
        )
        axes.hist(each, edges.tolist(), alpha=0.6, color=_LAYERS[number % len(_LAYERS)], label=label)
    axes.set(xscale="log", xlabel="memory 1 / (1 - mean f), steps", ylabel="units")
    axes.legend(frameon=False)
    return figure


def gradient_flow(reach: Reach) -> Figure:
    """|dL_t / dc_(t-k)| by k, of that at k = 0: the mean over tokens, and within it the middle eight tenths."""
    figure = _figure(8, 4)
    axes = figure.subplots()
    means = reach.mean("c")
    back = np.arange(means.shape[1])
    for number, (mean, each) in enumerate(zip(means, reach.c, strict=True)):
        colour = _LAYERS[number % len(_LAYERS)]
        low, high = (torch.quantile(each, q, dim=0) / mean[0] for q in (0.1, 0.9))
        axes.plot(
            back, (mean / mean[0]).numpy(), color=colour, label=f"layer {number}: {reach.factor()[number]:.3f} a step"
        )
        axes.fill_between(back, low.numpy(), high.numpy(), color=colour, alpha=0.15, linewidth=0)
    axes.set(yscale="log", xlabel="steps back, k", ylabel="gradient of the loss in c, of that at k = 0")
    axes.set_xlim(0, max(1, len(back) - 1))
    axes.legend(frameon=False)
    return figure


def _first_layer(data: PageData) -> int:
    """Where the unit is that shares most with a feature; the top layer if none does."""
    best = torch.zeros(len(data.layers), dtype=torch.float64)
    for relation in data.inspection.relations:
        best = torch.maximum(best, excess(relation).amax(1))
    return int(best.argmax()) if float(best.max()) > 0 else len(data.layers) - 1


def _liveliest(values: np.ndarray, length: int) -> int:
    """Where a stretch begins in which they vary most."""
    sums, squares = (np.cumsum(np.append(0.0, each)) for each in (values, values**2))
    means = (sums[length:] - sums[:-length]) / length
    return int(((squares[length:] - squares[:-length]) / length - means**2).argmax())


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _strip(axes: Axes, name: str, numbers: np.ndarray) -> None:
    steps = range(len(numbers))
    axes.axhline(0, color="#00000025", linewidth=1)
    axes.plot(steps, numbers, color=_COLOURS[name], linewidth=1.4, marker=".", markersize=3)
    axes.fill_between(steps, numbers, 0, color=_COLOURS[name], alpha=0.15, linewidth=0)
    axes.set_ylabel(_NAMES[name], rotation=0, ha="right", va="center")
    axes.tick_params(axis="x", length=0)
    most = max(1.0, float(np.abs(numbers).max())) * 1.05
    axes.set_ylim(-most if name in _SIGNED else -0.05, most if name in _SIGNED else 1.05)
    axes.set_xlim(-0.5, len(numbers) - 0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _signs(texts: tuple[str, ...]) -> list[str]:
    """One sign for each token, of those that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="monospace")))
    signs = {
        " ": "\N{OPEN BOX}",
        "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
        "\t": "\N{RIGHTWARDS ARROW TO BAR}",
    }
    found = [signs.get(text[:1], text[:1]) for text in texts]
    return [sign if not sign or font.get_char_index(ord(sign)) else "\N{MIDDLE DOT}" for sign in found]
