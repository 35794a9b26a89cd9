"""One directory is one model: written whole or not at all, verified before a number of it is used.

A model directory holds `config.json`, `tokenizer.json` and `weights.safetensors`; where training can go on from it,
also `training.json` and `training.safetensors`; and `manifest.json`, written last, with every file's size and sha256.
A run directory holds model directories `step-00000800` and the small files `latest` and `best`, each of which holds the
name of one.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from . import __version__
from .disk import DiskWarning
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
from .tokens import Tokenizer, TokenizerError, load_tokenizer, tokenizer_file
from .weights import check_shapes, packed, unpacked

__all__ = [
    "CheckpointError",
    "Run",
    "Training",
    "latest",
    "load",
    "load_training",
    "load_weights",
    "newest_whole",
    "save_model",
    "save_step",
    "step_name",
]

Which = Literal["latest", "best"]
LATEST, BEST = get_args(Which)
KEEP = 3
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "weights.safetensors"
RECORD, TENSORS = "training.json", "training.safetensors"
OWN_CLASS = "own_class"

_STEP = re.compile(r"step-\d{8,}")
_WORDS = {LATEST: "newest", BEST: "best"}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

PathLike = str | os.PathLike[str]
_T = TypeVar("_T")


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


def save_model(directory: PathLike, model: nn.Module, tokenizer: Tokenizer, training: Training | None = None) -> None:
    """Write a model directory, whole or not at all. Of another class than `LanguageModel` the weights are saved alone.

    Raises CheckpointError if the place is taken: a saved model is never overwritten.
    """
    if isinstance(model, LanguageModel) and tokenizer.size != model.config.vocabulary:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.size} tokens and the model was built for {model.config.vocabulary}; save a "
            "model with the tokenizer that it was trained with"
        )
    contents = {
        CONFIG: encode_json(versioned(_described(model))),
        TOKENIZER: tokenizer_file(tokenizer),
        WEIGHTS: packed(model.state_dict()),
    }
    if training is not None:
        contents |= {RECORD: encode_json(training.record), TENSORS: packed(training.tensors)}
    write_directory(Path(directory), {"unrolled": __version__, "torch": str(torch.__version__)}, contents)


def load(directory: PathLike, which: Which = "latest") -> Run:
    """The model in a model directory, or a run's newest or best one: verified, in evaluation mode, on the CPU.

    Where a run's model is damaged, the newest one that is not is loaded, and a DiskWarning names the bad file.
    Raises CheckpointError for whatever is missing, damaged, of another version, or does not fit together.
    """
    return _first(Path(directory), which, _load)


def load_training(directory: PathLike) -> Training:
    """What `save_model` was given as `training`, verified. CheckpointError where the model was saved without it."""
    return _first(Path(directory), LATEST, _load_training)


def load_weights(directory: PathLike) -> tuple[dict[str, Tensor], Tokenizer]:
    """The weights of a model of any class, by name, verified, on the CPU; and its tokenizer."""
    return _first(Path(directory), LATEST, _load_weights)


def newest_whole(run: PathLike) -> Path | None:
    """The model directory from which a run goes on; None where it has none.

    It is the one that `latest` names; or, with a DiskWarning, the newest that verifies where that one does not.
    """
    run = Path(run)
    return _first(run, LATEST, _verified) if has_models(run) else None


def has_models(run: Path) -> bool:
    """Whether a run has come to a save, be its models damaged or not."""
    return (run / LATEST).exists() or bool(_steps(run))


def save_step(
    run: PathLike,
    step: int,
    model: nn.Module,
    tokenizer: Tokenizer,
    training: Training,
    *,
    keep: int = KEEP,
    best: bool = False,
) -> Path:
    """Save step `step` of a run, name it in `latest`, with `best` also in `best`, and only then remove older models.

    The newest `keep` stay, and the one that `best` names. At every moment `latest` names a whole model. If it is
    this step's already, the model is not written again.
    """
    run = Path(run)
    target = run / step_name(step)
    for entry in _entries(run):
        if is_leftover(entry):
            remove(entry)  # before anything is written: it may take the room of a whole model
    if named(run, LATEST) != target or not _is_whole(target):
        if target.exists():
            # Damaged, or from a run that ended between the two renames: `latest` never came to name it.
            remove(target)
        save_model(target, model, tokenizer, training)
        _name(run, LATEST, target)
    if best:
        _name(run, BEST, target)
    _retire(run, target, keep)
    return target


def _retire(run: Path, newest: Path, keep: int) -> None:
    """Remove all models but the last `keep` up to `newest`; later ones are of a future that will come otherwise."""
    steps = _steps(run)
    last = steps[: steps.index(newest) + 1][-keep:]
    for entry in steps:
        if entry not in last and entry != named(run, BEST):
            try:
                remove(entry)
            except OSError as error:
                warnings.warn(DiskWarning(f"{entry} can't be removed: {error.strerror}"), stacklevel=3)


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def latest(run: PathLike) -> Path | None:
    """The model directory that a run's `latest` names; None where no model has been saved."""
    return named(Path(run), LATEST, strict=True)


