"""`from_onnx`: a stack of the `LSTM` nodes that an ONNX file holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from .gate_arrays import stack_of
from .stack import MultiLayerLSTM
from .state import LSTMState

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from .onnx_nodes import Graph


def from_onnx(
    model: str | os.PathLike[str] | ModelProto, *, nodes: Sequence[str] | None = None
) -> tuple[MultiLayerLSTM, LSTMState | None]:
    """A stack without a projection that computes what the `LSTM` nodes of an ONNX model do, and where it begins.

    `model` is a file or what `onnx.load` returns. The nodes have to read each other's outputs, as layers do; `nodes`
    takes those alone, bottom first, by their names (by that of the first output where a node has none). What lies
    around them, an embedding or a projection, is not taken over. The stack is batch-first, whatever `layout` is.

    The state is what the file holds as initial h and c, [layers or both directions of each, rows, hidden], where not
    all of it is zeros. Else it is None: begin with zeros, or with what the graph would have been given.

    The weights are copies on the CPU, in their dtype; a bias is the sum of the node's two, zero and frozen where it has
    none. Peepholes make a stack with `peephole=True`, `input_forget` one with `coupled=True`, and hardsigmoid (of slope
    1/6) and relu are `gate_activation` and `activation`. `sequence_lens` is `lengths`.

    Raises ValueError for nodes that are not layers of one stack, for a node with something that is not taken over
    (clipping, other activations, the backward direction alone) and for weights that are not in the file; TypeError for
    another kind of `model`; ImportError without the package `onnx`.
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("onnx is not installed: pip install 'unrolled[onnx]'") from None
    from . import onnx_nodes

    if isinstance(model, str | os.PathLike):
        model = onnx.load(model)
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model is of type {type(model).__name__}, expected a file's name or an onnx.ModelProto")
    graph = onnx_nodes.Graph(model)
    chosen = _chosen(graph, nodes)
    for below, above in pairwise(chosen):
        if reason := onnx_nodes.what_lies_between(graph, below, above):
            name = onnx_nodes.label(above)
            raise ValueError(
                f"{name} is no layer on top of {onnx_nodes.label(below)}: {reason}; convert them one by one: "
                f"from_onnx(model, nodes=[{name!r}])"
            )
    names = [onnx_nodes.label(node) for node in chosen]
    layers = [onnx_nodes.directions(graph, node) for node in chosen]
    kinds = [onnx_nodes.options(node) for node in chosen]
    for name, kind in zip(names, kinds, strict=True):
        if kind != kinds[0]:
            raise ValueError(
                f"{name} has {kind or 'the plain cell'} and {names[0]} {kinds[0] or 'the plain cell'}, and the layers "
                f"of a stack have one kind of cell; convert them one by one: from_onnx(model, nodes=[{name!r}])"
            )
    stack = stack_of(layers, names, "from_onnx(model, nodes=['{}'])", **kinds[0])
    return stack, _state(graph, chosen, stack)


def _chosen(graph: Graph, nodes: Sequence[str] | None) -> list[NodeProto]:
    from .onnx_nodes import label

    by_name = {name: node for node in graph.lstms for name in (*node.output[:1], node.name) if name}
    there = ", ".join(repr(label(node)) for node in graph.lstms)
    if not graph.lstms:
        raise ValueError(
            f"the model has no LSTM node at its top level; its nodes are {', '.join(graph.kinds) or 'none'}"
        )
    if nodes is None:
        return graph.lstms
    unknown = [name for name in nodes if name not in by_name]
    if unknown or not nodes or isinstance(nodes, str):
        raise ValueError(f"nodes={nodes!r}, expected a list of the model's LSTM nodes, bottom first: {there}")
    return [by_name[name] for name in nodes]


def _state(graph: Graph, chosen: Sequence[NodeProto], stack: MultiLayerLSTM) -> LSTMState | None:
    from .onnx_nodes import initial_state

    states = [initial_state(graph, node) for node in chosen]
    stored = [state for state in states if state is not None]
    if not stored:
        return None
    zeros = np.zeros_like(stored[0][0])
    h, c = (np.concatenate([zeros if state is None else state[k] for state in states]) for k in (0, 1))
    dtype = next(stack.parameters()).dtype
    return LSTMState(*(torch.from_numpy(np.array(value)).to(dtype) for value in (h, c)))
