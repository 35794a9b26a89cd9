"""Both scores against a slow, direct computation, against a model worked out by hand, and what they refuse."""

import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from unrolled import evaluate as front
from unrolled.corpus import Split
from unrolled.evaluate import Bars, Counts, Evaluation, blocks, evaluate, part, positions, stateful, windows
from unrolled.loss import bits_per_byte, perplexity
from unrolled.model import LanguageModel, ModelConfig
from unrolled.ngram import NGram
from unrolled.tokens import ByteTokenizer, CharTokenizer

TOKENIZER = CharTokenizer("abcdeé")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model(dtype: torch.dtype = torch.float64, **fields: float) -> LanguageModel:
    torch.manual_seed(0)
    subject = LanguageModel(ModelConfig(TOKENIZER.size, **{"hidden": 5, "layers": 2, **fields}), dtype=dtype)
    # Large weights, so that what is carried matters.
    with torch.no_grad():
        for parameter in subject.parameters():
            parameter.mul_(3)
    return subject


def split(tokens: int, *starts: int) -> Split:
    ids = np.random.default_rng(1).integers(TOKENIZER.size, size=tokens, dtype=np.int32)
    return Split(ids, np.array([0, *starts], dtype=np.int64))


def direct(subject: LanguageModel, text: Split, block: int | None) -> tuple[float, int]:
    """Nats and tokens, one call for each prediction, from the very definition of each score."""
    ends = [*text.starts[1:], len(text)]
    total, count = 0.0, 0
    for begin, end in zip(text.starts, ends, strict=True):
        for target in range(begin + 1, end):
            if text.scored is not None and not text.scored[target]:
                continue
            first = begin if block is None else begin + (target - 1 - begin) // block * block
            logits, _ = subject(torch.from_numpy(text.ids[first:target].astype(np.int64))[None])
            total -= logits[0, -1].log_softmax(0)[int(text.ids[target])].item()
            count += 1
    return total, count


def masked(text: Split) -> Split:
    """Two thirds of it, documents' first tokens among them, and nothing of tokens 20 to 39."""
    scored = np.random.default_rng(2).random(len(text)) < 0.67
    scored[text.starts[:3]] = True
    scored[20:40] = False
    return Split(text.ids, text.starts, scored)


CASES = {
    "one document": split(70),
    "documents": split(70, 1, 17, 18, 33, 64, 69),
    "a block exactly": split(17),
    "two tokens": split(2),
    "short documents": split(9, 2, 4, 6),
    "one document, masked": masked(split(70)),
    "documents, masked": masked(split(70, 1, 17, 18, 33, 64, 69)),
    "all masked in, which changes nothing": Split(split(70, 33).ids, np.array([0, 33]), np.ones(70, np.bool_)),
}


@pytest.mark.parametrize("name", CASES)
def test_both_scores_by_definition(name: str) -> None:
    text, subject = CASES[name], model()
    for score, block in ((stateful(subject, text, TOKENIZER), None), (blocks(subject, text, TOKENIZER, block=8), 8)):
        total, count = direct(subject, text, block)
        read = set(text.starts) | (set() if text.scored is None else set(np.flatnonzero(~text.scored)))
        n_bytes = sum(len(TOKENIZER.symbols[text.ids[t]].encode()) for t in range(len(text)) if t not in read)
        assert score.tokens == count
        assert score.nats == pytest.approx(total / count, rel=1e-12)
        assert score.bits_per_byte == pytest.approx(bits_per_byte(total, n_bytes), rel=1e-12)
        assert score.perplexity == pytest.approx(perplexity(total, count), rel=1e-12)


def test_the_two_scores_differ_where_memory_matters_and_agree_where_a_block_holds_a_document() -> None:
    text, subject = CASES["documents"], model()
    whole = stateful(subject, text, TOKENIZER)
    assert blocks(subject, text, TOKENIZER, block=4).nats != pytest.approx(whole.nats, rel=1e-3)
    assert blocks(subject, text, TOKENIZER, block=100).nats == pytest.approx(whole.nats, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 17, 69, 1000])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    text, subject = CASES["documents"], model()
    assert stateful(subject, text, TOKENIZER, chunk=chunk).nats == pytest.approx(
        stateful(subject, text, TOKENIZER).nats, rel=1e-12
    )


def test_many_batches_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text, subject = CASES["documents"], model()
    at_once = blocks(subject, text, TOKENIZER, block=3)
    monkeypatch.setattr(sys.modules["unrolled.evaluate"], "_BATCH", 2)
    assert blocks(subject, text, TOKENIZER, block=3).nats == pytest.approx(at_once.nats, rel=1e-12)


