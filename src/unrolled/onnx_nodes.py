"""The `LSTM` nodes of an ONNX graph: their weights, where they begin, and what lies between one and the next.

The node has its gates as rows, in the order i, o, f, c (our g), multiplies by the transpose and adds two biases
(https://onnx.ai/onnx/operators/onnx__LSTM.html).
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from .gate_arrays import GateArrays, check_shape, floats

# i, o, f, g to i, f, g, o.
_ORDER = [0, 2, 3, 1]
# What moves numbers and changes none: zeros that go in come out.
_MOVES = {
    *("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
    *("Transpose", "Unsqueeze"),
}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class Graph:
    """A model's graph, and what of it is known without running it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.lstms = [node for node in model.graph.node if node.op_type == "LSTM"]
        self.kinds = sorted({node.op_type for node in model.graph.node})
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {output: node for node in model.graph.node for output in node.output if output}
        self._opsets = {each.domain: each.version for each in model.opset_import}

    def constant(self, name: str) -> NDArray[Any] | None:
        """The numbers of `name` if no input of the graph has a say in them."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        node = self.makers.get(name)
        if node is None or not (node.input or node.op_type == "Constant"):
            return None
        given = {each: self.constant(each) for each in node.input if each}
        if any(value is None for value in given.values()):
            return None
        found = cast(list[NDArray[Any]], ReferenceEvaluator(node, opsets=self._opsets).run(None, given))
        return np.asarray(found[list(node.output).index(name)])

    def is_zero(self, name: str) -> bool:
        """Whether it is made of zeros, however many there will be."""
        known = self.constant(name)
        if known is not None:
            return not np.any(known)
        node = self.makers.get(name)
        if node is None:
            return False
        if node.op_type == "ConstantOfShape":
            value = _attributes(node).get("value")
            return value is None or not np.any(numpy_helper.to_array(value))
        data = list(node.input) if node.op_type == "Concat" else list(node.input[:1])
        return node.op_type in _MOVES and all(self.is_zero(each) for each in data)


def label(node: NodeProto) -> str:
    return str(node.name or node.output[0])


def directions(graph: Graph, node: NodeProto) -> list[GateArrays]:
    """The weights, forward first. Raises ValueError for what a layer cannot do or a file does not hold."""
    _check(graph, node)
    w, r, b = (_stored(graph, node, name) for name in ("W", "R", "B"))
    if w is None or r is None:
        raise ValueError(f"{label(node)} has no W or no R, which an LSTM node needs: the file is broken")
    count, hidden, width = r.shape[0], r.shape[-1], w.shape[-1]
    check_shape(w, (count, 4 * hidden, width), f"W of {label(node)}")
    check_shape(r, (count, 4 * hidden, hidden), f"R of {label(node)}")
    if b is not None:
        check_shape(b, (count, 8 * hidden), f"B of {label(node)}")
    p = None if graph.is_zero(_input(node, "P")) else _stored(graph, node, "P")
    if p is not None:
        check_shape(p, (count, 3 * hidden), f"P of {label(node)}")
    found = []
    for k in range(count):
        w_x, w_h = (_ordered(each[k].reshape(4, hidden, -1)).T for each in (w, r))
        bias = None if b is None else _ordered(b[k].reshape(2, 4, hidden).sum(0))
        # i, o, f to i, f, o.
        peepholes = None if p is None else p[k].reshape(3, hidden)[[0, 2, 1]]
        found.append(GateArrays(w_x, w_h, bias, peepholes=peepholes))
    return found


def options(node: NodeProto) -> dict[str, Any]:
    """What a node's layer is that the plain one is not, as keywords of a layer, its peepholes left out."""
    gate, squash = _functions(node)[:2]
    found: dict[str, Any] = {"coupled": True} if _attributes(node).get("input_forget", 0) else {}
    found |= {"gate_activation": "hard_sigmoid"} if gate == "hardsigmoid" else {}
    return found | ({"activation": "relu"} if squash == "relu" else {})


def initial_state(graph: Graph, node: NodeProto) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """h and c [directions, rows, hidden] that the file holds, else None: zeros, or what the graph is given or computes.

    Raises ValueError for numbers of the file that something is done to first.
    """
    states = []
    for name in ("initial_h", "initial_c"):
        given = _input(node, name)
        value = graph.constant(given) if given else None
        if value is None and given and not graph.is_zero(given):
            expanded = graph.makers.get(given)
            if expanded is not None and expanded.op_type == "Expand":
                value = graph.constant(expanded.input[0])
        states.append(value)
    if all(value is None or not np.any(value) for value in states):
        return None
    shape = next(value.shape for value in states if value is not None)
    h, c = (np.zeros(shape) if value is None else value for value in states)
    return (h.swapaxes(0, 1), c.swapaxes(0, 1)) if _attributes(node).get("layout", 0) else (h, c)


