"""Text to ids and back: bytes, or characters with a stated policy for unseen ones.

Both tokenizers are immutable values: equal ones encode alike, and `save` writes everything that `load_tokenizer` needs.
"""

import codecs
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT = "unrolled-tokenizer"
VERSION = 1

IntArray = NDArray[np.integer[Any]]


class TokenizerError(ValueError):
    """Text that can't be encoded, ids that stand for nothing, or a tokenizer file that can't be used."""


class Tokenizer(Protocol):
    """What the toolkit asks of a tokenizer; `ByteTokenizer` and `CharTokenizer` are the two in this version."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def encode(self, text: str | bytes) -> IntArray: ...
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

    def push(self, token: SupportsIndex) -> str:
        """The characters that this id completes: often one, "" while a character is still open."""
        index = operator.index(token)
        if not 0 <= index < len(self._pieces):
            raise TokenizerError(f"id {index} is out of range: this vocabulary has ids 0 to {len(self._pieces) - 1}")
        return self._utf8.decode(self._pieces[index])

    def finish(self) -> str:
        """U+FFFD if the ids ended inside a character, else ""; the decoder is then as new."""
        return self._utf8.decode(b"", final=True)


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids are UTF-8 bytes: a vocabulary of 256, and no text or file is outside it.

    `bytes` are taken as they are. In a `str`, U+DC80 to U+DCFF stand for the bytes 0x80 to 0xFF, as Python itself reads
    undecodable arguments and file names (PEP 383, "surrogateescape"); any other lone surrogate stands for no byte and
    is a TokenizerError.
    """

    name: ClassVar[str] = "byte"
    size: ClassVar[int] = 256

    def encode(self, text: str | bytes) -> NDArray[np.uint8]:
        _check_text(text)
        if isinstance(text, str):
            try:
                text = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise TokenizerError(
                    f"character {_named(error.object[error.start])} at position {error.start} is a lone "
                    "surrogate, which stands for no text and no bytes; remove it, or pass the text as bytes"
                ) from None
        return np.frombuffer(text, dtype=np.uint8).copy()

    def decode(self, ids: ArrayLike) -> str:
        """Invalid UTF-8 becomes U+FFFD; `bytes(ids)` are the exact bytes."""
        return _checked(ids, self.size).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def byte_count(self, ids: ArrayLike) -> int:
        return int(_checked(ids, self.size).size)

    def decoder(self) -> StreamDecoder:
        return StreamDecoder([bytes([value]) for value in range(self.size)])

    def save(self, path: str | Path) -> None:
        _write(path, {"name": self.name})


