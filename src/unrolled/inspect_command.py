"""`unrolled inspect`: what a saved model remembers of a text. Loads torch when it runs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from .checkpoint import Run
    from .corpus import Progress, Split
    from .inspection_report import Report

# Read of a text, unless another number is given.
TOKENS = 100_000
# Of these, shown in a page.
PAGE_TOKENS = 5000
# Steps back in the figure of the gradient flow.
WINDOW = 128
_NOT_LIVE = ("file", "gates", "reach", "ablate", "convergence", "positions", "page", "png", "as_json")


@dataclass(frozen=True)
class InspectRequest:
    """The flags of `unrolled inspect`."""

    text: str | None = None
    """The text itself; without it and --file, the validation part of the run's text."""
    file: Path | None = None
    """A text file."""
    tokens: int = TOKENS
    """Read so many of its first tokens at most."""
    gates: bool = False
    """Also look for gates that follow a feature of the text, not c and h alone."""
    reach: bool = False
    """Also how far back the loss at a token reaches: norms of its gradient by steps back."""
    ablate: bool = False
    """Also what the loss is more with each unit held at its mean; seconds to minutes."""
    convergence: bool = False
    """Also how fast two states of different prefixes become one."""
    positions: bool = False
    """Also what a token costs by the length of the context."""
    page: Path | None = None
    """Also write a page to look into: one .html file that opens from disk."""
    png: Path | None = None
    """Also draw figures into this directory: gates over a sentence, saturation, memory lengths, gradient flow."""
    all_units: bool = False
    """Put every unit into the page, not the 64 most telling ones of each layer alone."""
    page_tokens: int = PAGE_TOKENS
    """Show so many of the first tokens in the page."""
    live: bool = False
    """Serve a page on this machine alone: type, and the gates move; hold units, zero layers, exchange states."""
    port: int = 0
    """Of the live page; a free one if not given."""
    top: int = 5
    """So many units in each table."""
    lanes: int | None = None
    """Read the text in so many parts side by side, up to 48 if not given; 1 carries one state through all of it."""
    seed: int = 0
    """Of the shifts, and of the tokens that are counted in a long text."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given, and one for the live page."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON instead of tables, with the numbers of all units."""

    def __post_init__(self) -> None:
        if self.text is not None and self.file is not None:
            raise ValueError("--text and --file both say what to read; give one")
        for name in ("tokens", "top", "page_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.page is not None and self.page.suffix not in (".html", ".htm"):
            raise ValueError(f"--page {self.page} is no .html file; name it so: --page page.html")
        if self.page is not None and not self.page.parent.is_dir():
            raise ValueError(f"--page {self.page}: there is no directory {self.page.parent}; make it first")
        if self.all_units and self.page is None:
            raise ValueError("--all-units is about the page; give it a name, too: --page page.html")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port {self.port} must be from 0 (a free one) to 65535")
        given = [name for name in _NOT_LIVE if getattr(self, name) not in (None, False)]
        if self.live and given:
            raise ValueError(
                f"--live takes --text, --seed, --threads and --port alone; leave --{given[0].removeprefix('as_')} out"
            )
        if self.port and not self.live:
            raise ValueError("--port is that of the live page; ask for one, too: --live")


_REQUEST = InspectRequest()


def inspect(run: Path, /, *, request: Annotated[InspectRequest, Parameter(name="*")] = _REQUEST) -> None:
    """Say what the units of a model do over a text: saturated gates, memory, and which of them follow what in it.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken; RUN/best is its best one) or of one model.
    request
        All others.
    """
    from .checkpoint import load
    from .figures import require
    from .machine import threads
    from .ticker import Ticker

    if request.png is not None:
        require()
    loaded = load(run)
    if request.live:
        from .live_command import serve

        # A key is a chain of short calls, in each of which a second thread would wait for a core that the browser has.
        with threads(1 if request.threads is None else request.threads):
            serve(loaded, f"{run.resolve().name}, live", request.text or "", _say, seed=request.seed, port=request.port)
        return
    name, split = _text(loaded, request)
    with threads(request.threads), Ticker(sys.stderr) as ticker:
        report = _report(loaded, name, split, request, ticker.show)
        written = _pictures(loaded, run, split, request, report, ticker.show)
    sys.stdout.write((json.dumps(report.as_dict()) if request.as_json else report.table(request.top)) + "\n")
    told = sys.stderr if request.as_json else sys.stdout
    for path in written:
        told.write(f"written: {path}, {path.stat().st_size / 1e6:.1f} MB\n")


def _pictures(
    loaded: Run, run: Path, split: Split, request: InspectRequest, report: Report, progress: Progress
) -> list[Path]:
    """Write the page and the figures that were asked for, and say what was written."""
    import numpy as np

    from .figures import write_figures
    from .manifest import replace_file
    from .page import page_html
    from .page_data import UNITS, page_data
    from .reach import reach

    if request.page is None and request.png is None:
        return []
    units = None if request.all_units else UNITS
    found = report.inspection
    data = page_data(loaded.model, split, loaded.tokenizer, inspection=found, units=units, tokens=request.page_tokens)
    written = []
    if request.page is not None:
        text = request.file.name if request.file is not None else report.text
        replace_file(request.page, page_html(data, f"{run.resolve().name} reads {text}").encode())
        written.append(request.page)
    if request.png is not None:
        # A text that is shorter than the window is looked at as far back as it goes.
        longest = int(np.diff(np.append(split.starts, len(split))).max())
        flow = report.reach or reach(loaded.model, split, window=min(WINDOW, longest - 1), progress=progress)
        written += write_figures(request.png, data, flow)
    return written


def _report(run: Run, name: str, split: Split, request: InspectRequest, progress: Progress) -> Report:
    from .ablation import ablate
    from .convergence import convergence
    from .evaluate import positions
    from .inspection import inspect
    from .inspection_report import Report
    from .reach import reach
    from .unit_statistics import NAMES

    model, tokenizer = run.model, run.tokenizer
    options: dict[str, Any] = {"lanes": request.lanes, "seed": request.seed, "progress": progress}
    if request.gates:
        options["quantities"] = NAMES
    if tokenizer.name == "ids":
        options["features"] = ()
    return Report(
        str(run.directory),
        name,
        inspect(model, split, tokenizer, **options),
        reach(model, split, progress=progress) if request.reach else None,
        ablate(model, split, progress=progress) if request.ablate else None,
        convergence(model, split) if request.convergence else None,
        positions(model, split, tokenizer, progress=progress) if request.positions else None,
    )


def _text(run: Run, request: InspectRequest) -> tuple[str, Split]:
    """What it is called, and its first tokens."""
    import numpy as np

    from .corpus import Split, read_corpus
    from .evaluate import part
    from .scoring import recorded

    if request.text is not None:
        ids = run.tokenizer.encode(request.text)
        if not ids.size:
            raise ValueError("--text is empty; give at least two tokens, or a --file")
        name, split = "the given text", Split(ids, np.zeros(1, np.int64))
    elif request.file is not None:
        name, split = str(request.file), read_corpus(request.file, tokenizer=run.tokenizer, split=(1.0,)).train
    else:
        corpus = recorded(run)
        if isinstance(corpus, str):
            raise ValueError(f"{corpus}; name a text: unrolled inspect {run.directory} --file FILE")
        if corpus.val is None:
            raise ValueError(
                f"{run.directory} has no validation text; name one: unrolled inspect {run.directory} --file FILE"
            )
        name, split = "validation text", corpus.val
    return name, part(split, 0, min(request.tokens, len(split)))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
