"""A small training run, and how tests look at what it did."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled.train import StepDone, TrainConfig, Trainer

TALE = "".join(f"{n} {'goose' if n % 3 else 'fox'}{'' if n % 7 else chr(233)}, " for n in range(400))
SAMPLE = 20


def small(directory: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """30 steps on `tale.txt` into `run`, 50 windows an epoch, all that is random switched on."""
    torch.set_num_threads(1)
    monkeypatch.setattr(sys.modules["unrolled.train"], "SAMPLE_TOKENS", SAMPLE)
    (directory / "tale.txt").write_text(TALE, encoding="utf-8")
    return TrainConfig(
        files=(str(directory / "tale.txt"),),
        out=str(directory / "run"),
        tokens="char",
        hidden=12,
        layers=2,
        embedding=0,
        dropout=0.1,
        lanes=4,
        window=16,
        steps=30,
        warmup=3,
        lr=0.02,
        ema=0.9,
        eval_every=10,
        save_every=10,
        split=(0.8, 0.1),
    )


def run(config: TrainConfig, stop_at: int | None = None, **given: Any) -> list[Any]:
    trainer = Trainer(config, **given)
    events = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_at:
            trainer.stop()
    return events


def only(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def sums(directory: Path) -> dict[str, str]:
    """sha256 of everything in a model directory that a run decides, training.json without the log's length."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    record = json.loads(files.pop("training.json"))
    del files["manifest.json"], record["log_bytes"], record["config"]["out"]
    files["training.json"] = json.dumps(record).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def log(directory: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]
