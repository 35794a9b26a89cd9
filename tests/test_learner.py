"""One step: lots of lanes make the same step, products in bfloat16 leave the rest alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import TALE, small

from unrolled.config import ConfigError, TrainConfig
from unrolled.corpus import Corpus, Split
from unrolled.evaluate import Counts, evaluate
from unrolled.events import Evaluated, Finished
from unrolled.learner import NotFiniteError
from unrolled.loss import nats
from unrolled.tokens import ByteTokenizer
from unrolled.train import Trainer


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return dataclasses.replace(small(tmp_path, monkeypatch), dropout=0.0, dtype="float64")


def after(config: TrainConfig, steps: int) -> tuple[Trainer, list[float], dict[str, torch.Tensor]]:
    trainer = Trainer(config)
    losses = [trainer._learner.step(step).loss for step in range(steps)]
    return trainer, losses, {name: value.clone() for name, value in trainer._learner.tensors().items()}


@pytest.mark.parametrize("lots", [2, 3, 4])
def test_lots_of_lanes_make_the_same_step(config: TrainConfig, lots: int) -> None:
    """Across an epoch's end, 4 lanes in lots that need not be alike: weights, moments, state and loss."""
    one, losses, tensors = after(config, 53)
    many, others, others_tensors = after(dataclasses.replace(config, accumulate=lots), 53)
    assert one.lanes.windows_per_epoch == 50
    assert others == pytest.approx(losses, rel=1e-9)
    assert others_tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(others_tensors[name], value, rtol=1e-6, atol=1e-9, msg=name)
    assert tensors["state.h"].shape == (2, 4, 12)
    assert [lot.stop - lot.start for lot in many._learner._lots] == {2: [2, 2], 3: [1, 1, 2], 4: [1] * 4}[lots]


def test_a_lot_is_all_that_goes_through_the_model_at_once(config: TrainConfig) -> None:
    trainer, seen = Trainer(dataclasses.replace(config, accumulate=4)), []
    trainer.model.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    trainer._learner.step(0)
    assert seen == [(1, 16)] * 4


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 here")
def test_autocast_computes_products_in_bfloat16_and_keeps_state_and_weights(config: TrainConfig) -> None:
    plain = dataclasses.replace(config, dtype="float32")
    _, losses, _ = after(plain, 30)
    low, others, tensors = after(dataclasses.replace(plain, autocast="bfloat16"), 30)
    assert others != losses
    assert others == pytest.approx(losses, rel=0.05)
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert {value.dtype for value in low.model.parameters()} == {torch.float32}


def test_a_step_that_is_no_number_moves_nothing(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer._learner.step(0)
    with torch.no_grad():
        trainer.model.lstm.proj.bias[0] = torch.inf
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(NotFiniteError, match=r"the loss is .* and the gradient's norm nan at step 2"):
        trainer._learner.step(1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_masked_tokens_are_read_and_not_learned(config: TrainConfig) -> None:
    """What the masked targets are changes neither loss nor gradients; the mean is over the others."""
    ids = ByteTokenizer().encode(TALE)[:700].copy()
    scored = np.arange(700) % 5 != 3
    starts = np.array([0, 90, 431])
    first = Trainer(config, corpus=Corpus(Split(ids, starts, scored), None, None, ByteTokenizer(), "0" * 64))
    window = first.lanes.window(0, 1)
    plain = Trainer(config, corpus=Corpus(Split(ids, starts), None, None, ByteTokenizer(), "0" * 64)).lanes.window(0, 1)
    position = first.lanes.offset(0) + 16 + torch.arange(16) + 1 + torch.arange(4)[:, None] * ((700 - 16) // 4)
    opening = torch.isin(position, torch.from_numpy(starts))
    assert torch.equal(window.inputs, plain.inputs)
    assert window.scored is not None
    assert torch.equal(window.scored, (position % 5 != 3) & ~opening)
    logits, _ = first.model(window.inputs[:, :], None, resets=window.resets)
    first._learner.lanes.window = lambda epoch, index: window._replace(  # type: ignore[method-assign]
        targets=window.targets.masked_fill(~window.scored, 7)
    )
    expected = nats(logits, window.targets, window.scored).item() / int(window.scored.sum())
    assert first._learner.step(0).loss == pytest.approx(expected, rel=1e-12)


def test_masks_that_do_not_fit() -> None:
    ids, starts = np.zeros(9, np.uint8), np.array([0])
    with pytest.raises(ValueError, match=r"scored must be a bool for each of the 9 ids, got bool \[8\]"):
        Split(ids, starts, np.ones(8, np.bool_))
    with pytest.raises(ValueError, match=r"scored must be a bool for each of the 9 ids, got int64 \[9\]"):
        Split(ids, starts, np.ones(9, np.int64))


def test_a_masked_validation_text_is_scored_where_it_counts(config: TrainConfig) -> None:
    ids = ByteTokenizer().encode(TALE)[:700]
    val = Split(ids, np.array([0]), np.arange(700) % 2 == 1)
    trainer = Trainer(config, corpus=Corpus(Split(ids, np.array([0])), val, None, ByteTokenizer(), "0" * 64))
    events = list(trainer.run())
    scores = [event.score for event in events if isinstance(event, Evaluated)]
    assert [score.tokens for score in scores if score is not None] == [350] * len(scores) != []
    final = events[-1]
    assert isinstance(final, Finished)
    assert final.evaluation is not None
    assert final.evaluation == evaluate(
        trainer.averaged, val, ByteTokenizer(), counts=Counts.of(trainer.corpus.train, ByteTokenizer())
    )


def test_a_validation_text_of_which_nothing_counts(config: TrainConfig) -> None:
    ids = ByteTokenizer().encode(TALE)[:700]
    val = Split(ids, np.array([0]), np.arange(700) < 1)
    with pytest.raises(ConfigError, match="of the first 700 tokens of the validation text none can be scored"):
        Trainer(config, corpus=Corpus(Split(ids, np.array([0])), val, None, ByteTokenizer(), "0" * 64))
