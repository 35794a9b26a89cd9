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
    top: int = 5
    """So many units in each table."""
    lanes: int | None = None
    """Read the text in so many parts side by side, up to 16 if not given; 1 carries one state through all of it."""
    seed: int = 0
    """Of the shifts, and of the tokens that are counted in a long text."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON instead of tables, with the numbers of all units."""

    def __post_init__(self) -> None:
        if self.text is not None and self.file is not None:
            raise ValueError("--text and --file both say what to read; give one")
        for name in ("tokens", "top"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")


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
    from .machine import threads
    from .ticker import Ticker

    loaded = load(run)
    name, split = _text(loaded, request)
    with threads(request.threads), Ticker(sys.stderr) as ticker:
        report = _report(loaded, name, split, request, ticker.show)
    sys.stdout.write((json.dumps(report.as_dict()) if request.as_json else report.table(request.top)) + "\n")


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
