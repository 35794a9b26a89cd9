"""Sources to one array of ids, a piece at a time: memory does not grow with the text, and ids not with the pieces."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .sources import PIECE, CorpusError, Source, binary, control_bytes, convert
from .tokenizer import IntArray, StreamEncoder, Tokenizer, TokenizerError, UnknownCharacterError

# Of a text, what a vocabulary of byte pairs is learned from: enough for its statistics, and bounded in time and memory.
LEARNED_FROM = 2**24
UTF8_MARK = b"\xef\xbb\xbf"
_TAKES_ANY_BYTES = ("byte", "bpe")

Heard = Callable[[int], object]
"""Called with how many more bytes of the sources are dealt with."""


def _unheard(more: int) -> None:
    pass


class Writable(Protocol):
    """A file, or what stands for one."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, eq=False)
class Encoded:
    """All ids, those of the training text first, `training` of them; the positions of each document's first token."""

    ids: IntArray
    starts: NDArray[np.int64]
    training: int


def dtype_for(vocabulary: int) -> np.dtype[Any]:
    """The smallest dtype that holds the ids."""
    return np.min_scalar_type(vocabulary - 1)


def in_memory(
    sources: Sequence[Source], apart: Sequence[Source], tokenizer: Tokenizer, separator: str, *, heard: Heard = _unheard
) -> Encoded:
    ids, starts = BytesIO(), BytesIO()
    training = encode(sources, apart, tokenizer, separator, ids, starts, heard=heard)
    return Encoded(
        np.frombuffer(ids.getbuffer(), dtype_for(tokenizer.size)), np.frombuffer(starts.getbuffer(), np.int64), training
    )


def encode(
    sources: Sequence[Source],
    apart: Sequence[Source],
    tokenizer: Tokenizer,
    separator: str,
    ids: Writable,
    starts: Writable,
    *,
    heard: Heard = _unheard,
) -> int:
    """Write the ids of `sources` and of `apart` to `ids`, the starts of their documents (int64) to `starts`.

    Returns how many ids those of `sources` are. A document ends with its file and behind each `separator` (not ""),
    which stays a part of it. Raises CorpusError for text that can't be encoded, for a source without a token, for a
    separator that is nowhere, and for a file that changes while it is read.
    """
    writer = _Writer(tokenizer, ids, starts, heard)
    separated, training = False, 0
    for number, source in enumerate([*sources, *apart]):
        if number == len(sources):
            training = writer.tokens
        before, documents = writer.tokens, writer.documents
        if source.holds_ids:
            writer.take(source)
        else:
            writer.read(source, separator)
        if writer.tokens == before:
            raise CorpusError(
                f"{source.name} has no character that the tokenizer knows; leave it out, or use another tokenizer"
            )
        separated |= writer.documents > documents + 1
    if separator and not separated:
        raise CorpusError(
            f"the document separator {separator!r} separates nothing: it is nowhere between two pieces of the text; "
            "a line break is $'\\n' in the shell, \"\\n\" in Python and TOML"
        )
    return training if apart else writer.tokens


def texts(sources: Iterable[Source], *, any_tokens: bool, heard: Heard = _unheard) -> Iterator[str]:
    """The characters of UTF-8 files. `any_tokens`: the caller may still choose byte tokens, as errors then say."""
    for source in sources:
        if not source.holds_ids:
            decoder = codecs.getincrementaldecoder("utf-8")()
            for piece in checked_pieces(source, any_tokens=any_tokens):
                yield decoder.decode(piece)
                heard(len(piece))
            yield decoder.decode(b"", final=True)


def learned_from(sources: Sequence[Source], most: int = LEARNED_FROM, *, heard: Heard = _unheard) -> Iterator[str]:
    """At most about `most` bytes of the texts, in pieces that are spread evenly over them."""
    total = sum(source.size for source in sources if not source.holds_ids)
    seen = taken = 0
    for source in sources:
        if not source.holds_ids:
            for piece in source.pieces():
                if taken * total <= most * seen:
                    taken += len(piece)
                    yield piece.decode("utf-8", "surrogateescape")
                seen += len(piece)
                heard(len(piece))


