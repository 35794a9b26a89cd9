"""One directory is one model: written whole or not at all, verified before a number of it is used.

A model directory holds `config.json`, `tokenizer.json` and `weights.safetensors`; where training can go on from it,
also `training.json` and `training.safetensors`; and `manifest.json`, written last, with every file's size and sha256.
A run directory holds model directories `step-00000800` and the small file `latest`, the name of the newest one.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from . import __version__
from .manifest import (
    MANIFEST,
    CheckpointError,
    check_version,
    decode_json,
    encode_json,
    is_leftover,
    read_directory,
    remove,
    replace_file,
    versioned,
    write_directory,
)
from .model import LanguageModel, ModelConfig
from .tokens import Tokenizer, TokenizerError, load_tokenizer

__all__ = [
    "CheckpointError",
    "Run",
    "Training",
    "check_shapes",
    "latest",
    "load",
    "load_training",
    "save_model",
    "save_step",
    "step_name",
]

LATEST = "latest"
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "weights.safetensors"
RECORD, TENSORS = "training.json", "training.safetensors"

_STEP = re.compile(r"step-\d{8,}")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Training:
    """What training needs beside the model to go on: plain values for JSON, and named tensors."""

    record: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """A loaded model with its tokenizer. `directory` is the model directory that it came from.

    `training` is what `training.json` holds, such as `step` and the training configuration; None without that file.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    config: ModelConfig
    directory: Path
    training: Mapping[str, Any] | None = None


def save_model(
    directory: PathLike, model: LanguageModel, tokenizer: Tokenizer, training: Training | None = None
) -> None:
    """Write a model directory, whole or not at all.

    Raises CheckpointError if the place is taken: a saved model is never overwritten.
    """
    if tokenizer.size != model.config.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.size} tokens and the model was built for {model.config.vocabulary}; save a "
            "model with the tokenizer that it was trained with"
        )
    contents = {
        CONFIG: encode_json(versioned(asdict(model.config))),
        TOKENIZER: _saved(tokenizer),
        WEIGHTS: _packed(model.state_dict()),
    }
    if training is not None:
        contents |= {RECORD: encode_json(training.record), TENSORS: _packed(training.tensors)}
    write_directory(Path(directory), {"unrolled": __version__, "torch": str(torch.__version__)}, contents)


def load(directory: PathLike) -> Run:
    """The model in a model directory, or the newest one of a run directory, verified, in evaluation mode, on the CPU.

    Raises CheckpointError for whatever is missing, damaged, of another version, or does not fit together.
    """
    path = _model_directory(Path(directory))
    contents = _contents(path, CONFIG, TOKENIZER, WEIGHTS, RECORD)
    config = _config(path, contents[CONFIG])
    try:
        tokenizer = load_tokenizer(path / TOKENIZER)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from None
    if tokenizer.size != config.vocabulary:
        raise CheckpointError(
            f"{path / TOKENIZER} has {tokenizer.size} tokens, and {CONFIG} beside it says {config.vocabulary}; these "
            "files are not of one model"
        )
    model = _model(path, config, _tensors(path / WEIGHTS, contents[WEIGHTS]))
    record = decode_json(path / RECORD, contents[RECORD]) if RECORD in contents else None
    return Run(model, tokenizer, config, path, record)


def load_training(directory: PathLike) -> Training:
    """What `save_model` was given as `training`, verified. CheckpointError where the model was saved without it."""
    path = _model_directory(Path(directory))
    contents = _contents(path, RECORD, TENSORS)
    if RECORD not in contents or TENSORS not in contents:
        raise CheckpointError(
            f"{path} was saved without its training state, so that training can't go on from it; it still generates"
        )
    return Training(decode_json(path / RECORD, contents[RECORD]), _tensors(path / TENSORS, contents[TENSORS]))


