"""Files to splits: where the cuts lie, what a document is, and what every unusable file is told."""

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrolled.corpus import Corpus, CorpusError, Split, builtin_text, read_corpus
from unrolled.tokens import ByteTokenizer, CharTokenizer, TokenizerError

LETTERS = "".join(chr(ord("a") + index % 26) for index in range(200))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(corpus: Corpus) -> list[str | None]:
    splits = (corpus.train, corpus.val, corpus.test)
    return [None if split is None else corpus.tokenizer.decode(split.ids) for split in splits]


def complaint(*args: object, **options: object) -> str:
    with pytest.raises(CorpusError) as caught:
        read_corpus(*args, **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("tokens", ["byte", "char"])
def test_default_split(here: Path, tokens: str) -> None:
    corpus = read_corpus([file("a", LETTERS)], tokens=tokens)
    assert texts(corpus) == [LETTERS[:180], LETTERS[180:190], LETTERS[190:]]
    assert corpus.sizes == {"train": 180, "val": 10, "test": 10}
    assert corpus.train.ids.dtype == np.uint8, "the smallest that holds the vocabulary"
    assert corpus.tokenizer.name == tokens


def test_other_splits(here: Path) -> None:
    a = file("a", LETTERS)
    assert texts(read_corpus([a], split=(0.9, 0.1))) == [LETTERS[:180], LETTERS[180:], None]
    assert texts(read_corpus([a], split=[1])) == [LETTERS, None, None]
    assert texts(read_corpus([a], split=(0.5, 0, 0.25))) == [LETTERS[:100], None, LETTERS[100:150]]
    assert texts(read_corpus(a, split=(1 / 3, 1 / 3, 1 / 3)))[2] == LETTERS[133:], "the last third is cut nowhere short"
    assert texts(read_corpus("a", split=(0.29, 0.5)))[0] == LETTERS[:58], "29 hundredths of 200, whatever floats say"


def test_ninety_percent_of_tiny_shakespeares_length(here: Path) -> None:
    corpus = read_corpus([file("a", b"x" * 1_115_394)], tokens="char", split=(0.9, 0.1))
    assert corpus.sizes == {"train": 1_003_854, "val": 111_540}


@given(st.text("aé€🙂", min_size=40), st.sampled_from([(0.5, 0.5), (0.4, 0.3, 0.3), (0.45, 0.45)]))
def test_no_cut_falls_inside_a_character(
    tmp_path_factory: pytest.TempPathFactory, text: str, split: tuple[float, ...]
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a"
    path.write_text(text, encoding="utf-8")
    corpus = read_corpus([path], split=split)
    parts = [part.ids.tobytes() for part in (corpus.train, corpus.val, corpus.test) if part is not None]
    assert text.encode().startswith(b"".join(parts))
    assert text.startswith("".join(part.decode() for part in parts))
    total = len(text.encode())
    assert 0 <= int(total * split[0]) - len(parts[0]) <= 3
    assert sum(split) < 1 or len(b"".join(parts)) == total


def test_bytes_that_are_no_text_are_cut_where_the_share_says(here: Path) -> None:
    assert read_corpus([file("a", b"\x80" * 20)], split=(0.5, 0.5)).sizes == {"train": 10, "val": 10}
    assert read_corpus([file("a", b"\xc3" * 20)], split=(0.5, 0.5)).sizes == {"train": 10, "val": 10}
    mixed = b"aaaaaaaa\xc3\xa9\xa9\xa9aaaaaaaa"
    assert read_corpus([file("a", mixed)], split=(0.45, 0.55)).sizes == {"train": 8, "val": 12}
    assert read_corpus([file("a", mixed)], split=(0.5, 0.5)).sizes == {"train": 10, "val": 10}


def test_each_file_is_a_document(here: Path) -> None:
    files = [file("b", "x" * 10), file("a", "y" * 6), file("c", "z" * 4)]
    corpus = read_corpus(files, split=(0.6, 0.4))
    assert texts(corpus)[:2] == ["x" * 10 + "yy", "yyyyzzzz"]
    assert corpus.train.starts.tolist() == [0, 10]
    assert corpus.val is not None
    assert corpus.val.starts.tolist() == [0, 4]
    at_a_boundary = read_corpus(files, split=(0.5, 0.5))
    assert at_a_boundary.train.starts.tolist() == [0]
    assert at_a_boundary.val is not None
    assert at_a_boundary.val.starts.tolist() == [0, 6]


def test_validation_from_its_own_file(here: Path) -> None:
    a, b = file("a", LETTERS), file("b", "0123")
    corpus = read_corpus([a], val=b, tokens="char")
    assert texts(corpus) == [LETTERS, "0123", None]
    assert corpus.tokenizer == CharTokenizer.from_text(LETTERS + "0123")
    assert texts(read_corpus([a], val=b, split=(0.5, 0.5))) == [LETTERS[:100], "0123", LETTERS[100:]]
    assert "split has 3 numbers (0.8,0.1,0.1); write one to 2 shares, train, test as in --split 0.9,0.1" in complaint(
        [a], val=b, split=(0.8, 0.1, 0.1)
    )
    assert complaint([a], val=file("c", "x")) == (
        "c is too short to validate on: it holds 1 token, and at least 2 are needed"
    )


def test_bytes_scored_leaves_out_each_documents_first_token(here: Path) -> None:
    files = [file("a", "€abc"), file("b", "é€")]
    characters, plain = (read_corpus(files, tokens=tokens, split=(1,)) for tokens in ("char", "byte"))
    assert characters.train.bytes_scored(characters.tokenizer) == 3 + 3
    assert plain.train.bytes_scored(plain.tokenizer) == 5 + 4


def test_what_counts_of_a_masked_text() -> None:
    tokenizer = CharTokenizer("a€é")
    ids, starts = tokenizer.encode("€aé€aé"), np.array([0, 3])
    for scored, expected in (
        (None, [0, 1, 1, 0, 1, 1]),
        (np.array([True, False, True, True, True, False]), [0, 0, 1, 0, 1, 0]),
        (np.zeros(6, np.bool_), [0] * 6),
    ):
        split = Split(ids, starts, scored)
        assert split.counts(0, 6).tolist() == [bool(each) for each in expected]
        assert split.counts(2, 5).tolist() == [bool(each) for each in expected[2:5]]
        assert split.predictions == sum(expected)
        assert split.bytes_scored(tokenizer) == sum(np.multiply(expected, [3, 1, 2, 3, 1, 2]))


def test_the_vocabulary_is_that_of_the_whole_text(here: Path) -> None:
    corpus = read_corpus([file("a", LETTERS + "\u20ac\u00e9")], tokens="char")
    assert corpus.tokenizer == CharTokenizer.from_text(LETTERS + "\u20ac\u00e9")
    assert "é" not in str(texts(corpus)[0])


def test_a_given_tokenizer_is_used(here: Path) -> None:
    a = file("a", "abcabz")
    tokenizer = CharTokenizer("cba", "skip")
    corpus = read_corpus([a], tokens="byte", tokenizer=tokenizer, split=(1,))
    assert corpus.tokenizer is tokenizer
    assert corpus.train.ids.tolist() == [2, 1, 0, 2, 1]
    assert read_corpus([a], tokens="char", tokenizer=ByteTokenizer(), split=(1,)).train.ids.tobytes() == b"abcabz"
    assert complaint([a], tokenizer=CharTokenizer("abc")).startswith(
        "a: character 'z' (U+007A) at position 5 is not among the 3 symbols"
    )
    assert complaint([a, file("b", "zz")], tokenizer=tokenizer) == (
        "b has no character that the tokenizer knows; leave it out, or use another tokenizer"
    )


def test_sha256(here: Path) -> None:
    a, b = file("a", "first\r\n"), file("b", b"\xef\xbb\xbfsecond")
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b)]
    assert read_corpus([a], split=(1,)).sha256 == sums[0]
    assert read_corpus([b], split=(1,), tokens="char").sha256 == sums[1], "of the bytes as they lie there"
    both = hashlib.sha256(f"{sums[0]}\n{sums[1]}\n".encode()).hexdigest()
    assert read_corpus([a, b], split=(1,)).sha256 == both
    apart = hashlib.sha256(f"{sums[0]}\nval {sums[1]}\n".encode()).hexdigest()
    assert read_corpus([a], val=b).sha256 == apart


