"""Text to ids and back: exact round trips, streams that never break a character, errors that say what to type."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unrolled.tokens import ByteTokenizer, CharTokenizer, Tokenizer, TokenizerError, load_tokenizer, new_tokenizer

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Raw bytes alone seldom hold a character cut in half, a surrogate written as UTF-8 or an overlong form.
BROKEN = st.lists(
    st.sampled_from([b"a", "é".encode(), b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x99", b"\x80", b"\xc0\xaf"])
).map(b"".join)
ANY_BYTES = st.binary() | BROKEN | ANY_TEXT.map(str.encode)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.decoder()
    return [decoder.push(token) for token in ids] + [decoder.finish()]


def test_bytes_are_utf8() -> None:
    ids = ByteTokenizer().encode("aé€")
    assert ids.dtype == np.uint8
    assert ids.tolist() == [97, 0xC3, 0xA9, 0xE2, 0x82, 0xAC]
    assert ids.flags.writeable, "torch.from_numpy warns about ids that can't be written"
    assert ByteTokenizer().size == 256
    assert ByteTokenizer().name == "byte"


def test_characters_are_positions_among_the_symbols() -> None:
    tokenizer = CharTokenizer("xé€🙂")
    ids = tokenizer.encode("🙂€x")
    assert ids.dtype == np.int32
    assert ids.tolist() == [3, 2, 0]
    assert tokenizer.decode([1, 1, 3]) == "éé🙂"
    assert tokenizer.size == 4
    assert tokenizer.name == "char"
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.decode([]) == ""


def test_from_text_sorts_the_distinct_characters() -> None:
    assert CharTokenizer.from_text("hello world").symbols == " dehlorw"


@given(ANY_TEXT)
def test_text_comes_back(text: str) -> None:
    data = text.encode()
    tokenizers: list[Tokenizer] = [ByteTokenizer(), CharTokenizer.from_text(text + "a")]
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_count(ids) == len(data)
        assert np.array_equal(ids, tokenizer.encode(data))
        assert "".join(streamed(tokenizer, ids.tolist())) == text


@given(ANY_BYTES)
def test_bytes_come_back_valid_or_not(data: bytes) -> None:
    ids = ByteTokenizer().encode(data)
    assert ids.tobytes() == data
    assert ByteTokenizer().byte_count(ids) == len(data)
    assert ByteTokenizer().decode(ids) == data.decode("utf-8", "replace")
    assert np.array_equal(ByteTokenizer().encode(data.decode("utf-8", "surrogateescape")), ids)


@given(ANY_BYTES)
def test_a_byte_stream_equals_decode(data: bytes) -> None:
    pieces = streamed(ByteTokenizer(), list(data))
    assert "".join(pieces) == ByteTokenizer().decode(list(data))
    assert all(piece.encode().decode() == piece for piece in pieces)


@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])), st.data())
def test_a_character_stream_equals_decode(text: str, data: st.DataObject) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1)))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
    assert tokenizer.byte_count(ids) == len(tokenizer.decode(ids).encode())


def test_a_stream_waits_for_the_rest_of_a_character() -> None:
    assert streamed(ByteTokenizer(), list("a€b".encode())) == ["a", "", "", "€", "b", ""]
    assert streamed(ByteTokenizer(), list(b"a\xe2\x82")) == ["a", "", "", "\ufffd"]
    assert streamed(ByteTokenizer(), list(b"\xe2a")) == ["", "\ufffda", ""]


def test_a_finished_stream_starts_anew() -> None:
    decoder = ByteTokenizer().decoder()
    decoder.push(0xE2)
    assert decoder.finish() == "\ufffd"
    assert [decoder.push(token) for token in "é".encode()] == ["", "é"]


def test_ids_from_tensors_and_arrays() -> None:
    for ids in (torch.tensor([104, 105]), np.array([104, 105], dtype=np.uint16), [104, 105], (104, 105)):
        assert ByteTokenizer().decode(ids) == "hi"
    assert ByteTokenizer().decoder().push(torch.tensor(104)) == "h"
    assert ByteTokenizer().decoder().push(np.uint8(104)) == "h"


def test_unseen_error_names_the_character_and_the_way_out() -> None:
    with pytest.raises(TokenizerError) as caught:
        CharTokenizer("abc?").encode("ab\u00e9c\u20ac")
    assert str(caught.value) == (
        "character 'é' (U+00E9) at position 2 is not among the 4 symbols of this tokenizer; "
        "CharTokenizer(symbols, unseen=\"skip\") leaves such characters out, unseen='?' (or any other symbol) puts "
        "that one in their place, and ByteTokenizer (--tokens byte) knows every text"
    )


@pytest.mark.parametrize("stranger", ["\x00", "b", "é", "🙂", "\U0010ffff", "\ud800"])
def test_unseen_policies(stranger: str) -> None:
    text = f"a{stranger}z{stranger}"
    assert CharTokenizer("az", "skip").encode(text).tolist() == [0, 1]
    assert CharTokenizer("az?", "?").encode(text).tolist() == [0, 2, 1, 2]
    with pytest.raises(TokenizerError, match=rf"\(U\+{ord(stranger):04X}\) at position 1 is not among"):
        CharTokenizer("az").encode(text)


def test_unseen_must_be_a_policy_or_a_symbol() -> None:
    for unseen in ("?", "ignore", "", "aa"):
        with pytest.raises(TokenizerError, match=r'unseen must be "error", "skip" or one character of the 2 symbols'):
            CharTokenizer("az", unseen)


def test_symbols_are_checked() -> None:
    with pytest.raises(TokenizerError, match=r"symbol 'a' \(U\+0061\) is there twice, again at position 2"):
        CharTokenizer("aba")
    with pytest.raises(TokenizerError, match="at least one symbol, got an empty string"):
        CharTokenizer("")
    with pytest.raises(TokenizerError, match=r"symbol '\\ud800' \(U\+D800\) at position 1 is a lone surrogate"):
        CharTokenizer("a\ud800")
    with pytest.raises(TypeError, match=r'got list; write "".join\(symbols\)'):
        CharTokenizer(["a", "b"])  # type: ignore[arg-type]


def test_text_that_is_no_text() -> None:
    with pytest.raises(
        TokenizerError, match=r"byte 0xE9 at position 3 isn't UTF-8; pass a str .* or use ByteTokenizer"
    ):
        CharTokenizer("caf").encode(b"caf\xe9")
    with pytest.raises(TokenizerError, match=r"'\\ud800' \(U\+D800\) at position 1 is a lone surrogate"):
        ByteTokenizer().encode("a\ud800")
    for tokenizer in (ByteTokenizer(), CharTokenizer("a")):
        with pytest.raises(TypeError, match="encode takes str or bytes, got list"):
            tokenizer.encode(["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("abc")])
def test_ids_out_of_range(tokenizer: Tokenizer) -> None:
    last = tokenizer.size - 1
    for bad in (-1, tokenizer.size, 10**6):
        for use in (tokenizer.decode, tokenizer.byte_count):
            with pytest.raises(TokenizerError, match=rf"id {bad} at position 2 is out of range: .* ids 0 to {last}"):
                use([0, last, bad])
        with pytest.raises(TokenizerError, match=rf"id {bad} is out of range: this vocabulary has ids 0 to {last}"):
            tokenizer.decoder().push(bad)


def test_ids_of_the_wrong_kind() -> None:
    with pytest.raises(TypeError, match="ids must be integers, got float64"):
        ByteTokenizer().decode([1.0])
    with pytest.raises(TypeError, match="ids must be integers, got bool"):
        ByteTokenizer().decode([True])
    with pytest.raises(TokenizerError, match=r"one axis, got shape \[1, 2\]; decode one row at a time: ids\[0\]"):
        ByteTokenizer().decode([[1, 2]])


def test_new_tokenizer() -> None:
    assert new_tokenizer("byte") == ByteTokenizer()
    assert new_tokenizer("char", "ba") == CharTokenizer("ab")
    assert new_tokenizer("char", iter(["bc", "", "ab"])) == CharTokenizer("abc"), "in pieces"
    with pytest.raises(TokenizerError, match='tokens must be "byte", "char" or "bpe", got \'word\''):
        new_tokenizer("word")


@given(ANY_TEXT, st.sampled_from(["error", "skip", "\n"]))
def test_a_saved_tokenizer_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str, unseen: str) -> None:
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    tokenizers: list[Tokenizer] = [ByteTokenizer(), CharTokenizer.from_text(text + "\n", unseen)]
    for tokenizer in tokenizers:
        tokenizer.save(path)
        assert load_tokenizer(path) == tokenizer


def test_the_saved_file(tmp_path: Path) -> None:
    CharTokenizer("\né", "skip").save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_bytes()) == {
        "format": "unrolled-tokenizer",
        "version": 1,
        "name": "char",
        "unseen": "skip",
        "symbols": "\né",
    }


IDS = {"format": "unrolled-tokenizer", "version": 1, "name": "ids"}
BPE = IDS | {"name": "bpe"}
GOOD = {"format": "unrolled-tokenizer", "version": 1, "name": "char", "unseen": "error", "symbols": "ab"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "this is not a tokenizer file, which is JSON in UTF-8"),
        (b"\xff{}", "which is JSON in UTF-8"),
        (b"[" * 100_000, "which is JSON in UTF-8"),
        (b"1" * 5000, "which is JSON in UTF-8"),
        (b"[]", '"format" must be "unrolled-tokenizer"'),
        (GOOD | {"format": "other"}, '"format" must be "unrolled-tokenizer"'),
        (GOOD | {"version": 2}, "version is 2 and this version of unrolled reads 1; .* pip install --upgrade unrolled"),
        ({"format": "unrolled-tokenizer"}, "version is None"),
        (GOOD | {"name": "word"}, "\"name\" must be one of byte, char, bpe, ids, got 'word'"),
        (GOOD | {"name": ["char"]}, '"name" must be one of byte, char, bpe, ids'),
        (GOOD | {"name": "ids", "size": True}, '"size" must be a whole number, got True'),
        (IDS | {"size": 0}, "a vocabulary of ids has 1 to 1048576 of them, got 0"),
        (IDS | {"size": 2**40}, "a vocabulary of ids has 1 to 1048576 of them"),
        (BPE | {"merges": "97 98"}, '"merges" must be a list'),
        (BPE | {"merges": [[97, 98]]}, 'a merge is two ids such as "104 105", got \\[97, 98\\]'),
        (BPE | {"merges": ["97 256"]}, "merge 97 256 joins tokens, and only 256 come before it"),
        (BPE | {"merges": ["97 98", "97 98"]}, "merge 97 98 is there twice"),
        (BPE | {"merges": ["97 97", *(f"{n} {n}" for n in range(256, 300))]}, "makes a token of 128 bytes, over 64"),
        (BPE | {"merges": ["97 98"] * 2**18}, "a vocabulary has at most 262144 tokens, got 262144 merges"),
        (b" " * (2**24 + 1), "this is larger than a tokenizer file ever is"),
        (GOOD | {"symbols": ["a", "b"]}, "\"symbols\" must be a string, got \\['a', 'b'\\]"),
        (GOOD | {"unseen": None}, '"unseen" must be a string, got None'),
        (GOOD | {"unseen": "x"}, 'unseen must be "error", "skip" or one character'),
        (GOOD | {"symbols": "aa"}, "symbol 'a' .* is there twice"),
        (GOOD | {"symbols": "a\ud800"}, "lone surrogate"),
        (GOOD | {"merges": "x"}, "unknown entries merges in a char tokenizer"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes | dict[str, object], says: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(TokenizerError, match=says) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: ")


@given(st.data())
def test_a_damaged_file_is_never_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = bytearray(json.dumps(GOOD | {"symbols": "ab\u20ac"}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        tokenizer = load_tokenizer(path)
    except TokenizerError:
        return
    assert tokenizer.decode(range(tokenizer.size))


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tokenizer(tmp_path / "none.json")
