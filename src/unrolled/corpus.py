"""Files to id streams: one for training, one for validation, one for the test."""

import difflib
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unrolled.tokens import IntArray, Tokenizer, TokenizerError, new_tokenizer

DEFAULT_SPLIT = (0.9, 0.05, 0.05)
# A control byte here and there is a stray; in compressed or compiled data it is about one byte in ten.
BINARY_SHARE = 0.05
# 1/3 + 1/3 + 1/3, typed as decimals, is the whole text.
ROUNDING = 1e-9
_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\v\f\r\x1b"))) + b"\x7f"

PathLike = str | os.PathLike[str]


class CorpusError(ValueError):
    """Text that can't be trained on as it is; the message says what to do about it."""


@dataclass(frozen=True, eq=False)
class Split:
    """One stream of ids, any integer dtype, a `np.memmap` included.

    `starts` are the positions of each document's first token, ascending; `starts[0]` is 0 even where the split begins
    in the middle of a document, since nothing before it can be seen.
    """

    ids: IntArray
    starts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or not np.issubdtype(self.ids.dtype, np.integer):
            raise ValueError(f"ids must be one axis of integers, got {self.ids.dtype} {list(self.ids.shape)}")
        if self.starts.ndim != 1 or not np.issubdtype(self.starts.dtype, np.integer):
            raise ValueError(f"starts must be one axis of integers, got {self.starts.dtype} {list(self.starts.shape)}")
        ascending = bool((np.diff(self.starts) > 0).all())
        if self.starts.size == 0 or self.starts[0] != 0 or not ascending or self.starts[-1] >= self.ids.size:
            raise ValueError(
                f"starts must begin with 0, ascend and stay below the {self.ids.size} ids, got {self.starts.tolist()}"
            )

    def __len__(self) -> int:
        return int(self.ids.size)

    def bytes_scored(self, tokenizer: Tokenizer) -> int:
        """UTF-8 bytes of every token that has a prediction: all but each document's first."""
        return tokenizer.byte_count(self.ids) - tokenizer.byte_count(self.ids[self.starts])


@dataclass(frozen=True, eq=False)
class Corpus:
    """The splits of a text; `val` and `test` are None where their share is 0.

    `sha256` is that of the source bytes: one file's own, as `sha256sum` prints it; with more files, that of their sums
    in order, one a line, the validation file's line beginning with "val ".
    """

    train: Split
    val: Split | None
    test: Split | None
    tokenizer: Tokenizer
    sha256: str

    @property
    def sizes(self) -> dict[str, int]:
        """Tokens of each split that there is."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: len(split) for name, split in splits.items() if split is not None}


def read_corpus(
    files: Sequence[PathLike] | PathLike,
    *,
    tokens: str = "byte",
    split: Sequence[float] = DEFAULT_SPLIT,
    val: PathLike | None = None,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Read files, each one document, in order; `files=[]` means `builtin_text()`.

    `split`: the shares of train, validation and test, in order over the tokens of all files together: one to three
    numbers, at most 1 together; what is left over is not used. A part ends at token int(tokens * share), and with
    byte tokens at the beginning of the character that lies there. With `val`, that file is the validation text,
    `files` are training text to the last token, and a `split` of two numbers means train and test.

    `tokenizer` overrides `tokens`. The vocabulary of a new character tokenizer is that of the whole text, validation
    and test included.

    Bytes are taken as they are and line ends stay what they are. Only with character tokens is a UTF-8 byte order
    mark at a file's beginning left out: it says how to read the text and is none of it.

    Raises CorpusError for files and shares that can't be used, TokenizerError for `tokens` that don't exist.
    """
    if isinstance(files, str | os.PathLike):
        files = [files]
    shares = _shares(split, with_val=val is not None)
    if tokens != "char":
        tokenizer = tokenizer or new_tokenizer(tokens)
    sources = [_read(file) for file in files] or [("the built-in text", builtin_text().encode())]
    apart = [] if val is None else [_read(val)]
    contents: list[str | bytes] = [raw for _, raw in sources + apart]
    if tokenizer is None or tokenizer.name != "byte":
        texts = [_text(name, raw, any_tokens=tokenizer is None) for name, raw in sources + apart]
        tokenizer = tokenizer or new_tokenizer(tokens, "".join(texts))
        contents = [*texts]
    encoded = [_ids(name, text, tokenizer) for (name, _), text in zip(sources + apart, contents, strict=True)]
    parts = _parts(_joined(encoded[: len(sources)]), shares, bytewise=tokenizer.name == "byte")
    if val is not None:
        if encoded[-1].size < 2:
            raise CorpusError(f"{val} is too short to validate on: it holds 1 token, and at least 2 are needed")
        parts["val"] = _joined(encoded[-1:])
    return Corpus(parts["train"], parts.get("val"), parts.get("test"), tokenizer, _sha256(sources, apart))


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