@dataclass(frozen=True)
class CharTokenizer:
    """Ids are positions in `symbols`, a string of distinct characters.

    `unseen` says what `encode` does with a character that isn't there: "error" raises, "skip" leaves it out, and one
    character of `symbols` takes its place. Text is never normalised: what is encoded is what was passed.
    """

    symbols: str
    unseen: str = "error"
    name: ClassVar[str] = "char"

    def __post_init__(self) -> None:
        if not isinstance(self.symbols, str):
            raise TypeError(
                f"symbols must be one string of distinct characters, got {type(self.symbols).__name__}; "
                'write "".join(symbols)'
            )
        if not self.symbols:
            raise TokenizerError("a character tokenizer needs at least one symbol, got an empty string")
        seen: set[str] = set()
        for position, symbol in enumerate(self.symbols):
            if symbol in seen:
                raise TokenizerError(f"symbol {_named(symbol)} is there twice, again at position {position}")
            if "\ud800" <= symbol <= "\udfff":
                raise TokenizerError(
                    f"symbol {_named(symbol)} at position {position} is a lone surrogate, which is no character"
                )
            seen.add(symbol)
        if self.unseen not in ("error", "skip") and self.unseen not in seen:
            raise TokenizerError(
                f'unseen must be "error", "skip" or one character of the {self.size} symbols, got {self.unseen!r}'
            )

    @classmethod
    def from_text(cls, text: str, unseen: str = "error") -> "CharTokenizer":
        """Sorted distinct characters of `text`."""
        return cls("".join(sorted(set(text))), unseen)

    @property
    def size(self) -> int:
        return len(self.symbols)

    def encode(self, text: str | bytes) -> NDArray[np.int32]:
        """`bytes` must be UTF-8; they aren't stripped of a byte order mark. Positions in errors count from 0."""
        _check_text(text)
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"byte 0x{text[error.start]:02X} at position {error.start} isn't UTF-8; pass a str that was "
                    "decoded from the right encoding, or use ByteTokenizer, which takes any bytes"
                ) from None
        ids = self._ids_by_code[np.minimum(_codes(text), self._ids_by_code.size - 1)]
        if self.unseen == "skip":
            return ids[ids >= 0]
        if self.unseen == "error" and ids.size and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            raise TokenizerError(
                f"character {_named(text[position])} at position {position} is not among the {self.size} symbols of "
                'this tokenizer; CharTokenizer(symbols, unseen="skip") leaves such characters out, '
                f"unseen={self._example!r} (or any other symbol) puts that one in their place, and ByteTokenizer "
                "(--tokens byte) knows every text"
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        return _codes(self.symbols)[_checked(ids, self.size)].tobytes().decode("utf-32-le")

    def byte_count(self, ids: ArrayLike) -> int:
        return int(self._widths[_checked(ids, self.size)].sum(dtype=np.int64))

    def decoder(self) -> StreamDecoder:
        return StreamDecoder([symbol.encode() for symbol in self.symbols])

    def save(self, path: str | Path) -> None:
        _write(path, {"name": self.name, "unseen": self.unseen, "symbols": self.symbols})

    @cached_property
    def _ids_by_code(self) -> NDArray[np.int32]:
        """One entry for each code point up to the largest symbol and one more, which stands for all above."""
        codes = _codes(self.symbols)
        absent = -1 if self.unseen in ("error", "skip") else self.symbols.index(self.unseen)
        table = np.full(int(codes.max()) + 2, absent, dtype=np.int32)
        table[codes] = np.arange(self.size, dtype=np.int32)
        return table

    @cached_property
    def _widths(self) -> NDArray[np.uint8]:
        return np.array([len(symbol.encode()) for symbol in self.symbols], dtype=np.uint8)

    @property
    def _example(self) -> str:
        return next((symbol for symbol in "?_ " if symbol in self.symbols), self.symbols[0])


def new_tokenizer(tokens: str, text: str = "") -> Tokenizer:
    """The tokenizer called `tokens` ("byte" or "char"); a character vocabulary is drawn from `text`."""
    if tokens == "byte":
        return ByteTokenizer()
    if tokens == "char":
        return CharTokenizer.from_text(text)
    if tokens == "bpe":
        raise TokenizerError(
            'tokens="bpe" is not in this version; use "byte" (the default) or "char" (--tokens byte, --tokens char)'
        )
    raise TokenizerError(f'tokens must be "byte" or "char", got {tokens!r}')


def load_tokenizer(path: str | Path) -> Tokenizer:
    """What `save` wrote. TokenizerError names the file and what is wrong with it; a missing file is an OSError."""
    raw = Path(path).read_bytes()
    try:
        return _parsed(raw)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _parsed(raw: bytes) -> Tokenizer:
    try:
        fields = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"this is not a tokenizer file, which is JSON in UTF-8 ({error})") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise TokenizerError(f'this is not a tokenizer file: "format" must be "{FORMAT}"')
    version = fields.get("version")
    if version != VERSION:
        raise TokenizerError(
            f"the file's version is {version!r} and this version of unrolled reads {VERSION}; "
            "a newer unrolled may read it: pip install --upgrade unrolled"
        )
    expected = {"byte": [], "char": ["unseen", "symbols"]}.get(str(fields.get("name")))
    if expected is None:
        return new_tokenizer(str(fields.get("name")))
    for key in expected:
        if not isinstance(fields.get(key), str):
            raise TokenizerError(f'"{key}" must be a string, got {fields.get(key)!r}')
    unknown = sorted(fields.keys() - {"format", "version", "name", *expected})
    if unknown:
        raise TokenizerError(f"unknown entries {', '.join(unknown)} in a {fields['name']} tokenizer")
    return CharTokenizer(fields["symbols"], fields["unseen"]) if fields["name"] == "char" else ByteTokenizer()


def _write(path: str | Path, fields: dict[str, str]) -> None:
    text = json.dumps({"format": FORMAT, "version": VERSION, **fields}, ensure_ascii=False, indent=2)
    Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _named(symbol: str) -> str:
    return f"{symbol!r} (U+{ord(symbol):04X})"


def _check_text(text: object) -> None:
    if not isinstance(text, str | bytes):
        raise TypeError(f"encode takes str or bytes, got {type(text).__name__}")


def _checked(ids: ArrayLike, size: int) -> IntArray:
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
