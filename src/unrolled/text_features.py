"""Simple functions of a text, one number for each token: what a unit may turn out to keep track of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .corpus import Split
from .tokens import Tokenizer

# Kinds that a feature's numbers may be of, at most.
KINDS = 8
_LARGEST = 255
_OPENING, _CLOSING = "([{", ")]}"
_QUOTES = "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_MARKS = f'"{_QUOTES}{_OPENING}{_CLOSING}'
_TAB = 8
# Tokens whose numbers are Python's own objects at a time.
_BLOCK = 4096
_PIECE = 2**16
_NAMES = ("column", "quoted", "brackets", "word", "newline", "indent")


@dataclass(frozen=True, eq=False)
class Feature:
    """`kinds` [tokens] uint8: which of `labels` the text is at after each token."""

    name: str
    kinds: NDArray[np.uint8]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kinds.dtype != np.uint8 or self.kinds.ndim != 1:
            raise ValueError(
                f"the kinds of {self.name!r} are {self.kinds.dtype} {list(self.kinds.shape)}, expected uint8 [tokens]: "
                "np.asarray(kinds, np.uint8)"
            )
        if self.kinds.size and int(self.kinds.max()) >= len(self.labels):
            raise ValueError(
                f"feature {self.name!r} has kind {int(self.kinds.max())} and {len(self.labels)} labels; give a label "
                "for each kind"
            )

    @property
    def constant(self) -> bool:
        """Whether it is the same everywhere, so that nothing can follow it."""
        return not self.kinds.size or bool((self.kinds == self.kinds[0]).all())


@dataclass
class _Text:
    """Where in a document one is, read a part at a time."""

    # Of the last character: the numbers of `_NAMES`, and whether its line has had nothing but blanks.
    column: int = 0
    quoted: bool = False
    depth: int = 0
    word: bool = False
    newline: bool = False
    indent: int = 0
    indenting: bool = True

    def after(self, parts: list[str]) -> NDArray[np.int64]:
        """The numbers of `_NAMES` [names, parts], once each part has been read too."""
        before = [[self.column], [self.quoted], [self.depth], [self.word], [self.newline], [self.indent]]
        numbers = np.concatenate([np.array(before, np.int64), self._read("".join(parts))], 1)
        return numbers[:, np.cumsum([len(part) for part in parts], dtype=np.int64)]

    def _read(self, characters: str) -> NDArray[np.int64]:
        """The numbers of `_NAMES` [names, characters]."""
        if not characters:
            return np.empty((len(_NAMES), 0), np.int64)
        codes = np.frombuffer(characters.encode("utf-32-le"), "<u4")
        known, which = np.unique(codes, return_inverse=True)
        of_known = [chr(code) for code in known.tolist()]
        word = np.array([each.isalnum() or each == "_" for each in of_known])[which]
        width = np.array([{" ": 1, "\t": _TAB}.get(each, 0) for each in of_known])[which]
        marks = np.array([each in _MARKS for each in of_known])[which]
        newline, at = codes == ord("\n"), np.arange(len(codes))
        blank_line = newline & np.append(self.newline, newline[:-1])
        quoted, depth = self._nested(characters, np.flatnonzero(marks | blank_line), blank_line)
        # Where the line began and where it last had anything but blanks: before these characters, if negative.
        begun = np.maximum.accumulate(np.where(newline, at, -1 - self.column))
        other = np.maximum.accumulate(np.where((width == 0) & ~newline, at, begun[0] - 1 if self.indenting else -1))
        indenting = other < begun
        indents = np.cumsum(width * indenting)
        indent = indents - np.where(begun >= 0, indents[np.maximum(begun, 0)], -self.indent)
        numbers = np.stack([at - begun, quoted, depth, word, newline, indent])
        self.column, self.quoted, self.depth, self.word, self.newline, self.indent = numbers[:, -1].tolist()
        self.indenting = bool(indenting[-1])
        return numbers

    def _nested(
        self, characters: str, places: NDArray[np.int64], blank_line: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inside quotes or not, and how many brackets are open, after each character; they change at `places` alone."""
        quoted, depth = bool(self.quoted), self.depth
        found = [(quoted, depth)]
        for place in places.tolist():
            character = characters[place]
            if blank_line[place]:
                quoted, depth = False, 0
            elif character == '"':
                quoted = not quoted
            elif character in _QUOTES:
                quoted = character == _QUOTES[0]
            else:
                depth = depth + 1 if character in _OPENING else max(0, depth - 1)
            found.append((quoted, depth))
        lasting = np.diff(np.concatenate([[0], places, [len(characters)]]))
        of_all = np.repeat(np.array(found, np.int64), lasting, axis=0)
        return of_all[:, 0], of_all[:, 1]


