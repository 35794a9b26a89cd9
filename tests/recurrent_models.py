"""Small recurrent models with states of every form, and a loop over windows: what truncated training is tested on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from unrolled import CarriedState, LSTMLayer, MultiLayerLSTM, TimeWindows

ROWS, TIME, WIDTH = 3, 23, 4


class Ours(nn.Module):
    """A stack with a head: returns (output, LSTMState)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(WIDTH, 5, 2, backend="reference", dtype=torch.float64)

    def forward(self, x, state=None, **masks):
        return self.lstm(x, state, **masks)


class Torchs(nn.Module):
    """nn.LSTM: returns (output, (h, c)), each [layers, batch, hidden]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dtype=torch.float64)

    def forward(self, x, state=None):
        return self.lstm(x, state)


class Layer(nn.Module):
    """One LSTMLayer: returns (h of every step, the last step's (h, c)), each [batch, hidden]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LSTMLayer(WIDTH, WIDTH, backend="reference", dtype=torch.float64)

    def forward(self, x, state=None):
        h, c = self.layer(x, *(state or (None, None)))
        return h, (h[:, -1], c[:, -1])


class Nested(NamedTuple):
    layers: list[tuple[Tensor, Tensor]]
    count: dict[str, Tensor | None]


class Cells(nn.Module):
    """nn.LSTMCells step by step, with a state of tuples in a list in a tuple, a dict and a None."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))

    def forward(self, x, state=None):
        layers = [None, None] if state is None else list(state.layers)
        steps = torch.zeros(len(x), 1, dtype=torch.float64) if state is None else state.count["steps"]
        output = []
        for step in x.unbind(1):
            for k, cell in enumerate(self.cells):
                layers[k] = cell(step, layers[k])
                step = layers[k][0]
            output.append(step * (1 + steps.cos()))
            steps = steps + 1
        return torch.stack(output, dim=1), Nested(layers, {"steps": steps, "nothing": None})


MODELS = [Ours, Torchs, Layer, Cells]


def sequences(steps: int = TIME) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    x, y = torch.randn(2, ROWS, steps, WIDTH, dtype=torch.float64)
    return x, y


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def by_windows(model: nn.Module, x: Tensor, y: Tensor, length: int) -> tuple[float, list[Tensor]]:
    """The loss of all windows and its gradient, each window's taken before the next one is read."""
    model.zero_grad()
    carried, total = CarriedState(), 0.0
    for x_part, y_part in TimeWindows(x, y, length=length):
        output, carried.state = model(x_part, carried.state)
        loss = (output - y_part).square().sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def tensors(state) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state or ()
    return [tensor for part in parts for tensor in tensors(part)]


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor with the batch axis first."""
    return tensor.transpose(0, 1) if tensor.dim() == 3 else tensor
