"""One text in the making: its tokens, the characters they complete, what a stop string may still take back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .bookmark import Bookmark
from .reader import Logits
from .samplers import Sampler, Sampling, exponentials, uniforms
from .state import LSTMState
from .stops import Stops
from .tokens import Tokenizer


@dataclass(frozen=True, eq=False)
class Piece:
    """The next whole characters, often one, and the tokens they are made of.

    `ids`: the tokens, several where one character takes several (bytes outside ASCII). `logprobs`: for each of them the
    natural logarithm of the probability that the model itself gave it, before the samplers. `top`: for each of them
    the most probable tokens at its place and their `logprobs`, best first, as many as `generate` was asked for.
    `sample`: which of several samples this belongs to; 0 for the only one.

    `finished`: False if it is given out only as there are no tokens left, while a character is open (then it ends in
    U+FFFD) or where a stop string may have begun.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[dict[int, float], ...]
    sample: int
    finished: bool
    _before: LSTMState
    _row: int

    @property
    def logprob(self) -> float:
        """The sum of `logprobs`."""
        return math.fsum(self.logprobs)

    @property
    def state(self) -> LSTMState:
        """The state *before* `ids`, each [layers, 1, hidden]: everything earlier has been fed, `ids` have not.

        So `generate(run, piece.ids, state=piece.state)` goes on exactly behind this piece, and `piece.text` in the
        place of `piece.ids` does the same unless the text holds U+FFFD (the model wrote invalid UTF-8) or was cut by a
        stop string.
        """
        return self._before if self._before.h.shape[1] == 1 else self._before.rows(self._row)


@dataclass(frozen=True, eq=False)
class _Mark:
    """Where a text stands behind what was given out: `count` whole tokens of its own and the ids of a cut one's text.

    The last `unread` of all are not in `state` yet, which is that of all texts; None before anything was read.
    """

    state: LSTMState | None
    count: int
    cut: tuple[int, ...]
    unread: int


class Text:
    """One of the texts that are written side by side."""

    def __init__(
        self, tokenizer: Tokenizer, begin: Bookmark, sampling: Sampling, stops: Stops, *, row: int, limit: int, top: int
    ) -> None:
        """Goes on from `begin` by at most `limit` tokens, as row `row`; `top` alternatives are noted for each token."""
        self._tokenizer, self._begin, self._stops, self._row, self._top = tokenizer, begin, stops, row, top
        self._seed, self._sample = begin.seed, begin.sample + row
        prompt, own = _parted(begin.seen, begin.written)
        self._sampler = Sampler(sampling, tokenizer.size, uniforms(begin.seed, self._sample, begin.drawn), prompt)
        for token in own:
            self._sampler.take(token)
        self._forced = deque(begin.pending)
        self._limit = limit + len(begin.pending)
        self._written: list[int] = []
        self._decoder = tokenizer.decoder()
        self._mark = _Mark(begin.state, 0, (), begin.unread)
        self._held: deque[tuple[Piece, _Mark]] = deque()
        self._held_text = ""
        self._stopped = False
        self._text = ""
        self._before: LSTMState | None = None
        self._ids, self._logprobs, self._alternatives = list[int](), list[float](), list[dict[int, float]]()

    @property
    def ended(self) -> bool:
        return self._stopped or len(self._written) == self._limit

    @property
    def last(self) -> int:
        """The token to be read next."""
        return self._written[-1]

    def take(self, logits: Logits, here: LSTMState) -> None:
        """Go on by a token. `here` is the state of all texts behind the token before it, `logits` what it led to."""
        values = logits.astype(np.float64)
        largest, powers = exponentials(values)
        token = self._forced.popleft() if self._forced else self._sampler.choose(values, powers)
        self._sampler.take(token)
        self._written.append(token)
        self._before = self._before or here
        self._ids.append(token)
        normaliser = largest + math.log(powers.sum())
        self._logprobs.append(float(values[token]) - normaliser)
        if self._top:
            best = (-values).argsort(kind="stable")[: self._top].tolist()
            self._alternatives.append({each: float(values[each]) - normaliser for each in best})
        self._text += self._decoder.push(token)
        if self._ends_in_a_stop_string(here):
            return
        if self._text and not self._decoder.open:
            self._close_piece(here)
        if self.ended:
            self._give_up_waiting(here)

    def release(self) -> Iterator[Piece]:
        """Pieces in which no stop string can begin any more."""
        free = math.inf if self.ended else self._decided()
        while self._held and len(self._held[0][0].text) <= free:
            piece, mark = self._held.popleft()
            self._held_text = self._held_text[len(piece.text) :]
            free -= len(piece.text)
            if piece.finished:
                self._mark = mark
            yield piece

    def bookmark(self) -> Bookmark:
        """The place behind the pieces that were given out and are finished."""
        begin, mark, state = self._begin, self._mark, self._mark.state
        if state is not None and state.h.shape[1] > 1:
            state = state.rows(self._row)
        return Bookmark(
            state,
            seen=(*begin.seen, *self._written[: mark.count], *mark.cut),
            unread=mark.unread,
            written=begin.written + mark.count + len(mark.cut),
            pending=() if self._stopped else (*self._written[mark.count :], *self._forced),
            seed=begin.seed,
            sample=self._sample,
            drawn=begin.drawn + max(0, len(self._written) - len(begin.pending)),
        )

    def _close_piece(self, here: LSTMState, *, finished: bool = True) -> None:
        assert self._before is not None
        logprobs, top = tuple(self._logprobs), tuple(self._alternatives)
        piece = Piece(self._text, tuple(self._ids), logprobs, top, self._row, finished, self._before, self._row)
        self._held.append((piece, _Mark(here, len(self._written), (), 1)))
        self._held_text += self._text
        self._text, self._before = "", None
        self._ids, self._logprobs, self._alternatives = [], [], []

    def _decided(self) -> int:
        """How many characters that are not given out yet belong to no stop string, whatever follows."""
        text = self._held_text + self._text
        return len(text) - self._stops.undecided(text)

    def _ends_in_a_stop_string(self, here: LSTMState) -> bool:
        if not self._stops or (begin := self._stops.begin(self._held_text + self._text)) is None:
            return False
        if self._ids:
            self._close_piece(here)
        held, count = self._held, self._mark.count
        self._held = deque()
        for piece, mark in held:
            if len(piece.text) <= begin:
                self._held.append((piece, mark))
            elif begin > 0:
                text = piece.text[:begin]
                cut = tuple(int(token) for token in self._tokenizer.encode(text))
                self._held.append((replace(piece, text=text), _Mark(piece._before, count, cut, len(cut))))
            begin, count = begin - len(piece.text), mark.count
        self._stopped = True
        return True

    def _give_up_waiting(self, here: LSTMState) -> None:
        """There are no tokens left: what is held back is given out all the same, as not finished."""
        free = self._decided()
        if self._ids:
            self._text += self._decoder.finish()
            if self._ends_in_a_stop_string(here):
                return
            self._close_piece(here, finished=False)
        held = list(self._held)
        self._held.clear()
        for piece, mark in held:
            free -= len(piece.text)
            self._held.append((replace(piece, finished=piece.finished and free >= 0), mark))


def _parted(ids: tuple[int, ...], last: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """All but the last so many, and these."""
    return ids[: len(ids) - last], ids[len(ids) - last :]
