"""LSTM nodes to a stack: the numbers of ONNX Runtime, states and layouts, and a sentence for what a layer cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plain import redraw
from ports import assert_near, drawn, results
from torch import nn

from unrolled import MultiLayerLSTM, export_onnx, from_onnx

onnx = pytest.importorskip("onnx", reason="onnx is an extra: pip install 'unrolled[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

B, T, I, H = 4, 6, 5, 7
F32 = "float32"
BOTH = pytest.mark.parametrize("direction", ["forward", "bidirectional"])


def arrays_of_node(width: int, count: int, *, seed: int, bias: bool = True, scale: float = 0.3) -> dict[str, NDArray]:
    shapes = {"W": (count, 4 * H, width), "R": (count, 4 * H, H)} | ({"B": (count, 8 * H)} if bias else {})
    return {name: (scale * drawn(*shape, seed=seed + k)).astype(F32) for k, (name, shape) in enumerate(shapes.items())}


def model_of(
    depth: int = 1,
    direction: str = "forward",
    *,
    bias: bool = True,
    state: str = "none",
    change: Callable[[list[Any], dict[str, NDArray]], None] | None = None,
    **attributes: Any,
) -> Any:
    """Nodes lstm_0, lstm_1, ... on top of each other. `state`: none, "input" or "stored"; `change`: a last edit."""
    count = 2 if direction == "bidirectional" else 1
    stored: dict[str, NDArray] = {"one": np.array([1]), "flat": np.array([0, 0, -1])}
    nodes, outputs, x = [], [], "x"
    for k in range(depth):
        arrays = arrays_of_node(count * H if k else I, count, seed=10 * k, bias=bias)
        stored |= {f"{name}_{k}": value for name, value in arrays.items()}
        names = [
            x,
            f"W_{k}",
            f"R_{k}",
            f"B_{k}" if bias else "",
            "",
            *(["", ""] if state == "none" else [f"h_{k}", f"c_{k}"]),
        ]
        if state == "stored":
            stored |= {f"{name}_{k}": drawn(count, B, H, seed=70 + 2 * k + n, dtype=F32) for n, name in enumerate("hc")}
        found = [f"Y_{k}", f"h_n_{k}", f"c_n_{k}"]
        nodes.append(
            helper.make_node("LSTM", names, found, name=f"lstm_{k}", hidden_size=H, direction=direction, **attributes)
        )
        if count == 1:
            nodes.append(helper.make_node("Squeeze", [found[0], "one"], [f"x_{k}"], name=f"squeeze_{k}"))
        else:
            nodes.append(
                helper.make_node("Transpose", [found[0]], [f"turned_{k}"], perm=[0, 2, 1, 3], name=f"turn_{k}")
            )
            nodes.append(helper.make_node("Reshape", [f"turned_{k}", "flat"], [f"x_{k}"], name=f"flatten_{k}"))
        outputs += found[1:]
        x = f"x_{k}"
    inputs = ["x", *(f"{name}_{k}" for k in range(depth) for name in "hc" if state == "input")]
    if change:
        change(nodes, stored)
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in each]
        for each in (inputs, [x, *outputs])
    ]
    graph = helper.make_graph(
        nodes, "g", *infos, [numpy_helper.from_array(value, name) for name, value in stored.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def of_runtime(model: Any, x: NDArray, h: NDArray | None = None, c: NDArray | None = None) -> list[NDArray]:
    """output batch-first, h_n and c_n; x batch-first, states [layers * directions, batch, hidden]."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"x": x.swapaxes(0, 1)}
    depth = (len(session.get_outputs()) - 1) // 2
    for name, value in (("h", h), ("c", c)):
        if value is not None:
            given |= {f"{name}_{k}": part for k, part in enumerate(np.split(value, depth))}
    output, *states = session.run(None, given)
    return [output.swapaxes(0, 1), np.concatenate(states[::2]), np.concatenate(states[1::2])]


def inputs(layers: int) -> list[NDArray]:
    return [drawn(B, T, I, seed=50, dtype=F32), *(drawn(layers, B, H, seed=51 + k, dtype=F32) for k in range(2))]


