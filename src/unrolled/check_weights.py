"""Where the weights of somebody's layer are: which of its parameters is which matrix and bias, and how it is laid out.

Names and shapes say most of it. What they leave open (the order of the gates in a stack, which half of a joined matrix
is for x, which way round a square one is) are `Reading`s, and the layer's own numbers choose among them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from .check_equations import Weights
from .check_names import NAMES_TO_PASS, CheckError, guessed, tensors_of
from .layer import GATES

_KEY = re.compile(r"(W|b)(?:_([xh]?)([ifgo]?))?")
_SIZES = {
    "input": ("input_dim", "input_size", "in_features", "n_input", "n_inputs", "d_in"),
    "hidden": ("hidden_dim", "hidden_size", "units", "n_hidden", "d_hidden", "hidden"),
}


@dataclass(frozen=True)
class Part:
    """Where one of our matrices or biases lies in one of the layer's parameters, once that is turned our way."""

    parameter: str
    transposed: bool
    rows: slice
    columns: slice
    is_bias: bool

    def of(self, value: Tensor) -> Tensor:
        """A view of our shape: [in, hidden], or [hidden] of a bias."""
        if self.is_bias:
            return value.view(-1)[self.columns]
        return (value.mT if self.transposed else value)[self.rows, self.columns]


@dataclass(frozen=True)
class Reading:
    """One way to understand the weights: from what was written where, as `Layout` says, to what they are then."""

    text: str
    understood: Callable[[Weights], Weights]


@dataclass(frozen=True)
class Layout:
    """A layer's weights: for each of our names where it lies, or how the caller puts them there."""

    input_dim: int
    hidden_dim: int
    text: str
    parts: Mapping[str, Part]
    readings: tuple[Reading, ...]
    put: Callable[[Any, dict[str, Tensor]], object] | None = None

    @property
    def has_biases(self) -> bool:
        return self.put is not None or any(name.startswith("b_") for name in self.parts)

    @property
    def has_two_biases(self) -> bool:
        return "b_hi" in self.parts

    def load(self, layer: Any, weights: Weights) -> None:
        """Write them into the layer: those of `W_x*`, `W_h*`, `b_x*` and `b_h*` that it has a place for."""
        if self.put is not None:
            ours = {f"{kind}{gate}": weights[f"{kind}{gate}"].clone() for gate in GATES for kind in ("W_x", "W_h")}
            ours |= {f"b_{gate}": weights[f"b_x{gate}"] + weights[f"b_h{gate}"] for gate in GATES}
            self.put(layer, ours)
            return
        places = tensors_of(layer)
        with torch.no_grad():
            for name, part in self.parts.items():
                part.of(places[part.parameter]).copy_(weights[name])

    def gradients(self, layer: Any) -> dict[str, Tensor | None]:
        """The gradient of each of our names that the layer has a place for."""
        places = tensors_of(layer)
        found = {}
        for name, part in self.parts.items():
            grad = places[part.parameter].grad
            found[name] = None if grad is None else part.of(grad.contiguous())
        return found


def layout_of(
    layer: Any,
    weights: Mapping[str, str] | Callable[[Any, dict[str, Tensor]], object] | None,
    order: str | None,
    sizes: tuple[int | None, int | None],
) -> Layout:
    """The layout of a layer's weights: as the caller says, or guessed from names and shapes.

    Raises CheckError where neither is enough.
    """
    if order is not None and sorted(order) != sorted(GATES):
        raise CheckError(f"order={order!r}, expected the letters of the gates in their order: 'ifgo'")
    known = {
        name: given if given is not None else next((int(v) for v in _attributes(layer, _SIZES[name])), None)
        for name, given in zip(("input", "hidden"), sizes, strict=True)
    }
    if callable(weights):
        if known["input"] is None or known["hidden"] is None:
            raise CheckError("weights is a function, so widths cannot be read off it: pass input_dim= and hidden_dim=")
        return Layout(known["input"], known["hidden"], "as weights= puts them", {}, (_AS_IT_STANDS,), weights)
    tensors = tensors_of(layer)
    if not tensors:
        raise CheckError(
            f"{type(layer).__name__} has no parameters; pass weights=put, a function that is called as put(layer, ours)"
            " and copies our W_xi, W_hi, b_i, W_xf, ... into it, and input_dim= and hidden_dim="
        )
    keys = guessed(layer) if weights is None else _given(weights, tensors)
    return _Layouts(layer, tensors, keys, known["hidden"], order).layout()


