"""Text to ids and back: bytes, characters with a stated policy for unseen ones, ids that stand for themselves.

All tokenizers are immutable values: equal ones encode alike, and `save` writes everything that `load_tokenizer` needs.
"""

import codecs
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bpe import BpeTokenizer, train_bpe
from .tokenizer import (
    FORMAT,
    VERSION,
    IntArray,
    StreamDecoder,
    StreamEncoder,
    Tokenizer,
    TokenizerError,
    UnknownCharacterError,
    check_text,
    checked,
    write_file,
)

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "IdTokenizer",
    "IntArray",
    "StreamDecoder",
    "StreamEncoder",
    "Tokenizer",
    "TokenizerError",
    "load_tokenizer",
    "new_tokenizer",
    "parse_tokenizer",
    "tokenizer_file",
]

# Every code point as a symbol, each written as an escape, is less; more is not ours and would only cost memory.
LARGEST_FILE = 2**24
MOST_IDS = 2**20


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
        check_text(text)
        if isinstance(text, str):
            try:
                text = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise TokenizerError(
                    f"character {_named(error.object[error.start])} at position {error.start} is a lone "
                    "surrogate, which stands for no text and no bytes; remove it, or pass the text as bytes"
                ) from None
        return np.frombuffer(text, dtype=np.uint8).copy()

    def encoder(self) -> StreamEncoder:
        return _ByteEncoder()

    def decode(self, ids: ArrayLike) -> str:
        """Invalid UTF-8 becomes U+FFFD; `bytes(ids)` are the exact bytes."""
        return checked(ids, self.size).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def byte_count(self, ids: ArrayLike) -> int:
        return int(checked(ids, self.size).size)

    def decoder(self) -> StreamDecoder:
        return StreamDecoder([bytes([value]) for value in range(self.size)])

    def save(self, path: str | Path) -> None:
        write_file(path, {"name": self.name})


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
        check_text(text)
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(error.object[error.start], error.start) from None
        return self._known(text, 0)

    def encoder(self) -> StreamEncoder:
        return _CharEncoder(self)

    def _known(self, text: str, before: int) -> NDArray[np.int32]:
        """The ids of a text that `before` characters precede."""
        ids = self._ids_by_code[np.minimum(_codes(text), self._ids_by_code.size - 1)]
        if self.unseen == "skip":
            return ids[ids >= 0]
        if self.unseen == "error" and ids.size and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            raise UnknownCharacterError(
                f"character {_named(text[position])} at position {before + position} is not among the {self.size} "
                "symbols of this tokenizer",
                'CharTokenizer(symbols, unseen="skip") leaves such characters out, '
                f"unseen={self._example!r} (or any other symbol) puts that one in their place, and ByteTokenizer "
                "(--tokens byte) knows every text",
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        return _codes(self.symbols)[checked(ids, self.size)].tobytes().decode("utf-32-le")

    def byte_count(self, ids: ArrayLike) -> int:
        return int(self._widths[checked(ids, self.size)].sum(dtype=np.int64))

    def decoder(self) -> StreamDecoder:
        return StreamDecoder([symbol.encode() for symbol in self.symbols])

    def save(self, path: str | Path) -> None:
        write_file(path, {"name": self.name, "unseen": self.unseen, "symbols": self.symbols})

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


class _ByteEncoder:
    def push(self, raw: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(raw, dtype=np.uint8)

    def finish(self) -> NDArray[np.uint8]:
        return np.zeros(0, dtype=np.uint8)


class _CharEncoder:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._bytes = self._characters = 0

    def push(self, raw: bytes, *, final: bool = False) -> NDArray[np.int32]:
        begin = self._bytes - len(self._utf8.getstate()[0])
        self._bytes += len(raw)
        try:
            text = self._utf8.decode(raw, final)
        except UnicodeDecodeError as error:
            raise _not_utf8(error.object[error.start], begin + error.start) from None
        ids = self._tokenizer._known(text, self._characters)
        self._characters += len(text)
        return ids

    def finish(self) -> NDArray[np.int32]:
        return self.push(b"", final=True)


@dataclass(frozen=True)
class IdTokenizer:
    """Ids that were made elsewhere and stand for nothing but themselves, 0 to `size` - 1.

    Their text is the numbers, each with a space behind it. What bytes they stand for is not known, so that one id
    counts as one byte: bits per byte are bits per id.
    """

    size: int
    name: ClassVar[str] = "ids"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= MOST_IDS:
            raise TokenizerError(
                f"a vocabulary of ids has 1 to {MOST_IDS} of them, got {self.size!r}; number yours from 0 on without "
                "gaps: np.unique(ids, return_inverse=True)[1]"
            )

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Numbers with white space between them."""
        check_text(text)
        words = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).split()
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) <= len(str(self.size)) and int(word) < self.size):
                raise TokenizerError(
                    f"{word[:40]!r} is no id of this vocabulary, which reads numbers from 0 to {self.size - 1} with "
                    'spaces between them, such as "0 1"'
                )
        return np.array([int(word) for word in words], dtype=np.int64)

    def encoder(self) -> StreamEncoder:
        return _IdEncoder(self)

    def decode(self, ids: ArrayLike) -> str:
        return "".join(f"{token} " for token in checked(ids, self.size).tolist())

    def byte_count(self, ids: ArrayLike) -> int:
        return int(checked(ids, self.size).size)

    def decoder(self) -> StreamDecoder:
        return StreamDecoder([f"{token} ".encode() for token in range(self.size)])

    def save(self, path: str | Path) -> None:
        write_file(path, {"name": self.name, "size": self.size})


class _IdEncoder:
    def __init__(self, tokenizer: IdTokenizer) -> None:
        self._tokenizer, self._open = tokenizer, b""

    def push(self, raw: bytes) -> NDArray[np.int64]:
        raw = self._open + raw
        end = max(raw.rfind(b" "), raw.rfind(b"\n")) + 1
        self._open = raw[end:]
        return self._tokenizer.encode(raw[:end])

    def finish(self) -> NDArray[np.int64]:
        open_, self._open = self._open, b""
        return self._tokenizer.encode(open_)


def new_tokenizer(tokens: str, text: str | Iterable[str] = "", *, vocabulary: int | None = None) -> Tokenizer:
    """The tokenizer called `tokens`: "byte", "char" or "bpe"; the latter two are made from `text`, in pieces or whole.

    `vocabulary`: how many tokens "bpe" learns, 4096 if not given.
    """
    if tokens == "byte":
        return ByteTokenizer()
    if tokens == "char":
        symbols: set[str] = set()
        for piece in [text] if isinstance(text, str) else text:
            symbols.update(piece)
        return CharTokenizer("".join(sorted(symbols)))
    if tokens == "bpe":
        return train_bpe([text] if isinstance(text, str) else text, vocabulary)
    raise TokenizerError(f'tokens must be "byte", "char" or "bpe", got {tokens!r}')


def load_tokenizer(path: str | Path) -> Tokenizer:
    """What `save` wrote. TokenizerError names the file and what is wrong with it; a missing file is an OSError."""
    with open(path, "rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    try:
        return parse_tokenizer(raw)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def tokenizer_file(tokenizer: Tokenizer) -> bytes:
    """What `tokenizer.save` writes."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        tokenizer.save(path)
        return path.read_bytes()


def parse_tokenizer(raw: bytes) -> Tokenizer:
    """The tokenizer whose file has these contents."""
    if len(raw) > LARGEST_FILE:
        raise TokenizerError(f"this is larger than a tokenizer file ever is ({LARGEST_FILE} bytes)")
    try:
        fields = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"this is not a tokenizer file, which is JSON in UTF-8 ({error})") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise TokenizerError(f'this is not a tokenizer file: "format" must be "{FORMAT}"')
    version = fields.get("version")
    if version != VERSION:
        raise TokenizerError(
            f"the file's version is {version!r:.80} and this version of unrolled reads {VERSION}; "
            "a newer unrolled may read it: pip install --upgrade unrolled"
        )
    name = str(fields.get("name"))
    if name not in _FIELDS:
        raise TokenizerError(f'"name" must be one of {", ".join(_FIELDS)}, got {name[:80]!r}')
    for key, kind in _FIELDS[name].items():
        if type(fields.get(key)) is not kind:
            raise TokenizerError(f'"{key}" must be {_KINDS[kind]}, got {repr(fields.get(key))[:80]}')
    unknown = sorted(fields.keys() - {"format", "version", "name", *_FIELDS[name]})
    if unknown:
        raise TokenizerError(f"unknown entries {', '.join(unknown)[:80]} in a {name} tokenizer")
    return _from_fields(name, fields)


_FIELDS: dict[str, dict[str, type]] = {
    "byte": {},
    "char": {"unseen": str, "symbols": str},
    "bpe": {"merges": list},
    "ids": {"size": int},
}
_KINDS = {str: "a string", list: "a list", int: "a whole number"}


def _from_fields(name: str, fields: dict[str, Any]) -> Tokenizer:
    match name:
        case "char":
            return CharTokenizer(fields["symbols"], fields["unseen"])
        case "bpe":
            return BpeTokenizer.from_lines(fields["merges"])
        case "ids":
            return IdTokenizer(fields["size"])
    return ByteTokenizer()


def _not_utf8(byte: int, position: int) -> TokenizerError:
    return TokenizerError(
        f"byte 0x{byte:02X} at position {position} isn't UTF-8; pass a str that was decoded from the right encoding, "
        "or use ByteTokenizer, which takes any bytes"
    )


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _named(symbol: str) -> str:
    return f"{symbol!r} (U+{ord(symbol):04X})"
