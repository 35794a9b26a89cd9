"""TrainConfig: everything that decides a training run, as Python, as flags and as a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .cell_options import DEFAULTS, LayerOptions
from .corpus import DEFAULT_SPLIT
from .manifest import replace_file

# What the default model does in about two minutes on two cores.
BUILTIN_STEPS = 500
# With files and neither steps nor epochs.
DEFAULT_EPOCHS, MOST_DEFAULT_STEPS = 20, 10_000
RUNS = "runs"

# A run goes on though these differ: its length, how often it looks and saves, what it says, and where it lies. The
# texts are compared by their contents.
_MAY_CHANGE = {
    *("steps", "epochs", "minutes", "patience", "eval_every", "save_every", "keep", "quiet", "resume", "out"),
    *("files", "val", "tokenizer", "tensorboard"),
}

_INTEGERS = {
    "layers": 1,
    "hidden": 1,
    "embedding": 0,
    "proj_dim": 1,
    "lanes": 1,
    "window": 1,
    "steps": 1,
    "accumulate": 1,
    "warmup": 0,
    "eval_every": 1,
    "save_every": 1,
    "keep": 1,
    "patience": 1,
    "vocabulary": 1,
    "seed": 0,
    "threads": 1,
}
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "embedding_dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "ema": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "lr": ("above 0", lambda x: 0 < x < math.inf),
    "epochs": ("above 0", lambda x: 0 < x < math.inf),
    "minutes": ("above 0", lambda x: 0 < x < math.inf),
    "clip": ("0 (no clipping) or more", lambda x: 0 <= x < math.inf),
    "weight_decay": ("0 or more", lambda x: 0 <= x < math.inf),
}
TOKENS = ("byte", "char", "bpe", "ids")
_CHOICES = {
    "tokens": TOKENS,
    "optimizer": ("adamw", "sgd"),
    "state": ("carry", "reset"),
    "dtype": ("float32", "float64", "bfloat16"),
    "autocast": ("bfloat16",),
}


class ConfigError(ValueError):
    """A training configuration that can't be used; the message names the field."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `None` means that a default is worked out from the text and the other fields."""

    files: tuple[str, ...] = ()
    """Text files, directories, patterns, .npy files of ids; none means the documentation text that Python carries."""
    out: str | None = None
    """Directory of the run; runs/<name of the first file> if not given."""
    tokens: Literal["byte", "char", "bpe", "ids"] | None = None
    """What the model reads: bytes, if not given, or characters, byte pairs, or ids that .npy files hold."""
    vocabulary: int | None = None
    """How many byte pairs are learned, 4096 if not given; of ids, how many there are."""
    tokenizer: str | None = None
    """Tokenizer to use: the tokenizer.json of a model, or the directory of a run or model."""
    document_separator: str | None = None
    """Text behind which a new document begins, also inside a file."""
    init_from: str | None = None
    """Run or model whose weights and tokens to start from, on other text."""
    layers: int | None = None
    """LSTM layers; 2 if not given, with init_from those of its model, and so on."""
    hidden: int | None = None
    """Width of each layer; 256 if not given."""
    embedding: int | None = None
    """Width of a learned embedding of the tokens, 64 if not given; 0 feeds one-hot rows, which learn more slowly."""
    tie_weights: bool | None = None
    """One matrix for embedding and projection, as wide as a layer; not if not given."""
    proj_dim: int | None = None
    """Width to which h is projected in every step; not projected if not given."""
    residual: bool | None = None
    """Add what a layer reads to what it gives, from the second layer on."""
    peephole: bool | None = None
    """Gates that see the cell state."""
    coupled: bool | None = None
    """A forget gate that is 1 less the input gate."""
    gate_activation: Literal["sigmoid", "hard_sigmoid"] | None = None
    """Function of the gates i, f and o; sigmoid if not given."""
    activation: Literal["tanh", "relu"] | None = None
    """Function of g, and of c on its way to h; tanh if not given."""
    cell_clip: float | None = None
    """Bounds of c, above and below zero; none if not given."""
    bias: bool | None = None
    """Biases of the gates; there are some if not given."""
    forget_bias: float | None = None
    """Where the forget gate's bias starts; 1 if not given."""
    recurrent_init: Literal["xavier", "orthogonal"] | None = None
    """How the matrices between steps are drawn; xavier if not given."""
    layer_norm: bool | None = None
    """Layer normalisation of each gate's sum, and of c on its way to h."""
    learn_initial_state: bool | None = None
    """A learned state, instead of zeros, where a text begins."""
    zoneout: float | tuple[float, float] | None = None
    """Share of h and of c that a step leaves as it was; two numbers with a comma between them: of h, and of c."""
    recurrent_dropout: float | None = None
    """Share of g dropped on its way into c."""
    variational_dropout: float | None = None
    """Share of what a layer reads, and of h on its way into the next step, dropped for a whole window."""
    weight_drop: float | None = None
    """Share of the weights between steps dropped for a whole window."""
    dropout: float = 0.2
    """Share of h dropped between layers and before the projection."""
    embedding_dropout: float = 0.0
    """Share of the embedding's output dropped."""
    lanes: int = 64
    """Stretches of the text that are read side by side (the batch)."""
    window: int = 64
    """Tokens of each lane in one step (the truncation length of the gradient)."""
    accumulate: int = 1
    """Lots into which the lanes are divided, one after the other in a step: the same step in less memory."""
    steps: int | None = None
    """Length of the run in steps; 20 epochs, at most 10000 steps, if neither this nor epochs is given."""
    minutes: float | None = None
    """Length of the run in minutes: turned once into steps, by timing some that are then thrown away."""
    epochs: float | None = None
    """Length of the run in passes over the text, instead of steps."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """How the weights move: AdamW, or plain gradient descent."""
    lr: float = 3e-3
    """Peak learning rate; it falls along a cosine to 2% of this."""
    warmup: int = 100
    """Steps in which the learning rate rises to its peak, at most half of the run."""
    clip: float = 1.0
    """Largest norm of the gradient, longer ones are scaled down to it; 0 turns that off."""
    weight_decay: float = 0.01
    """Decay of the weights; biases have none."""
    ema: float = 0.999
    """Decay of the running average of the weights that is evaluated and saved; 0 takes the weights themselves."""
    state: Literal["carry", "reset"] = "carry"
    """What a window starts from: the state at the end of the one before (carry), or zeros (reset)."""
    eval_every: int | None = None
    """Steps between evaluations; a tenth of the run, at most 500, if not given."""
    save_every: int | None = None
    """Steps between saves; a tenth of the run, at most 500, if not given. A model that scores best is saved at once."""
    keep: int = 3
    """How many of the newest models stay; the best one stays besides."""
    patience: int | None = None
    """End the run after this many evaluations in a row without a better score."""
    seed: int = 0
    """Decides the initial weights, where each epoch begins, the dropout masks and the samples."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1 ...; auto takes a CUDA device if there is one."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Number format of the weights."""
    autocast: Literal["bfloat16"] | None = None
    """Compute products in bfloat16; weights, recurrence and state stay as they are."""
    threads: int | None = None
    """CPU threads; torch's own choice if not given."""
    val: str | None = None
    """Text file to validate on; then the files are trained on to the last token."""
    split: tuple[float, ...] = DEFAULT_SPLIT
    """Shares of the text for training, validation and test, in order."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, under tensorboard/ in the run."""
    resume: bool = False
    """Insist on going on with a run that exists; without this, a new one is begun where there is none."""
    quiet: bool = False
    """Print the end result and what went wrong, nothing on the way."""

    def __post_init__(self) -> None:
        self._set("files", _files(self.files))
        self._set("split", _split(self.split))
        for name in ("out", "val", "tokenizer", "document_separator", "init_from"):
            if getattr(self, name) is not None:
                self._set(name, _text(name, getattr(self, name)))
        for name, least in _INTEGERS.items():
            _check_integer(name, getattr(self, name), least, optional=_optional(name))
        for name, (rule, allowed) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and _optional(name):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
                raise ConfigError(f"{name} must be {rule}, got {value!r}")
            self._set(name, float(value))
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2**63, got {self.seed}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices and not (getattr(self, name) is None and _optional(name)):
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        _text("device", self.device)
        for name in ("tensorboard", "resume", "quiet", "tie_weights", "residual"):
            if not isinstance(getattr(self, name), bool) and not (getattr(self, name) is None and _optional(name)):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if isinstance(self.zoneout, list):
            self._set("zoneout", tuple(self.zoneout))
        try:
            LayerOptions(**{name: value for name, value in self._cell().items() if value is not None})
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from None
        if self.accumulate > self.lanes:
            raise ConfigError(f"accumulate={self.accumulate} must be at most lanes={self.lanes}: a lot has a lane")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"steps={self.steps} and epochs={self.epochs:g} both say how long to train; give one")
        if self.minutes is not None and self.epochs is not None:
            raise ConfigError(f"minutes={self.minutes:g} and epochs={self.epochs:g} both say how long; give one")

    @property
    def directory(self) -> Path:
        """Where the run lies: `out`, or a name under runs/ from the first file's."""
        return Path(self.out) if self.out else Path(RUNS) / _run_name(self.files)

    def resolved(self, windows_per_epoch: int) -> TrainConfig:
        """The same run with its length in steps, its cadence and its directory written out."""
        if self.steps is not None:
            steps = self.steps
        elif self.minutes is not None:
            raise ConfigError(f"minutes={self.minutes:g} has no steps until a Trainer has timed some")
        elif self.epochs is not None:
            steps = math.ceil(self.epochs * windows_per_epoch)
        elif self.files:
            steps = min(DEFAULT_EPOCHS * windows_per_epoch, MOST_DEFAULT_STEPS)
        else:
            steps = BUILTIN_STEPS
        often = max(1, min(steps // 10, 500))
        return dataclasses.replace(
            self,
            out=str(self.directory),
            steps=steps,
            epochs=None,
            eval_every=self.eval_every or often,
            save_every=self.save_every or often,
        )

    def changed_from(self, earlier: TrainConfig) -> list[str]:
        """One line for each field in which a run that began as `earlier` can't become this one."""
        return [
            f"{name}: {_shown(getattr(self, name))}, the run has {_shown(getattr(earlier, name))}"
            for name in FIELDS
            if name not in _MAY_CHANGE and getattr(self, name) != getattr(earlier, name)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values by field, for JSON and TOML; a field that is None is left out."""
        values = {name: getattr(self, name) for name in FIELDS}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: value for name, value in plain.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """ConfigError for names that are no field."""
        for name in values:
            if name not in FIELDS:
                close = difflib.get_close_matches(name.replace("-", "_"), FIELDS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(FIELDS)}"
                raise ConfigError(f"{name} is no field of a training configuration; {hint}")
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a TOML file, replacing an old one at once. Lists and strings are written as JSON, which TOML reads."""
        lines = [f"{name} = {_toml(name, value)}\n" for name, value in self.as_dict().items()]
        replace_file(Path(path), "".join(lines).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainConfig:
        """Read a TOML file; fields that it leaves out have their defaults. ConfigError names the file."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from None
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or too deep or too long a number for it
            raise ConfigError(f"{path} is not TOML: {error}") from None

    def _cell(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in DEFAULTS}

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def _run_name(files: tuple[str, ...]) -> str:
    if not files:
        return "python-docs"
    path = Path(files[0])
    if path.is_dir():
        return path.resolve().name or "text"
    return re.sub(r"[*?\[\]]+", "", path.stem) or path.absolute().parent.name or "text"


def _optional(name: str) -> bool:
    return TrainConfig.__dataclass_fields__[name].default is None


def _check_integer(name: str, value: object, least: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


def _text(name: str, value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{name} must be a name, got {value!r}")
    return text


def _files(files: object) -> tuple[str, ...]:
    if isinstance(files, str | os.PathLike):
        return (_text("files", files),)
    if not isinstance(files, Sequence):
        raise ConfigError(f"files must be a list of file names, got {files!r}")
    return tuple(_text("files", file) for file in files)


def _split(split: object) -> tuple[float, ...]:
    """Shares from numbers, or from text such as "0.9,0.1". What they may be is the corpus's to say."""
    shares = split.split(",") if isinstance(split, str) else split
    try:
        return tuple(float(share) for share in shares)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ConfigError(f"split must be shares such as 0.9,0.05,0.05, got {split!r}") from None


def _shown(value: object) -> str:
    return ",".join(f"{share:g}" for share in value) if isinstance(value, tuple) else str(value)


def _toml(name: str, value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} holds a character that can't be written to a TOML file: {value!r}") from None
    return text
