"""Where a run stands, as a record that is saved with its model; and whether a run that exists can be gone on with."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, Run, Training, load, load_training
from .config import ConfigError, TrainConfig
from .corpus import Corpus
from .evaluate import Score

CONFIG_FILE = "config.toml"


@dataclass
class Standing:
    """Where a run stands after `step` steps, beside its tensors.

    `score`: the last one of the validation text, after `scored` steps. `best`: the least nats of a model that was saved.
    """

    step: int = 0
    score: Score | None = None
    scored: int = 0
    best: float | None = None

    @property
    def is_best(self) -> bool:
        """Whether no model that was saved has scored as well as the one at hand."""
        return self.scored == self.step and self.score is not None and (self.best is None or self.score.nats < self.best)


@dataclass(frozen=True, eq=False)
class Earlier:
    """A run as it was saved. The first `log_bytes` of its log tell what led there."""

    standing: Standing
    log_bytes: int
    run: Run
    training: Training


def kept(config: TrainConfig) -> TrainConfig:
    """The configuration without what only the command at hand wanted."""
    return dataclasses.replace(config, resume=False, quiet=False)


def record(standing: Standing, config: TrainConfig, corpus: Corpus, log_bytes: int) -> dict[str, Any]:
    """Plain values from which `take_up` has everything but the tensors."""
    return {
        "step": standing.step,
        "steps": config.steps,
        "config": kept(config).as_dict(),
        "sha256": corpus.sha256,
        "score": None if standing.score is None else asdict(standing.score),
        "scored": standing.scored,
        "best": standing.best,
        "log_bytes": log_bytes,
    }


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
    loaded = load(saved)
    if loaded.tokenizer != corpus.tokenizer:
        raise ConfigError(f"{saved} is of another vocabulary; name another --out")
    return Earlier(standing, log_bytes, loaded, training)


def _parsed(saved: Path, record: dict[str, Any]) -> tuple[TrainConfig, str, Standing, int]:
    try:
        config = TrainConfig.from_dict(record["config"])
        step, log_bytes, text = (record[key] for key in ("step", "log_bytes", "sha256"))
        score, scored, best = (record[key] for key in ("score", "scored", "best"))
        standing = Standing(step, None if score is None else Score(**score), scored, best)
        if not all(type(number) is int for number in (step, log_bytes, scored)):
            raise TypeError("step, log_bytes and scored must be whole numbers")
        if best is not None and type(best) is not float:
            raise TypeError("best must be a number")
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{saved / 'training.json'} is not of a training run ({error})") from None
    return config, text, standing, log_bytes
