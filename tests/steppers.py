"""Models to step through, and which backends a test of steppers runs on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unrolled import LSTM, LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, Stepper, stepper
from unrolled.recurrence import native

NATIVE = native.missing() is None
BACKENDS = [
    pytest.param("cpu", marks=pytest.mark.skipif(not NATIVE, reason="there is no native library here")),
    "portable",
]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "language model": lambda: LanguageModel(ModelConfig(11, 7, 2, embedding=5, dropout=0.3)),
    "tied language model": lambda: LanguageModel(ModelConfig(11, 7, 2, embedding=7, tie_weights=True)),
    "language model without embedding": lambda: LanguageModel(ModelConfig(11, 33, 1, embedding=0)),
    "stack": lambda: MultiLayerLSTM(5, 16, 3, 0.3),
    "stack of another output": lambda: MultiLayerLSTM(3, 17, 2, output_dim=4),
    "stack without projection": lambda: MultiLayerLSTM(3, 17, 2, output_dim=None),
    "layer": lambda: LSTMLayer(6, 20),
    "nn.LSTM": lambda: nn.LSTM(4, 9, 2, dropout=0.5),
    "unrolled.LSTM": lambda: LSTM(4, 9, 2, dropout=0.5),
    "nn.LSTM without bias": lambda: nn.LSTM(4, 9, 1, bias=False, batch_first=True),
}


def use(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "portable":
        monkeypatch.setattr(stepper, "missing", lambda: "no C++ compiler was found")


def made(name: str, scale: float = 2.0) -> Any:
    """A model in training mode whose weights are away from their small first values."""
    model = MODELS[name]()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(scale).add_(0.1 * torch.randn_like(weights))
    return model.train()


def inputs(model: Any, rows: int, steps: int) -> Tensor:
    if isinstance(model, LanguageModel):
        return torch.randint(model.config.vocabulary, (rows, steps))
    return torch.randn(rows, steps, model.input_size if isinstance(model, nn.RNNBase) else model.input_dim)


def whole(model: Any, x: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Outputs and final state, each [layers, batch, hidden], of a copy of the model that runs in `dtype`, undropped."""
    model = copy.deepcopy(model).to(dtype).eval()
    x = x.to(dtype) if x.dtype.is_floating_point else x
    with torch.no_grad():
        if isinstance(model, nn.RNNBase):
            model.batch_first = True
            output, (h, c) = model(x)
            return output, (h, c)
        if isinstance(model, LSTMLayer):
            h, c = model(x)
            return h, (h[None, :, -1], c[None, :, -1])
        return model(x)


def walk(stepper: Stepper, x: Tensor) -> Tensor:
    """The outputs of one step after the other, [batch, time, output]."""
    return torch.stack([stepper.step(frame) for frame in x.unbind(1)], 1)
