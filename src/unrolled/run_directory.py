"""All that a run writes: its configuration, its log and its models. Nothing else in training writes to the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import Training, latest, save_step, step_name
from .config import ConfigError, TrainConfig
from .journal import Journal
from .model import LanguageModel
from .resume import CONFIG_FILE, kept
from .tokens import Tokenizer


class RunDirectory:
    """The directory of a run, which need not exist before `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal: Journal | None = None

    def newest(self) -> Path | None:
        """The newest model; None where none has been saved. ConfigError if what lies there is no run."""
        newest = latest(self.path)
        if newest is None:
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"{self.path} is a file; name a directory with --out")
            if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / CONFIG_FILE).exists():
                raise ConfigError(
                    f"{self.path} has something in it that is no training run; name another directory with --out"
                )
        return newest

    @contextmanager
    def opened(self, config: TrainConfig, log_bytes: int) -> Iterator[None]:
        """Inside, the run can be written. What its log has beyond `log_bytes` is cut off."""
        self.path.mkdir(parents=True, exist_ok=True)
        kept(config).save(self.path / CONFIG_FILE)
        with Journal(self.path / "log.jsonl", keep=log_bytes) as journal:
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
        model: LanguageModel,
        tokenizer: Tokenizer,
        record: Callable[[int], dict[str, Any]],
        tensors: Mapping[str, Tensor],
    ) -> Path:
        """Write a model directory. `record` makes what to save beside it from the log's length."""
        training = Training(record(self._open.length()), dict(tensors))
        directory = save_step(self.path, step, model, tokenizer, training)
        self.log_saved(step)
        return directory

    @property
    def _open(self) -> Journal:
        assert self._journal is not None, "a run is written to inside `opened`"
        return self._journal
