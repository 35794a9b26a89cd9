"""What a training run says as it goes: the events that `Trainer.run` yields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config import TrainConfig
from .evaluate import Evaluation, Score


@dataclass(frozen=True)
class Started:
    """The first event. `config` is resolved: its length is in `steps`. `step` is 0, or where the run is taken up."""

    config: TrainConfig
    directory: Path
    step: int
    parameters: int
    sizes: dict[str, int]
    windows_per_epoch: int


@dataclass(frozen=True)
class StepDone:
    """One step of `steps`, `epoch` passes through the text so far.

    `loss`: mean nats per scored token of this step's window, with dropout. `bits_per_byte`: the same, estimated with
    the training text's mean bytes per token. `grad_norm`: before clipping.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    bits_per_byte: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """`score`: blocks of at most 200,000 tokens of the validation text; None without one. `sample`: text written."""

    step: int
    score: Score | None
    sample: str


@dataclass(frozen=True)
class Saved:
    """A model directory was written, and `latest` names it; `best` does, too, if no score before was better."""

    step: int
    directory: Path
    best: bool


@dataclass(frozen=True)
class SaveFailed:
    """A model could not be written, as where a disk is full; training goes on, and tries again at the next save.

    `last`: the model that stays the newest; None where none has been saved yet.
    """

    step: int
    reason: str
    last: Path | None


@dataclass(frozen=True)
class Finished:
    """The last event. `began`: the step at which this call took the run up; equal to `step` if nothing was left to do.

    `evaluation` scores at most 500,000 tokens of the validation text; None without one, and where interrupted.
    `best`: the least score of a saved model, that of step `best_step`, which `best` in the directory names.
    `early`: the run ended before its last step, since `patience` scores in a row were no better.
    """

    step: int
    steps: int
    began: int
    directory: Path
    interrupted: bool
    evaluation: Evaluation | None
    best: Score | None = None
    best_step: int = 0
    early: bool = False


Event = Started | StepDone | Evaluated | Saved | SaveFailed | Finished
