"""What `unrolled eval` does: find the texts, score each, and say beside which bars, or why there are none."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .beginning import ENCODED
from .checkpoint import Run, has_models, load
from .config import TrainConfig
from .corpus import Corpus, Progress, Split, read_corpus
from .dynamic import Dynamic, dynamic, gradient_rms, tuned
from .evaluate import Counts, Evaluation, PositionCurve, Score, evaluate, part, positions
from .machine import threads
from .score_request import ScoreRequest
from .score_table import position_table, score_line, score_table

# Of the validation text, for --dynamic-tune, which reads it nine times.
TUNED_TOKENS = 20_000


@dataclass(frozen=True, eq=False)
class Result:
    """The scores of one text, and sentences on what they are not."""

    text: str
    evaluation: Evaluation
    notes: tuple[str, ...] = ()
    dynamic: Score | None = None
    settings: Dynamic | None = None
    curve: PositionCurve | None = None

    def table(self) -> str:
        """All of it for the terminal."""
        parts = [score_table(self.evaluation), *self.notes]
        if self.curve is not None:
            parts.append("\n" + position_table(self.curve))
        if self.dynamic is not None and self.settings is not None:
            used = self.settings
            parts.append(
                f"\n{score_line('model, dynamic', self.dynamic)}\n"
                "dynamic: it goes on learning from the text that it is scored on; compare only with what does so too\n"
                f"settings: {used.method}, lr {used.lr:g}, decay {used.decay:g}, segments of {used.segment} tokens"
            )
            if self.dynamic.nats >= self.evaluation.stateful.nats:
                parts.append(
                    "Learning from this text made it no better: try a smaller --dynamic-lr, or --dynamic-tune."
                )
        return "\n".join(parts)

    def as_json(self) -> str:
        """All of it on one line. Numbers that JSON does not have are null: means over no tokens."""
        found: dict[str, Any] = {"text": self.text, **asdict(self.evaluation), "notes": self.notes}
        if self.curve is not None:
            rows = {name: getattr(self.curve, name).tolist() for name in ("warm", "cold", "tokens")}
            found["positions"] = {name: [x if x == x else None for x in row] for name, row in rows.items()}
        if self.dynamic is not None and self.settings is not None:
            found["dynamic"] = {**asdict(self.dynamic), "settings": asdict(self.settings)}
        return json.dumps(found)


def results(
    run: Path, files: tuple[Path, ...], request: ScoreRequest, progress: Progress | None = None
) -> Iterator[Result]:
    """One result for each text, in order, each as soon as it is there. ValueError for a text that can't be scored."""
    request.check(files)
    asked = Dynamic(**request.settings) if request.dynamic else None
    subject = _Subject(load(run), request, asked, progress)
    with threads(request.threads):
        for text in subject.texts(files):
            yield subject.result(*text)


def recorded(run: Run) -> Corpus | str:
    """The text that the run was made from, or why it can't be had."""
    record = run.training or {}
    if "config" not in record or "sha256" not in record:
        return f"{run.directory} does not say what it was trained on"
    try:
        config = TrainConfig.from_dict(record["config"])
        corpus = read_corpus(
            config.files,
            split=config.split,
            val=config.val,
            tokenizer=run.tokenizer,
            separator=config.document_separator or "",
            cache=_cache(run),
        )
    except (ValueError, TypeError, OSError) as error:
        return f"the text of the run can't be read ({error})"
    if corpus.sha256 != record["sha256"]:
        return f"{', '.join(config.files) or 'the built-in text'} has changed since the run was made"
    return corpus


