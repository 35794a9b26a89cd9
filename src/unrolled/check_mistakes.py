"""What is known to go wrong in LSTM layers that people write: a list of mistakes, likely ones first.

Each is a change of `Equations`. Whether a layer has made one is not argued: its numbers are those of the mistake, to
rounding, or they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from .check_equations import Equations, Mistake, Outcome, Weights
from .layer import GATES

# What a gate has of weights.
_KINDS = ("W_x", "W_h", "b_x", "b_h")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "a sigmoid": torch.sigmoid,
    "a tanh": torch.tanh,
    "a relu": torch.relu,
    "no activation": lambda a: a,
    "a hard sigmoid, x / 6 + 1/2 within 0..1,": F.hardsigmoid,
    "Keras 2's hard sigmoid, 0.2 x + 1/2 within 0..1,": lambda a: (0.2 * a + 0.5).clamp(0, 1),
}


def of_values(*, square: bool, two_biases: bool, state: bool) -> Iterator[Mistake]:
    """Mistakes that change what a layer gives, likely ones first.

    `square`: x is as wide as h; `two_biases`: the layer has two of each gate; `state`: it takes an initial state.
    """
    yield from _transposed(square)
    yield from _permuted()
    yield from _activations()
    yield from _biases(two_biases)
    yield from _terms()
    yield from _cells()
    yield from _over_time(state)
    yield from _copied()


def _changed(change: Callable[[Weights], Mapping[str, Tensor]]) -> Equations:
    return Equations(weights=lambda weights: {**weights, **change(weights)})


def _scaled(names: Iterable[str], factor: float) -> Equations:
    names = tuple(names)
    return _changed(lambda w: {name: factor * w[name] for name in names})


def _turned(names: Iterable[str]) -> Equations:
    names = tuple(names)
    return _changed(lambda w: {name: w[name].mT for name in names})


def _cut(names: Iterable[str]) -> Equations:
    names = tuple(names)
    return _changed(lambda w: {name: w[name].detach() for name in names})


def _all(*kinds: str) -> list[str]:
    return [f"{kind}{gate}" for kind in kinds for gate in GATES]


def _transposed(square: bool) -> Iterator[Mistake]:
    for source in "hx" if square else "h":
        for gate in GATES:
            name = f"W_{source}{gate}"
            yield Mistake(f"{name} looks transposed", _turned([name]), gate)
        yield Mistake(f"all four W_{source}* look transposed", _turned(_all(f"W_{source}")))


def _exchange(order: tuple[str, ...], terms: Sequence[str] = _KINDS) -> Equations:
    """Gate k, in the order of GATES, computed with the weights of order[k]."""
    pairs = [(f"{term}{gate}", f"{term}{other}") for gate, other in zip(GATES, order, strict=True) for term in terms]
    return _changed(lambda w: {name: w[other] for name, other in pairs})


def _permuted() -> Iterator[Mistake]:
    for a, b in combinations(GATES, 2):
        order = tuple({a: b, b: a}.get(gate, gate) for gate in GATES)
        yield Mistake(f"gates {a} and {b} look swapped", _exchange(order), a)
    for order in permutations(GATES):
        if sum(a != b for a, b in zip(order, GATES, strict=True)) > 2:
            # Gate k has the weights of order[k]: the block of a stack that gate k reads.
            blocks = {block: gate for gate, block in zip(GATES, order, strict=True)}
            yield Mistake(
                f"the gates look mixed up: the weights of {', '.join(GATES)} are used for "
                f"{', '.join(blocks[gate] for gate in GATES)}",
                _exchange(order),
            )


def _activations() -> Iterator[Mistake]:
    for gate in ("g", "i", "f", "o"):
        right = "a tanh" if gate == "g" else "a sigmoid"
        for name, function in _ACTIVATIONS.items():
            if name != right:
                yield Mistake(f"{gate} gets {name} in place of {right}", Equations(activations={gate: function}), gate)
    for name, function in _ACTIVATIONS.items():
        if name != "a sigmoid":
            activations = dict.fromkeys("ifo", function)
            yield Mistake(f"i, f and o get {name} in place of a sigmoid", Equations(activations=activations))


def _biases(two: bool) -> Iterator[Mistake]:
    yield Mistake("1 is added to f's pre-activation on top of b_f", Equations(added={"f": 1.0}), "f")
    for gate in ("f", "i", "g", "o"):
        both = f"b_x{gate}", f"b_h{gate}"
        for factor, what in ((2, "is added twice"), (0, "is missing"), (-1, "is subtracted")):
            yield Mistake(f"b_{gate} {what}", _scaled(both, factor), gate)
    for factor, what in ((2, "are added twice"), (0, "are missing")):
        yield Mistake(f"all biases {what}", _scaled(_all("b_x", "b_h"), factor))
    if two:
        for source, which in (("x", "first"), ("h", "second")):
            for factor, what in ((0, "is missing"), (2, "is counted twice")):
                yield Mistake(f"the {which} bias {what}", _scaled(_all(f"b_{source}"), factor))
                for gate in GATES:
                    yield Mistake(f"the {which} bias of {gate} {what}", _scaled([f"b_{source}{gate}"], factor), gate)


def _terms() -> Iterator[Mistake]:
    for source, what in (("h", "h of the step before"), ("x", "x")):
        yield Mistake(f"no gate reads {what}", _scaled(_all(f"W_{source}"), 0))
        for gate in GATES:
            name = f"W_{source}{gate}"
            yield Mistake(f"{gate} does not read {what}: the product with {name} is missing", _scaled([name], 0), gate)
            yield Mistake(f"the product with {name} is added twice", _scaled([name], 2), gate)
            yield Mistake(f"the product with {name} is subtracted", _scaled([name], -1), gate)
    yield Mistake("the gates read c in place of h of the step before", Equations(seen=lambda h, c, gate: c))
    for gate in GATES:
        yield Mistake(f"{gate} reads c in place of h of the step before", Equations(seen=_c_in(gate)), gate)


def _c_in(gate: str) -> Callable[[Tensor, Tensor, str], Tensor]:
    return lambda h, c, each: c if each == gate else h


def _cells() -> Iterator[Mistake]:
    shows: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "tanh(c) is missing: h = o * c": lambda o, c, before: o * c,
        "h is made of the c before the step: h = o * tanh(c_before)": lambda o, c, before: o * torch.tanh(before),
        "c gets a sigmoid in place of a tanh on its way to h": lambda o, c, before: o * torch.sigmoid(c),
        "c gets a relu in place of a tanh on its way to h": lambda o, c, before: o * torch.relu(c),
        "o is inside the tanh: h = tanh(o * c)": lambda o, c, before: torch.tanh(o * c),
        "o is missing: h = tanh(c)": lambda o, c, before: torch.tanh(c),
        "o is added: h = o + tanh(c)": lambda o, c, before: o + torch.tanh(c),
        "h is the c before the step, without its tanh: h = o * c_before": lambda o, c, before: o * before,
    }
    for text, show in shows.items():
        yield Mistake(f"{text}, in place of h = o * tanh(c)", Equations(show=show), "o")
    writes: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]] = {
        "i is missing: c = f * c + g": ("i", lambda i, f, g, c: f * c + g),
        "f is missing: c = c + i * g": ("f", lambda i, f, g, c: c + i * g),
        "the old c is missing: c = i * g": ("f", lambda i, f, g, c: i * g),
        "the old c is missing: c = f + i * g": ("f", lambda i, f, g, c: f + i * g),
        "f is 1 - f: c = (1 - f) * c + i * g": ("f", lambda i, f, g, c: (1 - f) * c + i * g),
        "i is 1 - f: c = f * c + (1 - f) * g": ("i", lambda i, f, g, c: f * c + (1 - f) * g),
        "i is added in place of multiplied: c = f * c + i + g": ("i", lambda i, f, g, c: f * c + i + g),
        "i * g is subtracted: c = f * c - i * g": ("i", lambda i, f, g, c: f * c - i * g),
        "f multiplies all of it: c = f * (c + i * g)": ("f", lambda i, f, g, c: f * (c + i * g)),
    }
    for text, (gate, write) in writes.items():
        yield Mistake(f"{text}, in place of c = f * c + i * g", Equations(write=write), gate)
    squashed = lambda i, f, g, c: torch.tanh(f * c + i * g)  # noqa: E731
    yield Mistake(
        "the tanh of c is what is carried on: c = tanh(f * c + i * g), h = o * c",
        Equations(write=squashed, show=lambda o, c, before: o * c),
        "o",
    )
    yield Mistake("c gets a tanh before it is carried on, and another on its way to h", Equations(write=squashed))


def _over_time(state: bool) -> Iterator[Mistake]:
    carried: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "the state is not carried from step to step: each starts from the initial state": lambda new, old, first, n: (
            first
        ),
        "h is not carried from step to step": lambda new, old, first, n: (first[0], new[1]),
        "c is not carried from step to step": lambda new, old, first, n: (new[0], first[1]),
        "h and c are swapped from step to step": lambda new, old, first, n: (new[1], new[0]),
        "what is carried on as h is tanh(c), without o": lambda new, old, first, n: (torch.tanh(new[1]), new[1]),
    }
    for text, change in carried.items():
        yield Mistake(text, Equations(carried=change))
    yield Mistake("the sequence is read from its end", Equations(reads=lambda x: x.flip(1)))
    yield Mistake("the sequence is read from its end, and its results put back", Equations(
        reads=lambda x: x.flip(1),
        gives=lambda made, first: made._replace(h=_flipped(made.h), c=_flipped(made.c)),
    ))  # fmt: skip
    yield Mistake("x of step 0 is read at every step", Equations(reads=lambda x: x[:, :1].expand_as(x)))
    if state:
        begins: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
            "the initial state is ignored: it starts from zeros": lambda h, c: (0 * h, 0 * c),
            "the initial h is ignored: it starts from zeros": lambda h, c: (0 * h, c),
            "the initial c is ignored: it starts from zeros": lambda h, c: (h, 0 * c),
            "the initial h and c are swapped": lambda h, c: (c, h),
            "the initial state of row 0 is that of all rows": lambda h, c: (h[:1].expand_as(h), c[:1].expand_as(c)),
        }
        for text, begin in begins.items():
            yield Mistake(text, Equations(begin=begin))
    yield from _returned()


def _flipped(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.flip(1)


def _returned() -> Iterator[Mistake]:
    """Of a right computation, something else that is given back."""

    def before(value: Tensor, first: Tensor) -> Tensor:
        return torch.cat([first[:, None], value[:, :-1]], 1)

    def all_(made: Outcome) -> tuple[Tensor, Tensor]:
        assert made.h is not None
        assert made.c is not None
        return made.h, made.c

    gives: dict[str, Callable[[Outcome, tuple[Tensor, Tensor]], Outcome]] = {
        "the output is c in place of h": lambda made, first: made._replace(h=made.c),
        "h and c are returned in each other's place": lambda made, first: Outcome(
            made.c, made.h, made.last_c, made.last_h
        ),
        "the last state is returned as (c, h) in place of (h, c)": lambda made, first: made._replace(
            last_h=made.last_c, last_c=made.last_h
        ),
        "the output at a step is the h before it": lambda made, first: made._replace(h=before(all_(made)[0], first[0])),
        "the state before the last step is returned": lambda made, first: made._replace(
            last_h=before(all_(made)[0], first[0])[:, -1], last_c=before(all_(made)[1], first[1])[:, -1]
        ),
        "the state after the first step is returned": lambda made, first: made._replace(
            last_h=all_(made)[0][:, 0], last_c=all_(made)[1][:, 0]
        ),
        "the initial state is returned as the last": lambda made, first: made._replace(
            last_h=first[0], last_c=first[1]
        ),
        "the last h is returned as h and as c": lambda made, first: made._replace(last_c=made.last_h),
        "the last c is returned as h and as c": lambda made, first: made._replace(last_h=made.last_c),
        "the output of every step is that of the last": lambda made, first: made._replace(
            h=all_(made)[0][:, -1:].expand_as(all_(made)[0])
        ),
        "[time, batch] became [batch, time] by a view or reshape, which mixes rows and steps: transpose(0, 1)": (
            lambda made, first: made._replace(h=_reshaped(all_(made)[0]), c=_reshaped(all_(made)[1]))
        ),
    }
    for text, change in gives.items():
        yield Mistake(text, Equations(gives=change))


def _reshaped(value: Tensor) -> Tensor:
    return value.transpose(0, 1).reshape(value.shape)


def _copied() -> Iterator[Mistake]:
    """One gate with what is another's: the line above was copied."""
    for gate, other in permutations(GATES, 2):
        order = tuple(other if each == gate else each for each in GATES)
        yield Mistake(f"{gate} is computed with all weights of {other}", _exchange(order), gate)
        for term, shown in ((("W_x",), "W_x"), (("W_h",), "W_h"), (("b_x", "b_h"), "b_")):
            text = f"{gate} is computed with {shown}{other} in place of {shown}{gate}"
            yield Mistake(text, _exchange(order, term), gate)


