"""Every example is short and runs as it stands: an empty folder, no complaints, and no arguments but files to read."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from unrolled import ByteTokenizer, LanguageModel, ModelConfig, export_onnx

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# A program to train with may be longer than a lesson.
LINES = {"word_language_model": 150, "recurrent_ppo": 400, "private_sgd": 120, "lightning_truncated_bptt": 150}
LINES |= {"awd_lstm": 190}
ARGUMENTS = {
    "awd_lstm": ["--train", "train.txt", "--valid", "valid.txt", "--epochs", "1", "--embedding", "8", "--hidden", "16"],
    "word_language_model": ["--train", "train.txt", "--valid", "valid.txt"],
    "onnx_generate": ["model.onnx", "The ", "20"],
    "private_sgd": ["--epochs", "1"],
    "lightning_truncated_bptt": ["--epochs", "2"],
    "recurrent_ppo": ["--frames", "1024", "--envs", "4"],
}
NEEDS = {
    "onnx_generate": ("onnx", "onnxruntime"),
    "recurrent_ppo": ("gymnasium",),
    "private_sgd": ("opacus",),
    "lightning_truncated_bptt": ("pytorch_lightning",),
}


def run(example: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=folder,
        # A pipe's encoding is the locale's, not UTF-8, on Windows.
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


# What each says where its package is missing.
MISSING = {
    "onnx_generate": ("onnxruntime", "this example needs ONNX Runtime: pip install onnxruntime"),
    "recurrent_ppo": ("gymnasium", 'this example needs gymnasium: pip install "unrolled[examples]"'),
    "private_sgd": ("opacus", 'this example needs opacus: pip install "unrolled[opacus]"'),
    "lightning_truncated_bptt": (
        "pytorch_lightning",
        'this example needs pytorch-lightning: pip install "unrolled[examples]"',
    ),
}
# Those that train for minutes; the lessons are over before anyone stops them.
TRAINING = ("word_language_model", "awd_lstm", "recurrent_ppo", "private_sgd", "lightning_truncated_bptt")
# These run in the slow suite: other libraries' import alone takes seconds, and one that trains here is enough.
SLOW = ("recurrent_ppo", "private_sgd", "lightning_truncated_bptt", "carry_state", "train_from_python")
SLOW += ("generate_with_saved_state", "open_the_gates", "awd_lstm")


def by_name(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name in names]


def example_of(name: str) -> Path:
    [example] = [path for path in EXAMPLES if path.stem == name]
    return example


WITHOUT = """
import runpy, sys
package, *sys.argv = sys.argv[1:]
sys.modules[package] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# A shell starts what runs in the background with SIGINT ignored, and that is inherited.
INTERRUPTED = """
import os, runpy, signal, sys, torch
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.Tensor.backward = lambda *_, **__: signal.raise_signal(signal.SIGINT)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_in(program: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "program.py"
    script.write_text(program, encoding="utf-8")
    return run(script, folder, *arguments)


def write_texts(folder: Path) -> None:
    """Sentences in which each word decides the next, but for one in four."""
    draw = random.Random(0)
    words = ["the", "cat", "saw", "a", "dog", "and", "then", "<unk>"]
    for name, lines in (("train", 300), ("valid", 30)):
        text = [[words[(k + draw.choice((0, 0, 0, 1))) % 8] for k in range(draw.randint(4, 9))] for _ in range(lines)]
        (folder / f"{name}.txt").write_text("".join(f" {' '.join(line)} \n" for line in text), encoding="utf-8")


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(example: Path):
    assert len(example.read_text(encoding="utf-8").splitlines()) < LINES.get(example.stem, 80)


@pytest.mark.parametrize("name", by_name(path.stem for path in EXAMPLES))
def test_an_example_runs(name: str, tmp_path: Path):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    write_texts(tmp_path)
    if name == "onnx_generate":
        export_onnx(LanguageModel(ModelConfig(256, 8)), tmp_path / "model.onnx", tokenizer=ByteTokenizer())
    done = run(example_of(name), tmp_path, *ARGUMENTS.get(name, []))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_linked_where_readers_look(example: Path):
    assert f"](examples/{example.name})" in (example.parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MISSING)
def test_without_its_package_an_example_says_what_to_install(name: str, tmp_path: Path):
    package, sentence = MISSING[name]
    assert package in NEEDS[name]
    example = example_of(name)
    done = run_in(WITHOUT, tmp_path, package, str(example))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")
    if extra := re.search(r"unrolled\[(\w+)\]", sentence):
        project = tomllib.loads((example.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        [package_of_extra] = [
            each for each in project["optional-dependencies"][extra[1]] if each.startswith(package.replace("_", "-"))
        ]
        assert package_of_extra


@pytest.mark.parametrize("name", by_name(TRAINING))
def test_ctrl_c_ends_a_training_example_as_a_shell_expects(name: str, tmp_path: Path):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    write_texts(tmp_path)
    done = run_in(INTERRUPTED, tmp_path, str(example_of(name)), *ARGUMENTS[name])
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def word_model(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(example_of("word_language_model"), folder, *ARGUMENTS["word_language_model"], *arguments)


@pytest.mark.parametrize(
    "tied", [pytest.param((), id="untied", marks=pytest.mark.slow), pytest.param(("--tied",), id="tied")]
)
def test_a_word_model_learns_what_there_is_to_learn(tmp_path: Path, tied: tuple[str, ...]):
    """The texts' own perplexity is 2.1; a guess by how frequent words are stands at 8."""
    write_texts(tmp_path)
    settings = "--epochs 5 --hidden 32 --window 10 --batch 10 --clip 1 --dropout 0 --lr 3"
    done = word_model(tmp_path, *settings.split(), *tied)
    assert done.returncode == 0, done.stderr
    assert "2,232 words to learn from, 9 different ones" in done.stdout
    found = re.search(r"in the end: validation perplexity (\S+) \(best (\S+)\), training (\S+)\n$", done.stdout)
    assert found is not None
    last, best, training = map(float, found.groups())
    assert 1.8 < best <= last < 4
    assert 1.8 < training < 4