class _Subject:
    """A loaded run, and what is made of its training text at most once."""

    def __init__(self, run: Run, request: ScoreRequest, asked: Dynamic | None, progress: Progress | None) -> None:
        self._run, self._request, self._asked, self._progress = run, request, asked, progress

    def texts(self, files: tuple[Path, ...]) -> Iterator[tuple[str, Split, list[str]]]:
        """Each text's name, its ids, and what is to be noted."""
        name = self._request.split or "val"
        if not files:
            yield f"the run's own text, {_LONG[name]}", self._held_back(name), []
        for file in files:
            corpus = self._read(file)
            notes = list(corpus.notes)
            if corpus.sha256 == (self._run.training or {}).get("sha256"):
                notes.append(
                    f"{file} is the text that the run was made from, so most of it is no news to the model or to the "
                    "n-grams; without FILE, the part that was held back is scored"
                )
            yield str(file), corpus.train, notes

    def result(self, name: str, split: Split, notes: list[str]) -> Result:
        """All that was asked for, of one text."""
        request, model, tokenizer = self._request, self._run.model, self._run.tokenizer
        counts = self._counts
        evaluation = evaluate(
            model, split, tokenizer, counts=None if isinstance(counts, str) else counts, progress=self._progress
        )
        if isinstance(counts, str):
            notes = [*notes, counts]
        result = Result(name, evaluation, tuple(notes))
        if request.positions:
            curve = positions(model, split, tokenizer, progress=self._progress)
            result = dataclasses.replace(result, curve=curve)
        if self._asked is not None:
            settings = self._settings
            score = dynamic(model, split, tokenizer, scales=self._scales, settings=settings, progress=self._progress)
            result = dataclasses.replace(result, dynamic=score, settings=settings)
        return result

    def _read(self, *files: Path) -> Corpus:
        return read_corpus(
            files, tokenizer=self._run.tokenizer, split=(1.0,), cache=_cache(self._run), progress=self._progress
        )

    def _held_back(self, name: Literal["val", "test"]) -> Split:
        corpus = self._recorded
        if isinstance(corpus, str):
            raise ValueError(f"{corpus}; name a text to score: unrolled eval {self._run.directory} FILE")
        split = corpus.val if name == "val" else corpus.test
        if split is None:
            raise ValueError(
                f"{self._run.directory} has no {_LONG[name]}: its text was divided into {', '.join(corpus.sizes)}; "
                f"name a text to score: unrolled eval {self._run.directory} FILE"
            )
        return split

    @cached_property
    def _recorded(self) -> Corpus | str:
        return recorded(self._run)

    @cached_property
    def _train(self) -> Split | str:
        if self._request.train:
            return self._read(*self._request.train).train
        return self._recorded if isinstance(self._recorded, str) else self._recorded.train

    @cached_property
    def _counts(self) -> Counts | str:
        if isinstance(self._train, str):
            return f"no n-grams to compare with: {self._train}; --train FILE names the training text"
        if self._progress is not None:
            self._progress("counting n-grams", 0, 1)
        return Counts.of(self._train, self._run.tokenizer)

    @cached_property
    def _scales(self) -> Sequence[Tensor] | None:
        if self._asked is None or self._asked.method == "sgd":
            return None
        if isinstance(self._train, str):
            raise ValueError(
                f"dynamic evaluation needs the training text, for the statistics of its gradient, and {self._train}; "
                "name it, --train FILE, or do without: --dynamic-sgd"
            )
        return gradient_rms(self._run.model, self._train, self._asked.segment, progress=self._progress)

    @cached_property
    def _settings(self) -> Dynamic:
        assert self._asked is not None, "wanted for dynamic evaluation alone"
        if not self._request.dynamic_tune:
            return self._asked
        held = self._held_back("val")
        some = part(held, 0, TUNED_TOKENS)
        return tuned(
            self._run.model,
            some,
            self._run.tokenizer,
            scales=self._scales,
            settings=self._asked,
            progress=self._progress,
        )


def _cache(run: Run) -> Path | None:
    """Where encoded text is kept: beside the run, or the model that is in none; None where nothing can be written."""
    directory = run.directory.absolute()
    beside = (directory.parent if has_models(directory.parent) else directory).parent
    place = beside / ENCODED
    return place if os.access(place if place.exists() else beside, os.W_OK) else None


_LONG = {"val": "validation part", "test": "test part"}