def test_line_ends_stay(here: Path) -> None:
    a = file("a", "one\r\ntwo\rthree\n")
    assert texts(read_corpus([a], split=(1,)))[0] == "one\r\ntwo\rthree\n"
    assert texts(read_corpus([a], split=(1,), tokens="char"))[0] == "one\r\ntwo\rthree\n"


def test_a_byte_order_mark_is_text_to_bytes_only(here: Path) -> None:
    marked = file("a", "\ufeffab\ufeffc")
    assert texts(read_corpus([marked], split=(1,)))[0] == "\ufeffab\ufeffc"
    assert texts(read_corpus([marked, marked], split=(1,), tokens="char"))[0] == "ab\ufeffcab\ufeffc"
    assert complaint([file("b", "\ufeff")], tokens="char") == (
        "b is empty but for its byte order mark; leave it out, or pass a file with text in it"
    )


def test_the_built_in_text() -> None:
    text = builtin_text()
    assert len(text) > 300_000
    assert 'The "assert" statement' in text[:100]
    corpus = read_corpus([])
    assert corpus.train.starts.tolist() == [0]
    assert corpus.sizes["train"] == pytest.approx(0.9 * len(text.encode()), abs=3)
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_an_interpreter_without_the_built_in_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert complaint([]) == (
        "this Python came without the documentation text that is trained on by default (pydoc_data.topics); pass a "
        "file instead, any plain text in UTF-8 of about 100,000 characters or more: unrolled train FILE.txt"
    )


