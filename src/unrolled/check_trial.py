"""One layer, a copy with weights that were drawn for it, called and held beside the reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .check_calls import RAISED, Call, Given, given, sizes
from .check_equations import NAMES, Equations, Mistake, Outcome, Weights, run, run_each
from .check_mistakes import of_gradients, of_values
from .check_names import CheckError, plain_tensors
from .check_weights import Layout, Reading
from .layer import GATES, LSTMLayer

# Of the largest right number, or of 1: rounding is a millionth of it, and what any mistake does a million times that.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
_KINDS = ("W_x", "W_h", "b_x", "b_h")


class Candidate(NamedTuple):
    """One way in which a layer could be called, and what it gave."""

    call: Call
    given: Given


class Explained(NamedTuple):
    """A candidate whose numbers are those of a reading of its weights, and of a mistake if any."""

    candidate: Candidate
    reading: Reading
    mistake: Mistake | None


class Trial:
    """`layer` in `dtype`, evaluation mode and on the CPU, and an input for it: x, h and c in float64."""

    def __init__(self, layer: Any, layout: Layout, *, batch_first: bool, seed: int, dtype: torch.dtype) -> None:
        self.layout, self.batch_first, self.dtype = layout, batch_first, dtype
        self._layer = _copied(layer, dtype)
        draw = torch.Generator().manual_seed(seed)
        inputs, hidden = layout.input_dim, layout.hidden_dim
        rows, steps = sizes((inputs, hidden))

        def drawn(*shape: int, by: float = 1.0) -> Tensor:
            # What float32 can hold, so that a layer in float32 gets the same numbers.
            return (by * torch.randn(shape, generator=draw)).double()

        shapes = {"W_x": (inputs, hidden), "W_h": (hidden, hidden), "b_x": (hidden,), "b_h": (hidden,)}
        spread = {"W_x": inputs**-0.5, "W_h": hidden**-0.5, "b_x": 0.5, "b_h": 0.5}
        self.weights = {f"{kind}{gate}": drawn(*shapes[kind], by=spread[kind]) for gate in GATES for kind in _KINDS}
        for gate in GATES:
            self.weights[f"b_x{gate}"] *= layout.has_biases
            self.weights[f"b_h{gate}"] *= layout.has_two_biases
        self.x, self.h, self.c = drawn(rows, steps, inputs), drawn(rows, hidden, by=0.5), drawn(rows, hidden)
        self.cotangents = Outcome(*(drawn(rows, steps, hidden) for _ in "hc"), *(drawn(rows, hidden) for _ in "hc"))
        self._reference = LSTMLayer(inputs, hidden, backend="reference", dtype=torch.float64)
        layout.load(self._layer, self.weights)

    @property
    def tolerance(self) -> float:
        """What may lie between two numbers of this trial's dtype."""
        return TOLERANCES[self.dtype]

    def fresh(self, weights: Weights | None = None) -> Any:
        """A copy of the layer, with other weights if given: what one call leaves in it does not reach the next."""
        layer = copy.deepcopy(self._layer)
        if weights is not None:
            self.layout.load(layer, weights)
        return layer

    def call(self, call: Call, layer: Any, steps: int | None = None) -> Given | str:
        """What a layer gives of the input, or of its first steps; or why nothing."""
        x, h, c = (value.to(self.dtype) for value in (self.x[:, :steps], self.h, self.c))
        return given(call, layer, x, h, c, self.batch_first)

    def candidates(self, groups: Iterable[Sequence[Call]]) -> tuple[list[Candidate], list[str]]:
        """The ways of the first group in which any works, and why the others do not."""
        reasons: list[str] = []
        for group in groups:
            found: list[Candidate] = []
            for call in group:
                with torch.no_grad():
                    got = self.call(call, self.fresh())
                if isinstance(got, Given):
                    found.append(Candidate(call, got))
                else:
                    reasons.append(got)
            if found:
                return found, reasons
        return [], reasons

    def expected(self, reading: Reading, takes_state: bool, weights: Weights | None = None) -> Outcome:
        """The reference's numbers for the weights as they are read."""
        return self._by_reference(
            reading.understood(self.weights if weights is None else weights), *self._state(takes_state)
        )

    def _state(self, given: bool) -> tuple[Tensor, Tensor]:
        return (self.h, self.c) if given else (torch.zeros_like(self.h), torch.zeros_like(self.c))

    def _by_reference(self, weights: Weights, h: Tensor, c: Tensor) -> Outcome:
        named = {f"{kind}{gate}": weights[f"{kind}{gate}"] for gate in GATES for kind in ("W_x", "W_h")}
        named |= {f"b_{gate}": weights[f"b_x{gate}"] + weights[f"b_h{gate}"] for gate in GATES}
        hs, cs = functional_call(self._reference, named, (self.x, h, c))
        return Outcome(hs, cs, hs[:, -1], cs[:, -1])

    def agrees(self, got: Outcome, right: Outcome) -> bool:
        """Whether all that the layer shows is within the tolerance."""
        return all(apart(value, right.shown()[name]) <= self.tolerance for name, value in got.shown().items())

    def right(self, candidates: Iterable[Candidate]) -> Explained | None:
        """The first way to call the layer and to read its weights by which it is right."""
        candidates = list(candidates)
        with torch.no_grad():
            for reading in self.layout.readings:
                for each in candidates:
                    if self.agrees(each.given.outcome, self.expected(reading, each.call.takes_state)):
                        return Explained(each, reading, None)
        return None

    def explained(self, candidates: Iterable[Candidate]) -> Explained | None:
        """The first mistake, of the likely ones first, that gives all that the layer shows."""
        square = self.layout.input_dim == self.layout.hidden_dim
        candidates = list(candidates)
        with torch.no_grad():
            for reading in self.layout.readings:
                weights = reading.understood(self.weights)
                for each in candidates:
                    takes = each.call.takes_state
                    known = of_values(square=square, two_biases=self.layout.has_two_biases, state=takes)
                    for mistake, got in run_each(known, weights, self.x, *self._state(takes)):
                        if self.agrees(each.given.outcome, got):
                            return Explained(each, reading, mistake)
        return None

    def nearest(self, candidates: Sequence[Candidate]) -> Explained:
        """The way to call the layer by which it is least wrong."""

        def wrong(each: Candidate) -> float:
            right = self.expected(self.layout.readings[0], each.call.takes_state).shown()
            return max(apart(value, right[name]) for name, value in each.given.outcome.shown().items())

        with torch.no_grad():
            return Explained(min(candidates, key=wrong), self.layout.readings[0], None)

    def every_step(self, found: Candidate) -> Outcome:
        """What the layer gave, and h and c of every step even if it shows the last ones alone: of shorter inputs."""
        got = found.given.outcome
        if (got.h is not None or got.last_h is None) and (got.c is not None or got.last_c is None):
            return got
        lasts: list[Outcome] = []
        with torch.no_grad():
            for step in range(self.x.shape[1]):
                shorter = self.call(found.call, self.fresh(), step + 1)
                if isinstance(shorter, str):
                    return got
                lasts.append(shorter.outcome)
        hs = [each.last_h for each in lasts if each.last_h is not None]
        cs = [each.last_c for each in lasts if each.last_c is not None]
        h = got.h if got.h is not None or len(hs) < len(lasts) else torch.stack(hs, 1)
        c = got.c if got.c is not None or len(cs) < len(lasts) else torch.stack(cs, 1)
        return got._replace(h=h, c=c)

    def second_call(self, found: Explained) -> str | None:
        """What is wrong with a second call of the same layer, which should give what the first one gave."""
        layer = self.fresh()
        with torch.no_grad():
            first, second = (self.call(found.candidate.call, layer) for _ in range(2))
            if isinstance(second, str):
                return f"a second call fails: {second}"
            assert isinstance(first, Given)
            if self.agrees(second.outcome, first.outcome):
                return None
            weights = found.reading.understood(self.weights)
            state = self._state(found.candidate.call.takes_state)
            ended = self._by_reference(weights, *state)
            assert ended.last_h is not None
            assert ended.last_c is not None
            onward = self._by_reference(weights, ended.last_h, ended.last_c)
        if self.agrees(second.outcome, onward):
            return "the state is kept in the layer: a second call goes on where the first one ended"
        return "two calls with the same input give different numbers"

    def gradients(self, found: Explained) -> dict[str, Tensor | None] | str:
        """The layer's gradients of a random weighting of all that it shows, by name; or why there are none."""
        layer = self.fresh()
        into = [value.to(self.dtype).requires_grad_() for value in (self.x, self.h, self.c)]
        got = given(found.candidate.call, layer, into[0], into[1], into[2], self.batch_first)
        assert isinstance(got, Given)
        loss = _weighted(got.outcome, self.cotangents)
        if not loss.requires_grad:
            return (
                "what it returns hangs on nothing that gradients could reach: it is made under torch.no_grad(), or by "
                "way of detach(), .data or NumPy"
            )
        try:
            loss.backward()
        except RAISED as error:
            return f"the backward pass raises {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        made: dict[str, Tensor | None] = {"x": into[0].grad}
        if found.candidate.call.takes_state:
            made |= {"h0": into[1].grad, "c0": into[2].grad}
        return made | self.layout.gradients(layer)

    def expected_gradients(
        self, found: Explained, shown: Iterable[str], equations: Equations | None = None
    ) -> dict[str, Tensor]:
        """The reference's gradients of the same weighting; or those of equations with a mistake in them."""
        weights = {name: value.clone().requires_grad_() for name, value in self.weights.items()}
        x, h, c = (value.clone().requires_grad_() for value in (self.x, self.h, self.c))
        read, state = found.reading.understood(weights), (h, c)
        if not found.candidate.call.takes_state:
            state = torch.zeros_like(h), torch.zeros_like(c)
        if equations is None:
            named = {f"{kind}{gate}": read[f"{kind}{gate}"] for gate in GATES for kind in ("W_x", "W_h")}
            named |= {f"b_{gate}": read[f"b_x{gate}"] + read[f"b_h{gate}"] for gate in GATES}
            hs, cs = functional_call(self._reference, named, (x, *state))
            made = Outcome(hs, cs, hs[:, -1], cs[:, -1])
        else:
            made = run(read, x, *state, equations)
        loss = _weighted(
            Outcome(*(value if name in set(shown) else None for name, value in zip(NAMES, made, strict=True))),
            self.cotangents,
        )
        leaves = {"x": x, "h0": h, "c0": c, **weights}
        if not loss.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }

    def cut(self, found: Explained, got: Mapping[str, Tensor | None]) -> Mistake | None:
        """The mistake that gives just these gradients."""
        shown = found.candidate.given.outcome.shown()
        for mistake in of_gradients():
            right = self.expected_gradients(found, shown, mistake.equations)
            if all(apart(zeros(grad, right[name]), right[name]) <= self.tolerance for name, grad in got.items()):
                return mistake
        return None

    def wrong_with(self, found: Explained) -> list[str]:
        """Which weights bring a difference while all others are 0; "all weights 0" where none is needed.

        W_xg is there throughout, since without g nothing of i would be seen.
        """
        call, failing = found.candidate.call, []
        for name, some in self._probes():
            weights = {each: value if each in some else 0 * value for each, value in self.weights.items()}
            with torch.no_grad():
                got = self.call(call, self.fresh(weights))
                right = self.expected(found.reading, call.takes_state, weights)
            if isinstance(got, str) or not self.agrees(got.outcome, right):
                failing.append(name)
                if name in ("nothing", "W_xg"):
                    break
        return failing

    def _probes(self) -> Iterator[tuple[str, set[str]]]:
        yield "nothing", set()
        yield "W_xg", {"W_xg"}
        for gate in ("g", "f", "i", "o"):
            for kind in ("W_x", "W_h"):
                if f"{kind}{gate}" != "W_xg":
                    yield f"{kind}{gate}", {"W_xg", f"{kind}{gate}"}
            if self.layout.has_biases:
                yield f"b_{gate}", {"W_xg", f"b_x{gate}", f"b_h{gate}"}


def apart(value: Tensor, right: Tensor) -> float:
    """The largest difference, in sizes of the largest right number, or of 1; infinite for what is no number."""
    largest = float((value.double() - right).abs().max()) / max(1.0, float(right.abs().max()))
    return math.inf if math.isnan(largest) else largest


def zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    """A gradient that there is not is 0."""
    return torch.zeros_like(like) if grad is None else grad


def _weighted(outcome: Outcome, cotangents: Outcome) -> Tensor:
    shown, by = outcome.shown(), cotangents.shown()
    return torch.stack([(value.double() * by[name]).sum() for name, value in shown.items()]).sum()


def _copied(layer: Any, dtype: torch.dtype) -> Any:
    try:
        layer = copy.deepcopy(layer)
    except RuntimeError as error:
        raise CheckError(
            f"{type(layer).__name__} cannot be copied: {str(error).partition(chr(10))[0]} One that was never called can"
        ) from error
    if not isinstance(layer, nn.Module):
        return layer
    layer = layer.to(device="cpu", dtype=dtype).eval()
    for name, value in plain_tensors(layer).items():
        path, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(path), attribute, value.detach().to("cpu", dtype).requires_grad_())
    return layer
