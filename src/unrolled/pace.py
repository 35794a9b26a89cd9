"""Minutes to steps: how long a step and a score take here, tried on a copy of the model that is thrown away."""

from __future__ import annotations

import copy
import dataclasses
import time

from torch import nn

from .config import TrainConfig
from .corpus import Corpus
from .evaluate import blocks, part
from .lanes import Lanes
from .learner import Learner
from .machine import threads
from .own_model import as_language_model
from .ranks import ALONE, Ranks
from .state_layout import StateLayout

# The first steps also start threads, fill caches and, perhaps, compile.
_FIRST_STEPS, _FEWEST_STEPS = 3, 3
_SECONDS, _SHARE = 3.0, 0.02
_SCORED = 20_000


def steps_in(
    config: TrainConfig,
    model: nn.Module,
    layout: StateLayout,
    lanes: Lanes,
    corpus: Corpus,
    scored: int,
    *,
    ranks: Ranks = ALONE,
) -> int:
    """How many steps, with scores of at most `scored` tokens between them, fit into `config.minutes` from now.

    Several ranks time their steps together, by the clock of rank 0.
    """
    assert config.minutes is not None, "the run has a length in minutes"
    began, whole = time.perf_counter(), 60 * config.minutes
    device = next(model.parameters()).device
    # Steps that go nowhere: the copy is to be timed, not trained.
    still = dataclasses.replace(config, steps=1, lr=1e-30)
    with threads(config.threads):
        trial = Learner(copy.deepcopy(model), layout, lanes, still, device, ranks)
        step = _seconds_of_a_step(trial, min(_SECONDS, _SHARE * whole), ranks)
        score = ranks.told(lambda: _seconds_of_a_score(trial.averaged, corpus, scored))
    left = whole - (time.perf_counter() - began)
    return ranks.told(lambda: max(1, int(_fitting(left, step, score, config.eval_every))))


def _fitting(seconds: float, step: float, score: float, eval_every: int | None) -> float:
    if eval_every is not None:
        return seconds / (step + score / eval_every)
    # A score each tenth of the run, but at least every 500 steps.
    tenths = max(seconds - 10 * score, seconds / 2) / step
    return tenths if tenths <= 5000 else seconds / (step + score / 500)


def _seconds_of_a_step(trial: Learner, seconds: float, ranks: Ranks) -> float:
    for step in range(_FIRST_STEPS):
        trial.step(step)
    began, count = time.perf_counter(), 0
    while count < _FEWEST_STEPS or ranks.told(lambda: time.perf_counter() - began < seconds):
        trial.step(_FIRST_STEPS + count)
        count += 1
    return (time.perf_counter() - began) / count


def _seconds_of_a_score(model: nn.Module, corpus: Corpus, scored: int) -> float:
    if corpus.val is None:
        return 0.0
    some = part(corpus.val, 0, _SCORED)
    if not some.predictions:
        some = part(corpus.val, 0, scored)
    began = time.perf_counter()
    blocks(as_language_model(model, corpus.tokenizer.size), some, corpus.tokenizer)
    return (time.perf_counter() - began) / len(some) * min(len(corpus.val), scored)
