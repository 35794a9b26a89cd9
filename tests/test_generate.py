import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from steppers import NATIVE
from torch import nn

from unrolled import LSTMState
from unrolled.generate import Piece, generate, sample
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer, CharTokenizer, TokenizerError


@dataclass
class Pair:
    model: nn.Module
    tokenizer: object


class Scripted(nn.Module):
    """Says `script`, whatever it reads; its state counts the tokens that were fed."""

    def __init__(self, script, vocabulary=256):
        super().__init__()
        self.script, self.vocabulary, self.calls = list(script), vocabulary, []
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, ids, state=None):
        self.calls.append(ids.tolist())
        fed = (0 if state is None else int(state.h[0, 0])) + ids.shape[1]
        logits = torch.full((len(ids), ids.shape[1], self.vocabulary), -50.0)
        logits[:, -1, self.script[(fed - 1) % len(self.script)]] = 50.0
        return logits, LSTMState(torch.full((1, len(ids), 1), float(fed)), torch.zeros(1, len(ids), 1))


def untrained(seed=0, tokenizer=None, **sizes):
    torch.manual_seed(seed)
    tokenizer = tokenizer or ByteTokenizer()
    config = ModelConfig(tokenizer.size, **{"hidden": 12, "layers": 2, **sizes})
    model = LanguageModel(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4)  # probabilities far from uniform, so that a mistake moves the choice
    return Pair(model, tokenizer)


def ids_of(pieces):
    return [token for piece in pieces for token in piece.ids]


def chars(text="\n abcdefghij"):
    return CharTokenizer(text)


# Text


def test_a_streamed_text_is_the_unstreamed_one_at_every_split_of_a_character():
    text = "aé€😀z"
    script = list(text.encode())
    for length in range(len(script) + 1):
        pieces = list(generate(Pair(Scripted(script), ByteTokenizer()), "x", max_tokens=length))
        assert ids_of(pieces) == script[:length]
        assert "".join(piece.text for piece in pieces) == bytes(script[:length]).decode("utf-8", "replace")
    assert [piece.text for piece in pieces] == list(text)
    assert [len(piece.ids) for piece in pieces] == [1, 2, 3, 4, 1]


def test_characters_come_one_by_one():
    tokenizer = chars("\nab€")
    pieces = list(generate(Pair(Scripted([1, 3, 2], tokenizer.size), tokenizer), "a", max_tokens=3))
    assert [(piece.text, piece.ids, piece.sample) for piece in pieces] == [
        ("a", (1,), 0),
        ("€", (3,), 0),
        ("b", (2,), 0),
    ]


def test_the_prompt_is_fed_in_one_call_and_each_later_token_once():
    model = Scripted(b"wxyz")
    list(generate(Pair(model, ByteTokenizer()), "one", max_tokens=3))
    assert model.calls == [[list(b"one")], [list(b"y")], [list(b"z")]]


def test_no_tokens_no_pieces():
    assert list(generate(untrained(), "a", max_tokens=0)) == []


@pytest.mark.parametrize(
    ("tokenizer", "stands_for"),
    [
        (ByteTokenizer(), [10]),
        (CharTokenizer("ab\n "), [2]),
        (CharTokenizer("ab "), [2]),
        (CharTokenizer("ab", unseen="skip"), [0]),
        (CharTokenizer("ab", unseen="b"), [0]),
        (CharTokenizer("ab\n", unseen="b"), [2]),
    ],
)
def test_an_empty_prompt_stands_for_a_newline_or_the_next_best(tokenizer, stands_for):
    model = Scripted([1], tokenizer.size)
    list(generate(Pair(model, tokenizer), max_tokens=1))
    assert model.calls == [[stands_for]]


def test_a_prompt_can_be_text_bytes_or_ids():
    run = untrained()
    texts = [
        ids_of(generate(run, prompt, max_tokens=20)) for prompt in ("né", "né".encode(), np.array([110, 195, 169]))
    ]
    assert texts[0] == texts[1] == texts[2]


# State


@pytest.mark.parametrize("sizes", [{}, {"embedding": 5}, {"layers": 1}])
def test_going_on_behind_any_piece_is_going_on_without_a_break(sizes):
    run = untrained(seed=3, tokenizer=chars(), **sizes)
    pieces = list(generate(run, "abc", max_tokens=25, temperature=0))
    assert len(pieces) == 25
    assert len(set(ids_of(pieces))) > 1
    for k, piece in enumerate(pieces):
        rest = list(generate(run, piece.text, state=piece.state, max_tokens=24 - k, temperature=0))
        assert ids_of(rest) == ids_of(pieces[k + 1 :])
        assert [p.logprob for p in rest] == [p.logprob for p in pieces[k + 1 :]]


def test_going_on_by_ids_works_behind_broken_utf_8_too():
    run = untrained(seed=1)
    for layer in run.model.lstm.layers:
        layer.backend = "reference"  # several steps in one call are the same several single steps, bit by bit
    pieces = list(generate(run, "abc", max_tokens=40))
    assert any("\ufffd" in piece.text for piece in pieces)
    after = [piece.state for piece in pieces[1:]]
    for piece, expected in zip(pieces, after, strict=False):
        (first, *_) = generate(run, piece.ids, state=tuple(piece.state), max_tokens=1)
        assert torch.equal(first.state.h, expected.h)
        assert torch.equal(first.state.c, expected.c)


