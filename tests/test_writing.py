"""Pieces from a model that says what it is told to: at every split of a character and of a stop string."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from unrolled import LSTMState, generate
from unrolled.bpe import BpeTokenizer
from unrolled.stops import Stops
from unrolled.tokens import ByteTokenizer, CharTokenizer

BYTES, CHARS = ByteTokenizer(), CharTokenizer("abE€😀ND\n")
# Tokens of several bytes, whole words and parts of characters: 256 "ab", 257 "aba", 258 b"E\xe2", 259 b"\x82\xac",
# 260 "€", 261 "€a", 262 b"\xac" + "EN", 263 "END", 264 b"a\xe2\x82"
_BPE = [(97, 98), (256, 97), (69, 226), (130, 172), (226, 259), (260, 97)]
_MORE = [(172, 69), (262, 78), (69, 78), (264, 68), (97, 226), (266, 130)]
PAIRS = BpeTokenizer((*_BPE, *_MORE))


class Said(nn.Module):
    """Says `script` behind whatever it reads; its state counts the tokens that were fed."""

    def __init__(self, script, vocabulary):
        super().__init__()
        self.script, self.vocabulary, self.calls = list(script), vocabulary, 0
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, ids, state=None):
        self.calls += 1
        fed = (0 if state is None else int(state.h[0, 0])) + ids.shape[1]
        logits = torch.full((len(ids), ids.shape[1], self.vocabulary), -50.0)
        logits[:, -1, self.script[(fed - 1) % len(self.script)]] = 50.0
        return logits, LSTMState(torch.full((1, len(ids), 1), float(fed)), torch.zeros(1, len(ids), 1))


class Run:
    def __init__(self, script, tokenizer):
        self.model, self.tokenizer = Said(script, tokenizer.size), tokenizer


def said(script, tokenizer, **options):
    return generate(Run(script, tokenizer), [0], max_tokens=len(script), **options)


def texts(pieces):
    return [piece.text for piece in pieces]


def cut(text, stop):
    """The text before the stop string that is complete first, looked for one character at a time."""
    for length in range(len(text) + 1):
        ends = [string for string in stop if text[:length].endswith(string)]
        if ends:
            return text[: length - len(max(ends, key=len))]
    return text


def scripts(tokenizer):
    few = (*b"abEND\n", *"€😀é".encode(), 0xFF, *range(256, tokenizer.size))
    return st.lists(st.sampled_from(range(8) if tokenizer is CHARS else few), min_size=1, max_size=14)


STOPS = st.lists(st.text("abEND€😀\n", min_size=1, max_size=4), max_size=3)
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, CHARS, PAIRS], ids=["byte", "char", "bpe"])


@TOKENIZERS
@settings(max_examples=100, deadline=None)
@given(data=st.data(), stop=STOPS)
def test_streamed_text_is_unstreamed_text_up_to_the_stop_string(tokenizer, data, stop):
    script = data.draw(scripts(tokenizer))
    whole = tokenizer.decode(script)
    pieces = list(said(script, tokenizer, stop=stop))
    assert "".join(texts(pieces)) == cut(whole, stop)
    assert all(piece.text for piece in pieces)
    ids = [token for piece in pieces for token in piece.ids]
    assert ids == script[: len(ids)]
    if cut(whole, stop) == whole:
        assert ids == script


@TOKENIZERS
@settings(max_examples=100, deadline=None)
@given(data=st.data(), stop=STOPS)
def test_nothing_comes_early_and_nothing_is_held_longer_than_needed(tokenizer, data, stop):
    """Behind each token, what came is all pieces that end before the place where a stop string may have begun."""
    script = data.draw(scripts(tokenizer))
    alone = list(said(script, tokenizer))
    run, stops, came = Run(script, tokenizer), Stops(stop), {}
    for piece in generate(run, [0], max_tokens=len(script), stop=stop):
        if piece.finished:
            # Each call of the model leads to one token.
            came[run.model.calls] = came.get(run.model.calls, "") + piece.text
    text, decoder = "", tokenizer.decoder()
    for length, token in enumerate(script, 1):
        text += decoder.push(token)
        if stops.begin(text) is not None:
            return
        free, due, end, count = len(text) - stops.undecided(text), "", 0, 0
        for piece in alone:
            end, count = end + len(piece.text), count + len(piece.ids)
            if count <= length and end <= free and piece.finished:
                due += piece.text
        assert "".join(part for calls, part in came.items() if calls <= length) == due


@pytest.mark.parametrize("begin", range(10))
@pytest.mark.parametrize("end", range(1, 11))
def test_a_stop_string_at_every_split_of_several_characters(begin, end):
    """Bytes of a€😀é (1, 3, 4, 2), one at a time, and every part of these as a stop string."""
    script = "a€😀é".encode()
    stop = script[begin:end].decode("utf-8", "ignore")
    if stop:
        assert "".join(texts(said(script, BYTES, stop=stop))) == "a€😀é".split(stop)[0]


def test_pieces_are_given_out_as_soon_as_no_stop_string_can_begin_in_them():
    model = Run(b"xENxENDy", BYTES)
    given = []
    for piece in generate(model, [0], max_tokens=8, stop=["END", "zz"]):
        given.append((piece.text, int(piece.state.h), piece.finished))
    # The state says how far the model had read when the piece began: each token is its own piece.
    assert given == [("x", 1, True), ("E", 2, True), ("N", 3, True), ("x", 4, True)]


def test_what_is_held_back_at_the_end_is_given_out_as_not_finished():
    pieces = list(said(b"xEN", BYTES, stop="END"))
    assert [(piece.text, piece.finished) for piece in pieces] == [("x", True), ("E", False), ("N", False)]
    pieces = list(said("x€".encode()[:3], BYTES))
    assert [(piece.text, piece.finished) for piece in pieces] == [("x", True), ("\ufffd", False)]


def test_a_token_is_cut_where_a_stop_string_begins_inside_it():
    script = [97, 261, 256]  # a, €a, ab
    (first, second) = said(script, PAIRS, stop="aa", logprobs=1)
    assert (first.text, first.ids) == ("a", (97,))
    assert (second.text, second.ids) == ("€", (261,))
    assert len(second.top) == len(second.logprobs) == 1


def test_several_stop_strings_end_at_the_first():
    assert "".join(texts(said(b"one two three", BYTES, stop=["three", "two"]))) == "one "
    assert "".join(texts(said(b"one two three", BYTES, stop="one"))) == ""


# Bookmarks: a text in two parts is the text in one


def finished(pieces):
    return "".join(piece.text for piece in pieces if piece.finished)


@TOKENIZERS
@settings(max_examples=100, deadline=None)
@given(data=st.data(), stop=STOPS)
def test_a_text_that_is_taken_up_is_the_text_without_a_break(tokenizer, data, stop):
    script = data.draw(scripts(tokenizer))
    first_tokens = data.draw(st.integers(0, len(script)))
    whole = said(script, tokenizer, stop=stop)
    whole_pieces = list(whole)
    run = Run(script, tokenizer)
    first = generate(run, [0], max_tokens=first_tokens, stop=stop)
    begun = list(first)
    bookmark = first.bookmark()
    if cut(tokenizer.decode(script[:first_tokens]), stop) != tokenizer.decode(script[:first_tokens]):
        assert bookmark.pending == ()
        return
    second = generate(run, state=bookmark, max_tokens=len(script) - first_tokens, stop=stop)
    rest = list(second)
    assert finished(begun) + "".join(texts(rest)) == "".join(texts(whole_pieces))
    read = [piece for piece in begun if piece.finished] + rest
    assert [piece.ids for piece in read] == [piece.ids for piece in whole_pieces]
    assert [float(piece.state.h) for piece in read] == [float(piece.state.h) for piece in whole_pieces]
    one, two = whole.bookmark(), second.bookmark()
    assert (one.seen, one.pending, one.unread, one.written) == (two.seen, two.pending, two.unread, two.written)
    assert one.drawn == two.drawn


def test_a_bookmark_in_the_middle_lies_behind_the_pieces_that_came():
    run = Run([*b"01", *"x€ENDb".encode()][1:], BYTES)  # the model has read 0 before it says 1
    writing = generate(run, b"0", max_tokens=9)
    assert (writing.bookmark().seen, writing.bookmark().unread) == ((48,), 1)
    for _ in range(3):
        piece = next(writing)
    assert piece.text == "€"
    bookmark = writing.bookmark()
    assert bytes(bookmark.seen).decode() == "01x€"
    assert (bookmark.unread, bookmark.written, bookmark.drawn) == (1, 5, 5)
    rest = "".join(texts(generate(run, state=bookmark, max_tokens=4)))
    assert rest == "".join(texts(writing)) == "ENDb"


def test_a_prompt_behind_a_bookmark_takes_the_place_of_what_was_not_finished():
    run = Run(b"xENyyyyyyyy", BYTES)
    writing = generate(run, b"0", max_tokens=3, stop="END")
    assert finished(writing) == "x"
    bookmark = writing.bookmark()
    assert bookmark.seen == (48, 120)
    assert bookmark.pending == (69, 78)
    assert bookmark.written == 1
    after = generate(run, b"12", state=bookmark, max_tokens=1).bookmark()
    assert after.seen == (48, 120, 49, 50)
    assert (after.unread, after.written, after.pending) == (3, 0, ())


def test_behind_a_stop_string_a_text_goes_on_as_if_it_had_not_been():
    run = Run([97, 261, 256], PAIRS)
    writing = generate(run, [0], max_tokens=3, stop="aa")
    assert finished(writing) == "a€"
    bookmark = writing.bookmark()
    # The model has read what stood before the token that was cut, and not yet the text that is left of it.
    assert bookmark.seen == (0, 97, *PAIRS.encode("€"))
    assert int(bookmark.state.h) == len(bookmark.seen) - bookmark.unread
    assert bookmark.pending == ()
    assert bookmark.drawn == 3


def test_random_numbers_go_on_where_they_were():
    logits = torch.tensor(np.linspace(0, 2, BYTES.size), dtype=torch.float32)

    class Noise(Said):
        def forward(self, ids, state=None):
            _, after = super().forward(ids, state)
            return logits.expand(len(ids), ids.shape[1], -1), after

    run = Run([0], CHARS)
    run.tokenizer, run.model = BYTES, Noise([0], BYTES.size)
    settings = {"frequency_penalty": 0.3, "repetition_penalty": 1.2, "penalty_window": 12, "stop": "qq"}
    for seed in (0, 5):
        whole = generate(run, b"ab", seed=seed, max_tokens=40, samples=2, **settings)
        pieces = list(whole)
        for sample in (0, 1):
            expected = "".join(piece.text for piece in pieces if piece.sample == sample)
            first = generate(run, b"ab", seed=seed, max_tokens=17, samples=2, **settings)
            begun = [piece for piece in first if piece.sample == sample]
            rest = generate(run, state=first.bookmark(sample), max_tokens=23, **settings)
            assert finished(begun) + "".join(texts(rest)) == expected
            other = generate(run, state=first.bookmark(sample), max_tokens=23, seed=9, **settings)
            assert finished(begun) + "".join(texts(other)) != expected
