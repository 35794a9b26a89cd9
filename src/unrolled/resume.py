"""Where a run stands, as a record that is saved with its model; and whether a run that exists can be gone on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import CheckpointError, Training, latest, load_training, load_weights
from .config import ConfigError, TrainConfig
from .corpus import Corpus
from .evaluate import Score

CONFIG_FILE = "config.toml"


@dataclass
class Standing:
    """Where a run stands after `step` steps, beside its tensors.

    `score`: the last one of the validation text, after `scored` steps; `waited` scores in a row were no better than the
    best before them. `best`: the least score of a model that was saved, after `best_step` steps.
    """

    step: int = 0
    score: Score | None = None
    scored: int = 0
    waited: int = 0
    best: Score | None = None
    best_step: int = 0

    @property
    def is_best(self) -> bool:
        """Whether no model that was saved has scored as well as the one at hand."""
        scored = self.scored == self.step and self.score is not None
        return scored and (self.best is None or self.score.nats < self.best.nats)  # type: ignore[union-attr]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Standing:
        """From the plain values that `asdict` makes of one."""
        scores = {name: values[name] and Score(**values[name]) for name in ("score", "best")}
        return cls(**{**values, **scores})

    def see(self, score: Score) -> None:
        """Take the score of the model at hand."""
        self.score, self.scored = score, self.step
        self.waited = 0 if self.is_best else self.waited + 1

    def saved(self) -> Standing:
        """The standing once the model at hand is saved."""
        return dataclasses.replace(self, best=self.score, best_step=self.step) if self.is_best else self


@dataclass(frozen=True, eq=False)
class Earlier:
    """A run as it was saved. The first `log_bytes` of its log tell what led there."""

    standing: Standing
    log_bytes: int
    averaged: Mapping[str, Tensor]
    training: Training


def kept(config: TrainConfig) -> TrainConfig:
    """The configuration without what only the command at hand wanted."""
    return dataclasses.replace(config, resume=False, quiet=False)


def record(standing: Standing, config: TrainConfig, corpus: Corpus, log_bytes: int) -> dict[str, Any]:
    """Plain values from which `take_up` has everything but the tensors."""
    return {
        "steps": config.steps,
        "config": kept(config).as_dict(),
        "sha256": corpus.sha256,
        **asdict(standing),
        "log_bytes": log_bytes,
    }


def timed_before(config: TrainConfig) -> int | None:
    """The steps that `config.minutes` came to when the run there was begun; None where it is yet to begin.

    Raises ConfigError where the run has a model and was begun with other minutes, or with none.
    """
    path = config.directory / CONFIG_FILE
    if not path.is_file():
        return None
    began = TrainConfig.load(path)
    if began.minutes == config.minutes and not config.changed_from(began):
        return began.steps
    if latest(config.directory) is None:
        return None
    if began.minutes != config.minutes:
        how = f"{began.steps} steps" if began.minutes is None else f"{began.minutes:g} minutes: {began.steps} steps"
        raise ConfigError(
            f"minutes={config.minutes:g} is another length: {config.directory} holds a run that was begun with "
            f"{how}; give it more with --steps {2 * (began.steps or 1)}, or begin another: --out DIRECTORY"
        )
    return began.steps


def take_up(saved: Path, config: TrainConfig, corpus: Corpus) -> Earlier:
    """The run in the model directory `saved`, if it is the one that `config` would begin.

    Raises ConfigError where it is another one, CheckpointError where it is damaged or no training run.
    """
    training, run = load_training(saved), saved.parent
    began, text, standing, log_bytes = _parsed(saved, training.record)
    changed = config.changed_from(began)
    if text != corpus.sha256:
        changed.append("the text is not the one that the run began with")
    if changed:
        lines = "".join(f"\n  {line}" for line in changed)
        raise ConfigError(
            f"{run} holds a run that began otherwise:{lines}\n"
            f"go on with it as it is: --config {run / CONFIG_FILE}, or begin another: --out DIRECTORY"
        )
    assert config.steps is not None, "a resolved configuration has its steps"
    if standing.step > config.steps:
        raise ConfigError(
            f"{run} has come to step {standing.step}, and this run would end at {config.steps}; give it more: "
            f"--steps {2 * standing.step}, or begin another: --out DIRECTORY"
        )
    averaged, tokenizer = load_weights(saved)
    if tokenizer != corpus.tokenizer:
        raise ConfigError(f"{saved} is of another vocabulary; name another --out")
    return Earlier(standing, log_bytes, averaged, training)


def _parsed(saved: Path, record: dict[str, Any]) -> tuple[TrainConfig, str, Standing, int]:
    try:
        config = TrainConfig.from_dict(record["config"])
        numbers = {name: record[name] for name in ("step", "scored", "waited", "best_step", "log_bytes")}
        for name, number in numbers.items():
            if type(number) is not int:
                raise TypeError(f"{name} must be a whole number")
        log_bytes, text = numbers.pop("log_bytes"), record["sha256"]
        standing = Standing.of({**numbers, "score": record["score"], "best": record["best"]})
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{saved / 'training.json'} is not of a training run ({error})") from None
    return config, text, standing, log_bytes
