"""`unrolled export`: a saved model as an ONNX file, and what int8 loses on a text. Loads torch when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration import Calibration
    from .checkpoint import Run
    from .tokens import IntArray

# Of the text on which the loss is measured.
TOKENS = 20_000


def export(
    run: Path,
    file: Path,
    /,
    *,
    int8: bool = False,
    every_step: bool = False,
    text: Path | None = None,
) -> None:
    """Write a model into one ONNX file, with its tokenizer: ids and state in, logits and state out.

    Parameters
    ----------
    run
        Directory of a run (its newest model is taken; RUN/best is its best one) or of one model.
    file
        The file, in .onnx; one that exists is replaced.
    int8
        Weights of 8 bits for ONNX Runtime; what they lose is measured on the validation part of the run's text.
    every_step
        Two more outputs, h and c of every layer and step, from Scan nodes.
    text
        Measure what int8 loses on this text, its first 20,000 tokens.
    """
    from .checkpoint import load
    from .onnx_export import export_onnx

    if text is not None and not int8:
        raise ValueError("--text says on what the loss of int8 is measured; add --int8, or leave it out")
    loaded = load(run)
    held = _text(loaded, text) if int8 else None
    export_onnx(loaded.model, file, tokenizer=loaded.tokenizer, every_step=every_step, int8=int8)
    lines = [f"written: {file}, {file.stat().st_size:,} bytes"]
    if isinstance(held, str):
        lines.append(f"what int8 loses was not measured: {held}; --text FILE names a text")
    elif held is not None:
        found = loss(loaded, file, held)
        assert found.bits is not None
        assert found.bits_float32 is not None
        # A text that ends inside a character counts that as one.
        each = (len(held) - 1) / len(loaded.tokenizer.decode(held[1:]))
        bits, exact = found.bits * each, found.bits_float32 * each
        lines.append(
            f"int8 on {len(held) - 1:,} tokens: {bits:.4f} bits per character, float32 {exact:.4f}, lost "
            f"{round(bits - exact, 4) + 0.0:+.4f}; largest difference of a logit {found.largest_difference:.3g}"
        )
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def loss(run: Run, file: Path, ids: IntArray) -> Calibration:
    """What the exported model makes of a text, its state carried, beside the run's model in float32."""
    import copy

    import numpy as np
    import onnxruntime
    import torch
    from torch import Tensor

    from .calibration import calibrate
    from .parts import take_apart

    parts = take_apart(copy.deepcopy(run.model).float())
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    state = [part.numpy() for part in run.model.initial_state(1).detach().to(torch.float32)]

    def read(some: Tensor) -> Tensor:
        logits, *state[:] = session.run(None, {"x": some.numpy(), "h": state[0], "c": state[1]})
        return torch.from_numpy(logits)

    return calibrate("int8", read, parts, torch.from_numpy(ids.astype(np.int64))[None])


def _text(run: Run, file: Path | None) -> IntArray | str:
    """The first tokens of the text, or why the run has none."""
    from .corpus import read_corpus
    from .scoring import recorded

    if file is not None:
        return read_corpus(file, tokenizer=run.tokenizer, split=(1.0,)).train.ids[: TOKENS + 1]
    corpus = recorded(run)
    if isinstance(corpus, str):
        return corpus
    if corpus.val is None or len(corpus.val) < 2:
        return f"{run.directory} has no validation text"
    return corpus.val.ids[: TOKENS + 1]
