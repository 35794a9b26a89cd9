"""Unrolled: an LSTM you can see into, at the speed of one you can't.

The layers are here at once; the toolkit around them (text, training, generation, checkpoints) is imported when one of
its names is first used, so that `import unrolled` loads torch and nothing else.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .layer import LayerGradients, LayerTrace, LSTMLayer
from .recurrence import BackendUnavailable, Choice, backends
from .stack import MultiLayerLSTM, Trace
from .state import LSTMState

if TYPE_CHECKING:
    from .checkpoint import CheckpointError, Run, load, save_model
    from .corpus import Corpus, CorpusError, Split, builtin_text, read_corpus
    from .evaluate import Evaluation, Score, evaluate
    from .generate import Piece, generate
    from .lanes import Lanes, Window
    from .loss import bits_per_byte, nats, perplexity
    from .model import LanguageModel, ModelConfig
    from .tokens import ByteTokenizer, CharTokenizer, Tokenizer, TokenizerError, load_tokenizer, new_tokenizer
    from .train import TrainConfig, Trainer

__version__ = "0.1.0"

__all__ = [
    "LSTMLayer",
    "MultiLayerLSTM",
    "LSTMState",
    "LayerTrace",
    "Trace",
    "LayerGradients",
    "backends",
    "Choice",
    "BackendUnavailable",
    "LanguageModel",
    "ModelConfig",
    "Trainer",
    "TrainConfig",
    "evaluate",
    "Evaluation",
    "Score",
    "generate",
    "Piece",
    "load",
    "save_model",
    "Run",
    "CheckpointError",
    "ByteTokenizer",
    "CharTokenizer",
    "Tokenizer",
    "TokenizerError",
    "load_tokenizer",
    "new_tokenizer",
    "read_corpus",
    "builtin_text",
    "Corpus",
    "CorpusError",
    "Split",
    "Lanes",
    "Window",
    "nats",
    "bits_per_byte",
    "perplexity",
]

_TOOLKIT = {
    name: module
    for module, names in {
        "checkpoint": ("CheckpointError", "Run", "load", "save_model"),
        "corpus": ("Corpus", "CorpusError", "Split", "builtin_text", "read_corpus"),
        "evaluate": ("Evaluation", "Score", "evaluate"),
        "generate": ("Piece", "generate"),
        "lanes": ("Lanes", "Window"),
        "loss": ("bits_per_byte", "nats", "perplexity"),
        "model": ("LanguageModel", "ModelConfig"),
        "tokens": (
            "ByteTokenizer",
            "CharTokenizer",
            "Tokenizer",
            "TokenizerError",
            "load_tokenizer",
            "new_tokenizer",
        ),
        "train": ("TrainConfig", "Trainer"),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name in _TOOLKIT:
        value = getattr(importlib.import_module(f"{__name__}.{_TOOLKIT[name]}"), name)
        globals()[name] = value
        return value
    if name == "LSTMCell":
        raise AttributeError(
            "unrolled has no LSTMCell: what runs a whole sequence is LSTMLayer, and one step of it is "
            "layer(x[:, None], h, c)"
        )
    close = difflib.get_close_matches(name, __all__, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Front(ModuleType):
    """This package. Importing the submodule `generate` would put the module where the function of that name belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _TOOLKIT and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
