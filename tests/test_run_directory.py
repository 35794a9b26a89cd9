"""A run's directory: one trainer in it, a full disk survived, the best model kept, a damaged one passed over."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest
from small_runs import log, only, run, small, sums

from unrolled import disk
from unrolled.checkpoint import load
from unrolled.disk import DiskWarning
from unrolled.lock import LockedError
from unrolled.train import Saved, SaveFailed, TrainConfig, Trainer, TrainingError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    return small(tmp_path, monkeypatch)


def full(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """From now on there is no room for files in whose path one of `names` is."""
    write = disk.write

    def refused(file: BinaryIO, data: bytes) -> None:
        if any(name in str(file.name) for name in names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    monkeypatch.setattr(disk, "write", refused)


def test_a_save_on_a_full_disk_is_tried_again(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    full(monkeypatch, "step-00000020")
    events = run(config)
    (failed,) = only(events, SaveFailed)
    first = tmp_path / "run" / "step-00000010"
    assert failed == SaveFailed(20, "No space left on device", first)
    assert [event.step for event in only(events, Saved)] == [10, 30]
    assert log(tmp_path / "run", "save_failed") == [
        {"event": "save_failed", "step": 20, "reason": "No space left on device"}
    ]
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")


def test_a_last_save_on_a_full_disk_is_an_error_and_the_run_goes_on_later(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        full(patch, "step-00000030")
        with pytest.raises(TrainingError, match=r"the last model, of step 30, could not be saved: No space .*20 is"):
            run(config)
    assert load(tmp_path / "run").directory.name == "step-00000020"
    assert run(config)[-1].began == 20
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")


def test_a_log_on_a_full_disk_does_not_stop_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, "log.jsonl")
    with pytest.warns(DiskWarning, match=r"log\.jsonl can't be written: No space left on device"):
        events = run(config)
    assert [event.step for event in only(events, Saved)] == [10, 20, 30]
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == b""


def test_a_second_trainer_is_refused_and_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    first = Trainer(config).run()
    next(first)
    with pytest.raises(LockedError, match=rf"is being trained by this process \({os.getpid()}\), since "):
        run(config)
    assert len(log(tmp_path / "run", "started")) == 1
    first.close()
    assert run(config)[-1].step == 30


def test_a_run_goes_on_from_the_newest_whole_model(config: TrainConfig, tmp_path: Path) -> None:
    run(dataclasses.replace(config, out=str(tmp_path / "whole")))
    run(config)
    (tmp_path / "run" / "step-00000030" / "training.safetensors").write_bytes(b"")
    with pytest.warns(DiskWarning, match=r"step-00000020 is taken in place of the newest model: .*has 0 bytes"):
        rest = run(config)
    assert rest[-1].began == 20
    assert sums(tmp_path / "run" / "step-00000030") == sums(tmp_path / "whole" / "step-00000030")
    assert [line["step"] for line in log(tmp_path / "run", "saved")] == [10, 20, 30]


def test_the_best_model_is_kept(config: TrainConfig, tmp_path: Path) -> None:
    events = run(dataclasses.replace(config, eval_every=5, save_every=30, keep=1))
    scores = {line["step"]: line["score"]["nats"] for line in log(tmp_path / "run", "evaluated")}
    best = min(scores, key=lambda step: scores[step])
    assert load(tmp_path / "run", "best").training["step"] == best
    improved = [step for step in scores if all(scores[step] < scores[s] for s in scores if s < step)]
    assert [event.step for event in only(events, Saved) if event.best] == improved
    there = {path.name for path in (tmp_path / "run").glob("step-*")}
    assert there == {f"step-{best:08d}", "step-00000030"}


@pytest.mark.parametrize("left", ["lock", "config.toml.tmp-0123abcd"])
def test_what_a_run_leaves_that_ended_at_once_is_no_obstacle(config: TrainConfig, tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_bytes(b"")
    assert run(dataclasses.replace(config, steps=2))[-1].step == 2
