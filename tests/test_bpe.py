"""Byte pairs: every byte comes back, the ids are the library's own and do not depend on how a text is cut."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrolled import bpe
from unrolled.bpe import BpeTokenizer, train_bpe
from unrolled.corpus import builtin_text
from unrolled.tokens import TokenizerError, load_tokenizer

library = pytest.importorskip("tokenizers")

TEXT = builtin_text()[:60_000]
ODD = "  \n\n \u3000\n\u00a0 z\x1c \u2028\n caf\u00e9's 12,345 \U0001f642 \u4e2d\u6587" * 3
ODD_BYTES = [b"word", b" ", b"\n", b"\xff", "\u00e9".encode(), "\u3000".encode(), b"\xe2\x82", b"12", b"'s"]


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return train_bpe([TEXT], 700)


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bpe, "STRETCH", 50)
    return 50


def test_the_first_ids_are_the_bytes_and_merges_follow(tokenizer: BpeTokenizer) -> None:
    assert tokenizer.size == 700
    assert [tokenizer.decode([token]) for token in (104, 32)] == ["h", " "]
    left, right = tokenizer.merges[0]
    assert tokenizer._pieces[256] == tokenizer._pieces[left] + tokenizer._pieces[right]
    assert max(map(len, tokenizer._pieces)) <= bpe.LONGEST_TOKEN


def test_a_small_vocabulary_by_hand() -> None:
    by_hand = BpeTokenizer(((ord("a"), ord("b")), (256, ord("c"))))
    assert by_hand.encode("abcab c").tolist() == [257, 256, 32, ord("c")]
    assert by_hand.encode("abc").dtype == np.int32
    assert by_hand.byte_count([257, 256, 32]) == 6
    assert by_hand.decode([257, 32]) == "abc "
    assert by_hand.encode("").tolist() == []


def test_two_ways_to_one_token_are_one_id() -> None:
    a, b, c = b"abc"
    twice = BpeTokenizer(((a, b), (256, c), (b, c), (a, 258)))
    assert twice.size == 256 + 3
    assert twice.encode("abc").tolist() == [257]


@given(st.lists(st.sampled_from(ODD_BYTES)).map(b"".join) | st.binary() | st.text("ab \n\u00e9\u4e2d").map(str.encode))
def test_every_byte_comes_back(tokenizer: BpeTokenizer, raw: bytes) -> None:
    ids = tokenizer.encode(raw)
    assert b"".join(tokenizer._pieces[token] for token in ids) == raw
    assert tokenizer.decode(ids) == raw.decode("utf-8", "replace")
    assert tokenizer.byte_count(ids) == len(raw)
    assert np.array_equal(tokenizer.encode(raw.decode("utf-8", "surrogateescape")), ids)
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token) for token in ids] + [decoder.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(piece.encode().decode() == piece for piece in pieces)


def test_the_ids_are_those_of_the_library_itself(tokenizer: BpeTokenizer, short_stretches: int) -> None:
    """Stretches of 50 characters against one text of 60,000: a cut behind a word changes nothing."""
    whole = tokenizer._merger.encode(TEXT + ODD).ids
    assert tokenizer.encode(TEXT + ODD).tolist() == whole


@given(data=st.data(), text=st.text("ab1 \n\u00e9\u3000", max_size=400))
def test_the_ids_do_not_depend_on_the_pieces(tokenizer: BpeTokenizer, data: st.DataObject, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "STRETCH", 20)
        raw = text.encode() + data.draw(st.sampled_from([b"", b"\xe2\x82", b"\xff"]))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
        encoder, ids = tokenizer.encoder(), []
        for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            ids += encoder.push(raw[begin:end]).tolist()
        assert ids + encoder.finish().tolist() == tokenizer.encode(raw).tolist()


def test_a_text_without_a_place_to_cut_is_cut_all_the_same(tokenizer: BpeTokenizer, short_stretches: int) -> None:
    text = "x " + "\u4e2d" * 130 + " y"
    assert [len(stretch) for stretch in bpe._Cutter().push(text.encode())] == [1, 50, 50]
    encoder = tokenizer.encoder()
    ids = [token for byte in text.encode() for token in encoder.push(bytes([byte]))] + encoder.finish().tolist()
    assert ids == tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text


def test_training_is_the_same_in_every_process_and_however_the_text_comes(tokenizer: BpeTokenizer) -> None:
    program = (
        "from unrolled.bpe import train_bpe; from unrolled.corpus import builtin_text;"
        "print(train_bpe([builtin_text()[:60_000]], 700).merges)"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
        assert run.stdout.strip() == str(tokenizer.merges)
    lines = TEXT.splitlines(keepends=True)
    assert train_bpe(iter(lines), 300) == train_bpe(lines, 300)


def test_what_is_no_text_is_not_learned_from() -> None:
    assert train_bpe(["ab ab ab \udcff\udcff\udcff\udcff"], 300) == train_bpe(["ab ab ab "], 300)


def test_a_short_text_has_fewer_tokens() -> None:
    assert train_bpe(["ab ab"], 4096).size < 262
    assert train_bpe([], 300).size == 256


def test_vocabularies_that_cannot_be() -> None:
    for vocabulary in (256, 0, 2**18 + 1):
        with pytest.raises(TokenizerError, match=f"vocabulary must be 257 .* to 262144, got {vocabulary}"):
            train_bpe(["text"], vocabulary)


def test_a_lone_surrogate_is_no_text(tokenizer: BpeTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"character U\+D800 at position 1 is a lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError, match="encode takes str or bytes, got list"):
        tokenizer.encode(["a"])  # type: ignore[arg-type]


def test_ids_that_stand_for_nothing(tokenizer: BpeTokenizer) -> None:
    for use in (tokenizer.decode, tokenizer.byte_count):
        with pytest.raises(TokenizerError, match="id 700 at position 1 is out of range"):
            use([0, 700])
    with pytest.raises(TokenizerError, match="id 700 is out of range"):
        tokenizer.decoder().push(700)


def test_without_the_library_a_model_still_loads_and_decodes(
    tokenizer: BpeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("a text")
    tokenizer.save(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded == tokenizer
    assert loaded.decode(ids) == "a text"
    for use in (lambda: loaded.encode("a"), lambda: train_bpe(["a"])):
        with pytest.raises(TokenizerError) as caught:
            use()
        assert str(caught.value) == (
            'bpe tokens need Hugging Face\'s tokenizers, which is not installed: pip install "unrolled[bpe]"; '
            "--tokens byte and --tokens char need nothing"
        )


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """A few bytes replaced, runs of them taken out or doubled, or the end cut off."""
    data = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at, size = draw.randrange(len(data) + 1), draw.randint(1, 30)
        match draw.randrange(4):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                data[at : at + size] = b""
            case 2:
                data[at:at] = data[at : at + size]
            case 3:
                data[at : at + 1] = draw.choice([b"0", b"9", b"-", b'"', b",", b"1e9", b"null", b"[", b"}"])
    return bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.2 else data)


def fuzz(rounds: int, tmp_path: Path) -> int:
    """Load damaged files; what loads all the same has to work. Returns how many did."""
    path, draw, whole = tmp_path / "tokenizer.json", random.Random(0), 0
    train_bpe([TEXT[:5000]], 300).save(path)
    raw = path.read_bytes()
    for _ in range(rounds):
        path.write_bytes(damaged(raw, draw))
        try:
            loaded = load_tokenizer(path)
        except TokenizerError:
            continue
        whole += 1
        assert loaded.decode(loaded.encode("the text")) == "the text"
    return whole


def test_damaged_files(tmp_path: Path) -> None:
    assert 0 < fuzz(500, tmp_path) < 500


@pytest.mark.slow
def test_twenty_thousand_damaged_files(tmp_path: Path) -> None:
    assert 0 < fuzz(20_000, tmp_path) < 20_000