def test_a_model_worked_out_by_hand() -> None:
    """Zero weights and a chosen projection bias: every token has a fixed probability."""
    subject = model()
    with torch.no_grad():
        for parameter in subject.parameters():
            parameter.zero_()
        subject.lstm.proj.bias.copy_(torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]).log())
    text = Split(TOKENIZER.encode("babéa"), np.array([0]))
    for score in (stateful(subject, text, TOKENIZER), blocks(subject, text, TOKENIZER, block=2)):
        assert score.tokens == 4
        assert score.nats == pytest.approx(-math.log(0.5 * 0.1 * 0.1 * 0.5) / 4, rel=1e-12)
        assert score.perplexity == pytest.approx((0.5 * 0.1 * 0.1 * 0.5) ** -0.25, rel=1e-12)
        assert score.bits_per_byte == pytest.approx(-math.log2(0.5 * 0.1 * 0.1 * 0.5) / 5, rel=1e-12)


def test_evaluate_is_both_and_plain_numbers() -> None:
    text, subject = CASES["documents"], model()
    both = evaluate(subject, text, TOKENIZER, block=8)
    assert both == Evaluation(stateful(subject, text, TOKENIZER), blocks(subject, text, TOKENIZER, block=8))
    assert both.stateful.tokens == both.blocks.tokens
    assert asdict(both)["blocks"] == {
        "nats": both.blocks.nats,
        "bits_per_byte": both.blocks.bits_per_byte,
        "perplexity": both.blocks.perplexity,
        "tokens": 63,
    }
    assert front is evaluate


def test_dropout_is_off_modes_and_gradients_stay_as_they_were() -> None:
    subject = model(dropout=0.5)
    subject.lstm.layers[1].eval()
    modes = {name: module.training for name, module in subject.named_modules()}
    first, again = (evaluate(subject, CASES["documents"], TOKENIZER) for _ in range(2))
    assert first == again
    assert {name: module.training for name, module in subject.named_modules()} == modes
    assert all(parameter.grad is None for parameter in subject.parameters())


def test_modes_are_restored_after_an_error() -> None:
    subject = model(dropout=0.5)
    with pytest.raises(IndexError):
        stateful(subject, Split(np.array([0, 90, 1]), np.array([0])), TOKENIZER)
    assert subject.training
    assert subject.lstm.dropout.training


def test_float32_agrees_with_float64() -> None:
    text, single = CASES["documents"], model(torch.float32)
    # Weights drawn in float32 are other numbers than those drawn in float64, so the exact ones are rounded instead.
    single.load_state_dict(model().state_dict())
    exact, rounded = (asdict(evaluate(subject, text, TOKENIZER, block=8)) for subject in (model(), single))
    for name in ("stateful", "blocks"):
        assert rounded[name]["nats"] != exact[name]["nats"]
        assert rounded[name]["nats"] == pytest.approx(exact[name]["nats"], rel=1e-5)


@pytest.mark.parametrize("text", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("block", [1, 8, 100])
def test_the_curve_is_the_mean_of_each_place(text: Split, block: int) -> None:
    subject, sums, tokens = model(), np.zeros((2, block)), np.zeros(block, int)
    ends = [*text.starts[1:], len(text)]
    for begin, end in zip(text.starts, ends, strict=True):
        for target in range(begin + 1, end):
            if text.scored is not None and not text.scored[target]:
                continue
            place = (target - 1 - begin) % block
            tokens[place] += 1
            for kind, first in enumerate((begin, target - 1 - place)):
                logits, _ = subject(torch.from_numpy(text.ids[first:target].astype(np.int64))[None])
                sums[kind, place] -= logits[0, -1].log_softmax(0)[int(text.ids[target])].item()
    curve = positions(subject, text, TOKENIZER, block=block)
    np.testing.assert_array_equal(curve.tokens, tokens)
    warm, cold = np.divide(sums, tokens, where=tokens > 0, out=np.full((2, block), np.nan))
    np.testing.assert_allclose(curve.warm, warm, rtol=1e-10)
    np.testing.assert_allclose(curve.cold, cold, rtol=1e-10)


def test_the_curve_adds_up_to_the_scores() -> None:
    subject, text = model(), CASES["documents"]
    curve, both = positions(subject, text, TOKENIZER, block=8), evaluate(subject, text, TOKENIZER, block=8)
    there = curve.tokens > 0
    for kind, score in ((curve.warm, both.stateful), (curve.cold, both.blocks)):
        assert kind[there] @ curve.tokens[there] / score.tokens == pytest.approx(score.nats, rel=1e-12)


def test_bars_are_the_n_grams_on_the_same_tokens() -> None:
    train, text = split(400, 90, 91), CASES["documents"]
    bars = evaluate(model(), text, TOKENIZER, counts=Counts.of(train, TOKENIZER, order=3)).bars
    assert isinstance(bars, Bars)
    assert (bars.order, bars.counted, bars.tokens) == (3, 400, 400)
    for score, order in ((bars.unigram, 1), (bars.ngram, 3)):
        total = NGram.fit(train, TOKENIZER.size, order).nats(text)
        assert score.nats == total / 63
        assert score.bits_per_byte == bits_per_byte(total, text.bytes_scored(TOKENIZER))
        assert score.tokens == 63
    assert evaluate(model(), text, TOKENIZER).bars is None


def test_of_a_long_training_text_the_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["unrolled.evaluate"], "COUNTED_TOKENS", 150)
    train, text = split(400, 90, 300), CASES["one document"]
    counts = Counts.of(train, TOKENIZER)
    assert (counts.counted, counts.tokens, counts.ngram.order) == (150, 400, 5)
    end = Split(train.ids[250:], np.array([0, 50]))
    assert counts.bars(text, TOKENIZER).ngram.nats == NGram.fit(end, TOKENIZER.size).nats(text) / 69


