"""Runs taken up again: as if nothing had happened, or refused with what to do instead."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import TALE, log, only, run, small, sums

import unrolled
from unrolled.checkpoint import CheckpointError, Training, latest, load, load_training, save_step
from unrolled.config import ConfigError
from unrolled.train import Evaluated, Finished, Saved, Started, StepDone, TrainConfig, Trainer


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return small(tmp_path, monkeypatch)


def test_the_resolved_config_can_be_passed_back(config: TrainConfig, tmp_path: Path) -> None:
    short = dataclasses.replace(config, steps=None, epochs=0.5, eval_every=None, quiet=True)
    resolved = run(short)[0].config
    read = TrainConfig.load(tmp_path / "run" / "config.toml")
    assert read == dataclasses.replace(resolved, quiet=False)
    assert (read.steps, read.epochs, read.device) == (math.ceil(0.5 * 50), None, "cpu")
    assert run(dataclasses.replace(read, resume=True))[-1].began == read.steps


# Steps of a run of 60 with 50 windows an epoch, scores each 20 and saves each 25: the first and the last but one, those
# around scores, saves and the epoch's end, and some in the midst. Six of them in every run of the tests.
POINTS = (1, 2, 7, 10, 11, 17, 19, 20, 21, 24, 25, 26, 33, 39, 40, 41, 49, 50, 51, 59)
OFTEN = (1, 19, 25, 26, 50, 59)
ALL_AT_ONCE = {"steps": 60, "eval_every": 20, "save_every": 25, "accumulate": 3, "patience": 5, "embedding": 5}
ALL_AT_ONCE |= {"embedding_dropout": 0.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrainConfig, list[Any]]]:
    """An undisturbed run: dropout, lots of lanes of different sizes, early stopping."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        config = dataclasses.replace(small(directory, patch), **ALL_AT_ONCE)
        yield config, run(config)


