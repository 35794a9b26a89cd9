"""Trainer: the loop of a run, from its first event to its last."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from .beginning import agreed, begin, check_text, fitting, settled
from .board import Board
from .checkpoint import Run
from .config import ConfigError, TrainConfig
from .corpus import Corpus, Progress
from .endings import begun_elsewhere, diverged, is_out_of_memory, not_saved, out_of_memory
from .evaluate import Counts, Evaluation, Score, blocks, evaluate, part
from .events import Evaluated, Event, Finished, Saved, SaveFailed, Started, StepDone
from .generate import generate
from .lanes import Lanes
from .learner import Learner, NotFiniteError
from .machine import check_autocast, device_named, threads
from .model import LanguageModel
from .own_model import as_language_model, write
from .pace import steps_in
from .ranks import ElsewhereError, RankError, Ranks
from .resume import Earlier, Standing, record, take_up, timed_before
from .run_directory import RunDirectory
from .state_layout import StateLayout
from .weights import check_shapes

__all__ = [
    "Callback",
    "ConfigError",
    "Evaluated",
    "Event",
    "Finished",
    "Saved",
    "SaveFailed",
    "Started",
    "StepDone",
    "TrainConfig",
    "Trainer",
    "TrainingError",
]

# Validation tokens scored while training goes on, in blocks, and at its end, both ways: more would cost more time than
# it tells.
EVALUATION_TOKENS, FINAL_TOKENS = 200_000, 500_000
SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 200, 0.8
LOG_EVERY = 10


class TrainingError(ValueError):
    """Training that came to a point from which it can't go on; the message says what is left and what to try."""


class Callback(Protocol):
    """Called with each event before `Trainer.run` yields it; `trainer.stop()` ends the run after the step.

    Where it raises, the model is saved, and then what it raised ends the run.
    """

    def __call__(self, event: Event, trainer: Trainer, /) -> object: ...


