"""A session against plain traces: what it reads, holds, zeroes and exchanges."""

import numpy as np
import pytest
import torch

from unrolled import ByteTokenizer, CharTokenizer, Clamp, LanguageModel, LSTMState, ModelConfig, TokenizerError
from unrolled.bpe import train_bpe
from unrolled.live_session import MOST, LiveSession

SYMBOLS = "abcdefg \n"
TOKENIZER = CharTokenizer(SYMBOLS)


def model(**options):
    torch.manual_seed(4)
    made = LanguageModel(
        ModelConfig(len(SYMBOLS), **{"hidden": 5, "layers": 2, "embedding": 0, **options}), dtype=torch.float64
    )
    with torch.no_grad():
        for weight in made.lstm.parameters():
            weight.mul_(2)
    return made


def ids(text):
    return torch.from_numpy(TOKENIZER.encode(text).astype(np.int64))[None]


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"proj_dim": 3}, {"embedding": 4, "dropout": 0.5}])
def test_reading_is_a_trace(options):
    made = model(**options).eval()
    session = LiveSession(made, TOKENIZER)
    for text in ("abc", "abc d", "abc d\nefg"):
        session.read(text)
    with torch.no_grad():
        trace = made.trace(ids("abc d\nefg"))
    assert session.text() == "abc d\nefg"
    assert "".join(step.text for step in session.steps()) == "abc d\nefg"
    for name in "hcifgo":
        expected = torch.stack([getattr(layer, name)[0] for layer in trace.layers], 1).numpy()
        np.testing.assert_allclose(np.stack([step.values[name] for step in session.steps()]), expected, atol=1e-6)
    np.testing.assert_allclose(session.probabilities(), trace.output[0, -1].softmax(-1).numpy(), rtol=1e-9)
    assert session.steps(1) == ()


def test_going_back_and_on_reads_only_what_is_new():
    made = model()
    session = LiveSession(made, TOKENIZER)
    assert session.read("abcdef") == 0
    first = session.steps()
    assert session.read("abc") == 3
    assert session.steps() == first[:3]
    assert session.read("abxf".replace("x", "g")) == 2
    assert session.steps()[:2] == first[:2]
    with torch.no_grad():
        np.testing.assert_allclose(
            session.probabilities(), made.trace(ids("abgf")).output[0, -1].softmax(-1).numpy(), rtol=1e-9
        )
    assert session.read("") == 0
    assert session.text() == ""
    torch.testing.assert_close(session.state(), made.initial_state(1))


def test_what_is_held_is_held_from_the_last_token_on():
    made = model()
    session = LiveSession(made, TOKENIZER)
    session.read("abcd")
    session.clamp(0, "f", 2, 0.0)
    session.read("abcdefg")
    with torch.no_grad():
        before = made.trace(ids("abc"))
        after = made.trace(ids("defg"), before.state, edit=Clamp(0, "f", 2, 0.0))
    for name in "hcifgo":
        expected = torch.cat(
            [torch.stack([getattr(layer, name)[0] for layer in trace.layers], 1) for trace in (before, after)]
        )
        np.testing.assert_allclose(
            np.stack([step.values[name] for step in session.steps()]), expected.numpy(), atol=1e-6
        )
    assert session.clamps == {(0, "f", 2): 0.0}
    session.clamp(1, "c", 4, 1.5)
    last = session.steps()[-1].values
    assert (last["f"][0, 2], last["c"][1, 4]) == (0, 1.5)
    session.clamp(0, "f", 2, None)
    assert session.clamps == {(1, "c", 4): 1.5}
    assert session.steps()[-1].values["f"][0, 2] > 0
    session.release()
    assert session.clamps == {}
    assert session.steps()[-1].values["c"][1, 4] != 1.5


def test_a_zeroed_layer_changes_what_is_predicted_and_what_follows():
    made = model()
    session = LiveSession(made, TOKENIZER)
    session.read("abc")
    plain = session.probabilities()
    session.zero(1)
    state = session.state()
    assert not state.h[1].any()
    assert not state.c[1].any()
    assert state.c[0].any()
    with torch.no_grad():
        bias = made.lstm.proj.bias.softmax(-1).numpy()
    np.testing.assert_allclose(session.probabilities(), bias, rtol=1e-9)
    assert not np.allclose(plain, bias)
    session.read("abcd")
    with torch.no_grad():
        carried = made.trace(ids("abc")).state
        changed = LSTMState(*(torch.stack([each[0], torch.zeros_like(each[1])]) for each in carried))
        trace = made.trace(ids("d"), changed)
    np.testing.assert_allclose(session.probabilities(), trace.output[0, -1].softmax(-1).numpy(), rtol=1e-9)
    # The text is kept up to there, and so is what was done; before it, it is gone.
    session.read("abc")
    assert not session.state().c[1].any()
    session.read("ab")
    session.read("abc")
    assert session.state().c[1].any()


