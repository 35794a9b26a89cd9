"""The parts of a model as an ONNX graph: an `LSTM` node for each layer and direction.

Where every h and c is to come out, and where h is projected, c clipped or a layer normalised, none of which the node
can do, it is a `Scan`.

The node takes sequences time-first and its gates in the order i, o, f, c~, as rows (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from .layer import LSTMLayer
from .parts import Parts
from .recurrence import Cell
from .recurrence.cell import EPSILON
from .recurrence.step import LayerWeights

# Old enough for ONNX Runtime 1.12 and all that came after it.
OPSET, IR_VERSION = 17, 8
# i, f, g, o to i, o, f, g.
_ORDER = [0, 3, 1, 2]


def model_of(parts: Parts, version: str, *, every_step: bool) -> onnx.ModelProto:
    """Inputs x, h, c; outputs logits, h_n, c_n, and with `every_step` every_h and every_c. Weights become float32."""
    weights, first = parts.weights(), parts.layers[0]
    count, directions = len(parts.layers), ("forward", "reverse")[: parts.directions]
    graph = _Graph()
    sequence = _sequence(graph, parts, weights.embedding, every_step=every_step)
    befores = [graph.parts_of(name, count) for name in ("h", "c")]
    scans = every_step or first.proj_dim is not None or any(takes_a_scan(layer) for layer in parts.layers)
    afters: list[tuple[str, ...]] = []
    for k in range(count // len(directions)):
        outputs = []
        for direction in directions:
            n = len(afters)
            one = _one(n, direction, parts.layers[n], weights.layers[n])
            output, *after = (_scanned if scans else _layer)(graph, one, sequence, befores[0][n], befores[1][n])
            outputs.append(output)
            afters.append(tuple(after))
        above = outputs[0] if len(outputs) == 1 else graph.add("Concat", outputs, f"both_directions_{k}", axis=2)
        sequence = graph.add("Add", [above, sequence], f"residual_{k}") if parts.residual and k else above
    every = ("every_h", "every_c") if every_step else ()
    names = ("h_n", "c_n", *(f"{name}_time_first" for name in every))
    for name, each in zip(names, zip(*afters, strict=True), strict=False):
        graph.add("Concat", each, name, axis=0)
    for name in every:
        graph.add("Transpose", [f"{name}_time_first"], name, perm=[0, 2, 1, 3])
    _project(graph, sequence, weights.projection)
    widths = {"h": first.h_dim, "c": first.hidden_dim}
    ids = parts.ids_only
    x = graph.value("x", ["batch", "time"] if ids else ["batch", "time", first.input_dim], ids=ids)
    outputs_of = [graph.value("logits", ["batch", "time", parts.output])]
    outputs_of += [graph.value(f"{name}_n", [count, "batch", width]) for name, width in widths.items()]
    outputs_of += [graph.value(name, [count, "batch", "time", widths[name[-1]]]) for name in every]
    states = [graph.value(name, [count, "batch", width]) for name, width in widths.items()]
    built = helper.make_graph(graph.nodes, "unrolled", [x, *states], outputs_of, graph.initializers)
    return helper.make_model(
        built,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unrolled",
        producer_version=version,
    )


class _One(NamedTuple):
    """One direction of one layer: its place in the state, and its weights as float32, those of its cell too."""

    at: int
    direction: str
    w_x: Tensor
    w_h: Tensor
    bias: Tensor
    w_hr: Tensor | None
    cell: Cell
    coupled: bool


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Tensor | NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def parts_of(self, name: str, count: int) -> list[str]:
        """A state [layers, batch, hidden] as that of each layer, [1, batch, hidden]."""
        each = [f"{name}_{k}" for k in range(count)]
        self.nodes.append(helper.make_node("Split", [name], each, name=f"{name}_split", axis=0))
        return each

    @staticmethod
    def value(name: str, shape: Sequence[int | str], *, ids: bool = False) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64 if ids else TensorProto.FLOAT, shape)


def takes_a_scan(layer: LSTMLayer) -> str:
    """The options that an LSTM node cannot have, as they would be written; its `clip` bounds what goes into gates."""
    return layer.options.changed(("cell_clip", "layer_norm"))


def _sequence(graph: _Graph, parts: Parts, embedding: Tensor | None, *, every_step: bool) -> str:
    """What the bottom layer reads, [time, batch, input]; ids where it looks up rows of its own weights."""
    if not parts.ids_only:
        return graph.add("Transpose", ["x"], "x_time_first", perm=[1, 0, 2])
    ids = graph.add("Transpose", ["x"], "ids", perm=[1, 0])
    if embedding is not None:
        return graph.add("Gather", [graph.constant("embedding", _float32(embedding)), ids], "embedded")
    size = parts.vocabulary
    # OneHot makes zeros of an id that does not exist; looked up first, it is an error, as it is with an embedding.
    known = graph.add("Gather", [graph.constant("known_ids", np.arange(size, dtype=np.int64)), ids], "checked_ids")
    if every_step:
        return known
    depth = graph.constant("vocabulary", np.array(size, dtype=np.int64))
    values = graph.constant("off_on", np.array([0, 1], dtype=np.float32))
    return graph.add("OneHot", [known, depth, values], "one_hot")


def _layer(graph: _Graph, one: _One, sequence: str, h: str, c: str) -> tuple[str, ...]:
    """The layer's h of every step, [time, batch, hidden], and its last h and c."""
    k = one.at
    names = [
        graph.constant(f"W_{k}", one.w_x[:, _ORDER].permute(1, 2, 0).flatten(0, 1)[None]),
        graph.constant(f"R_{k}", one.w_h[:, _ORDER].permute(1, 2, 0).flatten(0, 1)[None]),
        # The node adds two biases.
        graph.constant(f"B_{k}", torch.cat([one.bias[_ORDER].flatten(), one.bias.new_zeros(one.bias.numel())])[None]),
    ]
    outputs = [f"directions_{k}", f"h_n_{k}", f"c_n_{k}"]
    inputs = [sequence, *names, "", h, c]
    if one.cell.peephole is not None:
        # i, f, o to i, o, f.
        inputs.append(graph.constant(f"P_{k}", one.cell.peephole[[0, 2, 1]].flatten()[None]))
    options: dict[str, Any] = {"hidden_size": one.w_h.shape[-1], "direction": one.direction, **_functions(one.cell)}
    # f has weights all the same, those of i negated: a runtime that does not know of coupling gives the same numbers.
    options |= {"input_forget": 1} if one.coupled else {}
    graph.nodes.append(helper.make_node("LSTM", inputs, outputs, name=f"lstm_{k}", **options))
    axis = graph.constant(f"direction_axis_{k}", np.array([1], dtype=np.int64))
    return graph.add("Squeeze", [outputs[0], axis], f"h_of_layer_{k}"), *outputs[1:]