def test_logprob_is_the_models_own_before_temperature_and_truncation():
    run = untrained(seed=2)
    pieces = list(generate(run, "abc", max_tokens=30, temperature=0.5, top_k=20, top_p=0.9))
    ids = torch.tensor([[*b"abc", *ids_of(pieces)]])
    with torch.no_grad():
        expected = run.model(ids)[0].double().log_softmax(-1)[0]
    position = 2
    for piece in pieces:
        exact = sum(float(expected[position + k, token]) for k, token in enumerate(piece.ids))
        # Thirty float32 steps of a 12-unit model against the whole sequence in one call.
        assert piece.logprob == pytest.approx(exact, abs=1e-4)
        position += len(piece.ids)


def test_gradients_are_off_inside_and_on_outside():
    run = untrained()
    for piece in generate(run, "a", max_tokens=3):
        assert torch.is_grad_enabled()
        assert not piece.state.h.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    run = untrained(tokenizer=chars())
    run.model.to(dtype)
    pieces = list(generate(run, "ab", max_tokens=10))
    assert all(piece.state.c.dtype == dtype for piece in pieces)
    assert all(-30 < piece.logprob < 0 for piece in pieces)


# Modes and randomness


def test_dropout_is_off_while_the_model_runs_and_as_it_was_in_between():
    run = untrained(seed=4, dropout=0.5, tokenizer=chars())
    run.model.eval()
    calm = ids_of(generate(run, "a", max_tokens=20))
    run.model.train()
    run.model.lstm.layers[0].eval()
    modes = [module.training for module in run.model.modules()]
    again = []
    for piece in generate(run, "a", max_tokens=20):
        again += piece.ids
        assert [module.training for module in run.model.modules()] == modes
    assert again == calm
    stream = generate(run, "a", max_tokens=20)
    next(stream)
    stream.close()
    assert [module.training for module in run.model.modules()] == modes


def test_modes_come_back_after_an_error_inside_the_model():
    run = untrained(dropout=0.5)
    run.model.train()
    with pytest.raises(ValueError, match="layers"):
        next(generate(run, "a", state=LSTMState.zeros(3, 1, 12)))
    assert all(module.training for module in run.model.modules())


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    run = untrained()
    first, again, other = (ids_of(generate(run, "a", seed=seed, max_tokens=30)) for seed in (7, 7, 8))
    assert first == again != other


def test_torchs_own_generator_is_neither_used_nor_moved():
    run = untrained()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ids_of(generate(run, "a", max_tokens=10))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert ids_of(generate(run, "a", max_tokens=10)) == first


# The samplers

LOGITS = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4, 1.1, -3.0, 0.0])


def test_a_draw_takes_its_number_from_the_generator_that_is_given():
    shares = LOGITS.double().softmax(0).cumsum(0)
    for seed in range(200):
        number = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        drawn = sample(LOGITS, generator=torch.Generator().manual_seed(seed))
        assert drawn == int((shares <= number).sum())


def test_without_one_it_is_torchs_own():
    torch.manual_seed(5)
    first = [sample(LOGITS) for _ in range(20)]
    torch.manual_seed(5)
    assert [sample(LOGITS) for _ in range(20)] == first
    assert len(set(first)) > 2


def test_settings_of_a_draw_are_those_of_the_samplers():
    generator = torch.Generator().manual_seed(0)

    def drawn(**chosen):
        return {sample(LOGITS, generator=generator, **chosen) for _ in range(300)}

    assert drawn(temperature=0) == {2}
    assert drawn(top_k=2, temperature=5.0) == {2, 5}
    assert drawn(top_p=1e-9) == {2}
    assert drawn(min_p=0.3) == {2, 3, 5}
    with pytest.raises(ValueError, match="min_p=2 must be"):
        sample(LOGITS, min_p=2)


def test_the_most_probable_token_is_taken_at_temperature_0():
    run = untrained(seed=5)
    ids = ids_of(generate(run, "abc", max_tokens=15, temperature=0))
    with torch.no_grad():
        best = run.model(torch.tensor([[*b"abc", *ids]]))[0][0].argmax(-1).tolist()
    assert ids == best[2:-1]