def text_features(split: Split, tokenizer: Tokenizer) -> tuple[Feature, ...]:
    """Six features of a text, each after the last character that a token completes:

    - "column": characters since the line began, in up to 8 ranges that hold about as many tokens each.
    - "quoted": inside double quotes, straight or typographic. Single ones are apostrophes as often as not.
    - "brackets": how many of ( [ { are open, 0 to 3 and more.
    - "word": the character was a letter, a digit or an underscore.
    - "newline": the character was a line feed.
    - "indent": blanks at the line's beginning, as many as were read; a tab counts as 8.

    A blank line closes what is open, and so does a new document: one lost quote would otherwise turn around all that
    follows. A token that completes no character (bytes of one) is where the one before it was; of a token of several
    characters (byte pairs) the last one counts. Memory is one byte for each token and feature. Raises ValueError for
    ids alone, which have no text.
    """
    if tokenizer.name == "ids":
        raise ValueError("ids that stand for themselves have no text, so no lines, words or quotes; pass features=()")
    numbers = np.empty((len(_NAMES), len(split)), np.uint8)
    starts = split.starts.tolist()
    for begin, end in pairwise([*starts, len(split)]):
        decoder, text = tokenizer.decoder(), _Text()
        for first in range(begin, end, _BLOCK):
            last = min(first + _BLOCK, end)
            parts = [decoder.push(token) for token in split.ids[first:last].tolist()]
            numbers[:, first:last] = np.minimum(text.after(parts), _LARGEST)
    return tuple(_features(numbers))


def _features(numbers: NDArray[np.uint8]) -> Iterator[Feature]:
    labels = {"quoted": ("outside", "inside"), "word": ("outside", "inside"), "newline": ("elsewhere", "behind one")}
    for name, row in zip(_NAMES, numbers, strict=True):
        if name in labels:
            yield Feature(name, row, labels[name])
        elif name == "brackets":
            yield Feature(name, np.minimum(row, 3, out=row), ("0", "1", "2", "3 and more"))
        else:
            found = ranges(name, row)
            row[:] = found.kinds
            yield Feature(name, row, found.labels)


def ranges(name: str, numbers: NDArray[np.uint8], most: int = KINDS) -> Feature:
    """A feature of at most `most` kinds, neighbouring numbers that about as many tokens have each."""
    # In pieces: it would count in a copy of eight bytes each.
    pieces = np.array_split(numbers, -(-len(numbers) // _PIECE) or 1)
    behind = np.cumsum(sum(np.bincount(piece, minlength=_LARGEST + 1) for piece in pieces))
    least, largest = int(numbers.min(initial=_LARGEST)), int(numbers.max(initial=0))
    ends = np.searchsorted(behind, behind[-1] * np.arange(1, most) / most)
    edges = np.array([least, *sorted({int(end) + 1 for end in ends if end < largest})])
    lasts = [*(edges[1:] - 1).tolist(), largest]
    labels = [str(a) if a == b else f"{a} to {b}" for a, b in zip(edges.tolist(), lasts, strict=True)]
    if largest == _LARGEST:
        labels[-1] = f"{edges[-1]} and more"
    kinds = np.searchsorted(edges[1:], np.arange(_LARGEST + 1), side="right").astype(np.uint8)
    return Feature(name, kinds[numbers], tuple(labels))
