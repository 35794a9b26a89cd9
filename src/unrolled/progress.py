"""A training run at the terminal: how far it is, samples, a look inside, and the commands that come next."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .model import LanguageModel, evaluating
from .score_table import score_table
from .signals import stopped_by_signals
from .torchrun import place
from .trace import Picture, picture
from .train import Evaluated, Event, Finished, SaveFailed, Started, StepDone, TrainConfig, Trainer

_REFRESH_SECONDS, _PLAIN_SECONDS = 0.1, 5.0
_ROOM_FOR_BAR, _BAR = 100, 20
# Tokens of the text in which a sentence to show is looked for.
_SEARCHED = 6000
_SENTENCE = re.compile(r"(?<=[.!?\n]\s)[A-Z\"'“][^.!?]{50,150}[.!?]")
_FALLBACK_CHARACTERS = 120


def run(trainer: Trainer, console: Console) -> int:
    """Train to the end, or to the end of the step in which Ctrl-C or SIGTERM came, and show it as it goes.

    Returns what the process is to exit with: 0, or 128 and the number of the signal that interrupted the run.
    """
    event: Event | None = None
    with stopped_by_signals(trainer.stop) as signalled, _Screen(console, trainer, signalled) as screen:
        for event in trainer.run():
            if trainer.ranks.is_first:
                screen.show(event)
    interrupted = isinstance(event, Finished) and event.interrupted
    return 128 + number if interrupted and (number := signalled()) is not None else 0


def look_inside(trainer: Trainer) -> Picture:
    """One unit over a sentence of the text that was held back (or of the training text), with what precedes it read."""
    split = trainer.corpus.val or trainer.corpus.train
    ids = [int(token) for token in split.ids[:_SEARCHED]]
    decoder = trainer.corpus.tokenizer.decoder()
    symbols = [decoder.push(token) for token in ids]
    begin, end = _sentence(symbols)
    tokens = torch.tensor([ids], device=trainer.device)
    model = trainer.averaged
    with torch.no_grad(), evaluating(model):
        _, state = model(tokens[:, :begin])
        trace = model.trace(tokens[:, begin:end], state)
    return picture(trace, symbols[begin:end])


def _sentence(symbols: Sequence[str]) -> tuple[int, int]:
    """Where the first sentence of some length begins and ends, as token positions."""
    text = "".join(symbols)
    found = _SENTENCE.search(text)
    first, last = found.span() if found else (0, min(len(text), _FALLBACK_CHARACTERS))
    position, begin, end = 0, 0, len(symbols)
    for step, symbol in enumerate(symbols):
        if position <= first:
            begin = step
        position += len(symbol)
        if position >= last:
            return begin, step + 1
    return begin, end


class _Screen:
    """Shows events on `console`: on a terminal one line that changes, elsewhere a line every few seconds."""

    def __init__(self, console: Console, trainer: Trainer, signalled: Callable[[], int | None]) -> None:
        self._console, self._trainer, self._signalled = console, trainer, signalled
        self._quiet = trainer.config.quiet
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._unit = "bits/char" if trainer.corpus.tokenizer.name == "char" else "bits/byte"
        self._shown, self._told = -math.inf, False

    def __enter__(self) -> _Screen:
        if self._console.is_terminal and not self._quiet and self._trainer.ranks.is_first:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        if self._signalled() is not None and not self._told:
            self._told = True
            self._print("stopping: this step is saved first; the same signal again stops at once")
        match event:
            case Started():
                for note in self._trainer.corpus.notes:
                    self._print(note)
                self._print(_opening(event))
            case StepDone():
                self._step(event)
            case Evaluated():
                score = "" if event.score is None else f", validation {event.score.bits_per_byte:.3f} bits/byte"
                self._print(Text(f"step {event.step}{score}; a sample:", style="bold"))
                self._print(Text(textwrap.indent(_harmless(event.sample), "    ") + "\n"))
            case SaveFailed():
                self._console.print(_not_saved(event), soft_wrap=True, markup=False)
            case Finished():
                self._live.stop()
                self._end(event)

    def _print(self, what: RenderableType) -> None:
        if not self._quiet:
            self._console.print(what, soft_wrap=not isinstance(what, Picture), markup=False)

    def _step(self, event: StepDone) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if self._live.is_started:
            if now - self._shown >= _REFRESH_SECONDS:
                self._live.update(self._line(event), refresh=True)
                self._shown = now
        elif now - self._shown >= _PLAIN_SECONDS or event.step == event.steps:
            self._console.print(self._figures(event), soft_wrap=True)
            self._shown = now

    def _figures(self, event: StepDone) -> Text:
        bits = event.loss / math.log(2) if self._unit == "bits/char" else event.bits_per_byte
        return Text(
            f"step {event.step}/{event.steps}  loss {event.loss:.3f}  {bits:.3f} {self._unit}  "
            f"{event.tokens_per_second:,.0f} tokens/s  {_clock(event.seconds_left)} left",
            no_wrap=True,
            overflow="ellipsis",
        )

    def _line(self, event: StepDone) -> RenderableType:
        if self._console.width < _ROOM_FOR_BAR:
            return self._figures(event)
        line = Table.grid(padding=(0, 2))
        line.add_row(ProgressBar(total=event.steps, completed=event.step, width=_BAR), self._figures(event))
        return line

    def _end(self, event: Finished) -> None:
        config = self._trainer.config
        if event.interrupted:
            self._console.print(f"Stopped at step {event.step} of {event.steps}, saved. To go on:", soft_wrap=True)
            self._command("train", "--config", str(event.directory / "config.toml"))
            return
        begins = ""
        if isinstance(self._trainer.model, LanguageModel):
            inside = look_inside(self._trainer)
            begins = "".join(column.text for column in inside.columns)
            self._print("")
            self._print(inside)
            self._print("")
        for line in _outcome(event, config):
            self._console.print(line, soft_wrap=True, markup=False)
        if event.evaluation is not None:
            self._console.print(score_table(event.evaluation), soft_wrap=True)
        if not self._quiet:
            self._console.print("\nNext:")
            for command in _next(event, begins):
                self._command(*command)

    def _command(self, *arguments: str) -> None:
        ranks = place() if arguments[0] == "train" else None
        program = invocation() if ranks is None else ranks.words
        self._console.print(f"  {_quoted([*program, *arguments])}", soft_wrap=True, markup=False)


def _opening(event: Started) -> str:
    config, sizes = event.config, event.sizes
    held = f", {sizes['val']:,} to validate" if "val" in sizes else ""
    shape = "" if config.hidden is None else f" ({config.layers} x {config.hidden})"
    goes_on = f"\ngoing on from step {event.step}" if event.step else ""
    return (
        f"{event.directory}: {event.parameters:,} parameters{shape}, {config.tokens} "
        f"tokens: {sizes['train']:,} to train{held}\n"
        f"{config.steps} steps of {config.lanes} x {config.window} tokens, "
        f"{(config.steps or 0) / event.windows_per_epoch:.3g} times through the text{goes_on}"
    )


def _outcome(event: Finished, config: TrainConfig) -> Iterator[str]:
    if event.early:
        yield (
            f"ended early, at step {event.step} of {event.steps}: {config.patience} scores in a row were no better; go "
            "on with a larger --patience"
        )
    yield f"{event.step} steps, the model is in {event.directory}"
    if event.best is not None and event.best_step < event.step:
        yield (
            f"the best score was that of step {event.best_step}, {event.best.bits_per_byte:.3f} bits/byte; its model "
            f"is {event.directory / 'best'}"
        )


def _not_saved(event: SaveFailed) -> str:
    stays = f"{event.last} stays the newest model" if event.last else "no model has been saved yet"
    return f"step {event.step} could not be saved: {event.reason}; {stays}, and the next save tries again"


def _next(event: Finished, sentence: str) -> Iterator[list[str]]:
    run = str(event.directory)
    yield ["generate", run, "--prompt", " ".join(sentence.split()[:3])]
    if event.evaluation is not None:
        yield ["eval", run, "--positions"]
    yield ["info", run]
    yield ["train", "--config", str(event.directory / "config.toml"), "--steps", str(2 * event.steps)]


def invocation() -> list[str]:
    """The words that start this program again: `unrolled` where that finds it, else the path or module it ran from."""
    started = Path(sys.argv[0])
    if started.stem != "unrolled" or not started.is_file():
        return [_short(Path(sys.executable)), "-m", "unrolled"]
    found = shutil.which("unrolled")
    if found is not None and Path(found).resolve() == started.resolve():
        return ["unrolled"]
    return [_short(started)]


def _short(path: Path) -> str:
    """Relative to the working directory where it lies below; never resolved, for a link may be what makes it work."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def _quoted(words: Sequence[str]) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _harmless(text: str) -> str:
    """Control characters, with which a model could steer the terminal, as a dot."""
    return "".join("·" if unicodedata.category(sign) == "Cc" and sign not in "\n\t" else sign for sign in text)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
