"""Text out of a model: one token at a time, the state carried from each step to the next."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from .bookmark import Bookmark
from .model import LanguageModel
from .reader import Reader
from .samplers import Sampler, Sampling, exponentials
from .state import LSTMState
from .stops import Stops
from .tokens import IntArray, Tokenizer
from .writing import Piece, Text

__all__ = ["Piece", "Speaker", "Writing", "generate", "sample"]


class Speaker(Protocol):
    """What `generate` needs of a run: its model, and the tokenizer that the model was trained with."""

    @property
    def model(self) -> LanguageModel: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


class Writing(Iterator[Piece]):
    """The pieces of one or several texts, written as they are asked for."""

    def __init__(self, run: Speaker, begin: Bookmark, texts: Sequence[Text]) -> None:
        self._run, self._begin, self._texts = run, begin, texts
        self._stream = self._pieces()

    def __next__(self) -> Piece:
        return next(self._stream)

    def close(self) -> None:
        """No more pieces."""
        self._stream.close()

    def bookmark(self, sample: int = 0) -> Bookmark:
        """The place behind the pieces of a sample that have come so far and are `finished`.

        `generate(run, state=writing.bookmark())` goes on from there, in another process too (`Bookmark.save`), with the
        text that would have come without a break if the settings are the same. IndexError for a sample there is not.
        """
        return self._texts[sample].bookmark()

    def _pieces(self) -> Generator[Piece, None, None]:
        texts, begin = self._texts, self._begin
        if all(text.ended for text in texts):
            return
        reader = Reader(self._run.model, begin.state)
        logits = reader.read(begin.seen[-begin.unread :])
        if len(texts) > 1:
            reader = Reader(self._run.model, LSTMState(*(part.repeat(1, len(texts), 1) for part in reader.state)))
            logits = logits.repeat(len(texts), 0)
        while True:
            here, given = reader.state, False
            for text, row in zip(texts, logits, strict=True):
                if not text.ended:
                    text.take(row, here)
            for text in texts:
                for piece in text.release():
                    yield piece
                    given = True
            if all(text.ended for text in texts):
                return
            if given:
                # Whoever looked at the pieces may have changed the model.
                reader.follow(self._run.model)
            logits = reader.step([text.last for text in texts])


def generate(
    run: Speaker,
    prompt: str | bytes | Sequence[int] = "",
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    penalty_window: int = 0,
    stop: str | Sequence[str] = (),
    samples: int = 1,
    logprobs: int = 0,
    seed: int | None = None,
    state: Bookmark | LSTMState | tuple[Tensor, Tensor] | None = None,
) -> Writing:
    """Continue `prompt` (text, UTF-8 bytes, or ids) by `max_tokens` tokens; the prompt itself is not yielded.

    The joined texts of a sample's pieces are `tokenizer.decode` of their ids; one that ends inside a character ends
    with U+FFFD, and one that reaches a `stop` string ends before it. An empty prompt stands for a newline, or a space,
    or the first symbol, whichever the vocabulary has first. With `state` (each [layers, 1, hidden]) the prompt is what
    comes next in that text, and can't be empty; behind a `Bookmark` it may be.

    The samplers are those of `Sampling`, in its order. Each of `samples` texts has random numbers of its own, which
    follow from (seed, sample): the same `seed` (0, or a bookmark's) gives the same texts, however many, and torch's
    generators stay untouched. `logprobs`: so many of the most probable tokens go into `Piece.top`. Dropout is off
    while the model runs, and as it was while a piece is looked at.

    Raises ValueError for settings out of range and TokenizerError for a prompt outside the vocabulary, both at once
    and not at the first piece; ValueError later if the logits are not finite.
    """
    penalties = (repetition_penalty, presence_penalty, frequency_penalty, penalty_window)
    sampling, stops = Sampling(temperature, top_k, top_p, min_p, *penalties), Stops(stop)
    for name, value, least in (("max_tokens", max_tokens, 0), ("samples", samples, 1), ("logprobs", logprobs, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be {least} or more")
    begin = _beginning(run.tokenizer, prompt, state)
    if seed is not None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must be from 0 to 2**63 - 1")
        begin = replace(begin, seed=seed)
    rows = range(samples)
    texts = [Text(run.tokenizer, begin, sampling, stops, row=row, limit=max_tokens, top=logprobs) for row in rows]
    return Writing(run, begin, texts)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> int:
    """Draw one id from `logits` [vocabulary]; the settings are those of `generate`.

    Among equally probable tokens the lower id comes first. Raises ValueError for settings out of range, and where the
    logits hold NaN or +inf, or nothing but -inf.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    values = logits.detach().to("cpu", torch.float64).numpy()
    _, powers = exponentials(values)
    sampler = Sampler(sampling, len(values), lambda: torch.rand((), dtype=torch.float64, generator=generator).item())
    return sampler.choose(values, powers)


def _beginning(
    tokenizer: Tokenizer,
    prompt: str | bytes | Sequence[int],
    state: Bookmark | LSTMState | tuple[Tensor, Tensor] | None,
) -> Bookmark:
    fed = _prompt_ids(tokenizer, prompt)
    if isinstance(state, Bookmark):
        if not fed:
            return state
        return replace(state, seen=(*state.seen, *fed), unread=state.unread + len(fed), written=0, pending=())
    if state is not None:
        if not fed:
            raise ValueError(
                "a state alone does not say what was read last, so the prompt can't be empty; to go on behind a piece: "
                "generate(run, piece.ids, state=piece.state)"
            )
        if state[0].ndim == 3 and state[0].shape[1] != 1:
            raise ValueError(
                f"the state holds {state[0].shape[1]} rows and generate continues one text; pick a row: state.rows(0)"
            )
        state = LSTMState(*state)
    fed = fed or [_neutral(tokenizer)]
    return Bookmark(state, tuple(fed), len(fed), written=0, pending=(), seed=0, sample=0, drawn=0)


def _prompt_ids(tokenizer: Tokenizer, prompt: str | bytes | Sequence[int]) -> list[int]:
    if isinstance(prompt, str | bytes):
        return [int(token) for token in tokenizer.encode(prompt)]
    ids = [int(token) for token in prompt]
    tokenizer.decode(ids)  # raises where an id is out of range
    return ids


def _neutral(tokenizer: Tokenizer) -> int:
    for text in ("\n", " "):
        ids = _known(tokenizer, text)
        if ids is not None and len(ids) == 1 and tokenizer.decode(ids) == text:
            return int(ids[0])
    return 0


def _known(tokenizer: Tokenizer, text: str) -> IntArray | None:
    try:
        return tokenizer.encode(text)
    except ValueError:
        return None
