"""`export_onnx`: what of a model an ONNX file can hold, what a file says about itself, and how it comes to disk."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from . import __version__
from .manifest import replace_file
from .model import LanguageModel
from .parts import Parts, Runner, Steppable, take_apart
from .tokens import Tokenizer

if TYPE_CHECKING:
    from onnx import ModelProto

# What a protobuf message may measure, less room for the graph and the tokenizer.
LARGEST = 2**31 - 2**24
EXPORT = Runner(
    "an exported model",
    "export_onnx({}, path)",
    any_weights=True,
    any_structure=True,
    cell=("peephole", "gate_activation", "activation", "cell_clip", "layer_norm"),
)


class ExportError(ValueError):
    """A model that an ONNX file can't hold, or a file that can't be written; the message says why and what to do."""


def export_onnx(
    model: Steppable,
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    every_step: bool = False,
    int8: bool = False,
) -> None:
    """Write `model`, in evaluation mode and as float32, into one file that ONNX Runtime runs; an older one is replaced.

    Inputs, in order: `x`, ids int64 [batch, time] for a language model, else floats [batch, time, input]; `h` and `c`
    as in `LSTMState`. Outputs: `logits` [batch, time, output] (without a projection the top layer's h), `h_n` and
    `c_n`, the state after the last step. Batch and time are free, from 1 on.

    `every_step` adds `every_h` and `every_c`, [layers, batch, time, width]. An `LSTM` node does not give out c, nor
    project h (`proj_dim`), clip c (`cell_clip`) or normalise (`layer_norm`), so each layer is then a `Scan`. `int8`:
    dynamically quantised weights, for ONNX Runtime alone. `tokenizer`: a language model's, which goes into the file's
    metadata, as does a learned initial state.

    Raises TypeError for another class or one with a forward of its own, ExportError for hooks, a model of 2 GiB or
    more, a path that is not a file's name in .onnx, and a package that is missing; OSError where it can't be written.
    """
    target = _checked_path(Path(path))
    parts = take_apart(model, EXPORT)
    _check(parts, tokenizer)
    if int8 and every_step:
        raise ExportError("int8 is for LSTM nodes, and every_step writes Scan nodes; leave one of them out")
    if int8 and parts.layers[0].proj_dim is not None:
        raise ExportError("int8 is for LSTM nodes, and a projection of h takes Scan nodes; leave int8 out")
    try:
        import onnx
    except ImportError:
        raise ExportError("onnx is not installed: pip install 'unrolled[onnx]'") from None
    from .onnx_graph import model_of, takes_a_scan

    if int8 and (scanned := next(filter(None, map(takes_a_scan, parts.layers)), "")):
        raise ExportError(f"int8 is for LSTM nodes, and {scanned} takes Scan nodes; leave int8 out")
    proto = model_of(parts, __version__, every_step=every_step)
    onnx.checker.check_model(proto, full_check=True)
    if int8:
        proto = _quantised(proto)
    onnx.helper.set_model_props(proto, _described(parts, tokenizer, int8=int8))
    replace_file(target, proto.SerializeToString())


def _checked_path(path: Path) -> Path:
    if path.is_dir():
        raise ExportError(f"{path} is a directory; name the file in it: {path / 'model.onnx'}")
    if path.suffix != ".onnx":
        raise ExportError(f"{path} does not end in .onnx; name the file so: {path.with_name(path.name + '.onnx')}")
    if not path.parent.is_dir():
        raise ExportError(f"there is no directory {path.parent}; make it first, or write elsewhere")
    return path


def _check(parts: Parts, tokenizer: Tokenizer | None) -> None:
    for name, module in parts.model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ExportError(
                f"the model's {name or type(module).__name__} has forward hooks, which an exported model would not "
                "run; remove them (instead of torch.nn.utils.weight_norm, which is one, take that of "
                "torch.nn.utils.parametrizations)"
            )
    size = 4 * sum(weight.numel() for weight in _all_weights(parts))
    if size > LARGEST:
        raise ExportError(
            f"the weights are {size:,} bytes as float32, and one ONNX file holds less than 2 GiB; Stepper runs them as "
            "they are"
        )
    for name, weight in parts.model.named_parameters():
        if weight.is_meta:
            raise ExportError(f"{name} is on meta and holds no numbers; load the weights first")
    if tokenizer is None:
        return
    if not isinstance(parts.model, LanguageModel):
        raise ExportError(
            f"a tokenizer goes with a LanguageModel, and the model is of type {type(parts.model).__name__}"
        )
    if tokenizer.size != parts.vocabulary:
        raise ExportError(
            f"the tokenizer has {tokenizer.size} tokens and the model was built for {parts.vocabulary}; pass the one "
            "that it was trained with"
        )


def _all_weights(parts: Parts) -> Iterator[nn.Parameter]:
    for module in (parts.embedding, *parts.layers, parts.projection):
        if module is not None:
            yield from module.parameters()


def _described(parts: Parts, tokenizer: Tokenizer | None, *, int8: bool) -> dict[str, str]:
    sizes = {
        "input": parts.layers[0].input_dim,
        "hidden": parts.layers[0].hidden_dim,
        "layers": len(parts.layers) // parts.directions,
        "output": parts.output,
    }
    if parts.directions > 1:
        sizes["directions"] = parts.directions
    if parts.layers[0].proj_dim is not None:
        sizes["proj"] = parts.layers[0].proj_dim
    if parts.ids_only:
        sizes["vocabulary"] = parts.vocabulary
    found = {"sizes": json.dumps(sizes), "weights": "int8" if int8 else "float32"}
    if any(layer.options.learn_initial_state for layer in parts.layers):
        state = parts.initial_state()
        found["initial_state"] = json.dumps({name: getattr(state, name)[:, 0].tolist() for name in "hc"})
    if tokenizer is not None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "tokenizer.json"
            tokenizer.save(file)
            found["tokenizer"] = file.read_text(encoding="utf-8")
    return found


def _quantised(proto: ModelProto) -> ModelProto:
    import onnx

    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise ExportError("int8 takes ONNX Runtime, which is not installed: pip install onnxruntime") from None
    with tempfile.TemporaryDirectory() as scratch, _without_advice():
        file = Path(scratch) / "int8.onnx"
        quantize_dynamic(
            proto,
            file,
            op_types_to_quantize=["LSTM", "MatMul"],
            per_channel=True,
            # Weights of 7 bits: without VNNI a processor adds pairs of products in 16 bits, where those of 8 saturate.
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(file)


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser tells the root logger to preprocess the model, which also configures logging for all."""
    before, ours = logging.root.manager.disable, logging.NullHandler()
    logging.root.addHandler(ours)
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(ours)