def _attributes(layer: Any, names: tuple[str, ...]) -> Iterator[Any]:
    return (getattr(layer, name) for name in names if isinstance(getattr(layer, name, None), int))


_AS_IT_STANDS = Reading("", lambda weights: weights)


def _given(weights: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    for key, name in weights.items():
        if not _KEY.fullmatch(key):
            raise CheckError(f"weights has the key {key!r}, expected W_xi, W_hi, b_i, b_xi, W_x, W_h, b and their like")
        if name not in tensors:
            raise CheckError(f"weights[{key!r}] is {name!r}, which the layer does not have: {', '.join(tensors)}")
    return dict(weights)


class _Layouts:
    """From our keys and the layer's names to where everything lies."""

    def __init__(
        self, layer: Any, tensors: Mapping[str, Tensor], keys: dict[str, str], hidden: int | None, order: str | None
    ) -> None:
        self._layer, self._tensors, self._keys, self._order = layer, tensors, keys, order
        self._stack = not any(key[-1] in GATES for key in keys)
        self._joined = "W" in keys or "W_i" in keys
        self._hidden = self._hidden_dim(hidden)
        self._wide = 4 * self._hidden if self._stack else self._hidden
        first = self._shape("W" if "W" in keys else "W_x" if self._stack else "W_i" if self._joined else "W_xi")
        rows = first[0] if first[1] == self._wide and not self._turned_for_sure(first) else first[1]
        rows = first[1] if first[0] == self._wide and first[1] != self._wide else rows
        self._input = rows - self._hidden if self._joined else rows
        if self._input < 1:
            raise CheckError(f"the shapes {self._shapes()} fit no layer of {self._hidden} units: pass {NAMES_TO_PASS}")

    def layout(self) -> Layout:
        turned, sure = self._orientation()
        parts: dict[str, Part] = {}
        for key, name in self._keys.items():
            kind, source, gate = self._parsed(key)
            for k, each in enumerate(self._blocks(gate)):
                block = slice(k * self._hidden, (k + 1) * self._hidden) if self._stack else slice(0, self._hidden)
                for part_source, rows in self._rows(source):
                    label = f"W_{part_source}{each}" if kind == "W" else f"b_{source or 'x'}{each}"
                    parts[label] = Part(name, kind == "W" and turned[name], rows, block, kind == "b")
        self._check(parts)
        readings = tuple(self._readings(any(turned.values()), sure))
        return Layout(self._input, self._hidden, self._text(), parts, readings)

    def _hidden_dim(self, known: int | None) -> int:
        if not self._joined and "W_h" in self._keys:
            return min(self._shape("W_h"))
        if not self._joined and "W_hi" in self._keys:
            return self._shape("W_hi")[0]
        for key in ("b", "b_x", "b_i", "b_xi"):
            if key in self._keys:
                return self._tensors[self._keys[key]].numel() // (4 if self._stack else 1)
        if not self._stack and "W_i" in self._keys:
            return min(self._shape("W_i"))
        if known is None:
            raise CheckError(f"the shapes {self._shapes()} do not say how many units there are: pass hidden_dim=")
        return known

    def _shape(self, key: str) -> tuple[int, int]:
        name = self._keys.get(key)
        if name is None or self._tensors[name].dim() != 2:
            raise CheckError(f"{key} is not among the weights ({self._shapes()}): pass {NAMES_TO_PASS}")
        return self._tensors[name].shape[0], self._tensors[name].shape[1]

    def _shapes(self) -> str:
        return ", ".join(f"{name} {list(self._tensors[name].shape)}" for name in self._keys.values())

    def _turned_for_sure(self, shape: tuple[int, int]) -> bool:
        return shape[0] == self._wide and shape[1] != self._wide

    @staticmethod
    def _parsed(key: str) -> tuple[str, str, str]:
        found = _KEY.fullmatch(key)
        assert found is not None
        return found[1], found[2] or "", found[3] or ""

    def _blocks(self, gate: str) -> str:
        return (self._order or "".join(GATES)) if self._stack else gate

    def _rows(self, source: str) -> list[tuple[str, slice]]:
        if source:
            return [(source, slice(None))]
        return [("x", slice(0, self._input)), ("h", slice(self._input, self._input + self._hidden))]

    def _orientation(self) -> tuple[dict[str, bool], bool]:
        """Which matrices are [out, in], and whether that is beyond doubt."""
        modules = dict(self._layer.named_modules())
        turned: dict[str, bool] = {}
        open_: list[str] = []
        for key, name in self._keys.items():
            if key.startswith("b"):
                continue
            shape = tuple(self._tensors[name].shape)
            if isinstance(modules.get(name.rpartition(".")[0]), nn.Linear) and name.endswith("weight"):
                turned[name] = True
            elif shape[0] != shape[1]:
                turned[name] = shape[0] == self._wide
            else:
                open_.append(name)
        sure = bool(turned) or not open_
        like = next(iter(turned.values()), False)
        return {**turned, **dict.fromkeys(open_, like)}, sure

    def _check(self, parts: Mapping[str, Part]) -> None:
        wanted = {f"W_{source}{gate}" for source in "xh" for gate in GATES}
        if missing := sorted(wanted - set(parts)):
            raise CheckError(f"nothing is said of {', '.join(missing)}: pass {NAMES_TO_PASS}")
        widths = {"x": self._input, "h": self._hidden}
        for name, part in parts.items():
            value = self._tensors[part.parameter]
            numbers = part.of(value.detach().contiguous()).shape
            expected = (self._hidden,) if part.is_bias else (widths[name[2]], self._hidden)
            if numbers != expected:
                raise CheckError(
                    f"{part.parameter} is {list(value.shape)}, which is no {name} of {self._input} inputs and "
                    f"{self._hidden} units (each gate's is {list(expected)}): pass {NAMES_TO_PASS}"
                )

    def _named_stack(self) -> bool:
        """Whether the names are those of torch or Keras, which say the order, too."""
        names = " ".join(self._keys.values())
        return "weight_ih" in names or "recurrent_kernel" in names

    def _text(self) -> str:
        return ", ".join(name if key == name else f"{key} = {name}" for key, name in self._keys.items())

    def _readings(self, turned: bool, sure: bool) -> Iterator[Reading]:
        """As the weights are written, in the order i, f, g, o or the one asked for, and how else they may be meant."""
        orders = [tuple(GATES)]
        if self._stack and self._order is None and not self._named_stack():
            orders = [*permutations(GATES)]
        for order in orders:
            for h_first in (False, True) if self._joined else (False,):
                for other in (False,) if sure else (False, True):
                    said = [f"matrices {'[out, in]' if turned != other else '[in, out]'}"]
                    said += [f"gates in the order {', '.join(self._order or order)}"] if self._stack else []
                    said += ["h before x" if h_first else "x before h"] if self._joined else []
                    yield Reading(", ".join(said), _understood(order, h_first, other))


def _understood(order: tuple[str, ...], h_first: bool, turned: bool) -> Callable[[Weights], Weights]:
    """What was written as gate k of GATES is that of order[k]; joined, x's rows were written first."""

    def understood(weights: Weights) -> Weights:
        found: dict[str, Tensor] = {}
        for written, meant in zip(GATES, order, strict=True):
            w_x, w_h = weights[f"W_x{written}"], weights[f"W_h{written}"]
            if h_first:
                both = torch.cat([w_x, w_h])
                w_h, w_x = both[: len(w_h)], both[len(w_h) :]
            found |= {f"W_x{meant}": w_x.mT if turned else w_x, f"W_h{meant}": w_h.mT if turned else w_h}
            found |= {f"b_{source}{meant}": weights[f"b_{source}{written}"] for source in "xh"}
        return found

    return understood
