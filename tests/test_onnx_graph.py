"""ONNX Runtime and the reference of ONNX compute what the model does, at every size; names are as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unrolled import LSTM, LanguageModel, LSTMLayer, LSTMState, ModelConfig, MultiLayerLSTM, export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BOUND = 1e-5
MODELS = {
    "embedded": lambda: LanguageModel(ModelConfig(11, 13, 3, embedding=5, dropout=0.5, embedding_dropout=0.5)),
    "tied": lambda: LanguageModel(ModelConfig(11, 13, 2, embedding=13, tie_weights=True)),
    "one-hot": lambda: LanguageModel(ModelConfig(11, 13, 2, embedding=0)),
    "one token": lambda: LanguageModel(ModelConfig(1, 1, 1, embedding=1)),
    "stack": lambda: MultiLayerLSTM(3, 17, 2, 0.5, output_dim=7),
    "stack back to its input": lambda: MultiLayerLSTM(3, 4),
    "no projection": lambda: MultiLayerLSTM(3, 17, 2, output_dim=None),
    "layer": lambda: LSTMLayer(3, 5),
    "both directions": lambda: MultiLayerLSTM(3, 7, 3, 0.5, output_dim=4, bidirectional=True),
    "projected": lambda: MultiLayerLSTM(3, 7, 2, output_dim=None, proj_dim=5),
    "projected layer": lambda: LSTMLayer(3, 5, proj_dim=2),
    "both directions, projected": lambda: MultiLayerLSTM(3, 7, 2, proj_dim=2, bidirectional=True),
    "unrolled.LSTM": lambda: LSTM(3, 7, 2, batch_first=True, dropout=0.5),
    "unrolled.LSTM of everything": lambda: LSTM(3, 7, 2, batch_first=True, proj_size=2, bidirectional=True),
    "wide layer": lambda: LSTMLayer(33, 129),
}
BOTH = pytest.mark.parametrize("every_step", [False, True], ids=["LSTM", "Scan"])


def session(model: nn.Module, path: Path, **options: Any) -> Any:
    export_onnx(model, path, **options)  # type: ignore[arg-type]
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def call(running: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> list[np.ndarray]:
    found: list[np.ndarray] = running.run(
        None, {name: part.numpy() for name, part in zip("xhc", (x, *state), strict=True)}
    )
    return found


def drawn(model: nn.Module, batch: int, time: int) -> tuple[Tensor, LSTMState]:
    if isinstance(model, LanguageModel):
        return torch.randint(model.config.vocabulary, (batch, time)), random_like(model.zero_state(batch))
    if isinstance(model, LSTM):
        x = torch.randn(batch, time, model.input_size)
        return x, random_like(LSTMState(*model(x)[1]))
    x = torch.randn(batch, time, model.input_dim)
    if isinstance(model, LSTMLayer):
        return x, random_like(LSTMState(*(part[:, -1][None] for part in model(x))))
    return x, random_like(model.zero_state(batch))


def random_like(state: LSTMState) -> LSTMState:
    return LSTMState(*(torch.randn(part.shape) for part in state))


@torch.no_grad()
def expected(model: nn.Module, x: Tensor, state: LSTMState) -> list[np.ndarray]:
    """logits, h, c, and h and c of every step, as the exported model gives them out."""
    if isinstance(model, LSTMLayer):
        h, c = model(x, state.h[0], state.c[0])
        return [each.numpy() for each in (h, h[None, :, -1], c[None, :, -1], h[None], c[None])]
    trace = model.trace(x, tuple(state))
    every = [torch.stack([getattr(layer, name) for layer in trace.layers]) for name in "hc"]
    return [each.numpy() for each in (trace.output, *trace.state, *every)]


def assert_near(found: list[np.ndarray], wanted: list[np.ndarray], count: int) -> None:
    assert len(found) == count
    for ours, theirs in zip(wanted, found, strict=False):
        assert theirs.dtype == np.float32
        assert theirs.shape == ours.shape
        assert np.abs(ours - theirs).max() <= BOUND


@BOTH
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_computes_what_the_model_does(name: str, every_step: bool, tmp_path: Path, seed):
    model = MODELS[name]().eval()
    running = session(model, tmp_path / "m.onnx", every_step=every_step)
    for batch, time in ((1, 1), (3, 1), (1, 2), (2, 7), (3, 40), (1, 40)):
        x, state = drawn(model, batch, time)
        assert_near(call(running, x, state), expected(model, x, state), 5 if every_step else 3)


@BOTH
def test_a_state_is_carried_from_call_to_call(every_step: bool, tmp_path: Path, seed):
    model = MODELS["embedded"]().eval()
    running = session(model, tmp_path / "m.onnx", every_step=every_step)
    x, state = drawn(model, 2, 40)
    wanted = expected(model, x, state)
    logits = []
    for piece in x.split([1, 1, 17, 3, 18], dim=1):
        found, h, c, *_ = call(running, piece, state)
        state = LSTMState(torch.from_numpy(h), torch.from_numpy(c))
        logits.append(found)
    assert_near([np.concatenate(logits, 1), h, c], wanted, 3)


@pytest.mark.parametrize("name", ["embedded", "one-hot", "stack", "layer", "both directions", "projected"])
def test_the_reference_of_onnx_computes_it_too(name: str, tmp_path: Path, seed):
    """It shares no code with ONNX Runtime, so the two do not misread the order of the gates alike."""
    from onnx.reference import ReferenceEvaluator

    model = MODELS[name]().eval()
    export_onnx(model, tmp_path / "m.onnx")
    x, state = drawn(model, 2, 6)
    assert_near(call(ReferenceEvaluator(str(tmp_path / "m.onnx")), x, state), expected(model, x, state), 3)


def shapes(values: Any) -> list[tuple[str, list[Any]]]:
    return [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]


def test_names_order_shapes_and_one_node_for_each_layer(tmp_path: Path):
    model = MODELS["embedded"]()
    export_onnx(model, tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    state = [3, "batch", 13]
    assert shapes(made.graph.input) == [("x", ["batch", "time"]), ("h", state), ("c", state)]
    assert made.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert shapes(made.graph.output) == [("logits", ["batch", "time", 11]), ("h_n", state), ("c_n", state)]
    assert [node.op_type for node in made.graph.node].count("LSTM") == 3
    export_onnx(model, tmp_path / "m.onnx", every_step=True)
    made = onnx.load(tmp_path / "m.onnx")
    every = [3, "batch", "time", 13]
    assert shapes(made.graph.output)[3:] == [("every_h", every), ("every_c", every)]
    assert [node.op_type for node in made.graph.node].count("Scan") == 3
    export_onnx(MODELS["stack"](), tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx")
    assert shapes(made.graph.input)[0] == ("x", ["batch", "time", 3])
    assert shapes(made.graph.output)[0] == ("logits", ["batch", "time", 7])


def test_one_node_for_each_layer_and_direction(tmp_path: Path):
    kinds = {}
    for name in ("both directions", "both directions, projected"):
        export_onnx(MODELS[name](), tmp_path / "m.onnx")
        made = onnx.load(tmp_path / "m.onnx")
        kinds[name] = [node.op_type for node in made.graph.node if node.op_type in ("LSTM", "Scan")]
    assert kinds == {"both directions": ["LSTM"] * 6, "both directions, projected": ["Scan"] * 4}
    assert shapes(made.graph.input)[1:] == [("h", [4, "batch", 2]), ("c", [4, "batch", 7])]
    sizes = json.loads({entry.key: entry.value for entry in made.metadata_props}["sizes"])
    assert sizes == {"input": 3, "hidden": 7, "layers": 2, "output": 3, "directions": 2, "proj": 2}


@BOTH
@pytest.mark.parametrize("name", MODELS)
def test_it_is_checked_and_its_shapes_follow_from_the_nodes(name: str, every_step: bool, tmp_path: Path):
    export_onnx(MODELS[name](), tmp_path / "m.onnx", every_step=every_step)
    made = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(made, full_check=True)
    declared = shapes(made.graph.output)
    for value in made.graph.output:
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.ClearField("shape")
    found = onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
    for (output, said), (_, inferred) in zip(declared, shapes(found.graph.output), strict=True):
        known = [axis for axis in inferred if isinstance(axis, int) and axis]
        assert len(inferred) == len(said), output
        assert set(known) <= {axis for axis in said if isinstance(axis, int)}, output
        assert inferred[-1] == said[-1], output


@BOTH
@pytest.mark.parametrize("name", ["embedded", "one-hot"])
def test_an_id_that_does_not_exist_is_an_error(name: str, every_step: bool, tmp_path: Path, capfd):
    running = session(MODELS[name](), tmp_path / "m.onnx", every_step=every_step)
    _, state = drawn(MODELS[name](), 1, 1)
    with pytest.raises(Exception, match="out of data bounds, idx=11"):
        call(running, torch.tensor([[11]]), state)
    capfd.readouterr()  # ONNX Runtime says it on stderr too


@BOTH
@pytest.mark.parametrize("name", ["embedded", "one-hot", "stack"])
def test_defaults_of_torch_change_nothing(name: str, every_step: bool, tmp_path: Path, seed):
    model = MODELS[name]().eval()
    export_onnx(model, tmp_path / "m.onnx", every_step=every_step)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"), torch.inference_mode():
            export_onnx(model, tmp_path / "n.onnx", every_step=every_step)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "n.onnx").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_weights_are_exported_as_float32(dtype: torch.dtype, tmp_path: Path, seed):
    model = LanguageModel(ModelConfig(11, 13, 2), dtype=dtype).eval()
    running = session(model, tmp_path / "m.onnx")
    assert next(model.parameters()).dtype == dtype
    x, state = drawn(model, 2, 9)
    assert_near(call(running, x, state), expected(model.float(), x, state), 3)


def test_an_nn_lstm_is_exported_batch_first(tmp_path: Path, seed):
    model = nn.LSTM(3, 5, 2).eval()
    running = session(model, tmp_path / "m.onnx")
    x, (h, c) = torch.randn(2, 7, 3), LSTMState(torch.randn(2, 2, 5), torch.randn(2, 2, 5))
    with torch.no_grad():
        output, after = model(x.transpose(0, 1), (h, c))
    wanted = [each.numpy() for each in (output.transpose(0, 1), *after)]
    assert_near(call(running, x, (h, c)), wanted, 3)