@pytest.mark.slow
def test_an_averaged_model_learns_what_there_is_to_learn(tmp_path: Path):
    write_texts(tmp_path)
    drops = " ".join(f"--{of}-dropout 0" for of in ("word", "input", "layer", "output"))
    settings = f"--embedding 24 --hidden 32 --layers 2 --batch 10 --window 10 --lr 3 --clip 1 --weight-drop 0.2 {drops}"
    more = "--epochs 12 --patience 1"
    done = run(example_of("awd_lstm"), tmp_path, *ARGUMENTS["awd_lstm"], *settings.split(), *more.split())
    assert done.returncode == 0, done.stderr
    assert re.search(r"epoch \d+, averaging", done.stdout), "the score never rose, so nothing was averaged"
    found = re.search(r"in the end: validation perplexity (\S+) \(best (\S+)\)\n$", done.stdout)
    assert found is not None
    last, best = map(float, found.groups())
    assert 1.8 < best <= last < 3


@pytest.mark.slow
def test_a_word_that_was_never_read_counts_as_unknown(tmp_path: Path):
    write_texts(tmp_path)
    (tmp_path / "valid.txt").write_text("the zebra saw\n", encoding="utf-8")
    done = word_model(tmp_path, "--epochs", "1", "--hidden", "8")
    assert done.returncode == 0, done.stderr
    (tmp_path / "train.txt").write_text("the cat saw a dog\n" * 50, encoding="utf-8")
    done = word_model(tmp_path, "--epochs", "1", "--hidden", "8")
    assert done.returncode == 1
    assert done.stderr == "'zebra' is not in the training text, and neither is <unk>\n"
