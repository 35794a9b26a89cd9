import random
import sys

import numpy as np
import pytest

from unrolled import BpeTokenizer, ByteTokenizer, CharTokenizer, IdTokenizer, Split
from unrolled.text_features import Feature, ranges, text_features

NAMES = ("column", "quoted", "brackets", "word", "newline", "indent")


def features(text, tokenizer=None, starts=(0,)):
    tokenizer = tokenizer or CharTokenizer.from_text(text)
    return {each.name: each for each in text_features(Split(tokenizer.encode(text), np.array(starts)), tokenizer)}


def digits(feature):
    return "".join(map(str, feature.kinds.tolist()))


TEXT = 'I: "go (now [x]!)"\n  and\n\tout.'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        #           I: "go (now [x]!)"n  andntout.
        ("quoted", "000111111111111110000000000000"),
        ("brackets", "000000011111221100000000000000"),
        ("word", "100011001110010000000111001110"),
        ("newline", "000000000000000000100000100000"),
    ],
)
def test_each_is_that_of_the_text_so_far(name, expected):
    found = features(TEXT)[name]
    assert digits(found) == expected


def test_column_and_indent_are_in_ranges():
    found = features(TEXT)
    column = [*range(1, 19), 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    for name, numbers in (("column", column), ("indent", [0] * 18 + [0, 1, 2, 2, 2, 2, 0, 8, 8, 8, 8, 8])):
        feature = found[name]
        for number, kind in zip(numbers, feature.kinds, strict=True):
            low, _, high = feature.labels[kind].partition(" to ")
            assert int(low) <= number <= int(high or low), name


def test_a_blank_line_and_a_new_document_close_what_is_open():
    text = '"(a\nb\n\nc"(d'
    assert digits(features(text)["quoted"]) == "11111100111"
    assert digits(features(text)["brackets"]) == "01111100011"
    assert digits(features(text, starts=(0, 9))["quoted"]) == "11111100100"
    assert digits(features(text, starts=(0, 2))["brackets"]) == "01000000011"


def test_typographic_quotes():
    assert digits(features("a\N{LEFT DOUBLE QUOTATION MARK}b\N{RIGHT DOUBLE QUOTATION MARK}c")["quoted"]) == "01100"


def test_a_bracket_too_many_is_none_less_than_none():
    assert digits(features("a)](b")["brackets"]) == "00011"


def test_bytes_of_a_character_are_where_the_one_before_it_was():
    found = features("é\nx", ByteTokenizer())
    assert digits(found["word"]) == "0101"
    assert digits(found["newline"]) == "0010"


def test_of_a_token_of_several_characters_the_last_one_counts():
    # 256 is "ab", 257 is "ab" and a line feed.
    tokenizer = BpeTokenizer(((97, 98), (256, 10)))
    found = {each.name: each for each in text_features(Split(np.array([257, 256]), np.array([0])), tokenizer)}
    assert digits(found["newline"]) == "10"
    assert digits(found["word"]) == "01"


def one_by_one(text):
    """Column, quoted, brackets, word, newline and indent after each character, as they are defined."""
    column, quoted, depth, indent, blank, before = 0, False, 0, 0, True, ""
    for character in text:
        if character == "\n":
            if before == "\n":
                quoted, depth = False, 0
            column, indent, blank = 0, 0, True
        else:
            column += 1
            blank = blank and character in " \t"
            indent += {" ": 1, "\t": 8}[character] if blank else 0
        if character in '"\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}':
            quoted = not quoted if character == '"' else character == "\N{LEFT DOUBLE QUOTATION MARK}"
        depth = depth + 1 if character in "([{" else max(0, depth - (character in ")]}"))
        word = character.isalnum() or character == "_"
        yield column, quoted, min(3, depth), word, character == "\n", indent
        before = character


@pytest.mark.parametrize("block", [1, 2, 7, 100, 4096])
@pytest.mark.parametrize("lines", ["short", "long"])
def test_wherever_a_text_is_cut_each_number_is_that_of_its_characters_one_by_one(monkeypatch, block, lines):
    monkeypatch.setattr(sys.modules[text_features.__module__], "_BLOCK", block)
    draw = random.Random(block)
    marks = 'aé_ \t"([{)]}\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}'
    signs = marks + ("\n" * 6 if lines == "short" else "")
    text = "\n\n".join("".join(draw.choices(signs, k=250)) for _ in range(6))
    found = features(text)
    for name, numbers in zip(NAMES, zip(*one_by_one(text), strict=True), strict=True):
        labels = [found[name].labels[kind] for kind in found[name].kinds.tolist()]
        for number, label in zip(numbers, labels, strict=True):
            if name in ("column", "indent"):
                low, _, high = label.removesuffix(" and more").partition(" to ")
                assert int(low) <= number <= (1000 if "more" in label else int(high or low)), name
            else:
                assert label == found[name].labels[number], name


def test_ids_alone_have_no_text():
    with pytest.raises(ValueError, match="have no text"):
        text_features(Split(np.arange(3), np.array([0])), IdTokenizer(3))


def test_ranges_hold_about_as_much_each():
    numbers = np.random.default_rng(0).integers(0, 200, 8000).astype(np.uint8)
    found = ranges("n", numbers)
    assert len(found.labels) == 8
    counts = np.bincount(found.kinds)
    assert counts.min() > 900
    assert counts.max() < 1100
    assert np.all(np.diff(found.kinds[np.argsort(numbers, kind="stable")].astype(int)) >= 0)
    assert ranges("n", np.array([7, 7], np.uint8)).labels == ("7",)
    assert ranges("n", np.array([0] * 90 + [255] * 10, np.uint8)).labels == ("0", "1 and more")


def test_kinds_are_checked():
    with pytest.raises(ValueError, match="expected uint8 "):
        Feature("x", np.zeros(3), ("a",))
    with pytest.raises(ValueError, match="has kind 2 and 2 labels"):
        Feature("x", np.array([0, 2], np.uint8), ("a", "b"))
    assert Feature("x", np.array([1, 1], np.uint8), ("a", "b")).constant
    assert not Feature("x", np.array([1, 0], np.uint8), ("a", "b")).constant
