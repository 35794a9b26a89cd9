"""The parts of a model as an ONNX graph: an `LSTM` node for each layer, or a `Scan` where every h and c is to come out.

The node takes sequences time-first and its gates in the order i, o, f, c~, as rows (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from .parts import Parts

# Old enough for ONNX Runtime 1.12 and all that came after it.
OPSET, IR_VERSION = 17, 8
# i, f, g, o to i, o, f, g.
_ORDER = [0, 3, 1, 2]


def model_of(parts: Parts, version: str, *, every_step: bool) -> onnx.ModelProto:
    """Inputs x, h, c; outputs logits, h_n, c_n, and with `every_step` every_h and every_c. Weights become float32."""
    weights = parts.weights()
    layers = [tuple(_float32(value) for value in layer) for layer in weights.layers]
    hidden, count = parts.layers[0].hidden_dim, len(layers)
    graph = _Graph()
    sequence = _sequence(graph, parts, weights.embedding, every_step=every_step)
    befores = [graph.parts_of(name, count) for name in ("h", "c")]
    build = _scanned if every_step else _layer
    afters: list[tuple[str, ...]] = []
    for k, (layer, h, c) in enumerate(zip(layers, *befores, strict=True)):
        sequence, *after = build(graph, k, layer, sequence, h, c)
        afters.append(tuple(after))
    every = ("every_h", "every_c") if every_step else ()
    names = ("h_n", "c_n", *(f"{name}_time_first" for name in every))
    for name, each in zip(names, zip(*afters, strict=True), strict=True):
        graph.add("Concat", each, name, axis=0)
    for name in every:
        graph.add("Transpose", [f"{name}_time_first"], name, perm=[0, 2, 1, 3])
    _project(graph, sequence, weights.projection)
    state: list[int | str] = [count, "batch", hidden]
    ids = parts.ids_only
    x = graph.value("x", ["batch", "time"] if ids else ["batch", "time", parts.layers[0].input_dim], ids=ids)
    outputs = [graph.value("logits", ["batch", "time", parts.output])]
    outputs += [graph.value(name, state) for name in ("h_n", "c_n")]
    outputs += [graph.value(name, [count, "batch", "time", hidden]) for name in every]
    built = helper.make_graph(
        graph.nodes, "unrolled", [x, *(graph.value(name, state) for name in "hc")], outputs, graph.initializers
    )
    return helper.make_model(
        built,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unrolled",
        producer_version=version,
    )


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


def _layer(graph: _Graph, k: int, weights: tuple[Tensor, ...], sequence: str, h: str, c: str) -> tuple[str, str, str]:
    w_x, w_h, bias = weights
    names = [
        graph.constant(f"W_{k}", w_x[:, _ORDER].permute(1, 2, 0).flatten(0, 1)[None]),
        graph.constant(f"R_{k}", w_h[:, _ORDER].permute(1, 2, 0).flatten(0, 1)[None]),
        # The node adds two biases.
        graph.constant(f"B_{k}", torch.cat([bias[_ORDER].flatten(), bias.new_zeros(bias.numel())])[None]),
    ]
    outputs = [f"directions_{k}", f"h_n_{k}", f"c_n_{k}"]
    graph.nodes.append(
        helper.make_node("LSTM", [sequence, *names, "", h, c], outputs, name=f"lstm_{k}", hidden_size=w_h.shape[0])
    )
    axis = graph.constant(f"direction_axis_{k}", np.array([1], dtype=np.int64))
    return graph.add("Squeeze", [outputs[0], axis], f"h_of_layer_{k}"), *outputs[1:]  # type: ignore[return-value]


def _scanned(graph: _Graph, k: int, weights: tuple[Tensor, ...], sequence: str, h: str, c: str) -> tuple[str, ...]:
    """The layer's h of every step, [time, batch, hidden]; then, each with an axis for the layer in front, its last h
    and c, and its h and c of every step.
    """
    w_x, w_h, bias = (value.flatten(-2) for value in weights)
    if sequence == "checked_ids":
        product = graph.add("Gather", [graph.constant(f"W_{k}", w_x), sequence], f"product_{k}")
    else:
        product = graph.add("MatMul", [sequence, graph.constant(f"W_{k}", w_x)], f"product_{k}")
    pre = graph.add("Add", [product, graph.constant(f"B_{k}", bias)], f"from_input_{k}")
    axis = graph.constant(f"layer_axis_{k}", np.array([0], dtype=np.int64))
    starts = [graph.add("Squeeze", [name, axis], f"{name}_row") for name in (h, c)]
    found = [f"last_h_{k}", f"last_c_{k}", f"h_of_layer_{k}", f"c_of_layer_{k}"]
    body = _step(k, graph.constant(f"R_{k}", w_h), w_h.shape[0])
    graph.nodes.append(helper.make_node("Scan", [*starts, pre], found, name=f"scan_{k}", body=body, num_scan_inputs=1))
    return found[2], *(graph.add("Unsqueeze", [name, axis], f"{name}_of_stack") for name in found)


def _step(k: int, recurrent: str, hidden: int) -> onnx.GraphProto:
    """h, c and the input's share of the pre-activations to the next h and c, which come out twice: carried and kept."""
    step = _Graph()
    at = f"step_{k}"
    h, c, pre = (f"{at}_{name}" for name in ("h", "c", "pre"))
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
    outputs = [new_h, new_c, *(step.add("Identity", [name], f"{name}_kept") for name in (new_h, new_c))]
    inputs = [step.value(name, ["batch", width]) for name, width in ((h, hidden), (c, hidden), (pre, 4 * hidden))]
    return helper.make_graph(step.nodes, at, inputs, [step.value(name, ["batch", hidden]) for name in outputs])


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
