"""Weights to and from Flax' LSTM cells, linen and nnx: trees of arrays, whose names tell the gates.

Flax multiplies by kernels as they stand, so nothing is transposed. Its bias is on the side of h, and there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .gate_arrays import GateArrays, arrays_of, check_shape, floats, layers_of, rows, stack_of
from .layer import GATES, LSTMLayer
from .stack import MultiLayerLSTM

FlaxParams = Mapping[str, Any]

# The keys of a cell's parameters, and what to call them: nnx cannot name an attribute `if`.
_BY_GATE = {f"{side}{gate}" for side in "ih" for gate in GATES}
_BY_GATE_OF_NNX = (_BY_GATE - {"if"}) | {"if_"}
_SIDE_BY_SIDE = {"dense_i", "dense_h"}
_DIRECTIONS = ("forward_rnn", "backward_rnn")


def from_flax(params: FlaxParams | Sequence[FlaxParams]) -> MultiLayerLSTM:
    """A stack without a projection that computes what one LSTM cell of Flax, or several on top of each other, do.

    Each is the parameters of one cell, of any kind of arrays: of a linen `OptimizedLSTMCell` or `LSTMCell` the dict
    with `ii`, `if`, `ig`, `io`, `hi`, `hf`, `hg`, `ho` (in an `nn.RNN`, `variables["params"]["cell"]`), of one of nnx
    `nnx.state(cell, nnx.Param)`; of a `Bidirectional`, which holds two, with `forward_rnn` and `backward_rnn`.

    The weights are copies on the CPU, in their dtype. Parameters do not tell activations: the cell's have to be the
    defaults, sigmoid and tanh. A carry of Flax is (c, h), a state here (h, c).

    Raises ValueError for another tree and for shapes that do not fit, TypeError for anything else.
    """
    given: dict[str, Any] = {"params": params}
    if isinstance(params, Sequence) and not isinstance(params, str):
        given = {f"params[{k}]": each for k, each in enumerate(params)}
        if not given:
            raise ValueError(f"params is empty, {_EXPECTED}")
    found = [_directions(each, name) for name, each in given.items()]
    return stack_of(found, list(given), "from_flax({})")


@overload
def to_flax(model: LSTMLayer, *, kind: Literal["linen", "nnx"] = "linen") -> dict[str, Any]: ...


@overload
def to_flax(model: MultiLayerLSTM, *, kind: Literal["linen", "nnx"] = "linen") -> list[dict[str, Any]]: ...


def to_flax(
    model: MultiLayerLSTM | LSTMLayer, *, kind: Literal["linen", "nnx"] = "linen"
) -> dict[str, Any] | list[dict[str, Any]]:
    """Of a layer, the parameters of a cell, as dicts of NumPy arrays; of a stack, a list of these, bottom first.

    With `bidirectional`, each is for a `Bidirectional` of two `RNN`.

    `kind="linen"`: those of a `flax.linen.OptimizedLSTMCell` or `LSTMCell`. `kind="nnx"`: what
    `nnx.update(cell, ...)` takes for an `nnx.OptimizedLSTMCell`.

    What a stack has behind its layers stays behind: `proj` is a `Dense` of `kernel` `proj.weight.T` and `bias`
    `proj.bias`. Arrays are copies in the weights' dtype, bfloat16 as float32.

    Raises TypeError for another kind of module, ValueError for another `kind`.
    """
    if kind not in ("linen", "nnx"):
        raise ValueError(f'kind={kind!r}, expected "linen" or "nnx"')
    write = _by_gate if kind == "linen" else _side_by_side
    written: list[dict[str, Any]] = []
    for directions in layers_of(model, "to_flax"):
        cells = [write(*arrays_of(layer)) for layer in directions]
        two = {name: {"cell": cell} for name, cell in zip(_DIRECTIONS, cells, strict=False)}
        written.append(cells[0] if len(cells) == 1 else two)
    return written[0] if isinstance(model, LSTMLayer) else written


_EXPECTED = (
    "expected the parameters of an LSTM cell of Flax (of linen the dict with ii, if, ig, io, hi, hf, hg, ho; of nnx "
    "nnx.state(cell, nnx.Param)), or a list of such, bottom first"
)


def _by_gate(w_x: NDArray[Any], w_h: NDArray[Any], bias: NDArray[Any]) -> dict[str, dict[str, NDArray[Any]]]:
    columns = {name: np.split(array, 4, -1) for name, array in (("x", w_x), ("h", w_h), ("b", bias))}
    tree = {f"i{gate}": {"kernel": columns["x"][k]} for k, gate in enumerate(GATES)}
    return tree | {f"h{gate}": {"kernel": columns["h"][k], "bias": columns["b"][k]} for k, gate in enumerate(GATES)}


def _side_by_side(w_x: NDArray[Any], w_h: NDArray[Any], bias: NDArray[Any]) -> dict[str, dict[str, NDArray[Any]]]:
    return {"dense_i": {"kernel": w_x}, "dense_h": {"kernel": w_h, "bias": bias}}


def _directions(tree: Any, name: str) -> list[GateArrays]:
    if not isinstance(tree, Mapping):
        raise TypeError(f"{name} is of type {type(tree).__name__}, {_EXPECTED}")
    if _is_both(tree):
        return [_read(tree[each]["cell"], f"{name}['{each}']['cell']") for each in _DIRECTIONS]
    if not _is_cell(tree):
        inside = [f"{name}{path}" for path in _cells(tree)]
        hint = f"; it holds one: from_flax({inside[0]})" if len(inside) == 1 else ""
        if len(inside) > 1:
            hint = f"; it holds some: from_flax([{', '.join(inside)}])"
        raise ValueError(f"{name} has the keys {', '.join(map(str, tree))}, {_EXPECTED}{hint}")
    return [_read(tree, name)]


def _read(tree: Mapping[str, Any], name: str) -> GateArrays:
    sides, packed = [("dense_i", "dense_h")], 4
    if set(tree) != _SIDE_BY_SIDE:
        sides, packed = [("if_" if f"i{gate}" not in tree else f"i{gate}", f"h{gate}") for gate in GATES], 1
    found = []
    for of_x, of_h in sides:
        [kernel_x] = _leaves(tree, of_x, ("kernel",), name)
        kernel_h, bias = _leaves(tree, of_h, ("kernel", "bias"), name)
        found.append((kernel_x, kernel_h, bias))
    features, units = rows(found[0][0]), rows(found[0][1])
    shapes = ((features, packed * units), (units, packed * units), (packed * units,))
    for (of_x, of_h), arrays in zip(sides, found, strict=True):
        labels = f"['{of_x}']['kernel']", f"['{of_h}']['kernel']", f"['{of_h}']['bias']"
        for array, shape, label in zip(arrays, shapes, labels, strict=True):
            check_shape(array, shape, f"{name}{label}")
    w_x, w_h, bias = (np.concatenate(kind, -1) for kind in zip(*found, strict=True))
    return GateArrays(w_x, w_h, bias)


def _leaves(tree: Mapping[str, Any], side: str, wanted: tuple[str, ...], name: str) -> list[NDArray[Any]]:
    part = tree[side]
    if not isinstance(part, Mapping) or set(part) != set(wanted):
        has = f"the keys {', '.join(map(str, part))}" if isinstance(part, Mapping) else f"a {type(part).__name__}"
        raise ValueError(f"{name}['{side}'] has {has}, expected {' and '.join(wanted)}")
    return [floats(part[leaf], f"{name}['{side}']['{leaf}']") for leaf in wanted]


def _is_cell(tree: Mapping[str, Any]) -> bool:
    return set(tree) in (_BY_GATE, _BY_GATE_OF_NNX, _SIDE_BY_SIDE)


def _is_both(tree: Mapping[str, Any]) -> bool:
    """A Bidirectional's two RNNs, and nothing beside them."""
    return set(tree) == set(_DIRECTIONS) and all(
        isinstance(rnn, Mapping) and set(rnn) == {"cell"} and _is_cell(rnn["cell"]) for rnn in tree.values()
    )


def _cells(tree: Mapping[str, Any]) -> Iterator[str]:
    """Where in a tree of parameters cells lie, as the keys that lead there."""
    for key, part in tree.items():
        if isinstance(part, Mapping):
            yield from (
                [f"[{key!r}]"] if _is_cell(part) or _is_both(part) else (f"[{key!r}]{path}" for path in _cells(part))
            )