@pytest.mark.parametrize("length", [1, 7, 17, 100])
def test_windows_of_a_masked_split_score_what_counts(length: int) -> None:
    text = CASES["documents, masked"]
    found = list(windows(text, length, torch.device("cpu")))
    scored = [
        torch.ones_like(window.targets[0], dtype=torch.bool) if window.scored is None else window.scored[0]
        for window in found
    ]
    assert torch.cat(scored).tolist() == text.counts(1, 70).tolist()


@pytest.mark.parametrize("length", [1, 7, 17, 100])
def test_windows_are_the_whole_split_one_behind_the_other(length: int) -> None:
    text = CASES["documents"]
    found = list(windows(text, length, torch.device("cpu")))
    assert torch.cat([window.inputs[0] for window in found]).tolist() == text.ids[:-1].tolist()
    assert torch.cat([window.targets[0] for window in found]).tolist() == text.ids[1:].tolist()
    nothing = [torch.zeros_like(window.inputs[0], dtype=torch.bool) for window in found]
    resets, crossings = (
        torch.cat([zeros if mask is None else mask[0] for zeros, mask in zip(nothing, masks, strict=True)])
        for masks in (
            [window.resets for window in found],
            [None if window.scored is None else ~window.scored for window in found],
        )
    )
    assert resets.nonzero()[:, 0].tolist() == [start for start in text.starts if start < 69]
    assert crossings.nonzero()[:, 0].tolist() == [start - 1 for start in text.starts if start]


def test_a_part_keeps_its_documents() -> None:
    text = CASES["documents"]  # 0, 1, 17, 18, 33, 64 and 69 of 70
    for begin, end, starts in ((0, 70, [0, 1, 17, 18, 33, 64, 69]), (17, 34, [0, 1, 16]), (19, 33, [0])):
        some = part(text, begin, end)
        np.testing.assert_array_equal(some.ids, text.ids[begin:end])
        assert some.starts.tolist() == starts


def test_a_part_keeps_its_mask() -> None:
    text = CASES["documents, masked"]
    assert text.scored is not None
    np.testing.assert_array_equal(part(text, 17, 34).scored, text.scored[17:34])


def test_bars_leave_out_what_the_scores_leave_out() -> None:
    train, text, all_of_it = split(400, 90, 91), CASES["documents, masked"], CASES["documents"]
    both = evaluate(model(), text, TOKENIZER, counts=Counts.of(train, TOKENIZER, order=3))
    assert both.bars is not None
    assert both.bars.ngram.tokens == both.stateful.tokens == both.blocks.tokens == text.predictions < 63
    nats = np.concatenate(list(NGram.fit(train, TOKENIZER.size, 3).token_nats(all_of_it)))
    kept = text.counts(0, 70)[all_of_it.counts(0, 70)]
    assert both.bars.ngram.nats == pytest.approx(nats[kept].mean(), rel=1e-12)


def test_progress_reaches_the_number_of_scored_tokens() -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(model(), CASES["documents"], TOKENIZER, block=8, progress=lambda *said: told.append(said))
    assert list(dict.fromkeys(what for what, *_ in told)) == ["stateful", "blocks"]
    assert [(done, of) for what, done, of in told if done == of] == [(63, 63), (63, 63)]


def test_refusals() -> None:
    subject = model()
    with pytest.raises(ValueError, match="the split has no token to score: 3 tokens in 3 documents"):
        evaluate(subject, split(3, 1, 2), TOKENIZER)
    nothing = Split(split(3, 1).ids, np.array([0, 1]), np.array([True, True, False]))
    with pytest.raises(ValueError, match="predicted by nothing, and all others are left out by `scored`; use a longer"):
        evaluate(subject, nothing, TOKENIZER)
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens and the model was built for 6"):
        evaluate(subject, split(20), ByteTokenizer())
    with pytest.raises(ValueError, match="block=0 must be at least 1 token"):
        blocks(subject, split(20), TOKENIZER, block=0)
    with pytest.raises(ValueError, match="chunk=0 must be at least 1 token"):
        stateful(subject, split(20), TOKENIZER, chunk=0)