def test_two_prefixes_exchange_their_states():
    made = model()
    session = LiveSession(made, TOKENIZER)
    session.read("abc")
    session.read("g g", at=1)
    before = session.probabilities(0), session.probabilities(1)
    session.swap()
    np.testing.assert_array_equal(session.probabilities(0), before[1])
    np.testing.assert_array_equal(session.probabilities(1), before[0])
    session.read("abca")
    with torch.no_grad():
        other = made.trace(ids("g g")).state
        trace = made.trace(ids("a"), other)
    np.testing.assert_allclose(session.probabilities(), trace.output[0, -1].softmax(-1).numpy(), rtol=1e-9)


def test_one_layer_alone_is_exchanged_and_twice_is_nothing():
    session = LiveSession(model(), TOKENIZER)
    session.read("abc")
    session.read("ef", at=1)
    first, second = session.state(0), session.state(1)
    session.swap([0])
    assert torch.equal(session.state(0).c[0], second.c[0])
    assert torch.equal(session.state(0).c[1], first.c[1])
    session.swap([0])
    torch.testing.assert_close(session.state(0), first, rtol=0, atol=0)
    torch.testing.assert_close(session.state(1), second, rtol=0, atol=0)


def test_what_was_done_to_a_state_stays_when_a_unit_is_held():
    session = LiveSession(model(), TOKENIZER)
    session.read("abc")
    session.zero(1)
    session.clamp(0, "o", 0, 1.0)
    assert not session.state().c[1].any()
    assert session.steps()[-1].values["o"][0, 0] == 1


def test_writing_draws_and_reads():
    made = model()
    session = LiveSession(made, TOKENIZER)
    session.read("ab")
    best = int(session.probabilities().argmax())
    step = session.write(temperature=0)
    assert step.token == best
    assert session.text() == "ab" + SYMBOLS[best]
    texts = []
    for seed in (0, 0, 1):
        session = LiveSession(made, TOKENIZER, seed=seed)
        for _ in range(20):
            session.write()
        texts.append(session.text())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), train_bpe(["\u00e9ab ab\u00e9 " * 9], 270)])
def test_characters_of_several_tokens(tokenizer):
    torch.manual_seed(0)
    session = LiveSession(LanguageModel(ModelConfig(tokenizer.size, hidden=3, layers=1, embedding=0)), tokenizer)
    for text in ("a", "a\u00e9", "a\u00e9b ab"):
        session.read(text)
        assert session.text() == "".join(step.text for step in session.steps()) == text


def test_the_model_stays_as_it_was():
    made = model(dropout=0.5).train()
    session = LiveSession(made, TOKENIZER)
    session.read("abcabc")
    assert made.training
    first = session.probabilities()
    session.read("")
    session.read("abcabc")
    np.testing.assert_array_equal(session.probabilities(), first)


def test_what_cannot_be_done_is_said():
    session = LiveSession(model(), TOKENIZER)
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens and the model 9; pass the one that it was"):
        LiveSession(model(), ByteTokenizer())
    with pytest.raises(TokenizerError):
        session.read("xyz")
    with pytest.raises(ValueError, match=f"at most 1,000 tokens, and this one has {MOST + 1}; shorten it"):
        session.read("a" * (MOST + 1))
    session.read("a" * MOST)
    with pytest.raises(ValueError, match="at most 1,000 tokens; begin anew with an empty one"):
        session.write()
    with pytest.raises(IndexError, match="unit 5 of 5; units are 0 to 4"):
        session.clamp(0, "c", 5, 0.0)
    with pytest.raises(IndexError, match="layer 2 of 2; layers are 0 to 1"):
        session.clamp(2, "c", 0, 0.0)
    with pytest.raises(ValueError, match="name='x' is none of i, f, g, c, o, h"):
        session.clamp(0, "x", 0, 0.0)
    with pytest.raises(IndexError, match="layer -1 of 2; layers are 0 to 1"):
        session.zero(-1)
    with pytest.raises(IndexError, match="unit 3 of 3"):
        LiveSession(model(proj_dim=3), TOKENIZER).clamp(0, "h", 3, 0.0)
