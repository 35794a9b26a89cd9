"""Dynamic evaluation: a copy of the model learns from the text that it is scored on, after each prediction."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .corpus import Progress, Split
from .evaluate import Score, check, device_of, numbers, part, score, windows
from .lanes import Window
from .loss import token_nats
from .model import LanguageModel
from .state import LSTMState
from .tokens import Tokenizer

# The statistics of the gradient are those of so many segments, in stretches spread evenly over the training text.
_STRETCHES, _SEGMENTS = 8, 50
# A weight whose gradient is smaller than this share of the mean is not moved faster for it.
_FLOOR = 0.1
# What `tuned` tries, as factors of the settings that it is given.
_LR_FACTORS, _DECAY_FACTORS = (0.5, 1.0, 2.0), (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Dynamic:
    """How the copy learns. After each `segment` of tokens every weight makes a step of gradient descent.

    "rms": by about `lr`, as the gradient is divided by its root mean square on the training text, and back towards the
    trained weight by the share `decay` of the way, more where gradients are large (Krause et al. 2018, section 4).
    "sgd": `lr` times the gradient of the mean loss, and back by the share `decay`.
    """

    lr: float = 4e-4
    decay: float = 3e-3
    segment: int = 32
    method: Literal["rms", "sgd"] = "rms"

    def __post_init__(self) -> None:
        for name, most in (("lr", math.inf), ("decay", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ValueError(f"{name} must be 0 or more{' and at most 1' * (most == 1)}, got {value!r}")
        if isinstance(self.segment, bool) or not isinstance(self.segment, int) or self.segment < 1:
            raise ValueError(f"segment must be at least 1 token, got {self.segment!r}")
        if self.method not in ("rms", "sgd"):
            raise ValueError(f'method must be "rms" or "sgd", got {self.method!r}')


@torch.inference_mode(False)
def dynamic(
    model: LanguageModel,
    split: Split,
    tokenizer: Tokenizer,
    *,
    scales: Sequence[Tensor] | None = None,
    settings: Dynamic | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a split with the state carried, as `stateful` does, by a copy of the model that learns as it reads.

    Each token is predicted before it is learned from. The copy keeps what it learned across documents; `model` is left
    untouched. `scales`, which "rms" needs, are the `gradient_rms` of the text that the model learned from. Errors as in
    `evaluate`, and ValueError where the loss is no longer a number.
    """
    settings = settings or Dynamic()
    check(model, split, tokenizer)
    total, done = 0.0, 0
    for nats in dynamic_nats(model, split, settings, scales):
        total, done = total + float(nats.sum()), done + len(nats)
        if not math.isfinite(total):
            raise ValueError(
                f"dynamic evaluation diverged within {done} tokens with lr={settings.lr:g}; "
                f"use a smaller one, such as {settings.lr / 10:g} (--dynamic-lr)"
            )
        if progress is not None:
            progress("dynamic", done, split.predictions)
    return score(total, split, tokenizer)


@torch.inference_mode(False)
def tuned(
    model: LanguageModel,
    held_out: Split,
    tokenizer: Tokenizer,
    *,
    scales: Sequence[Tensor] | None = None,
    settings: Dynamic | None = None,
    progress: Progress | None = None,
) -> Dynamic:
    """Of nine settings around those given, in lr and decay, the one that scores `held_out` best.

    `held_out` must be neither what is scored afterwards nor what the model learned from.
    """
    settings = settings or Dynamic()
    check(model, held_out, tokenizer)
    tried = [
        replace(settings, lr=settings.lr * lr, decay=min(1.0, settings.decay * decay))
        for lr in _LR_FACTORS
        for decay in _DECAY_FACTORS
    ]
    totals = []
    for number, candidate in enumerate(tried, 1):
        total = sum(float(nats.sum()) for nats in dynamic_nats(model, held_out, candidate, scales))
        totals.append(total if math.isfinite(total) else math.inf)
        if progress is not None:
            progress("tuning", number, len(tried))
    return tried[int(np.argmin(totals))]