@BOTH
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_states_agree(direction: str, depth: int, bias: bool):
    model = model_of(depth, direction, bias=bias, state="input")
    stack, state = from_onnx(model)
    assert state is None
    assert (stack.bidirectional, stack.num_layers, stack.proj) == (direction == "bidirectional", depth, None)
    frozen = {name for name, parameter in stack.named_parameters() if not parameter.requires_grad}
    assert frozen == (set() if bias else {name for name, _ in stack.named_parameters() if ".b_" in name})
    given = inputs(depth * (1 + stack.bidirectional))
    assert_near(results(stack, *given), of_runtime(model, *given))


@BOTH
def test_a_state_that_the_file_holds_comes_out(direction: str):
    model = model_of(2, direction, state="stored")
    stack, state = from_onnx(model)
    assert state is not None
    x = drawn(B, T, I, seed=50, dtype=F32)
    assert_near(results(stack, x, state.h.numpy(), state.c.numpy()), of_runtime(model, x))


def test_a_state_of_one_row_for_all_and_zeros_below_it():
    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        nodes[0].input[5] = nodes[0].input[6] = ""
        stored["row"] = drawn(1, 1, H, seed=9, dtype=F32)
        stored["sizes"] = np.array([1, B, H])
        nodes.insert(0, helper.make_node("Expand", ["row", "wide"], ["spread"]))
        nodes.insert(0, helper.make_node("Identity", ["sizes_of_x"], ["wide"]))
        nodes.insert(0, helper.make_node("Shape", ["x"], ["all"]))
        nodes.insert(1, helper.make_node("Mul", ["all", "none"], ["nothing"]))
        nodes.insert(2, helper.make_node("Add", ["nothing", "sizes"], ["sizes_of_x"]))
        stored["none"] = np.array([0, 0, 0])
        lstm = nodes[-2]
        lstm.input[5], lstm.input[6] = "spread", "spread"

    model = model_of(2, state="input", change=change)
    for name in ("h_0", "c_0", "h_1", "c_1"):
        [unused] = [each for each in model.graph.input if each.name == name]
        model.graph.input.remove(unused)
    stack, state = from_onnx(model)
    assert [list(value.shape) for value in state] == [[2, 1, H]] * 2
    assert not state.h[0].any()
    x = drawn(B, T, I, seed=50, dtype=F32)
    wide = state.rows([0] * B)
    assert_near(results(stack, x, wide.h.numpy(), wide.c.numpy()), of_runtime(model, x))


@pytest.mark.parametrize("kind", ["stored", "made", "expanded"])
def test_zeros_are_no_state(kind: str):
    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        if kind == "stored":
            stored["h_0"] = stored["c_0"] = np.zeros((1, B, H), dtype=F32)
            return
        nodes.insert(0, helper.make_node("Shape", ["x"], ["sizes"]))
        if kind == "made":
            nodes.insert(1, helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]))
        else:
            stored["zero"] = np.zeros(1, dtype=F32)
            nodes.insert(1, helper.make_node("Expand", ["zero", "sizes"], ["zeros"]))
        nodes.insert(2, helper.make_node("Slice", ["zeros", "one", "one"], ["h_0"]))
        nodes.insert(3, helper.make_node("Identity", ["h_0"], ["c_0"]))

    assert from_onnx(model_of(state="input", change=change))[1] is None


def test_gates_lie_as_i_o_f_c_rows():
    model = model_of()
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    [layer] = from_onnx(model)[0].layers
    for number, gate in enumerate(("i", "o", "f", "g")):
        rows = slice(number * H, (number + 1) * H)
        assert np.array_equal(getattr(layer, f"W_x{gate}").detach(), stored["W_0"][0, rows].T)
        assert np.array_equal(getattr(layer, f"W_h{gate}").detach(), stored["R_0"][0, rows].T)
        both = stored["B_0"][0, : 4 * H][rows] + stored["B_0"][0, 4 * H :][rows]
        assert np.array_equal(getattr(layer, f"b_{gate}").detach(), both)


