"""Files to id streams: one for training, one for validation, one for the test."""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cache import key_of, store, take_up
from .encoding import Encoded, Heard, encode, in_memory, learned_from, texts
from .sources import PIECE, CorpusError, PathLike, Source, find
from .tokens import (
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    IdTokenizer,
    IntArray,
    Tokenizer,
    new_tokenizer,
    tokenizer_file,
)

__all__ = ["DEFAULT_SPLIT", "Corpus", "CorpusError", "Split", "builtin_text", "read_corpus"]

DEFAULT_SPLIT = (0.9, 0.05, 0.05)
# Text that is held in memory all the same: encoding it again takes no time that anybody notices.
SMALL = 2**24
# 1/3 + 1/3 + 1/3, typed as decimals, is the whole text.
ROUNDING = 1e-9
# Of a file's name, where a line says how far it is encoded.
_NAME = 30

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, eq=False)
class Split:
    """One stream of ids, any integer dtype, a `np.memmap` included.

    `starts` are the positions of each document's first token, ascending; `starts[0]` is 0 even where the split begins
    in the middle of a document, since nothing before it can be seen.

    `scored`: False for a token that is read, and is left out of loss and scores; None means that all count.
    """

    ids: IntArray
    starts: NDArray[np.int64]
    scored: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.scored is not None and (self.scored.dtype != np.bool_ or self.scored.shape != self.ids.shape):
            raise ValueError(
                f"scored must be a bool for each of the {self.ids.size} ids, got {self.scored.dtype} "
                f"{list(self.scored.shape)}"
            )
        if self.ids.ndim != 1 or not np.issubdtype(self.ids.dtype, np.integer):
            raise ValueError(f"ids must be one axis of integers, got {self.ids.dtype} {list(self.ids.shape)}")
        if self.starts.ndim != 1 or not np.issubdtype(self.starts.dtype, np.integer):
            raise ValueError(f"starts must be one axis of integers, got {self.starts.dtype} {list(self.starts.shape)}")
        ascending = all(bool((np.diff(some) > 0).all()) for some in _runs(self.starts, overlap=1))
        if self.starts.size == 0 or self.starts[0] != 0 or not ascending or self.starts[-1] >= self.ids.size:
            raise ValueError(
                f"starts must begin with 0, ascend and stay below the {self.ids.size} ids, got "
                f"{self.starts[:20].tolist()}{' ...' if self.starts.size > 20 else ''}"
            )

    def __len__(self) -> int:
        return int(self.ids.size)

    @property
    def predictions(self) -> int:
        """Tokens with a prediction that counts: all but each document's first and those that `scored` leaves out."""
        if self.scored is None:
            return len(self) - len(self.starts)
        return int(np.count_nonzero(self.scored)) - int(np.count_nonzero(self.scored[self.starts]))

    def counts(self, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of the tokens from `begin` to `end` are among the `predictions`."""
        counting = np.ones(end - begin, np.bool_) if self.scored is None else self.scored[begin:end].copy()
        first, last = np.searchsorted(self.starts, (begin, end))
        counting[self.starts[first:last] - begin] = False
        return counting

    def bytes_scored(self, tokenizer: Tokenizer) -> int:
        """UTF-8 bytes of the `predictions`."""
        if self.scored is not None:
            return sum(tokenizer.byte_count(some) for some in _runs(self.ids[self.counts(0, len(self))]))
        whole = sum(tokenizer.byte_count(some) for some in _runs(self.ids))
        return whole - sum(tokenizer.byte_count(self.ids[some]) for some in _runs(self.starts))


@dataclass(frozen=True, eq=False)
class Corpus:
    """The splits of a text; `val` and `test` are None where their share is 0.

    `notes` are sentences for the user: what of a directory was left out, where the encoded text lies.

    `sha256` is that of the source bytes: one file's own, as `sha256sum` prints it; with more files, that of their sums
    in order, one a line, the validation file's line beginning with "val ".
    """

    train: Split
    val: Split | None
    test: Split | None
    tokenizer: Tokenizer
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Tokens of each split that there is."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: len(split) for name, split in splits.items() if split is not None}


def read_corpus(
    files: Sequence[PathLike] | PathLike,
    *,
    tokens: str = "byte",
    vocabulary: int | None = None,
    split: Sequence[float] = DEFAULT_SPLIT,
    val: PathLike | None = None,
    tokenizer: Tokenizer | None = None,
    separator: str = "",
    cache: PathLike | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read files, directories and patterns, each file one document, in order; `files=[]` means `builtin_text()`.

    `split`: the shares of train, validation and test, in order over the tokens of all files together: one to three
    numbers, at most 1 together; what is left over is not used. A part ends at token int(tokens * share), and with
    byte tokens at the beginning of the character that lies there. With `val`, that file is the validation text,
    `files` are training text to the last token, and a `split` of two numbers means train and test.

    `tokenizer` overrides `tokens`. The vocabulary of a new character tokenizer is that of the whole text, validation
    and test included; byte pairs are learned from 16 MiB of `files`, in pieces spread evenly. `.npy` files are ids
    already: of `tokenizer`, or else of an `IdTokenizer` for as many as `vocabulary` says or the ids need.

    `separator`: a document also ends behind each of these in a file; it stays a part of it.

    `cache`: a directory for encoded text. A text of more than 16 MiB, and byte pairs of any, are encoded once into a
    file there and memory-mapped; without `cache` all ids are in memory. A file belongs to the contents, in this order,
    and to the tokenizer, and may be removed at any time. `progress` hears of bytes: read for a vocabulary, encoded.

    Bytes are taken as they are and line ends stay what they are. Only with character tokens is a UTF-8 byte order
    mark at a file's beginning left out: it says how to read the text and is none of it.

    Raises CorpusError for files and shares that can't be used, TokenizerError for `tokens` that don't exist.
    """
    shares = _shares(split, with_val=val is not None)
    if tokenizer is None and tokens not in ("byte", "char", "bpe"):
        new_tokenizer(tokens)
    sources, notes = find([files] if isinstance(files, str | os.PathLike) else files)
    sources = sources or [Source("the built-in text", raw=builtin_text().encode())]
    apart, more = find([] if val is None else [val])
    reading = _Reading(sources, apart, tokens, vocabulary, tokenizer, separator, progress)
    encoded, tokenizer, place = reading.encoded(None if cache is None else Path(cache))
    first, last = encoded.training, len(encoded.ids)
    parts = _parts(_within(encoded, 0, first), shares, bytewise=tokenizer.name == "byte")
    if val is not None:
        if last - first < 2:
            raise CorpusError(f"{val} is too short to validate on: it holds 1 token, and at least 2 are needed")
        parts["val"] = _within(encoded, first, last)
    told = (*notes, *more, *place)
    return Corpus(parts["train"], parts.get("val"), parts.get("test"), tokenizer, _sha256(sources, apart), told)


def builtin_text() -> str:
    """The language reference that CPython carries for `help()`: prose and code, about 465,000 characters in 3.11.

    Its topics in alphabetical order, one document. Raises CorpusError where the interpreter came without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError(
            "this Python came without the documentation text that is trained on by default (pydoc_data.topics); pass a "
            "file instead, any plain text in UTF-8 of about 100,000 characters or more: unrolled train FILE.txt"
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


@dataclass(frozen=True)
class _Reading:
    """What decides the ids of a text, but for where they are kept."""

    sources: list[Source]
    apart: list[Source]
    tokens: str
    vocabulary: int | None
    given: Tokenizer | None
    separator: str
    progress: Progress | None

    def encoded(self, cache: Path | None) -> tuple[Encoded, Tokenizer, list[str]]:
        """The ids, their tokenizer, and a note on the file that holds them."""
        tokenizer = self.given or self._known()
        if cache is None or not self._worth_keeping(tokenizer):
            tokenizer = tokenizer or self._made()
            heard = self._heard("encoding", *self.sources, *self.apart)
            return in_memory(self.sources, self.apart, tokenizer, self.separator, heard=heard), tokenizer, []
        key = key_of(self._description(tokenizer))
        kept = take_up(cache, key)
        if kept is not None:
            return *kept, [f"encoded text taken up from {cache / key}.ids"]
        tokenizer = tokenizer or self._made()
        heard = self._heard("encoding", *self.sources, *self.apart)
        work = partial(encode, self.sources, self.apart, tokenizer, self.separator, heard=heard)
        return store(cache, key, tokenizer, work), tokenizer, [f"encoded text kept in {cache / key}.ids"]

    def _known(self) -> Tokenizer | None:
        """The tokenizer, where it does not follow from the text."""
        numbers = [source for source in self.sources + self.apart if source.holds_ids]
        if numbers:
            if len(numbers) < len(self.sources + self.apart):
                raise CorpusError(
                    f"{numbers[0].name} holds ids and other files hold text: give the tokenizer that the ids are of, "
                    "--tokenizer FILE, or train on one kind alone"
                )
            return IdTokenizer(self.vocabulary or 1 + max(_largest(source) for source in numbers))
        return ByteTokenizer() if self.tokens == "byte" else None

    def _made(self) -> Tokenizer:
        if self.tokens == "char":
            heard = self._heard("looking for characters in", *self.sources, *self.apart)
            return new_tokenizer("char", texts(self.sources + self.apart, any_tokens=True, heard=heard))
        heard = self._heard("learning byte pairs from", *self.sources)
        return new_tokenizer(self.tokens, learned_from(self.sources, heard=heard), vocabulary=self.vocabulary)

    def _heard(self, what: str, *sources: Source) -> Heard:
        """Adds up bytes, and tells `progress` what is done to them and how fast."""
        name = Path(sources[0].name).name if len(sources) == 1 else f"{len(sources)} files"
        what += f" {name}" if len(name) <= _NAME else f" {name[: _NAME - 1]}…"
        total, done, began = sum(source.size for source in sources), 0, time.monotonic()

        def heard(more: int) -> None:
            nonlocal done
            done += more
            rate = done / 1e6 / max(time.monotonic() - began, 1e-3)
            if self.progress is not None:
                self.progress(f"{what} at {rate:.0f} MB/s", min(done, total), total)

        return heard

    def _worth_keeping(self, tokenizer: Tokenizer | None) -> bool:
        """Byte pairs always: what they are learned to be is kept with them, whatever a later library would learn."""
        if tokenizer is not None and not isinstance(tokenizer, _KINDS):
            return False
        learned = tokenizer is None and self.tokens == "bpe"
        return learned or sum(source.size for source in self.sources + self.apart) > SMALL

    def _description(self, tokenizer: Tokenizer | None) -> dict[str, object]:
        """Plain values that tell these ids from all others."""
        if tokenizer is None:
            tokens = f"{self.tokens} {self.vocabulary}"
        else:
            tokens = hashlib.sha256(tokenizer_file(tokenizer)).hexdigest()
        return {
            "texts": [[source.sha256, source.holds_ids] for source in self.sources],
            "validation": [[source.sha256, source.holds_ids] for source in self.apart],
            "separator": self.separator,
            "tokens": tokens,
        }


_KINDS = (ByteTokenizer, CharTokenizer, BpeTokenizer, IdTokenizer)


def _largest(source: Source) -> int:
    return max(int(some.max()) for some in _runs(source.ids()))


def _runs(array: IntArray, *, overlap: int = 0) -> Iterator[IntArray]:
    """`array` in stretches, the first `overlap` numbers of each being the last ones of the one before."""
    for begin in range(0, max(1, array.size), PIECE):
        yield array[max(0, begin - overlap) : begin + PIECE]


def _within(encoded: Encoded, begin: int, end: int) -> Split:
    return _cut(Split(encoded.ids, encoded.starts), begin, end)


def _cut(whole: Split, begin: int, end: int) -> Split:
    """Tokens `begin` to `end` - 1; those of the beginning are no copy, however many documents there are."""
    first, last = np.searchsorted(whole.starts, [begin, end])
    inside = whole.starts[first:last]
    if begin == 0:
        return Split(whole.ids[:end], inside)
    opening = np.zeros(0 if inside.size and inside[0] == begin else 1, np.int64)
    return Split(whole.ids[begin:end], np.concatenate([opening, inside - begin]))


def _shares(split: Sequence[float], *, with_val: bool) -> dict[str, Fraction]:
    if with_val and tuple(split) == DEFAULT_SPLIT:
        split = (1.0,)
    names = ("train", "test") if with_val else ("train", "val", "test")
    usage = f"{', '.join(names)} as in " + ("--split 0.9,0.1" if with_val else "--split 0.9,0.05,0.05")
    got = ",".join(f"{share:g}" for share in split)
    if not 1 <= len(split) <= len(names):
        raise CorpusError(f"split has {len(split)} numbers ({got}); write one to {len(names)} shares, {usage}")
    if not all(math.isfinite(share) and share >= 0 for share in split) or split[0] == 0:
        raise CorpusError(f"split {got} has a share that is no share: each is 0 or more, train's above 0; {usage}")
    if sum(split) > 1 + ROUNDING:
        raise CorpusError(f"split {got} sums to {sum(split):g}, more than the whole text; write shares of 1: {usage}")
    return {name: Fraction(str(float(share))) for name, share in zip(names, split, strict=False) if share > 0}


def _parts(whole: Split, shares: dict[str, Fraction], *, bytewise: bool) -> dict[str, Split]:
    if len(whole) < 2:
        raise CorpusError("the text is too short: it holds 1 token, and at least 2 are needed; pass a longer text")
    tokens, parts, begin, total = len(whole), dict[str, Split](), 0, Fraction(0)
    for name, share in shares.items():
        total += share
        end = tokens if total > 1 - ROUNDING else int(tokens * total)
        if bytewise:
            end = _character_start(whole.ids, end)
        if end - begin < 2:
            # Rounding takes less than one token of a part; keeping a character whole takes up to three bytes.
            enough = math.ceil((5 if bytewise else 2) / min(shares.values()))
            raise CorpusError(
                f"the text is too short: of its {tokens} tokens the {name} share ({float(share):g}) gets "
                f"{end - begin}, and at least 2 are needed; pass a longer text ({enough} tokens are enough), give "
                f"{name} a larger share, or use all of the text for training: --split 1"
            )
        parts[name] = _cut(whole, begin, end)
        begin = end
    return parts


def _character_start(ids: IntArray, cut: int) -> int:
    """`cut`, or up to three bytes before it where it would fall inside a UTF-8 character."""
    if cut == ids.size:
        return cut
    for back in range(min(4, cut + 1)):
        lead = int(ids[cut - back])
        if not 0x80 <= lead < 0xC0:
            width = 1 + (lead >= 0xC2) + (lead >= 0xE0) + (lead >= 0xF0) if lead < 0xF5 else 1
            return cut - back if back < width else cut
    return cut


def _sha256(sources: Sequence[Source], apart: Sequence[Source]) -> str:
    sums = [source.sha256 for source in sources] + [f"val {source.sha256}" for source in apart]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(f"{line}\n" for line in sums).encode()).hexdigest()
