"""`unrolled export`: from a run to a file that a script of thirty lines reads, and what int8 loses, told truthfully."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import run, small

from unrolled import ByteTokenizer, CharTokenizer, LanguageModel, ModelConfig, export_command, load, save_model
from unrolled.cli import main

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SCRIPT = Path(__file__).parents[1] / "examples/onnx_generate.py"
PROMPT, COUNT = "12 goose, 13 ", 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(small(directory, monkeypatch))
    return directory / "run"


@pytest.fixture
def call(capsys):
    def call(*tokens: Any) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(token) for token in tokens])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def by_script(file: Path, prompt: str, count: int) -> str:
    command = [sys.executable, "-X", "utf8", str(SCRIPT), str(file), prompt, str(count)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def assert_same_text(model: LanguageModel, tokenizer: Any, ours: str, theirs: str) -> None:
    """Identical, or different first where the two best logits are as good as equal."""
    if ours == theirs:
        return
    same = next(k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(tokenizer.encode(ours[:same]).astype(np.int64))[None])
    best = logits[0, -1].topk(2).values
    assert best[0] - best[1] < 1e-4, f"{ours[:same]!r} is followed by {ours[same]!r} here, {theirs[same]!r} there"


@pytest.mark.parametrize("every_step", [False, True], ids=["LSTM", "Scan"])
def test_the_script_writes_what_generate_writes(trained: Path, tmp_path: Path, call, every_step: bool):
    file = tmp_path / "model.onnx"
    flags = ["--every-step"] if every_step else []
    assert call("export", trained, file, *flags) == (0, f"written: {file}, {file.stat().st_size:,} bytes\n", "")
    code, ours, _ = call("generate", trained, "--prompt", PROMPT, "--max-tokens", COUNT, "--temperature", 0)
    assert code == 0
    assert len(ours) == len(PROMPT) + COUNT + 1
    loaded = load(trained)
    assert_same_text(loaded.model, loaded.tokenizer, ours, by_script(file, PROMPT, COUNT))


@pytest.mark.parametrize("embedding", [0, 9])
def test_the_script_writes_bytes_too(tmp_path: Path, call, embedding: int):
    torch.manual_seed(embedding)
    model, file = LanguageModel(ModelConfig(256, 40, 2, embedding=embedding)).eval(), tmp_path / "m.onnx"
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # texts that do not repeat one token
    save_model(tmp_path / "model", model, ByteTokenizer())
    assert call("export", tmp_path / "model", file)[0] == 0
    code, ours, _ = call("generate", tmp_path / "model", "--prompt", "é", "--max-tokens", 60, "--temperature", 0)
    assert code == 0
    assert len(set(ours)) > 5
    assert by_script(file, "é", 60) == ours


def test_the_check_finds_another_text():
    torch.manual_seed(0)
    model, tokenizer = LanguageModel(ModelConfig(3, 4)).eval(), CharTokenizer("abc")
    with pytest.raises(AssertionError, match="'abc' is followed by"):
        assert_same_text(model, tokenizer, "abca", "abcb")


def test_the_best_model_can_be_named(trained: Path, tmp_path: Path, call):
    assert call("export", f"{trained}/best", tmp_path / "m.onnx")[0] == 0
    with torch.no_grad():
        logits, _ = load(f"{trained}/best").model(torch.tensor([[1, 2, 3]]))
    zeros = np.zeros((2, 1, 12), dtype=np.float32)
    feed = {"x": np.array([[1, 2, 3]], dtype=np.int64), "h": zeros, "c": zeros}
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(["logits"], feed)[0]
    assert np.abs(found - logits.numpy()).max() < 1e-5


LOST = re.compile(
    r"int8 on ([\d,]+) tokens: ([\d.]+) bits per character, float32 ([\d.]+), lost ([+-][\d.]+); "
    r"largest difference of a logit ([\d.e-]+)\n"
)


def test_int8_says_what_it_loses_on_the_validation_text(trained: Path, tmp_path: Path, call):
    code, out, err = call("export", trained, tmp_path / "m.onnx", "--int8")
    assert (code, err) == (0, "")
    tokens, bits, exact, lost, largest = LOST.search(out).groups()  # type: ignore[union-attr]
    loaded = load(trained)
    code, scored, _ = call("eval", trained, "--json")
    assert code == 0
    nats = float(re.search(r'"stateful": {"nats": ([\d.]+)', scored)[1])  # type: ignore[index]
    assert float(exact) == pytest.approx(nats / np.log(2), abs=1e-4)
    assert float(bits) - float(exact) == pytest.approx(float(lost), abs=2e-4)
    assert 1e-4 < float(largest) < 1
    assert int(tokens) > 100
    assert loaded.tokenizer.name == "char"


def test_the_loss_is_that_of_the_file(trained: Path, tmp_path: Path, call):
    """A file of other weights is told from the run's."""
    other = copy.deepcopy(load(trained))
    with torch.no_grad():
        other.model.lstm.proj.weight.mul_(0)
        other.model.lstm.proj.bias.mul_(0)
    save_model(tmp_path / "other", other.model, other.tokenizer)
    assert call("export", tmp_path / "other", tmp_path / "m.onnx")[0] == 0
    ids = np.arange(12).repeat(5) % other.tokenizer.size
    found = export_command.loss(load(trained), tmp_path / "m.onnx", ids)
    assert found.bits == pytest.approx(np.log2(other.tokenizer.size), abs=1e-5)
    assert found.bits_float32 != pytest.approx(found.bits, abs=0.01)


def test_a_text_of_ones_own_and_none(trained: Path, tmp_path: Path, call):
    text = tmp_path / "text.txt"
    text.write_text("1 goose, 2 goose, 3 fox, ", encoding="utf-8")
    out = call("export", trained, tmp_path / "m.onnx", "--int8", "--text", text)[1]
    assert LOST.search(out)[1] == "24"  # type: ignore[index]
    save_model(tmp_path / "model", LanguageModel(ModelConfig(256, 8)), ByteTokenizer())
    code, out, _ = call("export", tmp_path / "model", tmp_path / "m.onnx", "--int8")
    assert code == 0
    said = f"{tmp_path / 'model'} does not say what it was trained on; --text FILE names a text\n"
    assert out.endswith(f"what int8 loses was not measured: {said}")


def test_what_cannot_be_exported_is_one_sentence(trained: Path, tmp_path: Path, call):
    text = tmp_path / "short.txt"
    text.write_text("1", encoding="utf-8")
    file = tmp_path / "m.onnx"
    for flags, said in (
        ((trained, tmp_path), f"{tmp_path} is a directory; name the file in it: {tmp_path}/model.onnx"),
        (
            (trained, file, "--text", text),
            "--text says on what the loss of int8 is measured; add --int8, or leave it out",
        ),
        (
            (trained, file, "--int8", "--text", text),
            "the text is too short: it holds 1 token, and at least 2 are needed; pass a longer text",
        ),
    ):
        assert call("export", *flags) == (1, "", f"unrolled: {said}\n")
    assert not file.exists()
