"""A model of somebody's own in Trainer: any state, tied weights, buffers; trained, scored, saved, taken up again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_runs import SAMPLE, TALE, only, run, small
from torch import Tensor, nn

from unrolled.checkpoint import CheckpointError, load
from unrolled.config import TrainConfig
from unrolled.corpus import Split
from unrolled.evaluate import blocks, evaluate
from unrolled.model import LanguageModel, ModelConfig
from unrolled.own_model import _View, as_language_model
from unrolled.tokens import ByteTokenizer
from unrolled.train import Evaluated, StepDone, Trainer

VOCABULARY = len(set(TALE))


class Gru(nn.Module):
    """A GRU with tied weights, whose state is a dict, and a buffer that counts calls in training."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.gru = nn.GRU(8, 8, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, VOCABULARY)
        self.head.weight = self.embedding.weight
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, ids: Tensor, state: Any = None, *, resets: Tensor | None = None) -> tuple[Tensor, Any]:
        if self.training:
            self.calls += 1
        out, h = self.gru(self.embedding(ids), None if state is None else state["h"])
        return self.head(out), {"h": h}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return small(tmp_path, monkeypatch)


def model() -> Gru:
    torch.manual_seed(4)
    return Gru()


@pytest.mark.parametrize("stop_at", [7, 20])
def test_it_is_trained_saved_and_taken_up_to_the_bit(config: TrainConfig, tmp_path: Path, stop_at: int) -> None:
    config = dataclasses.replace(config, accumulate=2)
    whole = run(dataclasses.replace(config, out=str(tmp_path / "whole")), model=model())
    losses = [event.loss for event in only(whole, StepDone)]
    assert losses[-1] < losses[0] - 0.3
    assert all(len(event.sample) == SAMPLE for event in only(whole, Evaluated))
    run(config, stop_at, model=model())
    rest = run(config, model=model())
    assert [event.loss for event in only(rest, StepDone)] == losses[stop_at:]
    assert rest[-1].evaluation == whole[-1].evaluation
    for name in ("weights.safetensors", "training.safetensors"):
        mine, theirs = (tmp_path / run / "step-00000030" / name for run in ("run", "whole"))
        assert mine.read_bytes() == theirs.read_bytes()


def test_its_weights_are_loaded_by_hand(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(config, steps=3), model=model())
    event = list(trainer.run())[-1]
    with pytest.raises(CheckpointError, match=r"holds the weights of test_own_model\.Gru, a model that is not the lib"):
        load(tmp_path / "run")
    built = Gru()
    built.load_state_dict(safetensors.torch.load_file(tmp_path / "run" / "step-00000003" / "weights.safetensors"))
    assert built.calls.item() == 3
    for name, value in trainer.averaged.state_dict().items():
        assert torch.equal(value, built.state_dict()[name]), name
    score = blocks(as_language_model(built, VOCABULARY), trainer.corpus.val, trainer.corpus.tokenizer)
    assert event.evaluation.blocks.nats == pytest.approx(score.nats, rel=1e-6)


def test_a_view_scores_as_the_model_does() -> None:
    torch.manual_seed(0)
    own = LanguageModel(ModelConfig(256, 6, 1))
    assert as_language_model(own, 256) is own
    text = Split(ByteTokenizer().encode(TALE), np.array([0, 300, 1001]))
    assert evaluate(_View(own, 256), text, ByteTokenizer()) == evaluate(own, text, ByteTokenizer())


class Wrong(Gru):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, ids: Tensor, state: Any = None, *, resets: Tensor | None = None) -> Any:
        logits, after = super().forward(ids, state)
        wrong = {"pair": logits, "logits": (logits[:, -1], after), "state": (logits, (torch.zeros(3),))}
        return {**wrong, "kind": (logits, {"h": "x"})}[self.what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pair", r"Wrong returns Tensor, expected a pair \(logits, state\)"),
        ("logits", r"returns logits \[2, \d+\] for ids \[2, 4\], expected \[2, 4, \d+\]: one row for each token"),
        ("state", r"state\.0 is \[3\] for two lanes and \[3\] for three; expected one axis that is the lanes"),
        ("kind", "a state holds tensors in tuples, lists and dicts, and this one has str"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(config: TrainConfig, what: str, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(config, model=Wrong(what))
