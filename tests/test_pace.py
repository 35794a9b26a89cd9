"""Minutes become steps once, and the run that was begun so goes on to them."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from small_runs import only, run, small, sums

from unrolled import pace
from unrolled.config import ConfigError, TrainConfig
from unrolled.train import StepDone, Trainer


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return dataclasses.replace(small(tmp_path, monkeypatch), steps=None, minutes=1.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second after the one before."""
    ticks = itertools.count()
    monkeypatch.setattr(pace.time, "perf_counter", lambda: float(next(ticks)))


def test_what_fits() -> None:
    assert pace._fitting(100, 0.5, 0, None) == 200
    assert pace._fitting(100, 0.5, 2, None) == 160, "ten scores between the steps"
    assert pace._fitting(100, 0.5, 30, None) == 100, "scores that would leave nothing: half of the time"
    assert pace._fitting(6000, 0.5, 5, None) == 6000 / 0.51, "long runs: a score each 500 steps"
    assert pace._fitting(100, 0.5, 2, 4) == 100


@pytest.mark.usefixtures("clock")
def test_minutes_become_steps_and_the_config_says_how_many(config: TrainConfig, tmp_path: Path) -> None:
    timed = Trainer(dataclasses.replace(config, split=(1.0,))).config
    assert timed.minutes == 1.0
    # Four steps are timed, at 0.75 looks each; 55 of the 60 looks are left.
    assert timed.steps == int(55 / 0.75)
    assert not (tmp_path / "run").exists()


def test_the_trial_leaves_no_trace(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is that of as many steps, to the bit; so the learning rate is, too."""
    monkeypatch.setattr(pace, "_fitting", lambda *given: 12.9)
    events = run(config)
    assert [event.step for event in only(events, StepDone)] == list(range(1, 13))
    plain = run(dataclasses.replace(config, minutes=None, steps=12, out=str(tmp_path / "plain")))
    assert [event.lr for event in only(events, StepDone)] == [event.lr for event in only(plain, StepDone)]
    mine, theirs = (sums(tmp_path / name / "step-00000012") for name in ("run", "plain"))
    assert mine.pop("training.json") != theirs.pop("training.json"), "minutes are part of the record"
    assert mine == theirs


def test_a_run_of_minutes_goes_on_to_the_steps_that_they_came_to(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_fitting", lambda *given: 30)
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    for event in Trainer(config).run():
        if isinstance(event, StepDone) and event.step == 4:
            break  # before anything was saved but the configuration
    monkeypatch.setattr(pace, "_fitting", lambda *given: 99)
    assert Trainer(config).config.steps == 30
    assert Trainer(dataclasses.replace(config, hidden=9)).config.steps == 99, "another run, of which nothing is there"
    run(config, 17)
    assert run(config)[-1].step == 30
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")
    with pytest.raises(
        ConfigError,
        match=r"minutes=2 is another length: .* begun with 1 minutes: 30 steps; give it more with --steps 60",
    ):
        Trainer(dataclasses.replace(config, minutes=2.0))
    assert run(dataclasses.replace(config, minutes=None, steps=33))[-1].step == 33


def test_a_run_of_steps_is_no_run_of_minutes(config: TrainConfig) -> None:
    run(dataclasses.replace(config, minutes=None, steps=3))
    with pytest.raises(ConfigError, match=r"holds a run that was begun with 3 steps; give it more with --steps 6"):
        Trainer(config)


def test_minutes_and_other_lengths(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="minutes=1 and epochs=2 both say how long; give one"):
        dataclasses.replace(config, epochs=2.0)
    with pytest.raises(ConfigError, match="minutes must be above 0, got 0"):
        dataclasses.replace(config, minutes=0)
    with pytest.raises(ConfigError, match="minutes=1 has no steps until a Trainer has timed some"):
        config.resolved(10)
