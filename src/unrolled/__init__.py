"""Unrolled: an LSTM you can see into, at the speed of one you can't.

Every name is imported when it is first used: `import unrolled` alone loads nothing, the layers load torch, and only the
toolkit around them (text, training, generation, checkpoints) loads what it needs beside torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ablation import Ablation, UnitCost, ablate
    from .bookmark import Bookmark, BookmarkError
    from .calibration import Calibration
    from .check import Check, Difference, check
    from .check_names import CheckError
    from .checkpoint import CheckpointError, Run, load, save_model
    from .config import ConfigError, TrainConfig
    from .convergence import Convergence, convergence
    from .corpus import Corpus, CorpusError, Split, builtin_text, read_corpus
    from .disk import DiskWarning
    from .drop_in import LSTM, LSTMTrace
    from .dynamic import Dynamic, dynamic, gradient_rms, tuned
    from .edits import Clamp, Place
    from .evaluate import Bars, Counts, Evaluation, PositionCurve, Score, blocks, evaluate, positions, stateful
    from .events import Evaluated, Finished, Saved, SaveFailed, Started, StepDone
    from .figures import FiguresError, write_figures
    from .flax_weights import from_flax, to_flax
    from .generate import Piece, Writing, generate
    from .gradient_flow import Flow, GradientFlow
    from .inspection import Inspection, inspect
    from .interop import from_torch, to_torch
    from .keras_weights import from_keras, to_keras
    from .lanes import Lanes, Window
    from .layer import LSTMLayer
    from .layer_trace import LayerGradients, LayerTrace
    from .live_session import LiveSession, LiveStep
    from .lock import LockedError
    from .loss import bits_per_byte, nats, perplexity
    from .model import LanguageModel, ModelConfig
    from .ngram import NGram
    from .onnx_export import ExportError, export_onnx
    from .onnx_import import from_onnx
    from .own_cell import OwnGradients, OwnTrace
    from .page import write_page
    from .page_data import PageData, PageLayer, Quantised, page_data
    from .ranks import RankError
    from .reach import Reach, reach
    from .recurrence import BackendUnavailable, Choice, backends
    from .relations import Found, Relation
    from .stack import MultiLayerLSTM, Trace
    from .state import LSTMState
    from .state_layout import Recurrent
    from .stepper import Stepper
    from .stretches import Stretch, stretches
    from .text_features import Feature, text_features
    from .tokens import (
        BpeTokenizer,
        ByteTokenizer,
        CharTokenizer,
        IdTokenizer,
        StreamDecoder,
        StreamEncoder,
        Tokenizer,
        TokenizerError,
        load_tokenizer,
        new_tokenizer,
    )
    from .train import Callback, Trainer, TrainingError
    from .truncated import CarriedState, TimeWindow, TimeWindows
    from .unit_statistics import LayerStatistics, UnitStatistics

__version__ = "0.1.0"

_MODULES = {
    "layer": ("LSTMLayer",),
    "layer_trace": ("LayerTrace", "LayerGradients"),
    "own_cell": ("OwnTrace", "OwnGradients"),
    "stack": ("MultiLayerLSTM", "Trace"),
    "state": ("LSTMState",),
    "stepper": ("Stepper",),
    "calibration": ("Calibration",),
    "drop_in": ("LSTM", "LSTMTrace"),
    "interop": ("from_torch", "to_torch"),
    "keras_weights": ("from_keras", "to_keras"),
    "flax_weights": ("from_flax", "to_flax"),
    "onnx_export": ("export_onnx", "ExportError"),
    "onnx_import": ("from_onnx",),
    "check": ("check", "Check", "Difference"),
    "check_names": ("CheckError",),
    "recurrence": ("backends", "Choice", "BackendUnavailable"),
    "tokens": (
        "ByteTokenizer",
        "CharTokenizer",
        "BpeTokenizer",
        "IdTokenizer",
        "Tokenizer",
        "TokenizerError",
        "StreamDecoder",
        "StreamEncoder",
        "new_tokenizer",
        "load_tokenizer",
    ),
    "corpus": ("read_corpus", "builtin_text", "Corpus", "Split", "CorpusError"),
    "lanes": ("Lanes", "Window"),
    "truncated": ("CarriedState", "TimeWindows", "TimeWindow"),
    "model": ("LanguageModel", "ModelConfig"),
    "loss": ("nats", "bits_per_byte", "perplexity"),
    "ngram": ("NGram",),
    "evaluate": (
        *("evaluate", "stateful", "blocks", "positions"),
        *("Evaluation", "Score", "Counts", "Bars", "PositionCurve"),
    ),
    "edits": ("Clamp", "Place"),
    "stretches": ("stretches", "Stretch"),
    "unit_statistics": ("UnitStatistics", "LayerStatistics"),
    "text_features": ("text_features", "Feature"),
    "relations": ("Relation", "Found"),
    "inspection": ("inspect", "Inspection"),
    "reach": ("reach", "Reach"),
    "gradient_flow": ("GradientFlow", "Flow"),
    "ablation": ("ablate", "Ablation", "UnitCost"),
    "convergence": ("convergence", "Convergence"),
    "page_data": ("page_data", "PageData", "PageLayer", "Quantised"),
    "page": ("write_page",),
    "figures": ("write_figures", "FiguresError"),
    "live_session": ("LiveSession", "LiveStep"),
    "dynamic": ("dynamic", "gradient_rms", "tuned", "Dynamic"),
    "config": ("TrainConfig", "ConfigError"),
    "train": ("Trainer", "TrainingError", "Callback"),
    "state_layout": ("Recurrent",),
    "events": ("Started", "StepDone", "Evaluated", "Saved", "SaveFailed", "Finished"),
    "disk": ("DiskWarning",),
    "lock": ("LockedError",),
    "ranks": ("RankError",),
    "checkpoint": ("save_model", "load", "Run", "CheckpointError"),
    "generate": ("generate", "Piece", "Writing"),
    "bookmark": ("Bookmark", "BookmarkError"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "LSTMLayer",
    "MultiLayerLSTM",
    "LSTMState",
    "Trace",
    "LayerTrace",
    "LayerGradients",
    "OwnTrace",
    "OwnGradients",
    "Stepper",
    "Calibration",
    "LSTM",
    "LSTMTrace",
    "from_torch",
    "to_torch",
    "from_keras",
    "to_keras",
    "from_flax",
    "to_flax",
    "from_onnx",
    "export_onnx",
    "ExportError",
    "check",
    "Check",
    "Difference",
    "CheckError",
    "backends",
    "Choice",
    "BackendUnavailable",
    "ByteTokenizer",
    "CharTokenizer",
    "BpeTokenizer",
    "IdTokenizer",
    "Tokenizer",
    "TokenizerError",
    "StreamDecoder",
    "StreamEncoder",
    "new_tokenizer",
    "load_tokenizer",
    "read_corpus",
    "builtin_text",
    "Corpus",
    "Split",
    "CorpusError",
    "Lanes",
    "Window",
    "CarriedState",
    "TimeWindows",
    "TimeWindow",
    "LanguageModel",
    "ModelConfig",
    "nats",
    "bits_per_byte",
    "perplexity",
    "evaluate",
    "stateful",
    "blocks",
    "positions",
    "Evaluation",
    "Score",
    "Counts",
    "Bars",
    "PositionCurve",
    "NGram",
    "Clamp",
    "Place",
    "stretches",
    "Stretch",
    "UnitStatistics",
    "LayerStatistics",
    "text_features",
    "Feature",
    "Relation",
    "Found",
    "inspect",
    "Inspection",
    "reach",
    "Reach",
    "GradientFlow",
    "Flow",
    "ablate",
    "Ablation",
    "UnitCost",
    "convergence",
    "Convergence",
    "write_page",
    "page_data",
    "PageData",
    "PageLayer",
    "Quantised",
    "write_figures",
    "FiguresError",
    "LiveSession",
    "LiveStep",
    "dynamic",
    "gradient_rms",
    "tuned",
    "Dynamic",
    "TrainConfig",
    "ConfigError",
    "Trainer",
    "TrainingError",
    "Callback",
    "Recurrent",
    "Started",
    "StepDone",
    "Evaluated",
    "Saved",
    "SaveFailed",
    "Finished",
    "save_model",
    "load",
    "Run",
    "CheckpointError",
    "LockedError",
    "RankError",
    "DiskWarning",
    "generate",
    "Piece",
    "Writing",
    "Bookmark",
    "BookmarkError",
]

_NAMED_OTHERWISE = {
    "LSTMCell": "a class that runs a whole sequence, as the original LSTMCell does, is LSTMLayer; one step of it is "
    "layer(x[:, None], h, c) with x [batch, input], and h[:, 0], c[:, 0] of what it returns go into the next step",
}


# Type checkers must not see it: they would take every misspelt name for one of type Any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
            globals()[name] = value
            return value
        hint = ""
        if name in _NAMED_OTHERWISE:
            hint = f": {_NAMED_OTHERWISE[name]}"
        elif close := difflib.get_close_matches(name, __all__, n=1):
            hint = f"; did you mean {close[0]!r}?"
        # `name` without `obj` keeps the interpreter from adding a second suggestion of its own.
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Front(ModuleType):
    """This package. Importing the submodule `generate` would put the module where the function of that name belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
