"""What `unrolled eval` can be asked, as flags: nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter


@dataclass(frozen=True)
class ScoreRequest:
    """None means the default of `dynamic.Dynamic`, and the validation part of the run's text."""

    split: Literal["val", "test"] | None = None
    """Which part of the run's own text to score, where no file is named: val (if not given) or test."""
    train: Annotated[tuple[Path, ...], Parameter(json_list=False)] = ()
    """Training text to count n-grams in, where it is no longer what and where the run found it; once for each file."""
    positions: bool = False
    """Show also what a token costs by its place in a block, from zeros and with the state carried."""
    dynamic: bool = False
    """Score also a copy of the model that goes on learning from the text as it reads it (dynamic evaluation)."""
    dynamic_lr: float | None = None
    """About how far it moves a weight after each segment."""
    dynamic_decay: float | None = None
    """Share of the way back to the trained weights that it goes after each segment."""
    dynamic_segment: int | None = None
    """Tokens of a segment."""
    dynamic_sgd: bool = False
    """Let it take plain steps of gradient descent, not scaled by the size of the gradient in training."""
    dynamic_tune: bool = False
    """Choose lr and decay, around those given, on the run's validation text, which then can't be what is scored."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given. One is often the fastest on a machine with other work."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print a line of JSON for each text instead of tables."""

    def __post_init__(self) -> None:
        if (self.settings or self.dynamic_tune) and not self.dynamic:
            raise ValueError("these are settings of dynamic evaluation, which was not asked for: add --dynamic")

    @property
    def settings(self) -> dict[str, Any]:
        """Those of `Dynamic` that were given."""
        method = "sgd" if self.dynamic_sgd else None
        given = {
            "lr": self.dynamic_lr,
            "decay": self.dynamic_decay,
            "segment": self.dynamic_segment,
            "method": method,
        }
        return {name: value for name, value in given.items() if value is not None}

    def check(self, files: tuple[Path, ...]) -> None:
        """ValueError where it does not go with the texts named."""
        if files and self.split is not None:
            raise ValueError(f"--split {self.split} is a part of the run's own text; leave it out, or leave FILE out")
        if self.dynamic_tune and not files and self.split != "test":
            raise ValueError(
                "--dynamic-tune tunes on the validation part of the run's text, so that can't be what is scored; add "
                "--split test, or name a FILE"
            )
