"""Cells with options in ONNX files: ONNX Runtime computes what the model does; nodes come back with their options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import redraw

from unrolled import LanguageModel, ModelConfig, MultiLayerLSTM, export_onnx, from_onnx
from unrolled.onnx_export import ExportError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BOUND = 1e-5
NODE: list[dict[str, Any]] = [
    {"peephole": True},
    {"coupled": True},
    {"gate_activation": "hard_sigmoid"},
    {"activation": "relu"},
    {"bias": False},
    {"coupled": True, "peephole": True, "gate_activation": "hard_sigmoid", "activation": "relu", "bidirectional": True},
]
SCAN: list[dict[str, Any]] = [
    {"cell_clip": 0.3},
    {"layer_norm": True},
    {"layer_norm": True, "bias": False, "coupled": True, "peephole": True, "gate_activation": "hard_sigmoid"},
    {"cell_clip": 0.3, "activation": "relu", "peephole": True, "proj_dim": 4, "bidirectional": True},
]
OTHERS: list[dict[str, Any]] = [{"residual": True}, {"residual": True, "bidirectional": True}]


def named(options: dict[str, Any]) -> str:
    return "+".join(f"{name}={value}" for name, value in options.items())


def new_model(**options: Any) -> MultiLayerLSTM:
    model = redraw(MultiLayerLSTM(3, 7, 2, output_dim=None, **options))
    assert isinstance(model, MultiLayerLSTM)
    return model.eval()


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("every_step", [False, True], ids=["", "every step"])
@pytest.mark.parametrize("options", [*NODE, *SCAN, *OTHERS], ids=named)
def test_onnx_runtime_computes_the_cell(options: dict[str, Any], every_step: bool, tmp_path: Path) -> None:
    model, path = new_model(**options), tmp_path / "m.onnx"
    export_onnx(model, path, every_step=every_step)
    assert ("Scan" in kinds(path)) == (every_step or options in SCAN)
    running = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, time in ((1, 1), (3, 8)):
        x, state = torch.randn(batch, time, 3), [torch.randn(part.shape) for part in model.zero_state(batch)]
        found = running.run(None, {name: part.numpy() for name, part in zip("xhc", (x, *state), strict=True)})
        with torch.no_grad():
            trace = model.trace(x, tuple(state))
        wanted = [trace.output, *trace.state]
        if every_step:
            wanted += [torch.stack([getattr(layer, name) for layer in trace.layers]) for name in "hc"]
        for ours, theirs in zip(wanted, found, strict=True):
            assert np.abs(ours.numpy() - theirs).max() <= BOUND


@pytest.mark.parametrize("options", [*NODE[:-1], {**NODE[-1], "bidirectional": False}], ids=named)
def test_nodes_come_back_with_their_options(options: dict[str, Any], tmp_path: Path) -> None:
    model, path = new_model(**options), tmp_path / "m.onnx"
    export_onnx(model, path)
    again, state = from_onnx(path)
    assert state is None
    kept = {name: value for name, value in model.layers[0].options.keywords().items() if name != "bias"}
    assert {name: value for name, value in again.layers[0].options.keywords().items() if name != "bias"} == kept
    assert again.bidirectional == model.bidirectional
    own = again.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(own[name], value), name
    x = torch.randn(3, 8, 3)
    torch.testing.assert_close(again(x)[0], model(x)[0])


def test_layers_of_several_kinds_are_no_stack(tmp_path: Path) -> None:
    export_onnx(new_model(peephole=True), tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    second = [node for node in made.graph.node if node.op_type == "LSTM"][1]
    second.attribute.append(onnx.helper.make_attribute("input_forget", 1))
    with pytest.raises(ValueError) as error:
        from_onnx(made)
    assert str(error.value) == (
        "lstm_1 has {'coupled': True} and lstm_0 the plain cell, and the layers of a stack have one kind of cell; "
        "convert them one by one: from_onnx(model, nodes=['lstm_1'])"
    )
    assert from_onnx(made, nodes=["lstm_1"])[0].layers[0].options.coupled


def test_weights_of_8_bits_take_nodes(tmp_path: Path) -> None:
    model, path = new_model(peephole=True, coupled=True), tmp_path / "m.onnx"
    export_onnx(model, path, int8=True)
    running = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x, state = torch.randn(2, 8, 3), [part.numpy() for part in model.zero_state(2)]
    found = running.run(None, {"x": x.numpy(), "h": state[0], "c": state[1]})[0]
    assert np.abs(found - model(x)[0].detach().numpy()).max() < 0.1
    for options, said in (({"cell_clip": 2.0}, "cell_clip=2.0"), ({"layer_norm": True}, "layer_norm=True")):
        with pytest.raises(ExportError) as error:
            export_onnx(new_model(**options), path, int8=True)
        assert str(error.value) == f"int8 is for LSTM nodes, and {said} takes Scan nodes; leave int8 out"


def test_a_learned_initial_state_lies_beside_the_graph(tmp_path: Path) -> None:
    model = redraw(LanguageModel(ModelConfig(5, 7, 2, 3, learn_initial_state=True)))
    export_onnx(model, tmp_path / "m.onnx")
    running = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    start = json.loads(running.get_modelmeta().custom_metadata_map["initial_state"])
    ids = torch.randint(5, (2, 6))
    state = {name: np.repeat(np.array(start[name], np.float32)[:, None], 2, 1) for name in "hc"}
    found = running.run(None, {"x": ids.numpy(), **state})[0]
    assert np.abs(found - model(ids)[0].detach().numpy()).max() <= BOUND
