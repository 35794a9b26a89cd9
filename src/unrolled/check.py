"""Somebody's LSTM layer beside the reference: equal weights, the same input, and what is not the same then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .check_calls import Call, calls
from .check_equations import Outcome
from .check_names import CheckError, plain_tensors
from .check_trial import TOLERANCES, Explained, Trial, apart, zeros
from .check_weights import layout_of

# Calls the layer with x, h and c, and hands on what it returns.
CallLayer = Callable[[Any, Tensor, Tensor, Tensor], Any]
# Copies our twelve tensors into the layer.
PutWeights = Callable[[Any, dict[str, Tensor]], object]


@dataclass(frozen=True)
class Difference:
    """Where a layer first differs: in which tensor, at which step, row and unit, and the two numbers there.

    `step` is None of what has no steps. Of a gradient it is the last step that is wrong: on the way back the first.
    """

    name: str
    step: int | None
    place: tuple[int, ...]
    got: float
    expected: float

    def __str__(self) -> str:
        where = "" if self.step is None else f"step {self.step}, "
        return f"{self.name}, {where}at {list(self.place)}: {self.got:.6g}, and {self.expected:.6g} is right"


@dataclass(frozen=True, eq=False)
class Check:
    """What `check` found. `weights`, `call`: how the layer was understood; `notes`: what was not compared, and why.

    - `compared`: of each thing that was, how far it is apart, in sizes of the largest right number, or of 1.
    - `difference`: the first that is above `tolerance`.
    - `gate`: i, f, g or o, whose fault it is, where that is known.
    - `diagnosis`: the mistake that gives the layer's very numbers; None where none of those that are known does.
    - `wrong_with`: without a diagnosis, the weights with which it goes wrong while the others are 0 (W_xg is not).
    """

    layer: str
    weights: str
    call: str
    compared: Mapping[str, float]
    tolerance: float
    difference: Difference | None = None
    gate: str | None = None
    diagnosis: str | None = None
    wrong_with: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all that was compared is right."""
        return self.difference is None and self.diagnosis is None

    def require(self) -> Check:
        """Itself, where all is right. Raises AssertionError, with the report, where not: for tests."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        lines = [f"{self.layer}: {'right' if self.ok else 'NOT right'}"]
        lines += [f"  weights    {self.weights}", f"  call       {self.call}"]
        if self.difference is not None:
            lines += [f"  differs    {self.difference}"]
        if not self.ok:
            gate = "" if self.gate is None else f"gate {self.gate}: "
            lines += [f"  diagnosis  {gate}{self.diagnosis or 'no known mistake gives these numbers'}"]
        if self.wrong_with:
            lines += [f"  wrong with {_weights_of(self.wrong_with)}"]
        largest = max(self.compared.values(), default=0.0)
        gradients = [name.removeprefix("gradient of ") for name in self.compared if name.startswith("gradient")]
        states = [name for name in gradients if name in ("x", "h0", "c0")]
        names = [name for name in self.compared if not name.startswith("gradient")]
        names += [f"gradients of {', '.join(states)}"] if states else []
        names += [f"and of {len(gradients) - len(states)} weights"] if len(gradients) > len(states) else []
        lines += [f"  compared   {', '.join(names)}: {largest:.1e} apart at most, {self.tolerance:.0e} allowed"]
        return "\n".join([*lines, *(f"  note       {note}" for note in self.notes)])


def check(
    layer: Any,
    *,
    weights: Mapping[str, str] | PutWeights | None = None,
    call: CallLayer | None = None,
    input_dim: int | None = None,
    hidden_dim: int | None = None,
    batch_first: bool | None = None,
    order: str | None = None,
    gradients: bool = True,
    seed: int = 0,
) -> Check:
    """Compare one LSTM layer, whoever wrote it, with the reference: outputs, states and gradients for equal weights.

    What is not given is guessed from the names and shapes of the layer's parameters and from what it returns, and the
    result says how. A copy is compared, in float64 (float32 if the layer knows nothing else) and in evaluation mode.

    `weights`: our names to the layer's, {"W_xi": "input_gate.weight", ...}, for stacks of gates "W_x", "W_h", "b"; or a
    function, called as `weights(layer, ours)`, that copies W_xi, W_hi, b_i, W_xf, ... into the layer. `order`: of the
    gates in a stack, such as "ifgo". `call`: a function, called as `call(layer, x, h, c)`, that returns h, or h and c,
    of every step or the last one or both. `batch_first`: whether x is [batch, time, input]; None: `layer.batch_first`,
    or True. `gradients=False`: of a layer that is not made for training. `seed`: of weights and input.

    Raises CheckError for a layer whose weights are not found or that cannot be called; it says what to pass. A layer
    that is wrong raises nothing: see `Check.require`.
    """
    first: bool = getattr(layer, "batch_first", True) if batch_first is None else batch_first
    layout = layout_of(layer, weights, order, (input_dim, hidden_dim))
    reasons: list[str] = []
    for dtype in TOLERANCES:
        trial, other = (Trial(layer, layout, batch_first=axis, seed=seed, dtype=dtype) for axis in (first, not first))
        candidates, why = trial.candidates(_ways(call, first))
        reasons = reasons or why
        if found := trial.right(candidates):
            return _right(layer, trial, found, gradients)
        if found := other.right(other.candidates(_ways(call, not first))[0]):
            return _swapped(layer, other, found)
        if candidates:
            if found := trial.explained(candidates):
                assert found.mistake is not None
                return _report(layer, trial, found, gate=found.mistake.gate, diagnosis=found.mistake.text)
            return _unexplained(layer, trial, trial.nearest(candidates))
    raise CheckError(
        f"{type(layer).__name__} cannot be called: {'; '.join(reasons)}. Pass call=f, a function that is called as "
        "f(layer, x, h, c) with x [batch, time, input] and h, c [batch, hidden], and returns h, or h and c, of every "
        "step"
    )


def _ways(call: CallLayer | None, batch_first: bool) -> Iterable[Sequence[Call]]:
    return calls(batch_first) if call is None else [[Call("call(layer, x, h, c)", call)]]


def _report(layer: Any, trial: Trial, found: Explained, **more: Any) -> Check:
    """What can be said of the values alone."""
    layout, reading, got = trial.layout, found.reading, found.candidate.given
    right = trial.expected(reading, found.candidate.call.takes_state)
    compared = {name: apart(value, right.shown()[name]) for name, value in got.outcome.shown().items()}
    x = "[batch, time, input]" if trial.batch_first else "[time, batch, input]"
    notes = [] if found.candidate.call.takes_state else ["it takes no initial state: zeros were compared alone"]
    shown = got.outcome.shown()
    if "c of every step" not in shown and "last c" not in shown:
        notes.append("it does not show c, which was compared through h alone")
    if trial.dtype != torch.float64:
        notes.append("it cannot be called in float64: it makes tensors of float32 itself")
    return Check(
        layer=f"{type(layer).__name__} of {layout.input_dim} inputs and {layout.hidden_dim} units",
        weights="; ".join(filter(None, (layout.text, reading.text))),
        call=f"{got.text}; x {x}",
        compared=compared,
        tolerance=trial.tolerance,
        difference=_first(trial, trial.every_step(found.candidate), right),
        notes=tuple(notes),
        **more,
    )


def _first(trial: Trial, got: Outcome, right: Outcome) -> Difference | None:
    """The first step at which anything differs; there c before h, since h is made of it."""
    found: list[tuple[int, int, Difference]] = []
    expected = right.shown()
    for name, value in got.shown().items():
        wrong = (value.double() - expected[name]).abs() / max(1.0, float(expected[name].abs().max()))
        wrong = ~(wrong <= trial.tolerance)
        if wrong.any():
            over_time = value.dim() == 3
            step = int(wrong.any(0).any(-1).nonzero()[0]) if over_time else None
            here = wrong[:, step] if over_time else wrong
            row, unit = here.nonzero()[0].tolist()
            place = (row, step, unit) if step is not None else (row, unit)
            numbers = float(value[place]), float(expected[name][place])
            order = trial.x.shape[1] if step is None else step
            found.append((order, 0 if name.startswith("c") else 1, Difference(name, step, place, *numbers)))
    return min(found, key=lambda each: each[:2])[2] if found else None


def _swapped(layer: Any, trial: Trial, found: Explained) -> Check:
    read, flag = ("[batch, time, input]", True) if trial.batch_first else ("[time, batch, input]", False)
    diagnosis = (
        f"batch and time axes look swapped: it is right if x is {read}; if that is how it is meant, pass "
        f"batch_first={flag}"
    )
    return _report(layer, trial, found, diagnosis=diagnosis)


def _unexplained(layer: Any, trial: Trial, found: Explained) -> Check:
    wrong_with = tuple(trial.wrong_with(found))
    gates = {name[-1] for name in wrong_with} if wrong_with not in (("nothing",), ("W_xg",)) else set()
    return _report(layer, trial, found, gate=gates.pop() if len(gates) == 1 else None, wrong_with=wrong_with)


def _weights_of(names: tuple[str, ...]) -> str:
    if names == ("nothing",):
        return "all weights 0: so in c = f * c + i * g, in h = o * tanh(c), or in the state"
    if names == ("W_xg",):
        return "all weights but W_xg 0: so in g, or in i * g"
    return f"{', '.join(names)}, the others but W_xg being 0"


def _right(layer: Any, trial: Trial, found: Explained, gradients: bool) -> Check:
    """Of a layer whose values are right: its axes, a second call, its gradients, its parameters."""
    report = _report(layer, trial, found)
    if found.candidate.given.turned:
        return replace(report, diagnosis="what it returns has batch and time axes the other way round than x")
    if again := trial.second_call(found):
        return replace(report, diagnosis=again)
    if not gradients:
        return report
    made = trial.gradients(found)
    if isinstance(made, str):
        return replace(report, diagnosis=made)
    report = _with_gradients(report, trial, found, made)
    if isinstance(layer, nn.Module) and report.ok:
        plain = set(plain_tensors(layer)) & {part.parameter for part in trial.layout.parts.values()}
        if plain:
            names = ", ".join(sorted(plain))
            diagnosis = (
                f"{names}: plain tensors and no nn.Parameter, so an optimiser that gets parameters() never sees them"
            )
            return replace(report, diagnosis=diagnosis)
    return report


def _with_gradients(report: Check, trial: Trial, found: Explained, made: Mapping[str, Tensor | None]) -> Check:
    right = trial.expected_gradients(found, found.candidate.given.outcome.shown())
    compared = dict(report.compared)
    wrong: list[str] = []
    for name, grad in made.items():
        far = apart(zeros(grad, right[name]), right[name])
        compared[f"gradient of {name}"] = far
        wrong += [name] if far > trial.tolerance else []
    notes = report.notes
    if not trial.layout.parts:
        notes = (*notes, "gradients of its weights were not compared, since weights= is a function")
    report = replace(report, compared=compared, notes=notes)
    if not wrong:
        return report
    mistake = trial.cut(found, made)
    gates = {name[-1] for name in wrong} if all(name[:2] in ("W_", "b_") for name in wrong) else set()
    return replace(
        report,
        difference=_of_gradient(trial, wrong[0], zeros(made[wrong[0]], right[wrong[0]]), right[wrong[0]]),
        gate=mistake.gate if mistake is not None else gates.pop() if len(gates) == 1 else None,
        diagnosis=None if mistake is None else mistake.text,
    )


def _of_gradient(trial: Trial, name: str, got: Tensor, right: Tensor) -> Difference:
    wrong = ~((got.double() - right).abs() / max(1.0, float(right.abs().max())) <= trial.tolerance)
    place = tuple(wrong.nonzero()[-1 if name == "x" else 0].tolist())
    step = None
    if name == "x":
        step = int(wrong.any(0).any(-1).nonzero()[-1])
        row, unit = wrong[:, step].nonzero()[0].tolist()
        place = (row, step, unit)
    return Difference(f"gradient of {name}", step, place, float(got[place]), float(right[place]))
