"""How long one step takes on this machine, and what smaller weights lose on a text: measured, and shown as a table."""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from .checkpoint import Run, load
from .corpus import builtin_text, read_corpus
from .model import LanguageModel
from .quota import Throttling, granted, processors, run_held, throttling
from .recurrence import BackendUnavailable
from .stack import MultiLayerLSTM
from .stepper import Stepper
from .tokens import IntArray, TokenizerError

Kind = Literal["float32", "bfloat16", "int8"]

_TOKENS = 20_000
_INPUTS, _WARM_UP = 64, 20


@dataclass(frozen=True)
class Question:
    """What is to be measured: a `run`, or a `shape`; None elsewhere is the default of `unrolled bench`."""

    run: Path | None = None
    shape: str | None = None
    weights: Kind | None = None
    steps: int | None = None
    threads: int | None = None
    text: Path | None = None

    def __post_init__(self) -> None:
        if (self.run is None) == (self.shape is None):
            raise ValueError("name a run, unrolled bench RUN, or a shape, unrolled bench --shape 1x256x512x2")
        if self.text is not None and self.run is None:
            raise ValueError("--text needs a trained model: unrolled bench RUN --text FILE")
        for name in ("steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return get_args(Kind) if self.weights is None else (self.weights,)

    def words(self) -> list[str]:
        """The command line that asks the same."""
        flags = ("shape", "weights", "steps", "threads", "text")
        words = [f"--{name}={value}" for name in flags if (value := getattr(self, name)) is not None]
        return [*words, "--json", *([] if self.run is None else ["--", str(self.run)])]


@dataclass(frozen=True)
class Timing:
    """Microseconds for each step into `out`, the call from Python included; None where `refusal` says why not.

    `backend`: "cpu" is the native kernel, "portable" plain torch.
    """

    weights: str
    threads: int
    backend: str | None = None
    steps: int = 0
    p50: float | None = None
    p99: float | None = None
    maximum: float | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Loss:
    """What `weights` lose on a text of that many predicted tokens: mean bits for each character, beside float32's."""

    weights: str
    tokens: int
    bits_per_character: float
    bits_per_character_float32: float
    largest_difference: float


@dataclass(frozen=True)
class Report:
    """What was measured, and how much of the machine there was: `granted` by the control group, None for all of it.

    `throttling`: pauses that the control group made meanwhile, None where it does not count them. `quota`: the share
    that `unrolled bench --quota` kept to, and then `throttling` is its own.
    """

    model: str
    processors: int
    granted: float | None
    timings: tuple[Timing, ...]
    losses: tuple[Loss, ...]
    throttling: Throttling | None
    quota: float | None = None
    note: str | None = None


def answer(question: Question, quota: float | None = None) -> Report:
    """Measure; with a `quota`, in a process of its own that keeps to it.

    Raises ValueError for a shape or text that can't be used, and for a quota elsewhere than on Linux.
    """
    if quota is None:
        return _measured(question)
    held = run_held([sys.executable, "-m", "unrolled", "bench", *question.words()], quota)
    if held.status:
        raise ValueError("the process that was to keep to the quota failed, for the reason above")
    return replace(report_of(json.loads(held.output)), quota=quota, throttling=held.throttling)


def report_of(values: dict[str, Any]) -> Report:
    """The report whose `dataclasses.asdict` is `values`."""
    throttled = values["throttling"]
    return Report(
        **{
            **values,
            "timings": tuple(Timing(**row) for row in values["timings"]),
            "losses": tuple(Loss(**row) for row in values["losses"]),
            "throttling": None if throttled is None else Throttling(**throttled),
        }
    )


def table(report: Report) -> Table:
    """A row for each kind of weights and number of threads, with the loss where that was measured."""
    shown = Table(title=f"one step of {report.model}", title_justify="left", box=None, pad_edge=False)
    shown.add_column("weights")
    for heading in ("threads", "p50 us", "p99 us", "maximum us", "steps"):
        shown.add_column(heading, justify="right")
    lost = {loss.weights: loss for loss in report.losses}
    if lost:
        shown.add_column("bits/character", justify="right")
        shown.add_column("lost", justify="right")
    for row in report.timings:
        if row.p50 is None or row.p99 is None or row.maximum is None:
            numbers = ["-"] * 4
        else:
            numbers = [f"{row.p50:,.1f}", f"{row.p99:,.1f}", f"{row.maximum:,.1f}", f"{row.steps:,}"]
        loss = lost.get(row.weights)
        if loss is not None:
            change = loss.bits_per_character - loss.bits_per_character_float32
            # Plus zero: a loss that rounds to nothing has no sign.
            numbers += [f"{loss.bits_per_character:.4f}", f"{round(change, 4) + 0.0:+.4f}"]
        elif lost and row.weights == "float32":
            numbers += [f"{next(iter(lost.values())).bits_per_character_float32:.4f}", ""]
        shown.add_row(row.weights, str(row.threads), *numbers)
    return shown


def notes(report: Report) -> list[str]:
    """What is to be known of the numbers: the share of the machine, and what could not be run."""
    share = "no quota" if report.granted is None else f"a quota of {report.granted:g}"
    lines = [f"{report.processors} processors, {share} of the control group"]
    if report.quota is not None:
        lines.append(f"kept to {report.quota:g} processors by stopping the process when they were used up")
    waited = report.throttling
    if waited is not None and waited.periods:
        lines.append(
            f"stopped in {waited.throttled} of {waited.periods} periods of 100 ms, {1000 * waited.seconds:,.0f} ms in "
            "all; a stop in the middle of a step is part of that step"
        )
    if any(row.backend == "portable" for row in report.timings):
        lines.append("in plain torch; where there is a C++ compiler, the native kernel is several times as fast")
    lines += dict.fromkeys(row.refusal for row in report.timings if row.refusal is not None)
    for loss in report.losses:
        lines.append(
            f"{loss.weights} on {loss.tokens:,} tokens: largest difference of a logit {loss.largest_difference:.3g}"
        )
    return lines if report.note is None else [*lines, report.note]


def _measured(question: Question) -> Report:
    run = None if question.run is None else load(question.run)
    model, batch = _model_of_shape(question.shape or "") if run is None else (run.model, 1)
    ids, note = (None, None) if run is None else _text(run, question.text)
    default = dict.fromkeys((1, torch.get_num_threads()))
    threads = default if question.threads is None else (question.threads,)
    before = throttling()
    timings = tuple(_timing(model, batch, kind, count, question.steps) for count in threads for kind in question.kinds)
    after = throttling()
    if question.weights is not None and timings[0].refusal is not None:
        raise ValueError(timings[0].refusal)
    losses: tuple[Loss, ...] = ()
    if run is not None and ids is not None:
        runnable = {row.weights: row.threads for row in timings if row.refusal is None and row.weights != "float32"}
        losses = tuple(_loss(run, ids, kind, runnable[kind]) for kind in question.kinds if kind in runnable)
    waited = None if before is None or after is None else after - before
    return Report(_said(model, batch), processors(), granted(), timings, losses, waited, note=note)


def _model_of_shape(shape: str) -> tuple[MultiLayerLSTM, int]:
    words = shape.lower().split("x")
    if len(words) != 4 or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise ValueError(f'write a shape as BATCHxINPUTxHIDDENxLAYERS, as in 1x256x512x2; got "{shape}"')
    batch, width, hidden, layers = map(int, words)
    return MultiLayerLSTM(width, hidden, layers, output_dim=None), batch


def _text(run: Run, file: Path | None) -> tuple[IntArray | None, str | None]:
    """The first tokens of the text; or None, and why, where the text that Python brings is in other symbols."""
    if file is not None:
        return read_corpus(file, tokenizer=run.tokenizer, split=(1.0,)).train.ids[: _TOKENS + 1], None
    try:
        ids = run.tokenizer.encode(builtin_text())[: _TOKENS + 1]
    except TokenizerError:
        ids = np.zeros(0, dtype=np.int32)
    if len(ids) < 2:
        return None, "the model has not the symbols of Python's text; --text FILE says what is lost on yours"
    return ids, None


def _timing(model: LanguageModel | MultiLayerLSTM, batch: int, kind: Kind, threads: int, steps: int | None) -> Timing:
    try:
        stepper = Stepper(model, batch, kind, threads)
    except BackendUnavailable as error:
        return Timing(kind, threads, refusal=str(error))
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, LanguageModel):
        inputs = torch.randint(model.config.vocabulary, (_INPUTS, batch), generator=generator)
    else:
        inputs = torch.randn(_INPUTS, batch, model.input_dim, generator=generator)
    frames = list(inputs)
    out = stepper.step(frames[0])
    usual = float(np.median(_microseconds(stepper, frames, out, _WARM_UP)))
    count = int(min(100_000, max(200, 1e6 / usual))) if steps is None else steps
    each = _microseconds(stepper, frames, out, count)
    p50, p99 = np.percentile(each, [50, 99])
    return Timing(kind, threads, stepper.backend, count, float(p50), float(p99), float(each.max()))