def _functions(cell: Cell) -> dict[str, Any]:
    """The node's attributes for the functions of a cell; none where they are its own."""
    if not (cell.hard_gates or cell.relu):
        return {}
    squash = "Relu" if cell.relu else "Tanh"
    if not cell.hard_gates:
        return {"activations": ["Sigmoid", squash, squash]}
    slopes = {"activation_alpha": [1 / 6], "activation_beta": [0.5]}
    return {"activations": ["HardSigmoid", squash, squash], **slopes}


def _scanned(graph: _Graph, one: _One, sequence: str, h: str, c: str) -> tuple[str, ...]:
    """The layer's h of every step, [time, batch, ...]; then, each with an axis for the layer in front, its last h and
    c, and its h and c of every step.
    """
    k, backward = one.at, int(one.direction == "reverse")
    weights = graph.constant(f"W_{k}", one.w_x.flatten(-2))
    kind = "Gather" if sequence == "checked_ids" else "MatMul"
    product = graph.add(kind, [weights, sequence] if kind == "Gather" else [sequence, weights], f"product_{k}")
    pre = graph.add("Add", [product, graph.constant(f"B_{k}", one.bias.flatten())], f"from_input_{k}")
    axis = graph.constant(f"layer_axis_{k}", np.array([0], dtype=np.int64))
    starts = [graph.add("Squeeze", [name, axis], f"{name}_row") for name in (h, c)]
    found = [f"last_h_{k}", f"last_c_{k}", f"h_of_layer_{k}", f"c_of_layer_{k}"]
    options: dict[str, Any] = {"num_scan_inputs": 1, "scan_input_directions": [backward]}
    options["scan_output_directions"] = [backward, backward]
    body = _step(graph, one)
    graph.nodes.append(helper.make_node("Scan", [*starts, pre], found, name=f"scan_{k}", body=body, **options))
    return found[2], *(graph.add("Unsqueeze", [name, axis], f"{name}_of_stack") for name in found)


