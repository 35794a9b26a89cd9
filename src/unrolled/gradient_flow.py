"""How gradients flow back through time while a model is trained: a callback that measures now and then."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .events import Event, Started, StepDone
from .reach import Reach, reach
from .train import Trainer


@dataclass(frozen=True, eq=False)
class Flow:
    """The reach of the model in training after `step` steps, 0 before the first one."""

    step: int
    reach: Reach

    def as_dict(self) -> dict[str, object]:
        """Plain numbers: mean norms of c and h, [layers, window]."""
        return {"step": self.step, **{name: self.reach.mean(name).tolist() for name in "ch"}}


class GradientFlow:
    """A callback: `Trainer(config, callbacks=[flow])`, and then `flow.flows`, one `Flow` each `every` steps.

    The losses are always those at the same `tokens` tokens of the validation text, or without one of the training text.
    With `path` each is also written there as it is made, one line of JSON each; a run that is taken up goes on in it.
    Nothing of the run changes; a measurement takes about as long as a step of so many lanes and so long a window.
    """

    def __init__(self, every: int = 100, *, window: int = 64, tokens: int = 16, path: str | Path | None = None) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 step")
        self.every, self.window, self.tokens = every, window, tokens
        self.path = None if path is None else Path(path)
        self.flows: list[Flow] = []

    def __call__(self, event: Event, trainer: Trainer) -> None:
        # A run that is taken up has measured the step that it begins with.
        if not (isinstance(event, StepDone) or (isinstance(event, Started) and not event.step)):
            return
        if event.step % self.every:
            return
        corpus = trainer.corpus
        found = reach(trainer.model, corpus.val or corpus.train, window=self.window, tokens=self.tokens, warm_up=0)
        self.flows.append(Flow(event.step, found))
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.flows[-1].as_dict()) + "\n")
