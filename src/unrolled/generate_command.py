"""`unrolled generate`: its flags, and a text that is printed as it is written. Loads torch when it runs, not before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .samplers import Sampling

if TYPE_CHECKING:
    from .checkpoint import Run
    from .generate import Piece, Writing

# As `print`: text, and what ends it.
Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Request(Sampling):
    """What is to be written, and how."""

    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)] = ""
    """Text to continue, printed first; without one, the text begins as after a newline."""
    prompt_file: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """File with the text to continue, not printed; - is what is piped in."""
    max_tokens: int = 256
    """How many tokens to write."""
    stop: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True, show_default=False)] = ()
    """End the text before this string; may be given several times."""
    samples: int = 1
    """How many texts to write, each with random numbers of its own."""
    seed: int | None = None
    """The same seed gives the same text; 0 if not given, or that of --from-state."""
    logprobs: int | None = None
    """Print a line for each token with its log-probability and this many of the most probable tokens in its place."""
    save_state: Path | None = None
    """Write into this file what --from-state needs to go on behind the text."""
    from_state: Path | None = None
    """Go on where the text ended with which this file was written, or with a prompt behind it."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given. One is often the fastest on a machine with other work."""


def write(directory: Path, request: Request, say: Say) -> None:
    """Load the model and print what it writes. ValueError for what does not go together."""
    from .machine import threads

    if request.prompt and request.prompt_file is not None:
        raise ValueError("--prompt and --prompt-file both say what to continue; give one of them")
    if request.save_state is not None and request.samples > 1:
        raise ValueError(f"--save-state keeps the place in one text, and --samples is {request.samples}; leave one out")
    with threads(request.threads):
        _write(directory, request, say)


def _write(directory: Path, request: Request, say: Say) -> None:
    from .bookmark import Bookmark
    from .checkpoint import load
    from .generate import generate

    run = load(directory)
    prompt = run.tokenizer.encode(request.prompt if request.prompt_file is None else _contents(request.prompt_file))
    writing = generate(
        run,
        prompt.tolist(),
        **{field.name: getattr(request, field.name) for field in fields(Sampling)},
        max_tokens=request.max_tokens,
        stop=request.stop,
        samples=request.samples,
        logprobs=request.logprobs or 0,
        seed=request.seed,
        state=None if request.from_state is None else Bookmark.load(request.from_state, run.model),
    )
    shown = run.tokenizer.decode(prompt) if request.prompt_file is None else ""
    try:
        _print(run, request, writing, shown, say)
    except KeyboardInterrupt:
        _save(run, request, writing)
        raise
    _save(run, request, writing)


def _save(run: Run, request: Request, writing: Writing) -> None:
    if request.save_state is not None:
        writing.bookmark().save(request.save_state, run.model)


def _contents(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def _print(run: Run, request: Request, writing: Iterable[Piece], prompt: str, say: Say) -> None:
    told = (piece for piece in writing if piece.finished or request.save_state is None)
    for number, pieces in enumerate(_in_order(told, request.samples)):
        if request.samples > 1:
            say(f"--- {number + 1} of {request.samples}", "\n")
        if request.logprobs is not None:
            for piece in pieces:
                say("\n".join(_lines(run, piece)), "\n")
            continue
        try:
            say(prompt, "")
            for piece in pieces:
                say(piece.text, "")
        finally:
            say("", "\n")


def _in_order(pieces: Iterator[Piece], samples: int) -> Iterator[Iterable[Piece]]:
    """The pieces of each sample: the first one's as they come, the others' when it is done."""
    if samples == 1:
        yield pieces
        return
    waiting: list[list[Piece]] = [[] for _ in range(samples)]

    def first() -> Iterator[Piece]:
        for piece in pieces:
            if piece.sample == 0:
                yield piece
            else:
                waiting[piece.sample].append(piece)

    yield first()
    yield from waiting[1:]


def _lines(run: Run, piece: Piece) -> Iterator[str]:
    """Each token of a piece with its log-probability, and the most probable ones in its place with theirs."""
    for token, logprob, top in zip(piece.ids, piece.logprobs, piece.top or [{}] * len(piece.ids), strict=True):
        yield "  ".join(f"{_named(run, each)} {value:.4f}" for each, value in ((token, logprob), *top.items()))


def _named(run: Run, token: int) -> str:
    """The token's text in quotes, or its id where it is a part of a character."""
    text = run.tokenizer.decode([token])
    return f"#{token}" if "\ufffd" in text else repr(text)
