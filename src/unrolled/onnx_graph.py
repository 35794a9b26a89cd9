"""The parts of a model as an ONNX graph: an `LSTM` node for each layer and direction.

Where every h and c is to come out, and where h is projected, neither of which the node can do, it is a `Scan`.

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
    scans = every_step or first.proj_dim is not None
    afters: list[tuple[str, ...]] = []
    for k in range(count // len(directions)):
        outputs = []
        for direction in directions:
            n = len(afters)
            one = _One(n, direction, *_weights(parts.layers[n], weights.layers[n]))
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
    """One direction of one layer: its place in the state, and its weights as float32."""

    at: int
    direction: str
    w_x: Tensor
    w_h: Tensor
    bias: Tensor
    w_hr: Tensor | None


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
    options: dict[str, Any] = {"hidden_size": one.w_h.shape[-1], "direction": one.direction}
    graph.nodes.append(helper.make_node("LSTM", [sequence, *names, "", h, c], outputs, name=f"lstm_{k}", **options))
    axis = graph.constant(f"direction_axis_{k}", np.array([1], dtype=np.int64))
    return graph.add("Squeeze", [outputs[0], axis], f"h_of_layer_{k}"), *outputs[1:]


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
    i, f, g, o = (
        step.add("Tanh" if gate == "g" else "Sigmoid", [name], f"{at}_{gate}")
        for gate, name in zip("ifgo", gates, strict=True)
    )
    kept, written = step.add("Mul", [f, c], f"{at}_kept"), step.add("Mul", [i, g], f"{at}_written")
    new_c = step.add("Add", [kept, written], f"{at}_new_c")
    new_h = step.add("Mul", [o, step.add("Tanh", [new_c], f"{at}_tanh_c")], f"{at}_new_h")
    if one.w_hr is not None:
        new_h = step.add("MatMul", [new_h, graph.constant(f"P_{one.at}", one.w_hr)], f"{at}_projected_h")
    widths = {h: one.w_h.shape[0], c: hidden, pre: 4 * hidden, new_h: one.w_h.shape[0], new_c: hidden}
    twice = {name: step.add("Identity", [name], f"{name}_kept") for name in (new_h, new_c)}
    outputs = [*((name, widths[name]) for name in twice), *((kept, widths[name]) for name, kept in twice.items())]
    values = [step.value(name, ["batch", width]) for name, width in outputs]
    inputs = [step.value(name, ["batch", widths[name]]) for name in (h, c, pre)]
    return helper.make_graph(step.nodes, at, inputs, values)


def _weights(layer: LSTMLayer, weights: LayerWeights) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    w_x, w_h, bias = map(_float32, weights)
    return w_x, w_h, bias, None if layer.proj_dim is None else _float32(layer.W_hr)


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
