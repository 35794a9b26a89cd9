"""Byte pair encoding: tokens of several bytes, learned from a text, into which every text can be taken apart.

The first 256 ids are the bytes themselves, and each merge joins two tokens to one, so no text and no file is outside
the vocabulary (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; on bytes, as in GPT-2). Words are told apart by
GPT-2's pattern, a space belonging to the word behind it. Hugging Face's `tokenizers` learns and applies the merges; it
is loaded for that only, so a model with such a vocabulary loads and decodes without it.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .tokenizer import StreamDecoder, StreamEncoder, TokenizerError, check_text, checked, write_file

DEFAULT_VOCABULARY, MOST_VOCABULARY = 4096, 2**18
LONGEST_TOKEN = 64
# Characters that are encoded at a time. It is a part of what the ids are: where a text has no place to cut (a non-space
# character with a space or newline behind it) in so many characters, it is cut behind them.
STRETCH = 2**15

_SAFE_CUT = re.compile(r"(?s).*\S(?=[ \n])")
_NO_TEXT = re.compile("([\udc80-\udcff]+)")


@dataclass(frozen=True)
class BpeTokenizer:
    """`merges[n]` are the ids of the two tokens that make the next one; ids 0 to 255 are the bytes.

    `bytes` are taken as they are, UTF-8 or not; in a `str`, U+DC80 to U+DCFF stand for the bytes 0x80 to 0xFF, as with
    `ByteTokenizer`. Bytes that are no UTF-8 are tokens of their own.
    """

    merges: tuple[tuple[int, int], ...]
    name: ClassVar[str] = "bpe"

    def __post_init__(self) -> None:
        if len(self.merges) > MOST_VOCABULARY - 256:
            raise TokenizerError(f"a vocabulary has at most {MOST_VOCABULARY} tokens, got {len(self.merges)} merges")
        self._pieces  # noqa: B018 - whether the merges fit together shows when their tokens are made

    @classmethod
    def from_lines(cls, lines: Sequence[object]) -> "BpeTokenizer":
        """From lines such as "104 105", as a tokenizer file has them."""
        merges = []
        for line in lines:
            words = line.split(" ") if isinstance(line, str) and len(line) < 20 else []
            if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
                raise TokenizerError(f'a merge is two ids such as "104 105", got {repr(line)[:80]}')
            merges.append((int(words[0]), int(words[1])))
        return cls(tuple(merges))

    @property
    def size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str | bytes) -> NDArray[np.int32]:
        check_text(text)
        encoder = self.encoder()
        return np.concatenate([encoder.push(_bytes(text) if isinstance(text, str) else text), encoder.finish()])

    def encoder(self) -> StreamEncoder:
        return _Encoder(self)

    def decode(self, ids: ArrayLike) -> str:
        """Invalid UTF-8 becomes U+FFFD."""
        return b"".join([self._pieces[token] for token in checked(ids, self.size)]).decode("utf-8", "replace")

    def byte_count(self, ids: ArrayLike) -> int:
        return int(self._widths[checked(ids, self.size)].sum(dtype=np.int64))

    def decoder(self) -> StreamDecoder:
        return StreamDecoder(self._pieces)

    def save(self, path: str | Path) -> None:
        write_file(path, {"name": self.name, "merges": [f"{left} {right}" for left, right in self.merges]})

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of each token. Two merges may make one token: "ab" + "c" and "a" + "bc"."""
        pieces = [bytes([value]) for value in range(256)]
        known, pairs = set(pieces), set[tuple[int, int]]()
        for left, right in self.merges:
            if not (0 <= left < len(pieces) and 0 <= right < len(pieces)):
                raise TokenizerError(f"merge {left} {right} joins tokens, and only {len(pieces)} come before it")
            joined = pieces[left] + pieces[right]
            if len(joined) > LONGEST_TOKEN:
                raise TokenizerError(f"merge {left} {right} makes a token of {len(joined)} bytes, over {LONGEST_TOKEN}")
            if (left, right) in pairs:
                raise TokenizerError(f"merge {left} {right} is there twice")
            pairs.add((left, right))
            if joined not in known:
                known.add(joined)
                pieces.append(joined)
        return pieces

    @cached_property
    def _widths(self) -> NDArray[np.uint8]:
        return np.array([len(piece) for piece in self._pieces], dtype=np.uint8)

    @cached_property
    def _merger(self) -> Any:
        """`tokenizers`' own object with these merges and these ids."""
        signs = _signs()
        words = ["".join(signs[value] for value in piece) for piece in self._pieces]
        merges = [(words[left], words[right]) for left, right in self.merges]
        return _untrained(vocab={word: token for token, word in enumerate(words)}, merges=merges)

    def _encoded(self, stretches: Sequence[str]) -> NDArray[np.int32]:
        """The ids of stretches that are encoded each by itself."""
        texts = [part for stretch in stretches for part in _NO_TEXT.split(stretch) if part]
        # Every other part would do, but for empty ones; what is no text is told by its first character.
        words = iter(self._merger.encode_batch_fast([part for part in texts if not _NO_TEXT.match(part)]))
        ids = [list(_bytes(part)) if _NO_TEXT.match(part) else next(words).ids for part in texts]
        return np.concatenate([np.array(part, dtype=np.int32) for part in ids]) if ids else np.zeros(0, np.int32)