def save_step(run: PathLike, step: int, model: LanguageModel, tokenizer: Tokenizer, training: Training) -> Path:
    """Save step `step` of a run, name it in `latest`, and then remove all but this model directory and the one before.

    At every moment `latest` names a whole model. Nothing is written if it names this step already.
    """
    run = Path(run)
    target, before = run / step_name(step), latest(run)
    if target == before:
        return target
    if target.exists():
        # From a run that ended between the two renames; `latest` never came to name it.
        remove(target)
    save_model(target, model, tokenizer, training)
    replace_file(run / LATEST, f"{target.name}\n".encode())
    for entry in list(run.iterdir()):
        if entry not in (target, before) and (_STEP.fullmatch(entry.name) or is_leftover(entry)):
            remove(entry)
    return target


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def latest(run: PathLike) -> Path | None:
    """The model directory that a run's `latest` names; None where no model has been saved."""
    run = Path(run)
    try:
        name = (run / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not _STEP.fullmatch(name) or not (run / name).is_dir():
        there = sorted(entry.name for entry in run.iterdir() if _STEP.fullmatch(entry.name))
        hint = f"write one of these into it: {', '.join(there)}" if there else "and the run has no model directory"
        raise CheckpointError(f"{run / LATEST} names {name[:80]!r}, which is not there; {hint}")
    return run / name


def _contents(path: Path, *keep: str) -> dict[str, bytes]:
    """The verified contents of those files in `keep` that there are, of a directory that is a whole model."""
    manifest, contents = read_directory(path, keep=keep)
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        if name not in manifest["files"]:
            raise CheckpointError(f"{path / MANIFEST} does not list {name}; this is not a whole model")
    return contents


def _saved(tokenizer: Tokenizer) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(Path(scratch) / TOKENIZER)
        return (Path(scratch) / TOKENIZER).read_bytes()


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    packed: bytes = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    return packed


def _model_directory(path: Path) -> Path:
    newest = latest(path)
    if newest is not None:
        return newest
    if (path / MANIFEST).exists():
        return path
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {path.parent / close[0]}?" if close else "unrolled train makes one"
        raise CheckpointError(f"{path}: there is no such directory; {hint}")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; pass the directory that holds the model: {path.parent}")
    if (path / "config.toml").exists():
        raise CheckpointError(f"{path} has no saved model yet; train on with the command that began it")
    raise CheckpointError(
        f"{path} holds neither {MANIFEST} (a saved model) nor {LATEST} (a run); pass what --out named in training"
    )


def _config(path: Path, raw: bytes) -> ModelConfig:
    value = decode_json(path / CONFIG, raw)
    check_version(path / CONFIG, value)
    fields = {name: entry for name, entry in value.items() if name not in ("format", "version")}
    try:
        return ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG} describes no model: {error}") from None


def _tensors(path: Path, raw: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file that can be read ({error})") from None
    return tensors


def _model(path: Path, config: ModelConfig, weights: dict[str, Tensor]) -> LanguageModel:
    dtypes = {value.dtype for value in weights.values()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "nothing"
        raise CheckpointError(f"{path / WEIGHTS} holds {found}; the weights of a model are of one floating dtype")
    # Before anything is built: sizes that no file backs must not even be tried.
    probes = {
        f"lstm.layers.{config.layers - 1}.b_f": torch.Size([config.hidden]),
        "lstm.proj.bias": torch.Size([config.vocabulary]),
    }
    if config.embedding:
        probes["embedding.weight"] = torch.Size([config.vocabulary, config.embedding])
    check_shapes(path / WEIGHTS, probes, {name: value for name, value in weights.items() if name in probes})
    model = LanguageModel(config, device="meta", dtype=next(iter(dtypes)))
    expected = {name: value.shape for name, value in model.state_dict().items()}
    check_shapes(path / WEIGHTS, expected, weights)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def check_shapes(path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    """CheckpointError that names the first tensor of a file which is missing, of another shape, or one too many."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path} has no tensor {name}; it is not of this model")
        if found[name].shape != shape:
            raise CheckpointError(f"{path}: {name} is {list(found[name].shape)}, expected {list(shape)}")
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{path} has a tensor {name} that this model does not have")
