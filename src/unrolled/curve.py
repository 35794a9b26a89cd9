"""The course of a run as a picture, from its log: training loss, scores of the validation text, the learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A smoothed loss is the mean of this many of the logged ones to either side, fewer where there are few.
SMOOTHED, SHARE = 10, 0.02
_LOSS, _SCORE, _RATE = "#3b6fb6", "#d1495b", "#8a8a8a"


class CurveError(ValueError):
    """A run that can't be drawn; the message says why, or what to install."""


def plot(run: Path, out: Path | None = None) -> Path:
    """Draw the run's log into `out`, an .svg or .png file; RUN/curve.svg if not given. CurveError."""
    out = out or run / "curve.svg"
    if out.suffix not in (".svg", ".png"):
        raise CurveError(f"{out} is neither .svg nor .png; name the picture so: --out curve.svg")
    lines = _lines(run)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise CurveError("matplotlib is not installed: pip install 'unrolled[plots]'") from None
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_losses(above, lines)
    steps = [line for line in lines if line["event"] == "step"]
    below.plot([line["step"] for line in steps], [line["lr"] for line in steps], color=_RATE)
    below.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    above.set_title(str(run), loc="left")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
    return out


def smoothed(values: list[float], half: int) -> list[float]:
    """Means over each value and `half` of them to either side; at the beginning fewer on both, so that no mean lags."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for at in range(len(values)):
        begin, end = at - min(half, at), min(at + min(half, at) + 1, len(values))
        result.append((sums[end] - sums[begin]) / (end - begin))
    return result


def _draw_losses(axes: Axes, lines: list[dict[str, Any]]) -> None:
    steps = [line for line in lines if line["event"] == "step"]
    scored = [line for line in lines if line["event"] == "evaluated" and line["score"]]
    at, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    smooth = smoothed(losses, min(SMOOTHED, int(SHARE * len(losses))))
    axes.plot(at, losses, color=_LOSS, alpha=0.25, linewidth=1)
    axes.plot(at, smooth, color=_LOSS, label="training, with dropout, smoothed")
    shown = [*smooth[len(smooth) // 50 :]]
    if scored:
        where, scores = [line["step"] for line in scored], [line["score"]["nats"] for line in scored]
        axes.plot(where, scores, "o-", color=_SCORE, markersize=4, label="validation, in blocks")
        best = min(range(len(scores)), key=scores.__getitem__)
        axes.annotate(
            f"{scores[best]:.3f} at step {where[best]}",
            (where[best], scores[best]),
            (0, -14),
            textcoords="offset points",
            ha="right" if best else "left",
            color=_SCORE,
        )
        shown += scores
    room = 0.12 * (max(shown) - min(shown)) or 0.1
    axes.set(ylabel="nats per token", ylim=(min(shown) - room, max(shown) + room))
    axes.legend(frameon=False, loc="upper right")


def _lines(run: Path) -> list[dict[str, Any]]:
    path = run / "log.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CurveError(f"{path} can't be read: {error.strerror}; pass the directory of a run") from None
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # a run that is being written ends in half a line
    if not any(line.get("event") == "step" for line in lines):
        raise CurveError(f"{path} has no step yet; train first, and then draw")
    return lines