def _step(graph: _Graph, one: _One) -> onnx.GraphProto:
    """h, c and the input's share of the pre-activations to the next h and c, which come out twice: carried and kept.

    The step's weights are constants of `graph`.
    """
    step, at, hidden = _Graph(), f"step_{one.at}", one.w_h.shape[-1]
    h, c, pre = (f"{at}_{name}" for name in ("h", "c", "pre"))
    recurrent = graph.constant(f"R_{one.at}", one.w_h.flatten(-2))
    total = step.add("Add", [pre, step.add("MatMul", [h, recurrent], f"{at}_recurrent")], f"{at}_total")
    gates = [f"{at}_pre_{gate}" for gate in "ifgo"]
    step.nodes.append(helper.make_node("Split", [total], gates, name=f"{at}_split", axis=-1))
    cell = _CellGraph(graph, step, one)
    i, f, g, o = (
        cell.normed(name, k, f"normed_{gate}") for k, (gate, name) in enumerate(zip("ifgo", gates, strict=True))
    )
    i, f = cell.gate(cell.peeped(i, c, 0), "i"), cell.gate(cell.peeped(f, c, 1), "f")
    kept = step.add("Mul", [f, c], f"{at}_kept")
    written = step.add("Mul", [i, cell.squashed(g, "g")], f"{at}_written")
    new_c = cell.clipped(step.add("Add", [kept, written], f"{at}_new_c"))
    o = cell.gate(cell.peeped(o, new_c, 2), "o")
    new_h = step.add("Mul", [o, cell.squashed(cell.normed(new_c, 4, "normed_c"), "squashed_c")], f"{at}_new_h")
    if one.w_hr is not None:
        new_h = step.add("MatMul", [new_h, graph.constant(f"P_{one.at}", one.w_hr)], f"{at}_projected_h")
    widths = {h: one.w_h.shape[0], c: hidden, pre: 4 * hidden, new_h: one.w_h.shape[0], new_c: hidden}
    twice = {name: step.add("Identity", [name], f"{name}_kept") for name in (new_h, new_c)}
    outputs = [*((name, widths[name]) for name in twice), *((kept, widths[name]) for name, kept in twice.items())]
    values = [step.value(name, ["batch", width]) for name, width in outputs]
    inputs = [step.value(name, ["batch", widths[name]]) for name in (h, c, pre)]
    return helper.make_graph(step.nodes, at, inputs, values)


class _CellGraph:
    """The functions of one layer's cell as nodes of its step; what they are given lies in the graph around it."""

    def __init__(self, graph: _Graph, step: _Graph, one: _One) -> None:
        self._graph, self._step, self._at, self._cell = graph, step, one.at, one.cell

    def gate(self, x: str, name: str) -> str:
        if self._cell.hard_gates:
            return self._step.add("HardSigmoid", [x], f"step_{self._at}_{name}", alpha=1 / 6, beta=0.5)
        return self._step.add("Sigmoid", [x], f"step_{self._at}_{name}")

    def squashed(self, x: str, name: str) -> str:
        return self._step.add("Relu" if self._cell.relu else "Tanh", [x], f"step_{self._at}_{name}")

    def peeped(self, x: str, c: str, k: int) -> str:
        if self._cell.peephole is None:
            return x
        vector = self._graph.constant(f"p_{'ifo'[k]}_{self._at}", self._cell.peephole[k])
        seen = self._step.add("Mul", [vector, c], f"step_{self._at}_seen_{k}")
        return self._step.add("Add", [x, seen], f"step_{self._at}_peeped_{k}")

    def normed(self, x: str, k: int, name: str) -> str:
        if self._cell.norm is None:
            return x
        gain, shift = (
            self._graph.constant(f"{kind}_{k}_{self._at}", value[k])
            for kind, value in zip(("gain", "shift"), self._cell.norm, strict=True)
        )
        options: dict[str, Any] = {"axis": -1, "epsilon": EPSILON}
        return self._step.add("LayerNormalization", [x, gain, shift], f"step_{self._at}_{name}", **options)

    def clipped(self, c: str) -> str:
        if not self._cell.clip:
            return c
        bounds = [
            self._graph.constant(f"{kind}_c_{self._at}", np.array(bound, dtype=np.float32))
            for kind, bound in (("least", -self._cell.clip), ("most", self._cell.clip))
        ]
        return self._step.add("Clip", [c, *bounds], f"step_{self._at}_clipped_c")


def _one(at: int, direction: str, layer: LSTMLayer, weights: LayerWeights) -> _One:
    w_x, w_h, bias = map(_float32, weights)
    cell = layer._cell()
    peephole, norm = (None if value is None else _float32(value) for value in (cell.peephole, cell.norm))
    w_hr = None if layer.proj_dim is None else _float32(layer.W_hr)
    own = cell._replace(peephole=peephole, norm=norm)
    return _One(at, direction, w_x, w_h, bias, w_hr, own, layer.options.coupled)


def _project(graph: _Graph, sequence: str, projection: tuple[Tensor, Tensor] | None) -> None:
    if projection is None:
        graph.add("Transpose", [sequence], "logits", perm=[1, 0, 2])
        return
    weight, bias = map(_float32, projection)
    top = graph.add("Transpose", [sequence], "top", perm=[1, 0, 2])
    product = graph.add("MatMul", [top, graph.constant("projection", weight.t())], "projected")
    graph.add("Add", [product, graph.constant("projection_bias", bias)], "logits")


def _float32(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32)