def named(run: Path, which: str, *, strict: bool = False) -> Path | None:
    """The model directory that `latest` or `best` names, or None; `strict`: CheckpointError if it isn't there."""
    try:
        with open(run / which, "rb") as file:
            name = file.read(100).decode("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if _STEP.fullmatch(name) and (run / name).is_dir():
        return run / name
    if strict:
        there = ", ".join(path.name for path in _steps(run))
        hint = f"write one of these into it: {there}" if there else "and the run has no model directory"
        raise CheckpointError(f"{run / which} names {name[:80]!r}, which is not there; {hint}")
    return None


def _name(run: Path, which: str, target: Path) -> None:
    replace_file(run / which, f"{target.name}\n".encode())


def _entries(run: Path) -> list[Path]:
    return list(run.iterdir()) if run.is_dir() else []


def _steps(run: Path) -> list[Path]:
    """The model directories of a run, the newest one last."""
    return sorted((path for path in _entries(run) if _STEP.fullmatch(path.name)), key=lambda path: int(path.name[5:]))


def _first(path: Path, which: Which, read: Callable[[Path], _T]) -> _T:
    """What `read` makes of a model directory, or of the first model of a run of which it makes something.

    The first one is that which was asked for, then comes the newest and so on.
    """
    if which not in (LATEST, BEST):
        raise ValueError(f'which must be "{LATEST}" or "{BEST}", got {which!r}')
    run = path
    if path.name in (LATEST, BEST) and not path.is_dir() and path.parent.is_dir():
        run, which = path.parent, path.name  # type: ignore[assignment]
    if not (run / LATEST).exists() and ((run / MANIFEST).exists() or not _steps(run)):
        return read(_model_directory(path))
    if which == BEST and not (run / BEST).exists():
        raise CheckpointError(
            f"{run} has no best model, which takes an evaluation on validation text; name its newest one: {run}"
        )
    asked, problems = None, []
    try:
        asked = named(run, which, strict=True)
    except CheckpointError as error:
        problems.append(error)
    for directory in dict.fromkeys([*([asked] if asked else []), *reversed(_steps(run))]):
        try:
            result = read(directory)
        except CheckpointError as error:
            problems.append(error)
        else:
            if problems:
                instead = f"{run}: {directory.name} is taken in place of the {_WORDS[which]} model"
                warnings.warn(DiskWarning(f"{instead}: {problems[0]}"), stacklevel=3)
            return result
    raise problems[0]


def _verified(path: Path) -> Path:
    _contents(path)
    return path


def _is_whole(path: Path) -> bool:
    try:
        _contents(path)
    except CheckpointError:
        return False
    return True


def _load(path: Path) -> Run:
    contents = _contents(path, CONFIG, TOKENIZER, WEIGHTS, RECORD)
    config = _config(path, contents[CONFIG])
    tokenizer = _tokenizer(path)
    if tokenizer.size != config.vocabulary:
        raise CheckpointError(
            f"{path / TOKENIZER} has {tokenizer.size} tokens, and {CONFIG} beside it says {config.vocabulary}; these "
            "files are not of one model"
        )
    model = _model(path, config, unpacked(path / WEIGHTS, contents[WEIGHTS]))
    record = decode_json(path / RECORD, contents[RECORD]) if RECORD in contents else None
    return Run(model, tokenizer, config, path, record)


def _load_weights(path: Path) -> tuple[dict[str, Tensor], Tokenizer]:
    return unpacked(path / WEIGHTS, _contents(path, WEIGHTS)[WEIGHTS]), _tokenizer(path)


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return load_tokenizer(path / TOKENIZER)
    except TokenizerError as error:
        raise CheckpointError(str(error)) from None


def _load_training(path: Path) -> Training:
    contents = _contents(path, RECORD, TENSORS)
    if RECORD not in contents or TENSORS not in contents:
        raise CheckpointError(
            f"{path} was saved without its training state, so that training can't go on from it; it still generates"
        )
    return Training(decode_json(path / RECORD, contents[RECORD]), unpacked(path / TENSORS, contents[TENSORS]))


def _contents(path: Path, *keep: str) -> dict[str, bytes]:
    """The verified contents of those files in `keep` that there are, of a directory that is a whole model."""
    manifest, contents = read_directory(path, keep=keep)
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        if name not in manifest["files"]:
            raise CheckpointError(f"{path / MANIFEST} does not list {name}; this is not a whole model")
    return contents


def _described(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, LanguageModel):
        return model.config.as_dict()
    return {OWN_CLASS: f"{type(model).__module__}.{type(model).__qualname__}"}


def _model_directory(path: Path) -> Path:
    """`path`, if it may be a model directory; for anything else, a sentence with what to pass in its place."""
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
    if OWN_CLASS in value:
        raise CheckpointError(
            f"{path} holds the weights of {value[OWN_CLASS]}, a model that is not the library's: build one, and then "
            f"model.load_state_dict(safetensors.torch.load_file({str(path / WEIGHTS)!r}))"
        )
    fields = {name: entry for name, entry in value.items() if name not in ("format", "version")}
    try:
        return ModelConfig(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG} describes no model: {error}") from None


def _model(path: Path, config: ModelConfig, weights: dict[str, Tensor]) -> LanguageModel:
    dtypes = {value.dtype for value in weights.values()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "nothing"
        raise CheckpointError(f"{path / WEIGHTS} holds {found}; the weights of a model are of one floating dtype")
    # Before anything is built: sizes that no file backs must not even be tried.
    probes = {
        f"lstm.layers.{config.layers - 1}.W_xo": torch.Size([_width_below(config), config.hidden]),
        "lstm.proj.bias": torch.Size([config.vocabulary]),
    }
    if config.embedding and not config.tie_weights:
        probes["embedding.weight"] = torch.Size([config.vocabulary, config.embedding])
    check_shapes(path / WEIGHTS, probes, {name: value for name, value in weights.items() if name in probes})
    model = LanguageModel(config, device="meta", dtype=next(iter(dtypes)))
    expected = {name: value.shape for name, value in model.state_dict().items()}
    check_shapes(path / WEIGHTS, expected, weights)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _width_below(config: ModelConfig) -> int:
    """What the top layer reads."""
    return config.h_dim if config.layers > 1 else config.embedding or config.vocabulary
