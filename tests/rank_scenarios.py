"""Runs of two ranks whose process group the caller initialised: `python rank_scenarios.py DIRECTORY RANK`.

Each rank writes what it saw as JSON, `rank-0.json` and `rank-1.json`, for tests/test_ranks.py to read.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_runs import SAMPLE, TALE, small

import unrolled
from unrolled import train
from unrolled.ranks import Ranks
from unrolled.run_directory import RunDirectory
from unrolled.train import Evaluated, Saved, SaveFailed, StepDone, TrainConfig, Trainer

RANKS = 2
HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    source = Path(unrolled.__file__).parents[1]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(source), str(HERE)])}


def settings(directory: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Many documents, so that ranks score different numbers of tokens; an epoch's end; no dropout; float64."""
    for name, length in (("a", 1200), ("b", 700)):
        (directory / f"{name}.txt").write_text(TALE[:length], encoding="utf-8")
    config = dataclasses.replace(
        small(directory, monkeypatch),
        files=tuple(str(directory / f"{name}.txt") for name in "ab"),
        document_separator="é",
        dropout=0.0,
        dtype="float64",
        threads=1,
    )
    config.save(directory / "run.toml")
    return config


def sums(directory: Path) -> list[str]:
    names = ("weights.safetensors", "training.safetensors")
    return [hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names]


def run(config: TrainConfig, *, stop_at: int = 0, stopped_by: int = 1, **given: Any) -> list[Any]:
    trainer, events = Trainer(config, **given), []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_at and trainer.ranks.rank == stopped_by:
            trainer.stop()
    return events


def seen(events: list[Any]) -> dict[str, Any]:
    steps = [event for event in events if isinstance(event, StepDone)]
    end = events[-1]
    return {
        "losses": [event.loss for event in steps],
        "norms": [event.grad_norm for event in steps],
        "scores": [event.score and event.score.nats for event in events if isinstance(event, Evaluated)],
        "samples": [event.sample for event in events if isinstance(event, Evaluated)],
        "unsaved": [event.reason for event in events if isinstance(event, SaveFailed)],
        "end": [end.began, end.step, end.interrupted, end.early],
        "evaluation": end.evaluation and dataclasses.asdict(end.evaluation),
    }


def failure(work: Callable[[], Any]) -> list[str]:
    try:
        work()
    except (ValueError, ArithmeticError) as error:
        return [type(error).__name__, str(error)]
    return []


def connect(directory: Path, rank: int, name: str) -> Callable[[], None]:
    meeting = f"file://{directory}/{name}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=60), rank=rank, world_size=RANKS)
    return dist.destroy_process_group


def alike(config: TrainConfig, results: dict[str, Any]) -> None:
    """Runs that go well."""
    results["two"] = seen(run(config))
    results["lots"] = seen(run(dataclasses.replace(config, accumulate=2, steps=12, out=f"{config.out}-lots")))
    drops = dataclasses.replace(config, dropout=0.3, state="carry", out=f"{config.out}-drops")
    results["drops"] = seen(run(drops))
    again = dataclasses.replace(drops, out=f"{config.out}-again")
    results["stopped"] = seen(run(again, stop_at=7))
    results["again"] = seen(run(again))
    timed = dataclasses.replace(config, steps=None, minutes=0.005, out=f"{config.out}-timed")
    results["timed"] = seen(run(timed))["end"]
    bored = dataclasses.replace(config, lr=1e-30, ema=0.0, patience=1, steps=60, out=f"{config.out}-bored")
    results["bored"] = seen(run(bored))["end"]


def drift(config: TrainConfig, rank: int) -> list[str]:
    """The weights' hash before and after a save, where a weight of rank 1 has gone its own way."""
    trainer = Trainer(dataclasses.replace(config, steps=10, eval_every=5, out=f"{config.out}-drift"))
    hashes = []
    for event in trainer.run():
        if isinstance(event, StepDone) and event.step == 9:
            next(trainer.model.parameters()).data[0, 0] += 1e-12 * rank
        if isinstance(event, StepDone | Saved):
            weights = torch.cat([value.flatten() for value in trainer.model.state_dict().values()])
            hashes.append(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
    return hashes[-2:]


def apart(config: TrainConfig, results: dict[str, Any], directory: Path, rank: int) -> None:
    """Two machines' disks: the run is on that of rank 0 alone, then on that of rank 1 alone."""
    (directory / f"disk-{rank}").mkdir()
    os.chdir(directory / f"disk-{rank}")
    shutil.copytree(config.out or "", f"begun-{rank}")
    results["here"] = seen(run(dataclasses.replace(config, out="begun-0", steps=31)))["end"]
    results["there"] = failure(lambda: run(dataclasses.replace(config, out="begun-1")))
    results["disk"] = sorted(path.name for path in Path().iterdir())


def unlike(config: TrainConfig, results: dict[str, Any], rank: int) -> None:
    """Runs in which something goes wrong, on one rank or on both."""
    results["indivisible"] = failure(lambda: Trainer(dataclasses.replace(config, lanes=5)))
    results["flags"] = failure(lambda: Trainer(dataclasses.replace(config, lr=0.1 * (rank + 1))))
    texts = (config.files, config.files[:1])
    results["texts"] = failure(lambda: Trainer(dataclasses.replace(config, files=texts[rank])))
    lost = dataclasses.replace(config, files=(config.files[0], f"missing-{rank}.txt")) if rank else config
    results["missing"] = failure(lambda: Trainer(lost))
    results["taken"] = failure(lambda: run(dataclasses.replace(config, hidden=5)))

    def upset(event: Any, _: Trainer) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            raise ArithmeticError("the callback's own")

    results["callback"] = failure(
        lambda: run(dataclasses.replace(config, out=f"{config.out}-upset"), callbacks=[upset])
    )

    trainer = Trainer(dataclasses.replace(config, out=f"{config.out}-nan"))
    events = []

    def until_it_breaks() -> None:
        for event in trainer.run():
            events.append(event)
            if isinstance(event, StepDone) and event.step == 12 and rank == 1:
                next(trainer.model.parameters()).data.fill_(torch.nan)

    results["nan"] = [*failure(until_it_breaks), len([event for event in events if isinstance(event, StepDone)])]

    save, full = RunDirectory.save, iter([True, False, False, False])

    def sometimes(*args: Any, **kwargs: Any) -> Path:
        if next(full):
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    RunDirectory.save = sometimes  # type: ignore[method-assign]
    results["full"] = seen(run(dataclasses.replace(config, out=f"{config.out}-full")))
    RunDirectory.save = save  # type: ignore[method-assign]


def main(directory: Path, rank: int) -> None:
    torch.set_num_threads(1)
    train.SAMPLE_TOKENS = SAMPLE
    config = TrainConfig.load(directory / "run.toml")
    results: dict[str, Any] = {}
    disconnect = connect(directory, rank, "first")
    alike(config, results)
    moved = dataclasses.replace(config, out=f"{config.out}-moved")
    results["moved-1"] = seen(run(moved, stop_at=7, stopped_by=0))
    disconnect()
    assert Ranks.present().size == 1
    if rank == 0:
        results["moved-2"] = seen(run(moved, stop_at=19, stopped_by=0))
    disconnect = connect(directory, rank, "second")
    results["moved-3"] = seen(run(moved))
    unlike(config, results, rank)
    results["drift"] = drift(config, rank)
    apart(config, results, directory, rank)
    disconnect()
    (directory / f"rank-{rank}.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