def checked_pieces(source: Source, *, any_tokens: bool) -> Iterator[bytes]:
    """A file's bytes without the byte order mark, as long as they are UTF-8 text; CorpusError where they are not."""
    otherwise = ", or use --tokens byte, which takes any bytes" if any_tokens else ""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    total, lines, control, mark = 0, 1, 0, 0
    for piece in chain(source.pieces(), [b""]):
        if total == 0 and piece.startswith(UTF8_MARK):
            mark = len(UTF8_MARK)
        if problem := binary(source.name, piece, total, control):
            raise CorpusError(problem + otherwise)
        waiting = len(utf8.getstate()[0])
        try:
            utf8.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            position, line = total - waiting + error.start, lines + error.object.count(b"\n", 0, error.start)
            raise CorpusError(
                f"{source.name} isn't UTF-8: byte 0x{error.object[error.start]:02X} at position {position}, in line "
                f"{line}; {convert(source.name, 'WINDOWS-1252')}{otherwise}"
            ) from None
        if piece:
            yield piece[mark:] if total == 0 else piece
        total, lines, control = total + len(piece), lines + piece.count(b"\n"), control + control_bytes(piece)
    if total == mark:
        raise CorpusError(
            f"{source.name} is empty but for its byte order mark; leave it out, or pass a file with text in it"
        )


def documents(pieces: Iterable[bytes], separator: bytes) -> Iterator[tuple[bytes, bool]]:
    """Stretches of a file, each with whether a document ends behind it: behind each separator, if that is not empty."""
    if not separator:
        yield from ((piece, False) for piece in pieces)
        return
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(separator)
        yield from ((part + separator, True) for part in whole)
        # What is held back may be the beginning of a separator.
        sure = max(0, len(held) - len(separator) + 1)
        yield held[:sure], False
        held = held[sure:]
    yield held, False


class _Writer:
    """Appends ids to one file and documents' starts to another; `tokens` and `documents` count what is there."""

    def __init__(self, tokenizer: Tokenizer, ids: Writable, starts: Writable, heard: Heard) -> None:
        self._tokenizer, self._ids, self._starts, self._heard = tokenizer, ids, starts, heard
        self._dtype = dtype_for(tokenizer.size)
        self.tokens = self.documents = 0
        self._fresh = True

    def read(self, source: Source, separator: str) -> None:
        anything = self._tokenizer.name in _TAKES_ANY_BYTES
        pieces = source.pieces() if anything else checked_pieces(source, any_tokens=False)
        encoder: StreamEncoder | None = None
        self._fresh = True
        try:
            for raw, ends in documents(self._told(pieces), separator.encode("utf-8", "surrogateescape")):
                encoder = encoder or self._tokenizer.encoder()
                self._append(encoder.push(raw))
                if ends:
                    self._append(encoder.finish())
                    encoder, self._fresh = None, True
            if encoder is not None:
                self._append(encoder.finish())
        except UnknownCharacterError as error:
            # The tokenizer came with a model or a file: one that was made here knows every character of the text.
            raise CorpusError(
                f"{source.name}: {error.what}, which is fixed; replace the character, or take a model of bytes or byte "
                "pairs, which reads any text"
            ) from None
        except TokenizerError as error:
            raise CorpusError(f"{source.name}: {error}") from None

    def take(self, source: Source) -> None:
        ids, self._fresh = source.ids(), True
        for begin in range(0, ids.size, PIECE):
            piece = ids[begin : begin + PIECE]
            wrong = (piece < 0) | (piece >= self._tokenizer.size)
            if wrong.any():
                position = int(np.argmax(wrong))
                raise CorpusError(
                    f"{source.name} has id {piece[position]} at position {begin + position}, and the vocabulary has "
                    f"ids 0 to {self._tokenizer.size - 1}; give the tokenizer that the ids are of: --tokenizer FILE"
                )
            self._append(piece)
            self._heard(piece.nbytes)

    def _told(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self._heard(len(piece))

    def _append(self, ids: IntArray) -> None:
        if not ids.size:
            return
        if self._fresh:
            self._starts.write(np.int64(self.tokens).tobytes())
            self.documents += 1
            self._fresh = False
        self._ids.write(ids.astype(self._dtype).tobytes())
        self.tokens += int(ids.size)