def test_what_export_onnx_writes_comes_back_with_the_same_bits(tmp_path: Path):
    model = redraw(MultiLayerLSTM(I, H, 3, output_dim=2))
    export_onnx(model, tmp_path / "m.onnx")
    for given in (tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        stack, state = from_onnx(given)
        assert state is None
        for name, value in stack.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of its own exporter that needs no other package
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning")
def test_what_torch_exports_comes_over(tmp_path: Path, bidirectional: bool):
    lstm = redraw(nn.LSTM(I, H, 2, batch_first=True, bidirectional=bidirectional))
    x = torch.from_numpy(drawn(B, T, I, seed=50, dtype=F32))
    axes = {"x": {0: "batch", 1: "time"}}
    torch.onnx.export(lstm, (x,), str(tmp_path / "m.onnx"), dynamo=False, dynamic_axes=axes, input_names=["x"])
    stack, state = from_onnx(tmp_path / "m.onnx")
    assert state is None
    zeros = np.zeros((2 * (1 + bidirectional), B, H), dtype=F32)
    with torch.no_grad():
        output, (h, c) = lstm(x)
    assert_near(results(stack, x.numpy(), zeros, zeros), [output.numpy(), h.numpy(), c.numpy()])


def test_layout_1_is_batch_first():
    """ONNX Runtime does not run it; the operator's own reference implementation does."""
    from onnx.reference import ReferenceEvaluator

    arrays = arrays_of_node(I, 1, seed=0)
    h, c = (drawn(B, 1, H, seed=60 + k, dtype=F32) for k in range(2))
    stored = {**arrays, "h": h, "c": c}
    node = helper.make_node("LSTM", ["x", "W", "R", "B", "", "h", "c"], ["Y", "h_n", "c_n"], hidden_size=H, layout=1)
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in each]
        for each in ("x", ["Y", "h_n", "c_n"])
    ]
    graph = helper.make_graph(
        [node], "g", *infos, [numpy_helper.from_array(value, name) for name, value in stored.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    stack, state = from_onnx(model)
    x = drawn(B, T, I, seed=50, dtype=F32)
    y, h_n, c_n = ReferenceEvaluator(model).run(None, {"x": x})
    assert_near(
        results(stack, x, state.h.numpy(), state.c.numpy()),
        [y.reshape(B, T, H), *(each.reshape(B, 1, H).swapaxes(0, 1) for each in (h_n, c_n))],
    )


def test_sequence_lens_is_lengths():
    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        nodes[0].input[4] = "lengths"
        stored["lengths"] = lengths

    lengths = np.array([6, 2, 5, 1], dtype=np.int32)
    model = model_of(state="input", change=change)
    stack, _ = from_onnx(model)
    given = inputs(1)
    assert_near(results(stack, *given, lengths=torch.from_numpy(lengths)), of_runtime(model, *given))


def test_nodes_are_chosen_by_name_and_weights_may_be_made_of_constants():
    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        stored["half"] = np.array(0.5, dtype=F32)
        nodes.insert(0, helper.make_node("Mul", ["W_1", "half"], ["halved"]))
        nodes[3].input[1] = "halved"
        nodes[3].name = ""

    model = model_of(2, state="input", change=change)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    alone, _ = from_onnx(model, nodes=["Y_1"])
    assert (alone.num_layers, alone.input_dim) == (1, H)
    assert np.array_equal(alone.layers[0].W_xi.detach(), 0.5 * stored["W_1"][0, :H].T)
    both, _ = from_onnx(model, nodes=["lstm_0", "Y_1"])
    given = inputs(2)
    assert_near(results(both, *given), of_runtime(model, *given))


def edited(**changes: Any) -> Callable[[list[Any], dict[str, NDArray]], None]:
    """The attributes of the first node, and its inputs by their places (`at7="P"`)."""

    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        stored["P"] = drawn(1, 3 * H, seed=3, dtype=F32)
        for name, value in changes.items():
            if name.startswith("at"):
                nodes[0].input.extend([""] * (int(name[2:]) + 1 - len(nodes[0].input)))
                nodes[0].input[int(name[2:])] = value
            else:
                nodes[0].attribute.append(helper.make_attribute(name, value))

    return change


@BOTH
def test_peepholes_come_over_and_a_layer_without_has_zeros(direction: str):
    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        edited(at7="P")(nodes, stored)
        stored["P"] = drawn(1 if direction == "forward" else 2, 3 * H, seed=3, dtype=F32)

    model = model_of(2, direction, state="input", change=change)
    stack, _ = from_onnx(model)
    assert not any(getattr(stack.layers[1], f"p_{gate}").any() for gate in "ifo")
    given = inputs(2 * (1 + stack.bidirectional))
    assert_near(results(stack, *given), of_runtime(model, *given))


def test_peepholes_of_zeros_are_none():
    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        edited(at7="P")(nodes, stored)
        stored["P"] = np.zeros((1, 3 * H), dtype=F32)

    [layer] = from_onnx(model_of(change=change))[0].layers
    assert not layer.options.peephole