class Trainer:
    """Trains a language model, saves it as it goes, and goes on exactly where an earlier call stopped.

    `config` is the resolved configuration, `corpus` the text, `model` the model in training, `averaged` the running
    average of its weights: what is evaluated, sampled from and saved (`model` itself with ema=0). Both are
    `LanguageModel`s, or of the class of the model that was given.

    All that is random follows from (seed, step), so torch's global generator is neither used up nor saved, and nothing
    that a caller draws between two events changes a run.
    """

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus | None = None,
        model: nn.Module | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        progress: Progress | None = None,
    ) -> None:
        """`corpus` stands in for `config.files`, and `model` for a fresh one; its sizes then replace those of `config`.

        `model`: a `LanguageModel`, or a module of any class that can be called as `Recurrent` says.

        `progress` hears, on rank 0, how far text is that is encoded, as `read_corpus` says.

        Nothing of the run is written yet, only encoded text. With `config.minutes` some steps are timed. Raises
        ConfigError, CorpusError, or TooShortError (a ValueError) for a text too short for lanes x window.
        """
        ranks = self.ranks = Ranks.present()
        config = agreed(config, ranks)
        if corpus is None:
            config, corpus, earlier = ranks.in_turn(partial(begin, config, progress if ranks.is_first else None))
            model = earlier if model is None else model
        self.corpus, self.device = corpus, device_named(config.device, ranks.local if ranks.size > 1 else None)
        if config.autocast:
            check_autocast(self.device)
        check_text(corpus, config, ranks, evaluated=EVALUATION_TOKENS)
        self.lanes = Lanes(corpus.train, config.lanes, config.window, seed=config.seed)
        model = fitting(model, config, corpus.tokenizer.size)
        self.model: Any = model.to(self.device).train()
        layout = StateLayout.of(model, corpus.tokenizer.size, self.device)
        config = settled(config, model, self.device)
        if config.minutes is not None and config.steps is None:
            steps = ranks.told(lambda: timed_before(config))
            steps = steps or steps_in(config, model, layout, self.lanes, corpus, EVALUATION_TOKENS, ranks=ranks)
            config = dataclasses.replace(config, steps=steps)
        self.config = config.resolved(self.lanes.windows_per_epoch)
        self.directory = Path(self.config.out or "")
        self._files = RunDirectory(self.directory)
        self._learner = Learner(model, layout, self.lanes, self.config, self.device, ranks)
        self.averaged: Any = self._learner.averaged
        self._callbacks = [*callbacks, *([Board(self.directory / "tensorboard")] if config.tensorboard else [])]
        self._at, self._saved = Standing(), -1
        self._seconds = 0.0
        self._stopped = self._heard = False

    @property
    def steps(self) -> int:
        """Length of the run."""
        assert self.config.steps is not None, "a resolved configuration has its steps"
        return self.config.steps

    def stop(self) -> None:
        """Let `run` end after the step that it is in: it saves, and its last event says `interrupted`."""
        self._stopped = True

    def run(self) -> Iterator[Event]:
        """Train, and yield an event for all that happens; between two events the caller may look at everything.

        Where `config.out` holds this very run, it is taken up: the weights, the optimiser, the carried state, the place
        in the text and the log are those of its newest model. Raises ConfigError where it holds another one,
        LockedError where another trainer is at work there, and TrainingError where the loss is no longer a number,
        where memory runs out, or where the run has come to its end and can't be saved.
        """
        ranks, files = self.ranks, self._files
        with threads(self.config.threads), ExitStack() as stack:
            ranks.told(lambda: stack.enter_context(files.claimed(resume=self.config.resume)))
            log_bytes = self._take_up()
            ranks.told(lambda: stack.enter_context(files.opened(self.config, log_bytes)))
            self._heard = ranks.told(lambda: bool(self._callbacks))
            for event in self._events():
                self._tell(event)
                yield event
        self._stopped = False

    def _events(self) -> Iterator[Event]:
        began = self._at.step
        eval_every, save_every = self.config.eval_every or self.steps, self.config.save_every or self.steps
        yield self._start()
        while self._at.step < self.steps and not self._early and not self.ranks.any(self._stopped):
            yield self._advance()
            step, last = self._at.step, self._at.step == self.steps
            if step % eval_every == 0 or last:
                yield self._evaluate()
            if not last and (step % save_every == 0 or self._at.is_best):
                yield self._save()
        if self._saved != self._at.step:
            yield self._save(last=True)
        yield self._finish(began)

    @property
    def _early(self) -> bool:
        return self.config.patience is not None and self._at.waited >= self.config.patience

    def _tell(self, event: Event) -> None:
        if not self._heard:
            return
        try:
            for callback in self._callbacks if self.ranks.is_first else ():
                callback(event, self)
        except Exception:
            self.ranks.any(True)
            self._save_what_is_not_saved()
            raise
        if self.ranks.any(False):
            self._save_what_is_not_saved()
            raise ElsewhereError("a callback of rank 0 raised")

    def _save_what_is_not_saved(self) -> None:
        if self._saved != self._at.step:
            self._save(last=True)

    def _take_up(self) -> int:
        """Go to where the run stands, and return the length of its log there: 0 where it is yet to begin."""
        found: list[Earlier] = []
        told = self.ranks.told(lambda: self._found(found))
        if told is None and self.ranks.any(self._files.last() is not None):
            raise RankError(begun_elsewhere(self.directory))
        if told is not None:
            standing, log_bytes = told
            self._at = Standing.of(standing)
            self._saved = self._at.step
        self._learner.begin((found[0].averaged, found[0].training.tensors) if found else None)
        return log_bytes if told is not None else 0

    def _found(self, found: list[Earlier]) -> tuple[dict[str, Any], int] | None:
        """Put the run as it was saved, if it was, into `found`; what of it is plain."""
        newest = self._files.newest()
        if newest is None:
            return None
        earlier = take_up(newest, self.config, self.corpus)
        check_shapes(newest / "training.safetensors", _shapes(self._learner.tensors()), earlier.training.tensors)
        check_shapes(newest / "weights.safetensors", _shapes(self.averaged.state_dict()), earlier.averaged)
        found.append(earlier)
        return asdict(earlier.standing), earlier.log_bytes

    def _start(self) -> Started:
        if self._saved >= 0 and self.ranks.is_first:
            self._files.log_saved(self._saved)
        self._log(
            "started",
            step=self._at.step,
            config=self.config.as_dict(),
            sha256=self.corpus.sha256,
            torch=str(torch.__version__),
            threads=torch.get_num_threads(),
            ranks=self.ranks.size,
        )
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        epoch = self.lanes.windows_per_epoch
        return Started(self.config, self.directory, self._at.step, parameters, self.corpus.sizes, epoch)

    def _advance(self) -> StepDone:
        began = time.perf_counter()
        try:
            lesson = self._learner.step(self._at.step)
        except NotFiniteError as error:
            self._give_up(str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(out_of_memory(self._at.step + 1, self.config, self.device)) from None
        self._at.step += 1
        seconds = time.perf_counter() - began
        self._seconds = 0.9 * self._seconds + 0.1 * seconds if self._seconds else seconds
        event = StepDone(
            step=self._at.step,
            steps=self.steps,
            epoch=self._at.step / self.lanes.windows_per_epoch,
            loss=lesson.loss,
            bits_per_byte=lesson.loss / math.log(2) / self._bytes_per_token,
            grad_norm=lesson.norm,
            lr=lesson.rate,
            tokens_per_second=lesson.tokens / self._seconds,
            seconds_left=(self.steps - self._at.step) * self._seconds,
        )
        if event.step % LOG_EVERY == 0 or event.step in (1, self.steps):
            self._log("step", **asdict(event))
        return event

    def _check_weights(self) -> None:
        finite = all(bool(weight.isfinite().all()) for weight in self.averaged.parameters())
        if self.ranks.any(not finite):
            self._give_up(f"the weights are no longer finite after step {self._at.step}")

    def _give_up(self, what: str) -> NoReturn:
        self._log("diverged", step=self._at.step, reason=what)
        raise TrainingError(diverged(what, self.config, self._files.last()))

    def _evaluate(self) -> Evaluated:
        self._check_weights()
        score, sample = self.ranks.told(self._scored)
        if score is not None:
            self._at.see(Score(**score))
        event = Evaluated(self._at.step, self._at.score, sample)
        self._log("evaluated", **asdict(event))
        return event

    def _scored(self) -> tuple[dict[str, Any] | None, str]:
        score = None
        if self.corpus.val is not None:
            held = part(self.corpus.val, 0, EVALUATION_TOKENS)
            score = asdict(blocks(self._scored_model, held, self.corpus.tokenizer))
        return score, self._sample(self.config.seed + self._at.step)

    @property
    def _scored_model(self) -> LanguageModel:
        return as_language_model(self.averaged, self.corpus.tokenizer.size)

    def _sample(self, seed: int) -> str:
        tokenizer, model, temperature = self.corpus.tokenizer, self.averaged, SAMPLE_TEMPERATURE
        if not isinstance(model, LanguageModel):
            return write(model, tokenizer, tokens=SAMPLE_TOKENS, temperature=temperature, seed=seed)
        run = Run(model, tokenizer, model.config, self.directory)
        pieces = generate(run, max_tokens=SAMPLE_TOKENS, temperature=temperature, seed=seed)
        return "".join(piece.text for piece in pieces)

    def _save(self, *, last: bool = False) -> Saved | SaveFailed:
        """Save, or else say why not; the run's last save has to be one."""
        self._check_weights()
        step, best, at = self._at.step, self._at.is_best, self._at.saved()
        reason, name = self.ranks.told(partial(self._written, at, self._learner.tensors(), best=best))
        self._learner.align()
        if not reason:
            self._at, self._saved = at, step
            return Saved(step, Path(name), best)
        newest = Path(name) if name else None
        if last:
            raise TrainingError(not_saved(step, reason, newest))
        return SaveFailed(step, reason, newest)

    def _written(self, at: Standing, tensors: dict[str, Tensor], *, best: bool) -> tuple[str, str]:
        """Nothing and the new model directory; or why there is none, and the newest that there is, if any."""
        made = partial(record, at, self.config, self.corpus)
        try:
            directory = self._files.save(
                at.step, self.averaged, self.corpus.tokenizer, made, tensors, keep=self.config.keep, best=best
            )
        except OSError as error:
            reason, newest = error.strerror or str(error), self._files.last()
            self._log("save_failed", step=at.step, reason=reason)
            return reason, str(newest or "")
        return "", str(directory)

    def _finish(self, began: int) -> Finished:
        at, early = self._at, self._early and self._at.step < self.steps
        interrupted = at.step < self.steps and not early
        scores = None if interrupted else self.ranks.told(self._finally_scored)
        self._log("finished", step=at.step, steps=self.steps, interrupted=interrupted, early=early, evaluation=scores)
        return Finished(
            at.step,
            self.steps,
            began,
            self.directory,
            interrupted,
            None if scores is None else Evaluation.of(scores),
            best=at.best,
            best_step=at.best_step,
            early=early,
        )

    def _finally_scored(self) -> dict[str, Any] | None:
        if self.corpus.val is None:
            return None
        counts = Counts.of(self.corpus.train, self.corpus.tokenizer)
        held = part(self.corpus.val, 0, FINAL_TOKENS)
        return asdict(evaluate(self._scored_model, held, self.corpus.tokenizer, counts=counts))

    def _log(self, event: str, **values: Any) -> None:
        if self.ranks.is_first:
            self._files.log(event, **values)

    @cached_property
    def _bytes_per_token(self) -> float:
        train = self.corpus.train
        return train.bytes_scored(self.corpus.tokenizer) / max(1, train.predictions)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