def _read(file: PathLike) -> tuple[str, bytes]:
    path = Path(file)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        names = os.listdir(folder) if folder.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {folder / close[0]}?" if close else f"looked in {folder.resolve()}"
        raise CorpusError(f"{path}: there is no such file; {hint}") from None
    except IsADirectoryError:
        raise CorpusError(f"{path} is a directory; pass the files in it, for example {path / '*.txt'}") from None
    except OSError as error:
        if path.is_dir():  # Windows refuses to open a directory with "permission denied"
            raise CorpusError(f"{path} is a directory; pass the files in it, for example {path / '*.txt'}") from None
        raise CorpusError(f"{path} can't be read: {error.strerror}") from None
    if not raw:
        raise CorpusError(f"{path} is empty; leave it out, or pass a file with text in it")
    return str(path), raw


def _text(name: str, raw: bytes, *, any_tokens: bool) -> str:
    """The characters of a UTF-8 file. `any_tokens`: the caller may still choose byte tokens."""
    otherwise = ", or use --tokens byte, which takes any bytes" if any_tokens else ""
    for mark, encoding in _OTHER_MARKS.items():
        if raw.startswith(mark):
            raise CorpusError(f"{name} is {encoding}, not UTF-8; {_convert(name, encoding)}{otherwise}")
    if (nul := raw.find(0)) >= 0:
        raise CorpusError(f"{name} is binary: it has a NUL byte at position {nul}; pass plain text{otherwise}")
    control = 1 - len(raw.translate(None, _CONTROL)) / len(raw)
    if control > BINARY_SHARE:
        raise CorpusError(f"{name} is binary: {control:.0%} of it are control bytes; pass plain text{otherwise}")
    try:
        text = raw.removeprefix(_UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start + (len(_UTF8_MARK) if raw.startswith(_UTF8_MARK) else 0)
        line = raw.count(b"\n", 0, position) + 1
        raise CorpusError(
            f"{name} isn't UTF-8: byte 0x{raw[position]:02X} at position {position}, in line {line}; "
            f"{_convert(name, 'WINDOWS-1252')}{otherwise}"
        ) from None
    if not text:
        raise CorpusError(f"{name} is empty but for its byte order mark; leave it out, or pass a file with text in it")
    return text


def _convert(name: str, encoding: str) -> str:
    return f"convert it, for example with `iconv -f {encoding} -t UTF-8 {name} > {name}.utf8`"


def _ids(name: str, text: str | bytes, tokenizer: Tokenizer) -> IntArray:
    try:
        ids = tokenizer.encode(text)
    except TokenizerError as error:
        raise CorpusError(f"{name}: {error}") from None
    if not ids.size:
        raise CorpusError(f"{name} has no character that the tokenizer knows; leave it out, or use another tokenizer")
    return ids


def _joined(documents: Sequence[IntArray]) -> Split:
    ids = documents[0] if len(documents) == 1 else np.concatenate(documents)
    return Split(ids, np.cumsum([0, *(document.size for document in documents[:-1])], dtype=np.int64))


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
        inside = whole.starts[(whole.starts > begin) & (whole.starts < end)]
        parts[name] = Split(whole.ids[begin:end], np.concatenate([np.zeros(1, np.int64), inside - begin]))
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


def _sha256(sources: Sequence[tuple[str, bytes]], apart: Sequence[tuple[str, bytes]]) -> str:
    sums = [hashlib.sha256(raw).hexdigest() for _, raw in sources]
    sums += ["val " + hashlib.sha256(raw).hexdigest() for _, raw in apart]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(f"{line}\n" for line in sums).encode()).hexdigest()