def _microseconds(stepper: Stepper, frames: list[Tensor], out: Tensor, steps: int) -> NDArray[np.float64]:
    """What each step took; Python's garbage collector, which a program with deadlines also holds off, waits so long."""
    clock, step = time.perf_counter_ns, stepper.step
    times, count = [0] * steps, len(frames)
    collects = gc.isenabled()
    gc.disable()
    try:
        for k in range(steps):
            x = frames[k % count]
            begun = clock()
            step(x, out)
            times[k] = clock() - begun
    finally:
        if collects:
            gc.enable()
    return np.array(times) / 1e3


def _loss(run: Run, ids: IntArray, kind: Kind, threads: int) -> Loss:
    found = Stepper(run.model, 1, kind, threads).compare(torch.from_numpy(ids.astype(np.int64)))
    assert found.bits is not None
    assert found.bits_float32 is not None
    tokens = len(ids) - 1
    # A text that ends inside a character counts that as one.
    each = tokens / len(run.tokenizer.decode(ids[1:]))
    return Loss(kind, tokens, found.bits * each, found.bits_float32 * each, found.largest_difference)


def _said(model: LanguageModel | MultiLayerLSTM, batch: int) -> str:
    if isinstance(model, MultiLayerLSTM):
        return f"{model.num_layers} layers of {model.hidden_dim}, input {model.input_dim}, batch {batch}"
    config = model.config
    return f"{config.layers} layers of {config.hidden}, {config.vocabulary} tokens, batch {batch}"
