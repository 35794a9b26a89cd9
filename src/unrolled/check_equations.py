"""The equations of a layer in parts, each of which can be replaced by a mistake that somebody may have made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from .layer import GATES

# By name: W_x* [input, hidden], W_h* [hidden, hidden], and the two parts of each bias, b_x* and b_h* [hidden].
Weights = Mapping[str, Tensor]


class Outcome(NamedTuple):
    """What a layer gives: h and c of every step [batch, time, hidden], and the last ones [batch, hidden].

    None of a layer that does not show it.
    """

    h: Tensor | None = None
    c: Tensor | None = None
    last_h: Tensor | None = None
    last_c: Tensor | None = None

    def shown(self) -> dict[str, Tensor]:
        """What there is, by name."""
        return {name: value for name, value in zip(NAMES, self, strict=True) if value is not None}


# Numbers of weights that are run side by side.
_TOGETHER = 2**22
NAMES = ("output", "c of every step", "last h", "last c")


def _write(i: Tensor, f: Tensor, g: Tensor, c: Tensor) -> Tensor:
    return f * c + i * g


def _show(o: Tensor, c: Tensor, before: Tensor) -> Tensor:
    return o * torch.tanh(c)


@dataclass(frozen=True)
class Equations:
    """A layer's computation in parts that can be replaced; as it stands, the right one.

    `seen`: what W_h multiplies, from h and c before the step. `carried`: what the next step starts from, from (h, c)
    after the step, before it, before the first step, and how many steps there were.
    """

    weights: Callable[[Weights], Weights] = lambda weights: weights
    added: Mapping[str, float] = field(default_factory=dict)
    activations: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    seen: Callable[[Tensor, Tensor, str], Tensor] = lambda h, c, gate: h
    write: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = _write
    show: Callable[[Tensor, Tensor, Tensor], Tensor] = _show
    begin: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda h, c: (h, c)
    carried: Callable[..., tuple[Tensor, Tensor]] = lambda new, before, first, steps: new
    reads: Callable[[Tensor], Tensor] = lambda x: x
    gives: Callable[[Outcome, tuple[Tensor, Tensor]], Outcome] = lambda outcome, first: outcome


RIGHT = Equations()


@dataclass(frozen=True)
class Mistake:
    """`text`: what a layer does that has made it. `gate`: i, f, g or o where it is one gate's."""

    text: str
    equations: Equations
    gate: str | None = None


def run(weights: Weights, x: Tensor, h0: Tensor, c0: Tensor, equations: Equations = RIGHT) -> Outcome:
    """What a layer gives that computes this; `x` [batch, time, input], `h0` and `c0` [batch, hidden]."""
    weights, x = equations.weights(weights), equations.reads(x)
    state = first = equations.begin(h0, c0)
    hs, cs = [], []
    for t, x_t in enumerate(x.unbind(1)):
        h, c = state
        gates = {}
        for gate in GATES:
            pre = x_t @ weights[f"W_x{gate}"] + equations.seen(h, c, gate) @ weights[f"W_h{gate}"]
            pre = pre + weights[f"b_x{gate}"] + weights[f"b_h{gate}"] + equations.added.get(gate, 0.0)
            activation = equations.activations.get(gate, torch.tanh if gate == "g" else torch.sigmoid)
            gates[gate] = activation(pre)
        new_c = equations.write(gates["i"], gates["f"], gates["g"], c)
        new = equations.show(gates["o"], new_c, c), new_c
        hs.append(new[0])
        cs.append(new_c)
        state = equations.carried(new, state, first, t + 1)
    return equations.gives(Outcome(torch.stack(hs, -2), torch.stack(cs, -2), hs[-1], cs[-1]), first)


def run_each(
    mistakes: Iterable[Mistake], weights: Weights, x: Tensor, h0: Tensor, c0: Tensor
) -> Iterator[tuple[Mistake, Outcome]]:
    """`run` of each mistake in turn; those that are in the weights alone run side by side, many at once."""
    together = max(1, _TOGETHER // sum(value.numel() for value in weights.values()))
    kinds = groupby(mistakes, lambda mistake: replace(mistake.equations, weights=RIGHT.weights) == RIGHT)
    for in_weights, group in kinds:
        rest = list(group)
        while in_weights and rest:
            some, rest = rest[:together], rest[together:]
            changed = [mistake.equations.weights(weights) for mistake in some]
            # Biases get an axis for the rows.
            stacked = {name: torch.stack([each[name] for each in changed]) for name in weights}
            stacked = {name: value.unsqueeze(1) if name[0] == "b" else value for name, value in stacked.items()}
            made = run(stacked, x, h0, c0)
            for k, mistake in enumerate(some):
                yield mistake, Outcome(*(value[k] for value in made.shown().values()))
        for mistake in rest:
            yield mistake, run(weights, x, h0, c0, mistake.equations)