@pytest.mark.parametrize("bad", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf], [math.nan, math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    with pytest.raises(ValueError, match=r"logits are not finite.*an earlier checkpoint"):
        sample(torch.tensor(bad), temperature=temperature)


# Several samples


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_samples_text_does_not_depend_on_how_many_there_are(temperature):
    run = untrained(seed=6, tokenizer=chars())
    settings = {"max_tokens": 40, "seed": 3, "temperature": temperature, "frequency_penalty": 0.1, "stop": ["aa", "jc"]}
    texts = {}
    for samples in (1, 2, 5):
        pieces = list(generate(run, "abc", samples=samples, **settings))
        assert {piece.sample for piece in pieces} == set(range(samples))
        for k in range(samples):
            own = [piece for piece in pieces if piece.sample == k]
            expected = texts.setdefault(k, own)
            assert [piece.ids for piece in own] == [piece.ids for piece in expected]
            assert "".join(piece.text for piece in own) == "".join(piece.text for piece in expected)
            if NATIVE:
                assert [piece.logprobs for piece in own] == [piece.logprobs for piece in expected]
                assert all(torch.equal(a.state.h, b.state.h) for a, b in zip(own, expected, strict=True))
    different = {tuple(ids_of(own)) for own in texts.values()}
    assert len(different) == (1 if temperature == 0 else 5)


def test_any_samples_piece_can_be_gone_on_from():
    run = untrained(seed=7, tokenizer=chars())
    pieces = list(generate(run, "abc", samples=3, max_tokens=12))
    for k in range(3):
        own = [piece for piece in pieces if piece.sample == k]
        assert own[4].state.h.shape == (2, 1, 12)
        (first,) = generate(run, own[4].ids, state=own[4].state, max_tokens=1)
        assert torch.allclose(first.state.h, own[5].state.h, rtol=0, atol=1e-6)


def test_samples_whose_stop_strings_come_at_different_times():
    run = untrained(seed=6, tokenizer=chars())
    plain = list(generate(run, "a", samples=4, max_tokens=60))
    ended = list(generate(run, "a", samples=4, max_tokens=60, stop="b"))
    for k in range(4):
        text = "".join(piece.text for piece in plain if piece.sample == k)
        assert "".join(piece.text for piece in ended if piece.sample == k) == text.split("b")[0]
    assert len({sum(piece.sample == k for piece in ended) for k in range(4)}) > 1


def test_one_call_of_the_model_serves_all_samples():
    model = Scripted(b"wxyz")
    list(generate(Pair(model, ByteTokenizer()), "one", max_tokens=3, samples=2))
    assert model.calls == [[list(b"one")], [[121], [121]], [[122], [122]]]


# Log-probabilities


def test_the_most_probable_tokens_stand_beside_each():
    run = untrained(seed=2)
    pieces = list(generate(run, "abc", max_tokens=20, logprobs=4, temperature=0.5, top_k=20))
    ids = torch.tensor([[*b"abc", *ids_of(pieces)]])
    with torch.no_grad():
        exact = run.model(ids)[0].double().log_softmax(-1)[0, 2:]
    places = [place for piece in pieces for place in zip(piece.ids, piece.logprobs, piece.top, strict=True)]
    for row, (token, logprob, top) in zip(exact, places, strict=False):
        values, best = row.topk(4)
        assert list(top) == best.tolist()
        assert list(top.values()) == pytest.approx(values.tolist(), abs=1e-4)
        assert logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert token not in top or top[token] == logprob
    assert all(piece.logprob == pytest.approx(sum(piece.logprobs)) for piece in pieces)


def test_without_being_asked_for_there_are_none():
    assert all(piece.top == () for piece in generate(untrained(), "a", max_tokens=5))


# Refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": -1}, "max_tokens=-1 must be 0 or more"),
        ({"temperature": -0.1}, "temperature=-0.1 must be 0 .the most probable token. or a positive number"),
        ({"top_k": -2}, "top_k=-2 must be 0 .all tokens. or the number of tokens to keep"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"min_p": 1.5}, "min_p=1.5 must be from 0"),
        ({"repetition_penalty": 0}, "repetition_penalty=0 must be a positive number"),
        ({"presence_penalty": math.nan}, "presence_penalty=nan must be a finite number"),
        ({"frequency_penalty": math.inf}, "frequency_penalty=inf must be a finite number"),
        ({"penalty_window": -1}, "penalty_window=-1 must be 0"),
        ({"stop": ""}, "a stop string can't be empty"),
        ({"samples": 0}, "samples=0 must be 1 or more"),
        ({"logprobs": -1}, "logprobs=-1 must be 0 or more"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be from 0"),
    ],
)
def test_settings_out_of_range_are_refused_at_the_call(wrong, message):
    with pytest.raises(ValueError, match=message):
        generate(untrained(), "a", **wrong)


def test_a_prompt_outside_the_vocabulary_is_refused_at_the_call():
    run = untrained(tokenizer=chars("ab"))
    with pytest.raises(TokenizerError, match=r"'z'.*is not among the 2 symbols"):
        generate(run, "z")
    with pytest.raises(TokenizerError, match="id 2 at position 1 is out of range"):
        generate(run, [0, 2])


def test_a_state_needs_to_be_told_what_comes_next():
    run = untrained()
    with pytest.raises(ValueError, match=r"the prompt can't be empty.*generate\(run, piece.ids, state=piece.state\)"):
        generate(run, state=run.model.zero_state(1))


def test_a_state_of_several_rows_is_refused_at_the_call():
    run = untrained()
    with pytest.raises(ValueError, match=r"the state holds 3 rows.*state.rows\(0\)"):
        generate(run, "a", state=run.model.zero_state(3))


def test_a_piece_is_what_the_front_door_says():
    import unrolled

    assert unrolled.generate is generate
    assert unrolled.Piece is Piece
