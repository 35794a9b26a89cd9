"""All that a run writes: its configuration, its log and its models. Nothing else in training writes to the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checkpoint import LATEST, Training, has_models, named, newest_whole, save_step, step_name
from .config import ConfigError, TrainConfig
from .journal import Journal
from .lock import LOCK_FILE, locked
from .manifest import is_leftover, make_directories
from .resume import CONFIG_FILE, kept
from .tokens import Tokenizer

LOG_FILE = "log.jsonl"


class RunDirectory:
    """The directory of a run, which need not exist before `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal: Journal | None = None

    @contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """Inside, this trainer is the only one here. LockedError if another one is.

        ConfigError if what lies there is no run, or with `resume` if no model has been saved; nothing is written then.
        """
        begun = has_models(self.path)
        if resume and not begun:
            raise ConfigError(f"{self.path} has no saved model to go on from; leave --resume out to begin the run")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; name a directory with --out")
        begun = begun or (self.path / CONFIG_FILE).exists()
        if not begun and self.path.is_dir() and any(map(_foreign, self.path.iterdir())):
            raise ConfigError(
                f"{self.path} has something in it that is no training run; name another directory with --out"
            )
        make_directories(self.path)
        with locked(self.path):
            yield

    def newest(self) -> Path | None:
        """The model to go on from; None where none has been saved."""
        return newest_whole(self.path)

    def last(self) -> Path | None:
        """The model that `latest` names; None where it names none."""
        return named(self.path, LATEST)

    @contextmanager
    def opened(self, config: TrainConfig, log_bytes: int) -> Iterator[None]:
        """Inside, the run can be written, which is claimed. What its log has beyond `log_bytes` is cut off."""
        kept(config).save(self.path / CONFIG_FILE)
        with Journal(self.path / LOG_FILE, keep=log_bytes) as journal:
            self._journal = journal
            try:
                yield
            finally:
                self._journal = None

    def log(self, event: str, **values: Any) -> None:
        self._open.write(event, **values)

    def log_saved(self, step: int) -> None:
        """A model vouches for the log up to this line of its own, which is written after it."""
        self.log("saved", step=step, directory=step_name(step))

    def save(
        self,
        step: int,
        model: nn.Module,
        tokenizer: Tokenizer,
        record: Callable[[int], dict[str, Any]],
        tensors: Mapping[str, Tensor],
        *,
        keep: int,
        best: bool,
    ) -> Path:
        """Write a model directory. `record` makes what to save beside it from the log's length.

        `keep` of the newest models stay, and the one that was `best` last. OSError where the disk is full.
        """
        training = Training(record(self._open.length()), dict(tensors))
        directory = save_step(self.path, step, model, tokenizer, training, keep=keep, best=best)
        self.log_saved(step)
        return directory

    @property
    def _open(self) -> Journal:
        assert self._journal is not None, "a run is written to inside `opened`"
        return self._journal


def _foreign(path: Path) -> bool:
    """Whether this is not what a run leaves that ended as soon as it had begun."""
    return path.name != LOCK_FILE and not is_leftover(path)
