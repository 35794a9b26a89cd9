"""Event files for TensorBoard: exact steps, and none twice where a run was taken up."""

import dataclasses
from pathlib import Path

import pytest
from small_runs import only, run, small

from unrolled import board
from unrolled.config import ConfigError, TrainConfig
from unrolled.train import Evaluated, StepDone, Trainer

pytest.importorskip("tensorboard")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return dataclasses.replace(small(tmp_path, monkeypatch), tensorboard=True)


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory / "tensorboard"))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars(name)]


def test_each_step_and_score_once_also_after_a_crash(config: TrainConfig, tmp_path: Path) -> None:
    whole = run(dataclasses.replace(config, out=str(tmp_path / "whole"), tensorboard=False))
    events = Trainer(config).run()
    for event in events:
        if isinstance(event, StepDone) and event.step == 17:
            break
    events.close()
    assert run(config)[-1].began == 10
    losses = scalars(tmp_path / "run", "training/loss")
    assert [step for step, _ in losses] == list(range(1, 31))
    assert [loss for _, loss in losses] == pytest.approx([event.loss for event in only(whole, StepDone)], rel=1e-6)
    expected = [(event.step, event.score.bits_per_byte) for event in only(whole, Evaluated)]
    found = scalars(tmp_path / "run", "validation/bits_per_byte")
    assert [step for step, _ in found] == [10, 20, 30]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_without_tensorboard_a_sentence_says_how_to_get_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tensorboard is not installed: pip install 'unrolled\[tensorboard\]', or"):
        Trainer(config)
    assert not (tmp_path / "run").exists()
