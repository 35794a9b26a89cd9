"""A model that is typed into and changed while it runs: its gates open, units held, states zeroed and exchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .edits import Clamp, Edit, Place
from .evaluate import device_of
from .held_weights import HeldWeights
from .model import LanguageModel, evaluating
from .samplers import Sampler, Sampling, exponentials, uniforms
from .state import LSTMState
from .tokens import StreamDecoder, Tokenizer
from .unit_statistics import NAMES

# Texts that a session has, whose states can be exchanged.
TEXTS = 2
# Tokens of a text at most: each keeps every gate of every unit.
MOST = 1000

_Change = Callable[[LSTMState], LSTMState]


@dataclass(frozen=True, eq=False)
class LiveStep:
    """A token that was read, the `text` that it completes, and what every unit did: of each of h, c, i, f, g, o
    `values`, float32 [layers, width].
    """

    token: int
    text: str
    values: Mapping[str, NDArray[np.float32]]


@dataclass
class _Text:
    """Ids that were read, the state after each (after none of them first), and what was done to these states since."""

    after: list[LSTMState]
    ids: list[int] = field(default_factory=list)
    steps: list[LiveStep] = field(default_factory=list)
    changes: dict[int, list[_Change]] = field(default_factory=dict)
    # Behind the last id; None where ids were taken back.
    decoder: StreamDecoder | None = None

    @property
    def state(self) -> LSTMState:
        state = self.after[-1]
        for change in self.changes.get(len(self.ids), ()):
            state = change(state)
        return state

    def cut(self, count: int) -> None:
        if count < len(self.ids):
            self.decoder = None
        del self.ids[count:], self.steps[count:], self.after[count + 1 :]
        self.changes = {place: each for place, each in self.changes.items() if place <= count}


class LiveSession:
    """Two texts that a `LanguageModel` reads, each with its state, which can be looked at and changed at any time.

    The model runs in evaluation mode and without gradients. `seed` is of the tokens that `write` draws. ValueError for
    a tokenizer of another vocabulary.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, *, seed: int = 0) -> None:
        if tokenizer.size != model.config.vocabulary:
            raise ValueError(
                f"the tokenizer has {tokenizer.size} tokens and the model {model.config.vocabulary}; pass the one "
                "that it was trained with"
            )
        self._model, self._tokenizer, self._weights = model, tokenizer, HeldWeights(model)
        self._uniform = uniforms(seed, 0)
        self._clamps: dict[tuple[int, str, int], float] = {}
        with torch.inference_mode():
            begin = model.initial_state(1)
        self._texts = tuple(_Text([begin]) for _ in range(TEXTS))

    @property
    def clamps(self) -> Mapping[tuple[int, str, int], float]:
        """What is held, by (layer, name, unit)."""
        return dict(self._clamps)

    def text(self, at: int = 0) -> str:
        return self._tokenizer.decode(self._texts[at].ids)

    def steps(self, at: int = 0) -> tuple[LiveStep, ...]:
        return tuple(self._texts[at].steps)

    def state(self, at: int = 0) -> LSTMState:
        """h and c after the text, with what was done to them since."""
        return self._texts[at].state

    def probabilities(self, at: int = 0) -> NDArray[np.float64]:
        """[vocabulary]: of the next token, from the state as it is now."""
        _, powers = exponentials(self._logits(at))
        shares: NDArray[np.float64] = powers / powers.sum()
        return shares

    def read(self, text: str, at: int = 0) -> int:
        """Be where `text` is: go back to the last token that it begins with, and read on. The number of tokens kept.

        What was done to a state in between is kept as long as the tokens before it are. Raises TokenizerError for a
        text that the tokenizer can't encode, ValueError for one of more than 1,000 tokens.
        """
        ids = [int(token) for token in self._tokenizer.encode(text)]
        if len(ids) > MOST:
            raise ValueError(f"a live text has at most {MOST:,} tokens, and this one has {len(ids)}; shorten it")
        here = self._texts[at]
        kept = next(
            (k for k, (a, b) in enumerate(zip(here.ids, ids, strict=False)) if a != b), min(len(here.ids), len(ids))
        )
        here.cut(kept)
        self._feed(here, ids[kept:])
        return kept

    def write(self, temperature: float = 1.0, at: int = 0) -> LiveStep:
        """Draw the next token (at temperature 0 the most probable one) and read it. ValueError where a text is full."""
        here = self._texts[at]
        if len(here.ids) >= MOST:
            raise ValueError(f"a live text has at most {MOST:,} tokens; begin anew with an empty one")
        sampler = Sampler(Sampling(temperature=temperature), self._tokenizer.size, self._uniform)
        logits = self._logits(at)
        self._feed(here, [sampler.choose(logits, exponentials(logits)[1])])
        return here.steps[-1]

    def clamp(self, layer: int, name: str, unit: int, value: float | None) -> None:
        """Hold one unit's h, c or gate at `value`, or let it go (None). The last token of each text is read again so.

        IndexError for a layer or unit that there is not, ValueError for another name.
        """
        config = self._model.config
        Clamp(layer, name, unit, 0.0)  # the check of the name
        self._check("layer", layer, config.layers)
        self._check("unit", unit, config.h_dim if name == "h" else config.hidden)
        if value is None:
            self._clamps.pop((layer, name, unit), None)
        else:
            self._clamps[layer, name, unit] = float(value)
        self._again()

    def release(self) -> None:
        """Let go of all that is held."""
        self._clamps.clear()
        self._again()

    def zero(self, layer: int, at: int = 0) -> None:
        """Put zeros into h and c of a layer, as they are after the text."""
        self._check("layer", layer, self._model.config.layers)
        empty = LSTMState(*(torch.zeros_like(values) for values in self.state(at)))
        self._change(at, _taking([layer], empty))

    def swap(self, layers: Sequence[int] | None = None) -> None:
        """Exchange the two texts' states, of these layers or of all."""
        count = self._model.config.layers
        chosen = range(count) if layers is None else layers
        for layer in chosen:
            self._check("layer", layer, count)
        first, second = self.state(0), self.state(1)
        self._change(0, _taking(chosen, second))
        self._change(1, _taking(chosen, first))

    @staticmethod
    def _check(what: str, index: int, size: int) -> None:
        if not 0 <= index < size:
            raise IndexError(f"{what} {index} of {size}; {what}s are 0 to {size - 1}")

    def _change(self, at: int, change: _Change) -> None:
        here = self._texts[at]
        here.changes.setdefault(len(here.ids), []).append(change)

    def _again(self) -> None:
        """Read each text's last token again, and do again what was done to the state behind it."""
        for here in self._texts:
            if here.ids:
                last, changes = here.ids[-1], here.changes.get(len(here.ids), [])
                here.cut(len(here.ids) - 1)
                self._feed(here, [last])
                if changes:
                    here.changes[len(here.ids)] = changes

    def _feed(self, here: _Text, ids: Sequence[int]) -> None:
        if not ids:
            return
        device = device_of(self._model)
        with torch.inference_mode(), evaluating(self._model), self._weights.at_hand():
            trace = self._model.trace(torch.tensor([ids], device=device), here.state, edit=self._edit())
            values = {name: torch.stack([getattr(layer, name)[0] for layer in trace.layers], 1) for name in NAMES}
        numbers = {name: each.float().cpu().numpy() for name, each in values.items()}
        decoder = here.decoder or self._caught_up(here.ids)
        for step, token in enumerate(ids):
            told = {name: each[step] for name, each in numbers.items()}
            here.ids.append(token)
            here.after.append(LSTMState(values["h"][step].unsqueeze(1), values["c"][step].unsqueeze(1)))
            here.steps.append(LiveStep(token, decoder.push(token), told))
        here.decoder = decoder

    def _caught_up(self, ids: Sequence[int]) -> StreamDecoder:
        decoder = self._tokenizer.decoder()
        for token in ids:
            decoder.push(token)
        return decoder

    def _edit(self) -> Edit | None:
        clamps = [Clamp(layer, name, unit, value) for (layer, name, unit), value in self._clamps.items()]
        return clamps[0] if len(clamps) == 1 else _all_of(clamps) if clamps else None

    def _logits(self, at: int) -> NDArray[np.float64]:
        """From h alone: what the projection reads is the top layer's, or with residual layers the sum of all."""
        lstm = self._model.lstm
        h = self.state(at).h
        assert lstm.proj is not None, "a language model has a projection"
        with torch.inference_mode():
            logits: Tensor = lstm.proj(h.sum(0) if lstm.residual else h[-1])[0]
        return logits.double().cpu().numpy()


def _all_of(clamps: Sequence[Clamp]) -> Edit:
    def edit(values: Tensor, place: Place) -> Tensor | None:
        changed: Tensor | None = None
        for clamp in clamps:
            found = clamp(values if changed is None else changed, place)
            changed = changed if found is None else found
        return changed

    return edit


def _taking(layers: Sequence[int], other: LSTMState) -> _Change:
    """The change of a state that takes these layers from another one."""
    chosen = list(layers)

    def change(state: LSTMState) -> LSTMState:
        h, c = (values.clone() for values in state)
        h[chosen], c[chosen] = other.h[chosen], other.c[chosen]
        return LSTMState(h, c)

    return change