def test_files_that_cannot_be_read(here: Path) -> None:
    file("input.txt", LETTERS)
    assert complaint(["inptu.txt"]) == "inptu.txt: there is no such file; did you mean input.txt?"
    assert complaint(["zzz"]) == f"zzz: there is no such file; looked in {here.resolve()}"
    missing = Path("nowhere") / "a"
    assert complaint([missing]) == f"{missing}: there is no such file; looked in {(here / 'nowhere').resolve()}"
    assert complaint(["input.txt", file("b", "")]) == "b is empty; leave it out, or pass a file with text in it"
    assert complaint(["input.txt"], val="c") == f"c: there is no such file; looked in {here.resolve()}"


def test_files_that_the_system_refuses(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file("a", LETTERS)

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("unrolled.sources.open", refuse, raising=False)
    assert complaint(["a"]) == "a can't be read: Permission denied"


NOT_UTF8 = (
    "a isn't UTF-8: byte 0x{byte} at position {position}, in line {line}; "
    "convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8 a > a.utf8`"
)
OR_BYTES = ", or use --tokens byte, which takes any bytes"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "one\ncaf\u00e9".encode("latin-1"),
            NOT_UTF8.format(byte="E9", position=7, line=2),
        ),
        (
            b"\xef\xbb\xbfabc\xff",
            NOT_UTF8.format(byte="FF", position=6, line=1),
        ),
        (
            "text".encode("utf-16"),
            "a is UTF-16, not UTF-8; convert it, for example with `iconv -f UTF-16 -t UTF-8 a > a.utf8`",
        ),
        (
            "text".encode("utf-32"),
            "a is UTF-32, not UTF-8; convert it, for example with `iconv -f UTF-32 -t UTF-8 a > a.utf8`",
        ),
        (b"PK\x03\x04\x00\x00", "a is binary: it has a NUL byte at position 4; pass plain text"),
        (bytes(range(1, 256)), "a is binary: 10% of it are control bytes; pass plain text"),
    ],
)
def test_files_that_are_no_text(here: Path, content: bytes, says: str) -> None:
    a = file("a", content)
    assert complaint([a], tokens="char") == says + OR_BYTES
    every = CharTokenizer("".join(map(chr, range(128))))
    assert complaint([a], tokenizer=every) == says, "a saved vocabulary leaves no choice of tokens"
    assert read_corpus([a], split=(1,)).train.ids.tobytes() == content


def test_a_few_control_bytes_are_text(here: Path) -> None:
    log = "\x1b[31mred\x1b[0m\tline\f\n" * 9 + "\x07\x08"
    assert texts(read_corpus([file("a", log)], tokens="char", split=(1,)))[0] == log


