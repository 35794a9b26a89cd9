"""What an ONNX file can hold and says of itself; what it can't is refused with what to do, and leaves no file."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_onnx_graph import assert_near, call, drawn, expected, session
from torch import nn

from unrolled import (
    LSTM,
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    ExportError,
    LanguageModel,
    LSTMLayer,
    ModelConfig,
    MultiLayerLSTM,
    export_onnx,
)
from unrolled.tokens import parse_tokenizer

onnx = pytest.importorskip("onnx")


def language(vocabulary: int = 11, **options: Any) -> LanguageModel:
    return LanguageModel(ModelConfig(vocabulary, 13, 2, **options)).eval()


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_metadata_has_the_sizes_and_the_tokenizer(tmp_path: Path):
    for tokenizer in (ByteTokenizer(), CharTokenizer('aé"\n\u2028\U0001f600'), BpeTokenizer(((97, 98), (256, 99)))):
        export_onnx(language(tokenizer.size), tmp_path / "m.onnx", tokenizer=tokenizer)
        found = metadata(tmp_path / "m.onnx")
        assert parse_tokenizer(found["tokenizer"].encode()) == tokenizer
        sizes = {"input": 64, "hidden": 13, "layers": 2, "output": tokenizer.size, "vocabulary": tokenizer.size}
        assert json.loads(found["sizes"]) == sizes
        assert found["weights"] == "float32"
    export_onnx(MultiLayerLSTM(3, 4, output_dim=6), tmp_path / "m.onnx")
    assert json.loads(metadata(tmp_path / "m.onnx")["sizes"]) == {"input": 3, "hidden": 4, "layers": 1, "output": 6}
    made = onnx.load(tmp_path / "m.onnx")
    assert (made.producer_name, made.ir_version, made.opset_import[0].version) == ("unrolled", 8, 17)


def test_one_file_and_nothing_beside_it_and_the_model_is_left_as_it_was(tmp_path: Path):
    model = language().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (tmp_path / "m.onnx").write_text("an older file")
    export_onnx(model, str(tmp_path / "m.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    first = (tmp_path / "m.onnx").read_bytes()
    export_onnx(model.eval(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == first


def test_an_export_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m.onnx").write_text("an older file")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unrolled.disk.write", full)
    with pytest.raises(OSError, match="No space"):
        export_onnx(language(), tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an older file"


def test_tied_weights_and_parametrisations_are_honoured(tmp_path: Path, seed):
    tied = LanguageModel(ModelConfig(11, 13, 2, embedding=13)).eval()
    tied.lstm.proj.weight = tied.embedding.weight  # type: ignore[union-attr]
    normed = MultiLayerLSTM(3, 5, 2).eval()
    nn.utils.parametrizations.weight_norm(normed.layers[1], "W_hg")
    with torch.no_grad():
        normed.layers[1].parametrizations.W_hg.original0.mul_(2)  # type: ignore[union-attr]
    halved = MultiLayerLSTM(3, 5).eval()
    halved.proj = nn.Linear(5, 3, bias=False)
    for model in (tied, normed, halved):
        x, state = drawn(model, 2, 7)
        assert_near(call(session(model, tmp_path / "m.onnx"), x, state), expected(model, x, state), 3)


@pytest.mark.parametrize("name", ["embedded", "one-hot", "stack", "layer"])
def test_int8_is_near_and_smaller_and_says_so(name: str, tmp_path: Path, seed):
    pytest.importorskip("onnxruntime")
    model: Any = {
        "embedded": lambda: LanguageModel(ModelConfig(64, 64, 2, embedding=32)),
        "one-hot": lambda: LanguageModel(ModelConfig(64, 64, 2, embedding=0)),
        "stack": lambda: MultiLayerLSTM(32, 64, 2),
        "layer": lambda: LSTMLayer(32, 64),
    }[name]().eval()
    export_onnx(model, tmp_path / "m.onnx")
    running = session(model, tmp_path / "q.onnx", int8=True)
    kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    assert (kinds.count("LSTM"), kinds.count("DynamicQuantizeLSTM")) == (0, 1 if name == "layer" else 2)
    assert metadata(tmp_path / "q.onnx")["weights"] == "int8"
    assert (tmp_path / "q.onnx").stat().st_size < 0.4 * (tmp_path / "m.onnx").stat().st_size
    x, state = drawn(model, 3, 20)
    found, wanted = call(running, x, state), expected(model, x, state)
    largest = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=False))
    # 0.013 to 0.028 on a processor without VNNI; 8-bit weights, which saturate there, came to 0.29.
    assert 1e-5 < largest < 0.1
    assert [value.name for value in running.get_outputs()] == ["logits", "h_n", "c_n"]


def test_quantising_leaves_logging_alone(tmp_path: Path, capfd):
    pytest.importorskip("onnxruntime")
    before = (list(logging.root.handlers), logging.root.manager.disable)
    export_onnx(language(), tmp_path / "q.onnx", int8=True)
    assert (logging.root.handlers, logging.root.manager.disable) == before
    assert capfd.readouterr() == ("", "")


def test_what_a_refused_drop_in_is_told_works(tmp_path: Path, seed):
    pytest.importorskip("onnxruntime")
    model = LSTM(3, 4, 2, batch_first=True).eval()
    theirs = nn.LSTM(3, 4, 2)
    theirs.load_state_dict(model.state_dict())
    x, state = torch.randn(2, 7, 3), (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    with torch.no_grad():
        output, after = model(x, state)
    assert_near(call(session(theirs, tmp_path / "m.onnx"), x, state), [y.numpy() for y in (output, *after)], 3)


class Doubled(LanguageModel):
    def forward(self, *args: Any, **options: Any) -> Any:
        logits, state = super().forward(*args, **options)
        return 2 * logits, state


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(ids)


def scaled() -> LanguageModel:
    model = language()
    model.embedding = Scaled(11, 64)
    return model


def hooked() -> LanguageModel:
    model = language()
    model.lstm.layers[1].register_forward_hook(lambda *_: None)
    return model


def of_two_widths() -> MultiLayerLSTM:
    model = MultiLayerLSTM(3, 4, 2)
    model.layers[1] = LSTMLayer(4, 6)
    return model


REFUSED = {
    "another class": (
        lambda: (nn.GRU(3, 4), {}),
        TypeError,
        "model is of type GRU, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, unrolled.LSTM or torch.nn.LSTM",
    ),
    "inside another": (
        lambda: (nn.Sequential(LSTMLayer(3, 4)), {}),
        TypeError,
        "model is of type Sequential, expected a MultiLayerLSTM, LanguageModel, LSTMLayer, unrolled.LSTM or "
        'torch.nn.LSTM; it holds one: export_onnx(model.get_submodule("0"), path)',
    ),
    "a forward of its own": (
        lambda: (Doubled(ModelConfig(5)), {}),
        TypeError,
        "the model's Doubled has a forward of its own, and an exported model computes what LanguageModel.forward does",
    ),
    "an embedding of its own": (
        lambda: (scaled(), {}),
        TypeError,
        "the model's Scaled has a forward of its own, and an exported model computes what Embedding.forward does",
    ),
    "two widths": (
        lambda: (of_two_widths(), {}),
        ValueError,
        "layer 1 has input_dim=4 and hidden_dim=6, expected 4 and 4: an exported model's layers have one hidden width; "
        "export_onnx(model.layers[1], path) runs this one alone",
    ),
    "int8 of a projection": (
        lambda: (LSTMLayer(3, 4, proj_dim=2), {"int8": True}),
        ExportError,
        "int8 is for LSTM nodes, and a projection of h takes Scan nodes; leave int8 out",
    ),
    "a hook": (
        lambda: (hooked(), {}),
        ExportError,
        "the model's lstm.layers.1 has forward hooks, which an exported model would not run; remove them (instead of "
        "torch.nn.utils.weight_norm, which is one, take that of torch.nn.utils.parametrizations)",
    ),
    "no numbers": (
        lambda: (LSTMLayer(3, 4, device="meta"), {}),
        ExportError,
        "W_xf is on meta and holds no numbers; load the weights first",
    ),
    "over 2 GB": (
        lambda: (LanguageModel(ModelConfig(2**20, 512, embedding=512), device="meta"), {}),
        ExportError,
        "the weights are 4,315,955,200 bytes as float32, and one ONNX file holds less than 2 GiB; Stepper runs them as "
        "they are",
    ),
    "int8 and every step": (
        lambda: (language(), {"int8": True, "every_step": True}),
        ExportError,
        "int8 is for LSTM nodes, and every_step writes Scan nodes; leave one of them out",
    ),
    "a tokenizer for floats": (
        lambda: (LSTMLayer(3, 4), {"tokenizer": ByteTokenizer()}),
        ExportError,
        "a tokenizer goes with a LanguageModel, and the model is of type LSTMLayer",
    ),
    "another tokenizer": (
        lambda: (language(), {"tokenizer": ByteTokenizer()}),
        ExportError,
        "the tokenizer has 256 tokens and the model was built for 11; pass the one that it was trained with",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_refused(name: str, tmp_path: Path):
    build, kind, message = REFUSED[name]
    model, options = build()
    with pytest.raises(kind) as caught:
        export_onnx(model, tmp_path / "m.onnx", **options)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_no_name_for_it_is_refused(tmp_path: Path):
    (tmp_path / "d.onnx").mkdir()
    for path, message in (
        (tmp_path / "d.onnx", f"{tmp_path}/d.onnx is a directory; name the file in it: {tmp_path}/d.onnx/model.onnx"),
        (tmp_path / "m", f"{tmp_path}/m does not end in .onnx; name the file so: {tmp_path}/m.onnx"),
        (tmp_path / "m.txt", f"{tmp_path}/m.txt does not end in .onnx; name the file so: {tmp_path}/m.txt.onnx"),
        (tmp_path / "no/m.onnx", f"there is no directory {tmp_path}/no; make it first, or write elsewhere"),
    ):
        with pytest.raises(ExportError) as caught:
            export_onnx(language(), path)
        assert str(caught.value) == message
    assert [path.name for path in tmp_path.iterdir()] == ["d.onnx"]


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(ExportError) as caught:
        export_onnx(language(), tmp_path / "m.onnx", int8=True)
    assert str(caught.value) == "int8 takes ONNX Runtime, which is not installed: pip install onnxruntime"
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError) as caught:
        export_onnx(language(), tmp_path / "m.onnx")
    assert str(caught.value) == "onnx is not installed: pip install 'unrolled[onnx]'"
    assert not list(tmp_path.iterdir())