def _detached(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda a: function(a).detach()


def _every(steps: int) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda new, before, first, step: new if step % steps else (new[0].detach(), new[1].detach())


def of_gradients() -> Iterator[Mistake]:
    """Mistakes that leave all values as they are and cut gradients."""
    cut: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "c is detached in every step: no gradient goes back along the cell": lambda new, *_: (new[0], new[1].detach()),
        "h is detached in every step: no gradient goes back through W_h": lambda new, *_: (new[0].detach(), new[1]),
        "h and c are detached in every step: no gradient reaches an earlier one": lambda new, *_: (
            new[0].detach(),
            new[1].detach(),
        ),
    }
    for text, carried in cut.items():
        yield Mistake(text, Equations(carried=carried))
    for every in (2, 3, 4):
        yield Mistake(f"h and c are detached every {every} steps", Equations(carried=_every(every)))
    for gate in GATES:
        function = torch.tanh if gate == "g" else torch.sigmoid
        yield Mistake(f"{gate} is detached", Equations(activations={gate: _detached(function)}), gate)
    yield Mistake("tanh(c) is detached in h", Equations(show=lambda o, c, before: o * torch.tanh(c).detach()), "o")
    yield Mistake("o is detached in h", Equations(show=lambda o, c, before: o.detach() * torch.tanh(c)), "o")
    yield Mistake("the initial state is detached", Equations(begin=lambda h, c: (h.detach(), c.detach())))
    yield Mistake("the initial h is detached", Equations(begin=lambda h, c: (h.detach(), c)))
    yield Mistake("the initial c is detached", Equations(begin=lambda h, c: (h, c.detach())))
    yield Mistake("x is detached", Equations(reads=lambda x: x.detach()))
    for gate in GATES:
        for name in (f"W_x{gate}", f"W_h{gate}"):
            yield Mistake(f"no gradient reaches {name}", _cut([name]), gate)
        yield Mistake(f"no gradient reaches b_{gate}", _cut([f"b_x{gate}", f"b_h{gate}"]), gate)
        yield Mistake(f"no gradient reaches the weights of {gate}", _cut(f"{kind}{gate}" for kind in _KINDS), gate)
    for kinds, what in ((["W_x"], "W_x*"), (["W_h"], "W_h*"), (["b_x", "b_h"], "b_*"), (_KINDS, "any weight")):
        yield Mistake(f"no gradient reaches {what}", _cut(_all(*kinds)))
