"""What else runs a stack without gradients: `nn.LSTM`, its dynamic int8 form, ONNX Runtime, a JAX scan, our Stepper.

Each contender takes a stack and a shape. One step a call (shape.steps 1) is a stateful regime: the state after a call
is where the next one goes on. Longer sequences start from zeros, unless the contender is a stepper.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from stacks import FLOAT32_TOLERANCE, Shape, closed_stack, weights
from torch import Tensor, nn

import unrolled
from unrolled import MultiLayerLSTM

# Of the largest h: twice what torch's own int8, and twice what bfloat16 weights are off by on these rows. What either
# costs in bits per character is for a calibration on real data to say.
BFLOAT16_TOLERANCE, INT8_TOLERANCE = 0.01, 0.1
TOLERANCES = {"float32": FLOAT32_TOLERANCE, "bfloat16": BFLOAT16_TOLERANCE, "int8": INT8_TOLERANCE}
# ONNX's order of gates is i, o, f, c; ours is i, f, g, o.
ONNX_GATES = (0, 3, 1, 2)


class Contender(NamedTuple):
    """`run(prepare(x))` is what is timed of it, `prepare` excluded; `read` gives [batch, steps, hidden] of its result.

    `x` is [batch, steps, input].
    """

    prepare: Callable[[Tensor], Any]
    run: Callable[[Any], Any]
    read: Callable[[Any], Tensor]
    tolerance: float = FLOAT32_TOLERANCE


def installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def closed(model: MultiLayerLSTM, shape: Shape) -> Contender:
    return _torch_lstm(closed_stack(model), shape, FLOAT32_TOLERANCE)


def closed_int8(model: MultiLayerLSTM, shape: Shape) -> Contender | None:
    """torch's dynamic quantisation; None in a torch that has none any more, or none for this processor."""
    if not hasattr(torch.ao, "quantization") or torch.backends.quantized.engine == "none":
        return None
    holder = nn.Sequential(closed_stack(model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, .* are deprecated", UserWarning)
        quantized = torch.ao.quantization.quantize_dynamic(holder, {nn.LSTM}, dtype=torch.qint8)
    return _torch_lstm(quantized[0], shape, INT8_TOLERANCE)


def _torch_lstm(module: nn.Module, shape: Shape, tolerance: float) -> Contender:
    zeros = torch.zeros(shape.layers, shape.batch, shape.hidden)
    state = (zeros, zeros)

    def step(x: Tensor) -> Tensor:
        nonlocal state
        h, state = module(x, state)
        return h

    run = step if shape.steps == 1 else lambda x: module(x)[0]
    return Contender(lambda x: x, run, lambda h: h, tolerance)


def onnx_runtime(model: MultiLayerLSTM, shape: Shape) -> Contender | None:
    """None where onnx or onnxruntime is not installed."""
    if not installed("onnx", "onnxruntime"):
        return None
    import numpy as np
    from onnx import TensorProto, helper

    layers = range(shape.layers)
    state_shape = [1, shape.batch, shape.hidden]
    states = {f"{kind}{k}": np.zeros(state_shape, np.float32) for k in layers for kind in "hc"}
    nodes, constants, below, top = onnx_layers(model, "x")
    one_step = shape.steps == 1
    if one_step:
        outputs = [f"after_{name}" for name in states]
        shapes = [state_shape] * len(outputs)
    else:
        outputs, shapes = [below], [[shape.steps, shape.batch, shape.hidden]]
    graph = helper.make_graph(
        nodes,
        "stack",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape.steps, shape.batch, shape.input]),
            *[helper.make_tensor_value_info(name, TensorProto.FLOAT, state_shape) for name in states],
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(outputs, shapes, strict=True)],
        constants,
    )
    session = onnx_session(graph)

    def step(x: Any) -> Any:
        after = session.run(outputs, {"x": x, **states})
        states.update(zip(states, after, strict=True))
        return states[top]

    def sequence(x: Any) -> Any:
        return session.run(outputs, {"x": x, **states})[0]

    return Contender(
        lambda x: x.transpose(0, 1).contiguous().numpy(),
        step if one_step else sequence,
        lambda h: torch.from_numpy(h).transpose(0, 1),
    )


