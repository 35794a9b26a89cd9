"""Dynamic evaluation: what it computes, that it never looks ahead, and that the model stays as it was."""

import copy
import math

import numpy as np
import pytest
import torch

from unrolled import dynamic as front
from unrolled.corpus import Split
from unrolled.dynamic import Dynamic, dynamic, dynamic_nats, gradient_rms, tuned
from unrolled.evaluate import stateful
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import CharTokenizer

TOKENIZER = CharTokenizer("abcdef")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model(dtype: torch.dtype = torch.float64, **fields: float) -> LanguageModel:
    torch.manual_seed(0)
    subject = LanguageModel(
        ModelConfig(TOKENIZER.size, **{"hidden": 5, "layers": 2, "embedding": 3, **fields}), dtype=dtype
    )
    with torch.no_grad():
        for parameter in subject.parameters():
            parameter.mul_(2)
    return subject


def split(tokens: int, *starts: int, seed: int = 1) -> Split:
    ids = np.random.default_rng(seed).integers(TOKENIZER.size, size=tokens, dtype=np.int32)
    return Split(ids, np.array([0, *starts], dtype=np.int64))


TRAIN = split(300, 120, seed=2)


def token_nats(subject: LanguageModel, text: Split, settings: Dynamic, **given: object) -> np.ndarray:
    return np.concatenate(list(dynamic_nats(subject, text, settings, **given)))