def dynamic_nats(
    model: LanguageModel, split: Split, settings: Dynamic, scales: Sequence[Tensor] | None = None
) -> Iterator[NDArray[np.float64]]:
    """The nats of each segment's scored tokens, by the weights from before that segment.

    `scales` as for `dynamic`.
    """
    reader = _Reader(model)
    rates, decays = _steps(settings, scales, len(reader.weights))
    trained = [weight.detach().clone() for weight in reader.weights]
    for window in windows(split, settings.segment, device_of(model)):
        nats, gradients = reader.read(window)
        with torch.no_grad():
            for weight, goal, decay, rate, gradient in zip(
                reader.weights, trained, decays, rates, gradients, strict=False
            ):
                weight.lerp_(goal, decay).addcmul_(gradient, rate, value=-1)
        yield nats


@torch.inference_mode(False)
def gradient_rms(
    model: LanguageModel, train: Split, segment: int = Dynamic.segment, *, progress: Progress | None = None
) -> list[Tensor]:
    """The root mean square of each parameter's gradient, of a segment's mean loss, over 400 segments of `train`."""
    reader, count = _Reader(model), 0
    squares = [torch.zeros_like(weight) for weight in reader.weights]
    last = max(0, len(train) - 1 - _SEGMENTS * segment)
    for begin in sorted({int(place) for place in np.linspace(0, last, _STRETCHES)}):
        stretch = part(train, begin, min(begin + _SEGMENTS * segment + 1, len(train)))
        reader.restart()
        for window in windows(stretch, segment, device_of(model)):
            _, gradients = reader.read(window)
            for square, gradient in zip(squares, gradients, strict=False):
                square.addcmul_(gradient, gradient)
            count += bool(gradients)
            if progress is not None:
                progress("gradients of the training text", count, _STRETCHES * _SEGMENTS)
    return [square.div_(max(1, count)).sqrt_() for square in squares]


class _Reader:
    """A copy of a model that reads windows one behind the other, in float32 or float64, without dropout."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_()
        if self._model.zero_state(1).h.dtype in (torch.bfloat16, torch.float16):
            self._model.float()
        self.weights = list(self._model.parameters())
        self.restart()

    def restart(self) -> None:
        """From where a text begins."""
        self._state: LSTMState | None = None

    def read(self, window: Window) -> tuple[NDArray[np.float64], tuple[Tensor, ...]]:
        """Nats of the window's scored tokens and the gradient of their mean; no gradient where there are none."""
        with torch.enable_grad():
            logits, state = self._model(window.inputs, self._state, resets=window.resets)
            nats = token_nats(logits, window.targets, window.scored)
            # Zeros for a learned initial state, which windows in the middle of a text do not reach.
            gradients: tuple[Tensor, ...] = ()
            if nats.numel():
                gradients = torch.autograd.grad(nats.mean(), self.weights, materialize_grads=True)
        self._state = state.detach()
        return numbers(nats), gradients


def _steps(settings: Dynamic, scales: Sequence[Tensor] | None, weights: int) -> tuple[list[Tensor], list[Tensor]]:
    """What each parameter's gradient, and its way back to the trained weight, is multiplied by."""
    if settings.method == "sgd":
        return [torch.tensor(settings.lr)] * weights, [torch.tensor(settings.decay)] * weights
    if scales is None:
        raise ValueError(
            'method "rms" needs the statistics of the gradient: scales=gradient_rms(model, train, segment); '
            'method "sgd" does without'
        )
    mean = sum(float(scale.sum()) for scale in scales) / sum(scale.numel() for scale in scales) or 1.0
    rates = [settings.lr / (scale + _FLOOR * mean) for scale in scales]
    return rates, [(settings.decay / mean * scale).clamp(max=1) for scale in scales]
