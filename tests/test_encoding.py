"""Sources to ids: the same whatever the pieces are, documents where they begin, errors that name the place."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrolled import encoding, sources
from unrolled.encoding import Encoded, dtype_for, encode, in_memory, learned_from, texts
from unrolled.sources import CorpusError, Source
from unrolled.tokens import ByteTokenizer, CharTokenizer, IdTokenizer

BYTES = ByteTokenizer()


def raw(*contents: bytes) -> list[Source]:
    return [Source(f"text {number}", raw=content) for number, content in enumerate(contents)]


def encoded(*contents: bytes, separator: str = "") -> Encoded:
    return in_memory(raw(*contents), [], BYTES, separator)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)],
)
def test_the_smallest_dtype_that_holds_the_ids(size: int, dtype: type) -> None:
    assert dtype_for(size) == dtype


def test_documents_are_sources_and_what_lies_between_separators() -> None:
    result = encoded(b"one|two||", b"three", separator="|")
    assert result.ids.tobytes() == b"one|two||three", "nothing is taken away"
    assert result.starts.tolist() == [0, 4, 8, 9]
    assert encoded(b"one|two", b"three").starts.tolist() == [0, 7]


def test_the_text_to_validate_on_comes_last() -> None:
    result = in_memory(raw(b"one", b"two"), raw(b"three"), BYTES, "")
    assert (result.training, result.ids.tobytes(), result.starts.tolist()) == (6, b"onetwothree", [0, 3, 6])


def test_a_separator_that_is_nowhere() -> None:
    for content in (b"one two", b"one two|"):
        with pytest.raises(CorpusError, match=r"separator '\|' separates nothing"):
            encoded(content, separator="|")


@given(text=st.text("ab|\u00e9\u20ac\U0001f642\n", min_size=1, max_size=60), size=st.integers(1, 9), two=st.booleans())
def test_ids_and_starts_do_not_depend_on_the_pieces(text: str, size: int, two: bool) -> None:
    separator = "|\u00e9" if two else "|"
    text += f"a{separator}b"
    parts = [part + separator for part in text.split(separator)[:-1]] + text.split(separator)[-1:]
    parts = [part for part in parts if part]
    for tokenizer in (BYTES, CharTokenizer.from_text(text), CharTokenizer.from_text("|\u00e9b", "skip")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "PIECE", size)
            result = in_memory(raw(text.encode()), [], tokenizer, separator)
        whole = [tokenizer.encode(part) for part in parts]
        assert result.ids.tolist() == np.concatenate(whole).tolist()
        sizes = [part.size for part in whole if part.size]
        assert result.starts.tolist() == np.cumsum([0, *sizes[:-1]]).tolist()


def test_positions_in_errors_are_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 4)
    with pytest.raises(CorpusError, match=r"text 0: character 'z' \(U\+007A\) at position 10 is not"):
        in_memory(raw("a\u00e9\u00e9aaaaaaaz".encode()), [], CharTokenizer("a\u00e9"), "")
    for content, says in (
        (b"one\ntwo\ncaf\xe9 and", "byte 0xE9 at position 11, in line 3"),
        (b"one\ntwo\nca\xe2\x82", "byte 0xE2 at position 10, in line 3"),
        (b"\xef\xbb\xbfabcd\xffe", "byte 0xFF at position 7, in line 1"),
    ):
        with pytest.raises(CorpusError, match=f"text 0 isn't UTF-8: {says}"):
            list(texts(raw(content), any_tokens=True))
    with pytest.raises(CorpusError, match="text 0 is binary: it has a NUL byte at position 9"):
        list(texts(raw(b"123456789\x00"), any_tokens=True))


def test_a_byte_order_mark_begins_a_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 5)
    assert "".join(texts(raw("\ufeffab\ufeffc".encode()), any_tokens=True)) == "ab\ufeffc"


def test_what_is_learned_from_is_bounded_and_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PIECE", 10)
    contents = [bytes([letter]) * 100 for letter in b"abcdefghij"]
    taken = "".join(learned_from(raw(*contents), most=300))
    assert 300 <= len(taken) <= 310
    assert [taken.count(letter) for letter in "abcdefghij"] == pytest.approx([30] * 10, abs=10)
    assert "".join(learned_from(raw(*contents), most=1000)).encode() == b"".join(contents)


def test_arrays_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "PIECE", 7)
    path = tmp_path / "a.npy"
    np.save(path, np.arange(20, dtype=np.dtype(">i8")))
    source = Source("a.npy", path)
    result = in_memory([source, source], [], IdTokenizer(300), "")
    assert result.ids.dtype == np.uint16
    assert result.ids.tolist() == [*range(20), *range(20)]
    assert result.starts.tolist() == [0, 20]
    with pytest.raises(CorpusError, match=r"a.npy has id 15 at position 15, and the vocabulary has ids 0 to 14; give"):
        in_memory([source], [], IdTokenizer(15), "")
    np.save(path, np.array([3, -1]))
    with pytest.raises(CorpusError, match=r"a.npy has id -1 at position 1"):
        in_memory([source], [], IdTokenizer(15), "")


def test_a_source_without_a_token() -> None:
    with pytest.raises(CorpusError, match="text 1 has no character that the tokenizer knows"):
        in_memory(raw(b"a", b"z"), [], CharTokenizer("a", "skip"), "")


def test_what_is_written_is_counted() -> None:
    ids, starts = BytesIO(), BytesIO()
    assert encode(raw(b"ab"), [], BYTES, "", ids, starts) == 2
    assert (ids.getvalue(), starts.getvalue()) == (b"ab", bytes(8))
