"""A run's events as files for TensorBoard; where a run is taken up, what it does again replaces what is there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import ConfigError
from .events import Evaluated, Event, Finished, Started, StepDone

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_OF_A_STEP = ("loss", "bits_per_byte", "grad_norm", "lr", "tokens_per_second")
_OF_A_SCORE = ("nats", "bits_per_byte", "perplexity")


class Board:
    """A callback that writes into `directory`. ConfigError where TensorBoard is not installed."""

    def __init__(self, directory: Path) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(
                "tensorboard is not installed: pip install 'unrolled[tensorboard]', or leave --tensorboard out"
            )
        self._directory = directory
        self._writer: SummaryWriter | None = None

    def __call__(self, event: Event, trainer: Any, /) -> None:
        match event:
            case Started():
                self._open(event.step)
            case StepDone():
                self._write(event.step, {f"training/{name}": getattr(event, name) for name in _OF_A_STEP})
            case Evaluated() if event.score is not None:
                self._write(event.step, {f"validation/{name}": getattr(event.score, name) for name in _OF_A_SCORE})
            case Finished():
                self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self._directory), purge_step=step + 1)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