def by_the_book(
    subject: LanguageModel, text: Split, settings: Dynamic, scales: list[torch.Tensor] | None
) -> list[float]:
    """Krause et al. 2018, equations 5 to 8, a token at a time, with weights kept apart from any module."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in subject.named_parameters()}
    trained = {name: value.detach().clone() for name, value in weights.items()}
    ones = [torch.ones_like(value) for value in trained.values()]
    if scales is not None:
        mean = sum(scale.sum() for scale in scales) / sum(scale.numel() for scale in scales)
        slow = dict(zip(trained, [scale + 0.1 * mean for scale in scales], strict=True))
        back = dict(zip(trained, [torch.clamp(settings.decay * scale / mean, max=1) for scale in scales], strict=True))
    else:
        slow = dict(zip(trained, ones, strict=True))
        back = {name: settings.decay * one for name, one in zip(trained, ones, strict=True)}
    state, found, losses = subject.zero_state(1), [], []
    for place in range(len(text) - 1):
        if place in text.starts:
            state = subject.zero_state(1)
        ids = torch.from_numpy(text.ids[place : place + 2].astype(np.int64))
        logits, state = torch.func.functional_call(subject, weights, (ids[None, :1], state))
        if place + 1 not in text.starts:
            losses.append(-logits[0, 0].log_softmax(0)[ids[1]])
        if (place + 1) % settings.segment == 0 or place == len(text) - 2:
            found += [loss.item() for loss in losses]
            if losses:
                gradients = torch.autograd.grad(torch.stack(losses).mean(), list(weights.values()))
                weights = {
                    name: (value - settings.lr * gradient / slow[name] + back[name] * (trained[name] - value))
                    .detach()
                    .requires_grad_()
                    for (name, value), gradient in zip(weights.items(), gradients, strict=True)
                }
            state, losses = type(state)(state.h.detach(), state.c.detach()), []
    return found


TEXTS = {"one document": split(50), "documents": split(50, 1, 2, 17, 24, 40), "two tokens": split(2)}


@pytest.mark.parametrize("method", ["rms", "sgd"])
@pytest.mark.parametrize("segment", [pytest.param(1, marks=pytest.mark.slow), 8, 64])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_it_is_the_published_method(text: Split, segment: int, method: str) -> None:
    subject = model()
    settings = Dynamic(lr=0.05, decay=0.2, segment=segment, method=method)
    scales = gradient_rms(subject, TRAIN, segment) if method == "rms" else None
    expected = by_the_book(subject, text, settings, scales)
    np.testing.assert_allclose(token_nats(subject, text, settings, scales=scales), expected, rtol=1e-9)
    score = dynamic(subject, text, TOKENIZER, scales=scales, settings=settings)
    assert score.nats == pytest.approx(float(np.mean(expected)), rel=1e-9)
    assert score.tokens == len(expected)
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2), rel=1e-12)


def test_the_statistics_are_those_of_single_segments() -> None:
    subject = model()
    squares, count = [torch.zeros_like(weight) for weight in subject.parameters()], 0
    state = subject.zero_state(1)
    text = split(81, seed=3)
    for begin in range(0, 80, 8):
        ids = torch.from_numpy(text.ids[begin : begin + 9].astype(np.int64))
        logits, state = subject(ids[None, :-1], state.detach())
        loss = torch.nn.functional.cross_entropy(logits[0], ids[1:])
        for square, gradient in zip(squares, torch.autograd.grad(loss, list(subject.parameters())), strict=True):
            square += gradient**2
        count += 1
    for found, square in zip(gradient_rms(subject, text, 8), squares, strict=True):
        torch.testing.assert_close(found, (square / count).sqrt(), rtol=1e-10, atol=1e-14)


def test_of_a_long_text_the_statistics_are_a_part_from_everywhere() -> None:
    told = []
    gradient_rms(model(hidden=2, layers=1), split(5000, seed=4), 2, progress=lambda *said: told.append(said))
    assert told[-1] == ("gradients of the training text", 400, 400)


@pytest.mark.parametrize("method", ["rms", "sgd"])
def test_no_prediction_knows_its_token_or_a_later_one(method: str) -> None:
    """Whatever token is changed, the losses of the tokens before it keep their bits."""
    subject = model(torch.float32)
    settings = Dynamic(lr=0.05, decay=0.1, segment=5, method=method)
    scales = gradient_rms(subject, TRAIN, 5) if method == "rms" else None
    text = split(31, 12)
    before = token_nats(subject, text, settings, scales=scales)
    for place in range(1, len(text)):
        ids = text.ids.copy()
        ids[place] = (ids[place] + 1) % TOKENIZER.size
        after = token_nats(subject, Split(ids, text.starts), settings, scales=scales)
        known = place - 1 - int(place > 12)  # scored tokens in front of it: none is the first of a document
        assert before[:known].tobytes() == after[:known].tobytes()
        if place != 12:
            assert before[known] != after[known]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_stays_as_it_was_in_any_mode(mode: type) -> None:
    subject = model(torch.float32, dropout=0.5)
    subject.lstm.layers[0].W_xf.requires_grad_(False)
    subject.lstm.layers[1].eval()
    text, settings = split(60, 20), Dynamic(lr=0.05, decay=0.1, segment=7)
    weights = {name: value.clone() for name, value in subject.state_dict().items()}
    kept = [(module.training, *(p.requires_grad for p in module.parameters())) for module in subject.modules()]
    with mode():
        found = dynamic(subject, text, TOKENIZER, scales=gradient_rms(subject, TRAIN, 7), settings=settings)
    assert all(torch.equal(value, weights[name]) for name, value in subject.state_dict().items())
    assert [(m.training, *(p.requires_grad for p in m.parameters())) for m in subject.modules()] == kept
    assert all(parameter.grad is None for parameter in subject.parameters())
    assert found == dynamic(subject, text, TOKENIZER, scales=gradient_rms(subject, TRAIN, 7), settings=settings)


def test_a_model_that_does_not_move_scores_as_ever() -> None:
    subject, text = model(dropout=0.5), split(60, 20)
    still = dynamic(subject, text, TOKENIZER, settings=Dynamic(lr=0.0, decay=0.3, segment=7, method="sgd"))
    assert still.nats == pytest.approx(stateful(subject, text, TOKENIZER).nats, rel=1e-12)


def test_it_learns_a_text_that_repeats_itself_and_decay_holds_it_back() -> None:
    subject = model(torch.float32, hidden=16, layers=1)
    text = Split(np.tile(np.array([0, 3, 1, 4, 2, 5], np.int32), 60), np.array([0]))
    scales = gradient_rms(subject, TRAIN, 8)
    free, held = (
        dynamic(subject, text, TOKENIZER, scales=scales, settings=Dynamic(lr=0.03, decay=decay, segment=8)).nats
        for decay in (0.0, 1.0)
    )
    static = stateful(subject, text, TOKENIZER).nats
    assert free < 0.6 * static
    assert free < held
    assert front is dynamic


def test_half_precision_learns_in_float32() -> None:
    """A step of 1e-4 would vanish in bfloat16."""
    subject, text = model().to(torch.bfloat16), split(60)
    scales = gradient_rms(subject, TRAIN, 8)
    assert {scale.dtype for scale in scales} == {torch.float32}
    settings = Dynamic(lr=1e-4, decay=0.0, segment=8)
    wide = [scale.double() for scale in scales]
    exact = dynamic(copy.deepcopy(subject).double(), text, TOKENIZER, scales=wide, settings=settings)
    found = dynamic(subject, text, TOKENIZER, scales=scales, settings=settings)
    assert found.nats == pytest.approx(exact.nats, rel=1e-5)
    assert found.nats < dynamic(subject, text, TOKENIZER, scales=scales, settings=Dynamic(lr=0.0, segment=8)).nats
    assert next(subject.parameters()).dtype == torch.bfloat16


def test_tuning_takes_the_best_of_nine() -> None:
    subject, text, told = model(torch.float32), split(120, seed=5), []
    scales, given = gradient_rms(subject, TRAIN, 8), Dynamic(lr=0.01, decay=0.6, segment=8)
    found = tuned(subject, text, TOKENIZER, scales=scales, settings=given, progress=lambda *said: told.append(said))
    tried = {
        (lr, decay): dynamic(
            subject, text, TOKENIZER, scales=scales, settings=Dynamic(lr=lr, decay=decay, segment=8)
        ).nats
        for lr in (0.005, 0.01, 0.02)
        for decay in (0.3, 0.6, 1.0)
    }
    assert (found.lr, found.decay) == min(tried, key=tried.__getitem__)
    assert (found.segment, found.method) == (8, "rms")
    assert told == [("tuning", number, 9) for number in range(1, 10)]


def test_progress_reaches_the_number_of_scored_tokens() -> None:
    told = []
    settings = Dynamic(segment=7, method="sgd")
    dynamic(model(), split(30, 9), TOKENIZER, settings=settings, progress=lambda *said: told.append(said))
    assert told[-1] == ("dynamic", 28, 28)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": -1.0}, "lr must be 0 or more, got -1.0"),
        ({"lr": math.nan}, "lr must be 0 or more, got nan"),
        ({"lr": True}, "lr must be 0 or more, got True"),
        ({"decay": 1.5}, "decay must be 0 or more and at most 1, got 1.5"),
        ({"segment": 0}, "segment must be at least 1 token, got 0"),
        ({"segment": 2.0}, "segment must be at least 1 token, got 2.0"),
        ({"method": "adam"}, 'method must be "rms" or "sgd", got \'adam\''),
    ],
)
def test_settings_that_cannot_be(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Dynamic(**given)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"needs the statistics of the gradient: scales=gradient_rms\(model, train"):
        dynamic(model(), split(20), TOKENIZER)
    with pytest.raises(ValueError, match="the split has no token to score"):
        dynamic(model(), split(2, 1), TOKENIZER)
    with pytest.raises(ValueError, match=r"diverged within \d+ tokens with lr=1e\+300; use a smaller one"):
        dynamic(model(), split(90), TOKENIZER, settings=Dynamic(lr=1e300, segment=5, method="sgd"))