class _Encoder:
    def __init__(self, tokenizer: BpeTokenizer) -> None:
        self._tokenizer, self._cutter = tokenizer, _Cutter()

    def push(self, raw: bytes) -> NDArray[np.int32]:
        return self._tokenizer._encoded(list(self._cutter.push(raw)))

    def finish(self) -> NDArray[np.int32]:
        return self._tokenizer._encoded(list(self._cutter.finish()))


class _Cutter:
    """A text in stretches of at most `STRETCH` characters, cut in the same places however it comes in.

    No word of GPT-2's pattern holds a space or newline behind a non-space character, so a cut there changes no word.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._open = ""

    def push(self, raw: bytes, *, final: bool = False) -> Iterator[str]:
        text, begin = self._open + self._utf8.decode(raw, final), 0
        while len(text) - begin > STRETCH:
            # One character more than a stretch, for a cut at its very end.
            cut = _SAFE_CUT.match(text, begin, begin + STRETCH + 1)
            end = cut.end() if cut else begin + STRETCH
            yield text[begin:end]
            begin = end
        self._open = text[begin:]

    def finish(self) -> Iterator[str]:
        yield from self.push(b"", final=True)
        rest, self._open = self._open, ""
        if rest:
            yield rest


def train_bpe(texts: Iterable[str], vocabulary: int | None = None) -> BpeTokenizer:
    """Learn at most `vocabulary` tokens (4096 if not given) from texts that are seen once, in order.

    The same text gives the same tokens. Fewer are learned where it is too short for so many. Memory grows with the
    number of different words.
    """
    vocabulary = DEFAULT_VOCABULARY if vocabulary is None else vocabulary
    if not 257 <= vocabulary <= MOST_VOCABULARY:
        raise TokenizerError(
            f"vocabulary must be 257 (the 256 bytes and one token more) to {MOST_VOCABULARY}, got {vocabulary}"
        )
    learner, signs = _untrained(), _signs()
    trainer = _library().trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=signs, max_token_length=LONGEST_TOKEN, show_progress=False
    )
    learner.train_from_iterator(_stretches(texts), trainer)
    bytes_of = {sign: value for value, sign in enumerate(signs)}
    ids = {bytes([value]): value for value in range(256)}
    merges = []
    for words in json.loads(learner.to_str())["model"]["merges"]:
        left, right = (bytes(bytes_of[sign] for sign in word) for word in words)
        merges.append((ids[left], ids[right]))
        ids.setdefault(left + right, len(ids))
    return BpeTokenizer(tuple(merges))


def _stretches(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        cutter = _Cutter()
        for stretch in (*cutter.push(_bytes(text)), *cutter.finish()):
            yield from (part for part in _NO_TEXT.split(stretch) if part and not _NO_TEXT.match(part))


def _untrained(**model: Any) -> Any:
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE(**model))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(
            'bpe tokens need Hugging Face\'s tokenizers, which is not installed: pip install "unrolled[bpe]"; '
            "--tokens byte and --tokens char need nothing"
        ) from None
    return tokenizers


def _signs() -> list[str]:
    """The character by which a byte-level model writes each byte: itself where it prints, else one from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(value if value in prints else next(others)) for value in range(256)]


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character U+{ord(error.object[error.start]):04X} at position {error.start} is a lone surrogate, which "
            "stands for no text and no bytes; remove it, or pass the text as bytes"
        ) from None