def what_lies_between(graph: Graph, below: NodeProto, above: NodeProto) -> str | None:
    """Why `above` does not read the output of `below` step by step, as a stack's layer does; None if it does."""
    path, name = [], above.input[0]
    while (node := graph.makers.get(name)) is not None and node.op_type in _STEPS:
        path.append(node)
        name = node.input[0]
    if node is None:
        return f"it reads {name}"
    if node is not below or name != below.output[0]:
        return f"it reads the output {name} of {label(node)} ({node.op_type})"
    axes = ["time", "direction", "batch", "h"]
    if _attributes(below).get("layout", 0):
        axes = ["batch", "time", "direction", "h"]
    both = _text(below, "direction", "forward") == "bidirectional"
    for step in reversed(path):
        changed = _STEPS[step.op_type](graph, step, axes, both)
        if changed is None:
            return f"{label(step)} ({step.op_type}) between them turns [{', '.join(axes)}] into something else"
        axes = changed
    wanted = ["batch", "time"] if _attributes(above).get("layout", 0) else ["time", "batch"]
    if axes[:2] != wanted or len(axes) != 3:
        return f"it reads [{', '.join(axes)}] as [{', '.join(wanted)}, input]"
    return None


def _squeezed(graph: Graph, node: NodeProto, axes: list[str], both: bool) -> list[str] | None:
    given = _attributes(node).get("axes")
    if len(node.input) > 1:
        given = graph.constant(node.input[1])
    gone = None if given is None else [int(each) for each in np.ravel(given)]
    if gone is None or both or [axes[each] for each in gone] != ["direction"]:
        return None
    return [axis for axis in axes if axis != "direction"]


def _transposed(graph: Graph, node: NodeProto, axes: list[str], both: bool) -> list[str] | None:
    order = _attributes(node).get("perm") or range(len(axes))[::-1]
    return [axes[each] for each in order]


def _reshaped(graph: Graph, node: NodeProto, axes: list[str], both: bool) -> list[str] | None:
    """Directions side by side: the one reshape that exporters write."""
    shape = graph.constant(node.input[1])
    if shape is None or axes[2:] != ["direction", "h"] or shape.tolist()[:2] != [0, 0] or len(shape) != 3:
        return None
    return [*axes[:2], "h"]


def _kept(graph: Graph, node: NodeProto, axes: list[str], both: bool) -> list[str] | None:
    trains = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return None if trains is not None and trains.any() else axes


# What may lie between two layers, in evaluation.
_STEPS = {"Squeeze": _squeezed, "Transpose": _transposed, "Reshape": _reshaped, "Identity": _kept, "Dropout": _kept}


def _check(graph: Graph, node: NodeProto) -> None:
    name = label(node)
    direction = _text(node, "direction", "forward")
    if direction not in ("forward", "bidirectional"):
        raise ValueError(
            f"{name} has direction={direction!r}, and a stack has the forward direction alone or both: expected "
            "'forward' or 'bidirectional'"
        )
    attributes = _attributes(node)
    if "clip" in attributes:
        raise ValueError(
            f"{name} has clip={attributes['clip']:g}, bounds of what goes into the gates, which no layer here has"
        )
    kinds, slopes = _functions(node), _slopes(node)
    one = kinds[:3]
    taken = one[0] in ("sigmoid", "hardsigmoid") and one[1] == one[2] and one[1] in ("tanh", "relu")
    if not taken or kinds != one * (len(kinds) // 3):
        raise ValueError(
            f"{name} has the activations {', '.join(kinds)}, which from_onnx does not take over: expected sigmoid or "
            "hardsigmoid, and twice tanh or twice relu, in both directions the same"
        )
    if one[0] == "hardsigmoid" and any(not np.allclose(each, (1 / 6, 0.5), atol=1e-6) for each in slopes):
        raise ValueError(
            f"{name} has hardsigmoid with alpha {slopes[0][0]:g} and beta {slopes[0][1]:g}, and a layer here has "
            "x / 6 + 1/2: expected activation_alpha=1/6, activation_beta=1/2"
        )


def _functions(node: NodeProto) -> list[str]:
    """Of the gates, of g and of c, for each direction."""
    given = [each.decode().lower() for each in _attributes(node).get("activations", ())]
    return given or ["sigmoid", "tanh", "tanh"]


def _slopes(node: NodeProto) -> list[tuple[float, float]]:
    """alpha and beta of each hardsigmoid; ONNX gives those of functions that have any, in their order."""
    count = _functions(node).count("hardsigmoid")
    alpha, beta = (list(_attributes(node).get(f"activation_{name}", ())) for name in ("alpha", "beta"))
    # The defaults of the operator HardSigmoid.
    return list(zip((alpha + [0.2] * count)[:count], (beta + [0.5] * count)[:count], strict=True))


def _stored(graph: Graph, node: NodeProto, name: str) -> NDArray[Any] | None:
    given = _input(node, name)
    if not given:
        return None
    value = graph.constant(given)
    if value is None:
        raise ValueError(
            f"{name} of {label(node)} is {given}, which the graph computes or is given as it runs: the file does not "
            "hold these weights"
        )
    return floats(value, f"{name} of {label(node)}")


def _ordered(rows: NDArray[Any]) -> NDArray[Any]:
    """[4, hidden, ...] of i, o, f, g as [4 * hidden, ...] of i, f, g, o."""
    return np.concatenate(list(rows[_ORDER]))


def _input(node: NodeProto, name: str) -> str:
    place = _INPUTS.index(name)
    return str(node.input[place]) if place < len(node.input) else ""


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _text(node: NodeProto, name: str, default: str) -> str:
    value = _attributes(node).get(name)
    return default if value is None else value.decode()
