"""What a tokenizer is: the protocol, its errors, ids in and text out without half a character, the file that it is.

`tokens.py` has the tokenizers' names and the two without a trained vocabulary, `bpe.py` the one that is learned.
"""

import codecs
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT = "unrolled-tokenizer"
VERSION = 1

IntArray = NDArray[np.integer[Any]]


class TokenizerError(ValueError):
    """Text that can't be encoded, ids that stand for nothing, or a tokenizer file that can't be used."""


class UnknownCharacterError(TokenizerError):
    """`what` is wrong, and `advice` for whoever may choose another tokenizer."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


class StreamEncoder(Protocol):
    """Bytes in, ids out, a piece of a text at a time.

    The pushes and `finish` together give exactly what `encode` gives for the same bytes, wherever they are cut.
    """

    def push(self, raw: bytes) -> IntArray: ...
    def finish(self) -> IntArray: ...


class Tokenizer(Protocol):
    """What the toolkit asks of a tokenizer."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def encode(self, text: str | bytes) -> IntArray: ...
    def encoder(self) -> StreamEncoder: ...
    def decode(self, ids: ArrayLike) -> str: ...
    def byte_count(self, ids: ArrayLike) -> int: ...
    def decoder(self) -> "StreamDecoder": ...
    def save(self, path: str | Path) -> None: ...


class StreamDecoder:
    """Ids in, text out, one id at a time and never half a character.

    The pushes and `finish` together give exactly what `decode` gives for the same ids, invalid UTF-8 included.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """`pieces[id]` are the UTF-8 bytes, possibly a part of a character, that the id stands for."""
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def open(self) -> bool:
        """Whether the ids so far end inside a character."""
        return bool(self._utf8.getstate()[0])

    def push(self, token: SupportsIndex) -> str:
        """The characters that this id completes: often one, "" while a character is still open."""
        index = operator.index(token)
        if not 0 <= index < len(self._pieces):
            raise TokenizerError(f"id {index} is out of range: this vocabulary has ids 0 to {len(self._pieces) - 1}")
        return self._utf8.decode(self._pieces[index])

    def finish(self) -> str:
        """U+FFFD if the ids ended inside a character, else ""; the decoder is then as new."""
        return self._utf8.decode(b"", final=True)


def write_file(path: str | Path, fields: Mapping[str, object]) -> None:
    """A tokenizer file: the format, its version, and `fields`, of which "name" is one."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **fields}, ensure_ascii=False, indent=2)
    Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def check_text(text: object) -> None:
    """TypeError for what is neither str nor bytes."""
    if not isinstance(text, str | bytes):
        raise TypeError(f"encode takes str or bytes, got {type(text).__name__}")


def checked(ids: ArrayLike, size: int) -> IntArray:
    """`ids` as a one-axis integer array whose values are all in 0 .. size - 1."""
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"ids must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise TokenizerError(f"ids must have one axis, got shape {list(array.shape)}; decode one row at a time: ids[0]")
    bad = (array < 0) | (array >= size)
    if bad.any():
        position = int(np.argmax(bad))
        raise TokenizerError(
            f"id {array[position]} at position {position} is out of range: this vocabulary has ids 0 to {size - 1}"
        )
    return array