def onnx_layers(model: MultiLayerLSTM, x: str) -> tuple[list[Any], list[Any], str, str]:
    """Nodes and constants of the stack; the names of the top layer's h [steps, batch, hidden] and of its state.

    The graph's inputs are `x` [steps, batch, input] and h0, c0, h1, ...; after_h0, after_c0, ... are the states after.
    """
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    below = x

    def constant(name: str, value: Tensor) -> str:
        constants.append(numpy_helper.from_array(value.contiguous().numpy(), name))
        return name

    direction_axis = constant("direction_axis", torch.tensor([1]))
    for k, (w_x, w_h, bias) in enumerate(weights(model)):
        reordered = [
            part.unflatten(0, (4, model.hidden_dim))[list(ONNX_GATES)].flatten(0, 1).unsqueeze(0)
            for part in (w_x, w_h, bias)
        ]
        two_biases = torch.cat([reordered[2], torch.zeros_like(reordered[2])], 1)
        names = [constant(f"w_x{k}", reordered[0]), constant(f"w_h{k}", reordered[1]), constant(f"bias{k}", two_biases)]
        node_inputs = [below, *names, "", f"h{k}", f"c{k}"]
        node_outputs = [f"all{k}", f"after_h{k}", f"after_c{k}"]
        nodes.append(helper.make_node("LSTM", node_inputs, node_outputs, hidden_size=model.hidden_dim))
        below = f"layer{k}"
        nodes.append(helper.make_node("Squeeze", [f"all{k}", direction_axis], [below]))
    return nodes, constants, below, f"h{model.num_layers - 1}"


def onnx_session(graph: Any) -> Any:
    """On the CPU, with as many threads as torch has."""
    import onnxruntime
    from onnx import checker, helper

    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(program)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(program.SerializeToString(), options, providers=["CPUExecutionProvider"])


def jax_scan(model: MultiLayerLSTM, shape: Shape) -> Contender | None:
    """Compiled as a whole; None where jax is not installed. XLA chooses its own number of threads."""
    if not installed("jax"):
        return None
    import jax
    import jax.numpy as jnp

    cpu = jax.devices("cpu")[0]
    layers = [
        tuple(jax.device_put(part.numpy(), cpu) for part in (w_x.t(), w_h.t(), b)) for w_x, w_h, b in weights(model)
    ]
    zeros = jax.device_put(torch.zeros(shape.batch, shape.hidden).numpy(), cpu)
    state = [(zeros, zeros)] * shape.layers

    @jax.jit
    def forward(layers: Any, x: Any, state: Any) -> Any:
        after = []
        for (w_x, w_h, bias), initial in zip(layers, state, strict=True):

            def step(carried: Any, pre: Any, w_h: Any = w_h) -> Any:
                h, c = carried
                i, f, g, o = jnp.split(pre + h @ w_h, 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            last, x = jax.lax.scan(step, initial, x @ w_x + bias)
            after.append(last)
        return x, after

    def step(x: Any) -> Any:
        nonlocal state
        h, state = forward(layers, x, state)
        return h.block_until_ready()

    def sequence(x: Any) -> Any:
        return forward(layers, x, state)[0].block_until_ready()

    return Contender(
        lambda x: jax.device_put(x.transpose(0, 1).contiguous().numpy(), cpu),
        step if shape.steps == 1 else sequence,
        lambda h: torch.tensor(jax.device_get(h)).transpose(0, 1),
    )


def whole(model: MultiLayerLSTM) -> Contender:
    """Our stack over a sequence at once."""
    return Contender(lambda x: x, lambda x: model(x)[0], lambda h: h)


def stepper(model: MultiLayerLSTM, shape: Shape, precision: str) -> Contender:
    """Our Stepper: a step a call, or the steps of a sequence in one call, from the state that the call before left.

    Raises BackendUnavailable where these weights need the native kernel.
    """
    stepping = unrolled.Stepper(model, shape.batch, weights=precision)
    tolerance = TOLERANCES[precision]
    if shape.steps > 1:
        outputs = torch.empty(shape.batch, shape.steps, shape.hidden)
        return Contender(lambda x: x, lambda x: stepping.steps(x, out=outputs), lambda h: h, tolerance)
    output = torch.empty(shape.batch, shape.hidden)
    return Contender(
        lambda x: x[:, 0].contiguous(), lambda x: stepping.step(x, out=output), lambda h: h[:, None], tolerance
    )