def test_too_short(here: Path) -> None:
    assert complaint([file("a", "x" * 30)], tokens="char") == (
        "the text is too short: of its 30 tokens the val share (0.05) gets 1, and at least 2 are needed; pass a longer "
        "text (40 tokens are enough), give val a larger share, or use all of the text for training: --split 1"
    )
    assert complaint([file("a", "x")], split=(1,)) == (
        "the text is too short: it holds 1 token, and at least 2 are needed; pass a longer text"
    )


@given(st.integers(2, 400), st.sampled_from([(0.9, 0.05, 0.05), (0.01, 0.99), (0.98, 0.02), (0.5, 0.1)]), st.booleans())
def test_enough_is_enough(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, split: tuple[float, ...], wide: bool
) -> None:
    path = tmp_path_factory.mktemp("short") / "a"
    path.write_text(("🙂" if wide else "x") * tokens, encoding="utf-8")
    try:
        read_corpus([path], split=split)
    except CorpusError as error:
        enough = int(str(error).split("longer text (")[1].split()[0])
        assert enough > tokens * len("🙂".encode() if wide else "x")
        path.write_text("🙂" * -(-enough // 4) if wide else "x" * enough, encoding="utf-8")
        assert min(read_corpus([path], split=split).sizes.values()) >= 2


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ((), "split has 0 numbers (); write one to 3 shares, train, val, test as in --split 0.9,0.05,0.05"),
        ((0.7, 0.1, 0.1, 0.1), "split has 4 numbers (0.7,0.1,0.1,0.1); write one to 3 shares"),
        ((90, 5, 5), "split 90,5,5 sums to 100, more than the whole text; write shares of 1: train, val, test as"),
        ((0.9, 0.2), "split 0.9,0.2 sums to 1.1, more than the whole text"),
        ((1.1, -0.1), "split 1.1,-0.1 has a share that is no share: each is 0 or more, train's above 0"),
        ((0, 1), "split 0,1 has a share that is no share"),
        ((float("nan"), 0.1), "split nan,0.1 has a share that is no share"),
    ],
)
def test_wrong_shares(here: Path, split: tuple[float, ...], says: str) -> None:
    assert says in complaint([file("a", LETTERS)], split=split)


def test_tokens_that_do_not_exist(here: Path) -> None:
    with pytest.raises(TokenizerError, match="got 'words'"):
        read_corpus(["not read"], tokens="words")


def test_a_split_is_checked() -> None:
    ids = np.arange(5)
    assert len(Split(ids, np.array([0, 4]))) == 5
    for starts in ([], [1], [0, 3, 3], [0, 4, 2], [0, 5]):
        with pytest.raises(ValueError, match="starts must begin with 0, ascend and stay below the 5 ids, got"):
            Split(ids, np.array(starts, dtype=np.int64))
    with pytest.raises(ValueError, match=r"ids must be one axis of integers, got float64 \[5\]"):
        Split(ids / 2, np.array([0]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ids must be one axis of integers, got int64 \[1, 5\]"):
        Split(ids[None], np.array([0]))
    with pytest.raises(ValueError, match="starts must be one axis of integers, got float64"):
        Split(ids, np.array([0.0]))  # type: ignore[arg-type]


def test_how_far_a_text_is_encoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("corpus", "sources"):
        monkeypatch.setattr(sys.modules[f"unrolled.{module}"], "PIECE", 100)
    told: list[tuple[str, int, int]] = []

    def hear(what: str, done: int, of: int) -> None:
        told.append((re.sub(r" at \d+ MB/s$", "", what), done, of))

    a, b = file("a", "x" * 150 + "y" * 50), file("b", "y" * 100)
    read_corpus(a, tokens="char", progress=hear)
    steps = [(100, 200), (200, 200)]
    assert told == [(f"{what} a", *step) for what in ("looking for characters in", "encoding") for step in steps]
    told.clear()
    read_corpus([a, b], progress=hear)
    assert told == [("encoding 2 files", done, 300) for done in (100, 200, 300)]
    told.clear()
    read_corpus(a, tokens="bpe", vocabulary=257, val=b, progress=hear)
    assert told[:2] == [("learning byte pairs from a", done, 200) for done in (100, 200)]
    assert told[2:] == [("encoding 2 files", done, 300) for done in (100, 200, 300)]