@pytest.mark.parametrize("stop_at", [p if p in OFTEN else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_stopped_and_taken_up_is_the_undisturbed_run(
    config: TrainConfig, whole: tuple[TrainConfig, list[Any]], tmp_path: Path, stop_at: int
) -> None:
    undisturbed, events = whole
    config = dataclasses.replace(undisturbed, out=str(tmp_path / "run"))
    first = run(config, stop_at)
    assert first[-1].interrupted
    assert first[-1].evaluation is None
    assert (first[-1].step, latest(tmp_path / "run")) == (stop_at, tmp_path / "run" / f"step-{stop_at:08d}")
    # What a caller draws in between is no business of the run's.
    torch.rand(stop_at)
    rest = run(config)
    assert (rest[0].step, rest[-1].began, rest[-1].interrupted) == (stop_at, stop_at, False)
    assert sums(tmp_path / "run" / "step-00000060") == sums(Path(undisturbed.out or "") / "step-00000060")
    assert (tmp_path / "run" / "best").read_bytes() == (Path(undisturbed.out or "") / "best").read_bytes()
    numbers = [(event.step, event.loss, event.grad_norm, event.lr) for event in only(first + rest, StepDone)]
    assert numbers == [(event.step, event.loss, event.grad_norm, event.lr) for event in only(events, StepDone)]
    assert only(first + rest, Evaluated) == only(events, Evaluated)
    assert (rest[-1].evaluation, rest[-1].best, rest[-1].best_step) == (
        events[-1].evaluation,
        events[-1].best,
        events[-1].best_step,
    )
    assert told(tmp_path / "run", stop_at) == told(Path(undisturbed.out or ""), stop_at)


def told(directory: Path, stop_at: int) -> list[dict[str, Any]]:
    """The log's lines without times, and without those in which an interruption at this step shows itself."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for name in ("tokens_per_second", "seconds_left"):
            line.pop(name, None)
    return [line for line in lines if line["event"] != "started" and line != saved_at(stop_at)]


def saved_at(step: int) -> dict[str, Any]:
    return {"event": "saved", "step": step, "directory": f"step-{step:08d}"}


def test_the_undisturbed_run_has_what_the_interruptions_are_about(whole: tuple[TrainConfig, list[Any]]) -> None:
    config, events = whole
    assert len(POINTS) == 20
    assert (events[0].windows_per_epoch, events[-1].step, events[-1].early) == (50, 60, False)
    assert [event.step for event in only(events, Evaluated)] == [20, 40, 60]
    assert {25, 50, 60} <= {event.step for event in only(events, Saved)}
    assert config.lanes % config.accumulate, "lots of different sizes"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_ended_goes_on_as_if_nothing_had_happened(
    config: TrainConfig, tmp_path: Path, number: signal.Signals
) -> None:
    """The library's own sample length, since the command line runs in processes of its own."""
    config = dataclasses.replace(config, steps=400, eval_every=100, save_every=20, threads=1)
    config.save(tmp_path / "run.toml")
    command = [sys.executable, "-m", "unrolled", "train", "--config", str(tmp_path / "run.toml")]
    environment = {**os.environ, "PYTHONPATH": str(Path(unrolled.__file__).parents[1])}
    whole = [*command, "--out", str(tmp_path / "whole")]
    subprocess.run(whole, check=True, env=environment, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "step-00000040").is_dir():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == (128 + number if number == signal.SIGTERM else -number)
    began = load(tmp_path / "run").training
    assert began is not None
    # Where the kill came before `latest` named step 40, the one before it is gone on from.
    assert 20 <= began["step"] < 400
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert sums(tmp_path / "run" / "step-00000400") == sums(tmp_path / "whole" / "step-00000400")
    stopped = began["step"]
    assert told(tmp_path / "run", stopped) == told(tmp_path / "whole", stopped)


@pytest.mark.parametrize("changes", [{"state": "reset"}, {"ema": 0.0}, {"dtype": "bfloat16"}, {"embedding": 5}])
def test_other_kinds_of_runs_are_taken_up_exactly_too(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, steps=12, **changes)
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    run(config, 7)
    run(dataclasses.replace(config, resume=True))
    assert sums(tmp_path / "run" / "step-00000012") == sums(tmp_path / "whole" / "step-00000012")


def test_a_crash_goes_back_to_the_last_save(config: TrainConfig, tmp_path: Path) -> None:
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    for event in Trainer(config).run():
        if isinstance(event, StepDone) and event.step == 17:
            break
    assert log(tmp_path / "run", "step")[-1]["step"] == 10
    with (tmp_path / "run" / "log.jsonl").open("ab") as file:
        file.write(b'{"event": "st')
    rest = run(config)
    assert rest[-1].began == 10
    assert [line["directory"] for line in log(tmp_path / "run", "saved")] == [f"step-000000{n}" for n in (10, 20, 30)]
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")
    assert [line["step"] for line in log(tmp_path / "run", "step")] == [1, 10, 20, 30]


def test_a_crash_before_the_first_save_begins_again(config: TrainConfig, tmp_path: Path) -> None:
    for event in Trainer(config).run():
        if isinstance(event, StepDone) and event.step == 5:
            break
    assert run(dataclasses.replace(config, hidden=8, steps=3))[-1].began == 0
    assert [line["step"] for line in log(tmp_path / "run", "step")] == [1, 3]


def test_a_stop_before_the_first_step_saves_the_untrained_model(config: TrainConfig, tmp_path: Path) -> None:
    trainer = Trainer(config)
    trainer.stop()
    events = list(trainer.run())
    assert [type(event) for event in events] == [Started, Saved, Finished]
    assert (events[-1].step, events[-1].interrupted) == (0, True)
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    rest = list(trainer.run())
    assert (rest[-1].step, rest[-1].interrupted) == (30, False)
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")


def test_a_finished_run_says_so_and_goes_on_with_more_steps(config: TrainConfig, tmp_path: Path) -> None:
    first = run(config)
    again = run(config)
    assert [type(event) for event in again] == [Started, Finished]
    assert (again[-1].began, again[-1].step, again[-1].interrupted) == (30, 30, False)
    assert again[-1].evaluation == first[-1].evaluation
    assert len(log(tmp_path / "run", "finished")) == 1
    more = run(dataclasses.replace(config, steps=40, eval_every=7, save_every=9, quiet=True))
    assert (more[0].step, more[-1].step) == (30, 40)
    assert TrainConfig.load(tmp_path / "run" / "config.toml").steps == 40
    with pytest.raises(
        ConfigError, match=r"has come to step 40, and this run would end at 35; give it more: --steps 80"
    ):
        run(dataclasses.replace(config, steps=35))


def test_another_configuration_is_refused_and_says_where_it_differs(config: TrainConfig, tmp_path: Path) -> None:
    run(config, 3)
    before = (tmp_path / "run" / "config.toml").read_bytes()
    other = dataclasses.replace(config, hidden=8, lr=0.5, steps=50)
    with pytest.raises(ConfigError) as refused:
        run(other)
    assert str(refused.value) == (
        f"{tmp_path / 'run'} holds a run that began otherwise:\n"
        "  hidden: 8, the run has 12\n"
        "  lr: 0.5, the run has 0.02\n"
        f"go on with it as it is: --config {tmp_path / 'run' / 'config.toml'}, or begin another: --out DIRECTORY"
    )
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_a_changed_text_is_refused_and_a_moved_one_is_not(config: TrainConfig, tmp_path: Path) -> None:
    run(config, 3)
    moved = (tmp_path / "tale.txt").rename(tmp_path / "moved.txt")
    there = dataclasses.replace(config, files=(str(moved),))
    assert run(there, 5)[0].step == 3
    moved.write_text(TALE[1:], encoding="utf-8")
    with pytest.raises(ConfigError, match="the text is not the one that the run began with"):
        run(there)


def test_resume_insists_on_a_run(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no saved model to go on from; leave --resume out to begin the run"):
        run(dataclasses.replace(config, resume=True))
    assert not (tmp_path / "run").exists()


def test_a_directory_with_something_else_in_it_is_left_alone(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has something in it that is no training run; name another directory"):
        run(dataclasses.replace(config, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["tale.txt"]
    with pytest.raises(ConfigError, match=r"tale\.txt is a file; name a directory with --out"):
        run(dataclasses.replace(config, out=str(tmp_path / "tale.txt")))


def test_a_damaged_model_is_named(config: TrainConfig, tmp_path: Path) -> None:
    run(config, 3)
    (tmp_path / "run" / "step-00000003" / "training.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"training\.safetensors has 0 bytes"):
        run(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"heads": 3}}, "heads is no field"),
        ({"step": "3"}, "step must be a whole number"),
        ({"score": {"nats": 1}}, "missing"),
        ({"config": None}, "None"),
    ],
)
def test_a_record_of_something_else(config: TrainConfig, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    run(config, 1)
    saved = tmp_path / "run" / "step-00000001"
    was = load_training(saved)
    loaded = load(saved)
    save_step(tmp_path / "run", 2, loaded.model, loaded.tokenizer, Training({**was.record, **fields}, was.tensors))
    with pytest.raises(CheckpointError, match=rf"training\.json is not of a training run \(.*{message}"):
        run(config)


def test_tensors_of_another_run(config: TrainConfig, tmp_path: Path) -> None:
    run(config, 1)
    was, loaded = load_training(tmp_path / "run"), load(tmp_path / "run")
    tensors = {**was.tensors, "state.h": was.tensors["state.h"][:, :2]}
    save_step(tmp_path / "run", 2, loaded.model, loaded.tokenizer, Training({**was.record, "step": 2}, tensors))
    with pytest.raises(
        CheckpointError, match=r"training\.safetensors: state\.h is \[2, 2, 12\], expected \[2, 4, 12\]"
    ):
        run(config)
