"""Trainer: truncated backpropagation through time, with the state carried from each window to the next."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from .checkpoint import CheckpointError, Run, Training, check_shapes, latest, load, load_training, save_step, step_name
from .config import ConfigError, TrainConfig
from .corpus import Corpus, Split, read_corpus
from .evaluate import Score, blocks, evaluate
from .events import Evaluated, Event, Finished, Saved, Started, StepDone
from .generate import generate
from .journal import Journal
from .lanes import Lanes
from .loss import nats
from .model import LanguageModel, ModelConfig
from .optimize import Optimizer
from .state import LSTMState

__all__ = [
    "ConfigError",
    "Evaluated",
    "Event",
    "Finished",
    "Saved",
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
CONFIG_FILE = "config.toml"


class TrainingError(ValueError):
    """Training that came to a point from which it can't go on; the message says what is left and what to try."""


class Trainer:
    """Trains a language model, saves it as it goes, and goes on exactly where an earlier call stopped.

    `config` is the resolved configuration, `corpus` the text, `model` the model in training, `averaged` the running
    average of its weights: what is evaluated, sampled from and saved (`model` itself with ema=0).

    All that is random follows from (seed, step), so torch's global generator is neither used up nor saved, and nothing
    that a caller draws between two events changes a run.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus | None = None, model: LanguageModel | None = None) -> None:
        """`corpus` stands in for `config.files`, and `model` for a fresh one; its sizes then replace those of `config`.

        Nothing is written yet. Raises ConfigError, CorpusError, or ValueError for a text too short for lanes x window.
        """
        corpus = corpus or read_corpus(config.files, tokens=config.tokens, split=config.split, val=config.val)
        self.corpus, self.device = corpus, _device(config.device)
        self.lanes = Lanes(corpus.train, config.lanes, config.window, seed=config.seed)
        if model is None:
            model = _fresh(config, corpus.tokenizer.size)
        elif model.config.vocabulary != corpus.tokenizer.size:
            raise ConfigError(
                f"the model was built for {model.config.vocabulary} tokens, the text has {corpus.tokenizer.size}; "
                f"build it with ModelConfig(vocabulary={corpus.tokenizer.size})"
            )
        self.model = model.to(self.device).train()
        self.config = _settled(config.resolved(self.lanes.windows_per_epoch), self.model, self.device)
        self.directory = Path(self.config.out or "")
        self.optimizer = Optimizer(self.model, self.config, self.steps)
        self.averaged = self.optimizer.averaged
        self._state: LSTMState | None = None
        self._step, self._saved = 0, -1
        self._score: Score | None = None
        self._seconds = 0.0
        self._stopped = False

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
        in the text and the log are those of its newest model. Raises ConfigError where it holds another one, and
        TrainingError where the loss is no longer a number.
        """
        began, log = self._open()
        eval_every, save_every = self.config.eval_every or self.steps, self.config.save_every or self.steps
        with _threads(self.config.threads), Journal(self.directory / "log.jsonl", keep=log) as journal:
            yield self._start(journal)
            while self._step < self.steps and not self._stopped:
                yield self._advance(journal)
                if self._step % eval_every == 0 or self._step == self.steps:
                    yield self._evaluate(journal)
                if self._step % save_every == 0 or self._step == self.steps:
                    yield self._save(journal)
            if self._saved != self._step:
                yield self._save(journal)
            yield self._finish(journal, began)
        self._stopped = False

    def _open(self) -> tuple[int, int]:
        """Begin the run or take it up: the step from which it goes on, and the log's length there."""
        newest = latest(self.directory)
        if newest is None:
            if self.config.resume:
                raise ConfigError(
                    f"{self.directory} has no saved model to go on from; leave --resume out to begin the run"
                )
            self._check_free()
            self.directory.mkdir(parents=True, exist_ok=True)
            log = 0
        else:
            log = self._take_up(newest)
        self._kept_config().save(self.directory / CONFIG_FILE)
        return self._step, log

    def _kept_config(self) -> TrainConfig:
        """The configuration without what only the command at hand wanted."""
        return dataclasses.replace(self.config, resume=False, quiet=False)

    def _check_free(self) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"{self.directory} is a file; name a directory with --out")
        if self.directory.is_dir() and any(self.directory.iterdir()) and not (self.directory / CONFIG_FILE).exists():
            raise ConfigError(
                f"{self.directory} has something in it that is no training run; name another directory with --out"
            )

    def _take_up(self, newest: Path) -> int:
        training = load_training(newest)
        try:
            earlier = TrainConfig.from_dict(training.record["config"])
            step, log, text = (training.record[key] for key in ("step", "log_bytes", "sha256"))
            score = training.record["score"]
            self._score = None if score is None else Score(**score)
            if type(step) is not int or type(log) is not int:
                raise TypeError("step and log_bytes must be whole numbers")
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{newest / 'training.json'} is not of a training run ({error})") from None
        changed = self.config.changed_from(earlier)
        if text != self.corpus.sha256:
            changed.append("the text is not the one that the run began with")
        if changed:
            lines = "".join(f"\n  {line}" for line in changed)
            raise ConfigError(
                f"{self.directory} holds a run that began otherwise:{lines}\n"
                f"go on with it as it is: --config {self.directory / CONFIG_FILE}, or begin another: --out DIRECTORY"
            )
        if step > self.steps:
            raise ConfigError(
                f"{self.directory} has come to step {step}, and this run would end at {self.steps}; give it more: "
                f"--steps {2 * step}, or begin another: --out DIRECTORY"
            )
        self._restore(load(newest), training)
        self._step = self._saved = step
        return log

    def _start(self, journal: Journal) -> Started:
        event = Started(
            self.config,
            self.directory,
            self._step,
            sum(parameter.numel() for parameter in self.model.parameters()),
            self.corpus.sizes,
            self.lanes.windows_per_epoch,
        )
        if self._saved >= 0:
            # The model vouches for the log up to its own line, which was cut off with all that followed.
            self._log_saved(journal)
        journal.write(
            "started",
            step=self._step,
            config=self.config.as_dict(),
            sha256=self.corpus.sha256,
            torch=str(torch.__version__),
            threads=torch.get_num_threads(),
        )
        return event

    def _advance(self, journal: Journal) -> StepDone:
        config, began = self.config, time.perf_counter()
        epoch, index = divmod(self._step, self.lanes.windows_per_epoch)
        inputs, targets, resets, scored = (
            None if part is None else part.to(self.device) for part in self.lanes.window(epoch, index)
        )
        assert inputs is not None and targets is not None  # noqa: PT018
        # A lane's first window of an epoch continues nothing.
        state = self._state if config.state == "carry" and index else None
        with _randomness(config.seed, self._step, self.device):
            logits, state = self.model(inputs, state, resets=resets)
        tokens = targets.numel() if scored is None else int(scored.sum())
        loss = nats(logits, targets, scored) / max(1, tokens)
        norm = self.optimizer.backward(loss)
        # The one moment at which a step waits for the device.
        mean, length = torch.stack([loss.detach(), norm.to(loss.dtype)]).tolist()
        if not (math.isfinite(mean) and math.isfinite(length)):
            self._give_up(f"the loss is {mean} and the gradient's norm {length} at step {self._step + 1}", journal)
        rate = self.optimizer.step(self._step, norm)
        self._state = state.detach()
        self._step += 1
        seconds = time.perf_counter() - began
        self._seconds = 0.9 * self._seconds + 0.1 * seconds if self._seconds else seconds
        event = StepDone(
            step=self._step,
            steps=self.steps,
            epoch=self._step / self.lanes.windows_per_epoch,
            loss=mean,
            bits_per_byte=mean / math.log(2) / self._bytes_per_token,
            grad_norm=length,
            lr=rate,
            tokens_per_second=targets.numel() / self._seconds,
            seconds_left=(self.steps - self._step) * self._seconds,
        )
        if self._step % LOG_EVERY == 0 or self._step in (1, self.steps):
            journal.write("step", **asdict(event))
        return event

    def _check_weights(self, journal: Journal) -> None:
        if not all(bool(weight.isfinite().all()) for weight in self.averaged.parameters()):
            self._give_up(f"the weights are no longer finite after step {self._step}", journal)

    def _give_up(self, what: str, journal: Journal) -> NoReturn:
        journal.write("diverged", step=self._step, reason=what)
        config, kept = self.config, latest(self.directory)
        left = f"{kept} is the last good model" if kept else "no model had been saved yet"
        clip = f"a smaller --clip (it is {config.clip:g})" if config.clip else "gradients clipped, --clip 1"
        raise TrainingError(
            f"{what}: training diverged; {left}. Begin again with a lower --lr (it is {config.lr:g}), a longer "
            f"--warmup (it is {config.warmup}) or {clip}"
        )

    def _evaluate(self, journal: Journal) -> Evaluated:
        self._check_weights(journal)
        tokenizer = self.corpus.tokenizer
        if self.corpus.val is not None:
            self._score = blocks(self.averaged, _first(self.corpus.val, EVALUATION_TOKENS), tokenizer)
        run = Run(self.averaged, tokenizer, self.averaged.config, self.directory)
        seed = self.config.seed + self._step
        pieces = generate(run, max_tokens=SAMPLE_TOKENS, temperature=SAMPLE_TEMPERATURE, seed=seed)
        event = Evaluated(self._step, self._score, "".join(piece.text for piece in pieces))
        journal.write("evaluated", **asdict(event))
        return event

    def _save(self, journal: Journal) -> Saved:
        self._check_weights(journal)
        record = {
            "step": self._step,
            "steps": self.steps,
            "config": self._kept_config().as_dict(),
            "sha256": self.corpus.sha256,
            "score": None if self._score is None else asdict(self._score),
            "log_bytes": journal.length(),
        }
        training = Training(record, self._tensors())
        directory = save_step(self.directory, self._step, self.averaged, self.corpus.tokenizer, training)
        self._saved = self._step
        self._log_saved(journal)
        return Saved(self._step, directory)

    def _log_saved(self, journal: Journal) -> None:
        journal.write("saved", step=self._saved, directory=step_name(self._saved))

    def _finish(self, journal: Journal, began: int) -> Finished:
        interrupted = self._step < self.steps
        evaluation = None
        if not interrupted and self.corpus.val is not None:
            evaluation = evaluate(self.averaged, _first(self.corpus.val, FINAL_TOKENS), self.corpus.tokenizer)
        scores = None if evaluation is None else asdict(evaluation)
        journal.write("finished", step=self._step, steps=self.steps, interrupted=interrupted, evaluation=scores)
        return Finished(self._step, self.steps, began, self.directory, interrupted, evaluation)

    def _tensors(self) -> dict[str, Tensor]:
        """Every number beside the saved weights on which the rest of the run depends."""
        tensors = self.optimizer.tensors()
        if self.config.state == "carry":
            state = self._state or self.model.zero_state(self.config.lanes)
            tensors |= {"state.h": state.h, "state.c": state.c}
        return tensors

    def _restore(self, run: Run, training: Training) -> None:
        if run.config != self.model.config or run.tokenizer != self.corpus.tokenizer:
            raise ConfigError(f"{run.directory} is of another model or another vocabulary; name another --out")
        path, tensors, step = run.directory / "training.safetensors", training.tensors, training.record["step"]
        check_shapes(path, {name: value.shape for name, value in self._tensors().items()}, tensors)
        self.optimizer.restore(step, run.model, tensors)
        if self.config.state == "carry":
            self._state = LSTMState(tensors["state.h"], tensors["state.c"]).to(self.device)

    @cached_property
    def _bytes_per_token(self) -> float:
        train = self.corpus.train
        return train.bytes_scored(self.corpus.tokenizer) / max(1, len(train) - len(train.starts))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} can't be used: {reason}; --device cpu works everywhere") from None
    return device


def _fresh(config: TrainConfig, vocabulary: int) -> LanguageModel:
    """A new model whose numbers follow from the seed alone, drawn on the CPU for every device."""
    sizes = ModelConfig(vocabulary, config.hidden, config.layers, config.embedding, config.dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LanguageModel(sizes, dtype=getattr(torch, config.dtype))


def _settled(config: TrainConfig, model: LanguageModel, device: torch.device) -> TrainConfig:
    """`config` with what the model at hand decides."""
    sizes = asdict(model.config)
    del sizes["vocabulary"]
    sizes["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    return dataclasses.replace(config, device=str(device), **sizes)


def _first(split: Split, tokens: int) -> Split:
    return split if len(split) <= tokens else Split(split.ids[:tokens], split.starts[split.starts < tokens])


@contextmanager
def _randomness(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded from (seed, step), and afterwards as they were."""
    (derived,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(derived))
        yield


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
