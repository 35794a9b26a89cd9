"""One stack of layers in every form that is timed: the same weights as open layers, as `nn.LSTM`, as `nn.LSTMCell`s."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unrolled import LSTMLayer, MultiLayerLSTM

GATES = "ifgo"
# Of the largest value of each tensor; ten times what another order of sums costs over a thousand steps.
FLOAT32_TOLERANCE = 2e-5


class Shape(NamedTuple):
    batch: int
    steps: int
    input: int
    hidden: int
    layers: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def widths(self) -> list[int]:
        """Each layer's input width, bottom first."""
        return [self.input, *[self.hidden] * (self.layers - 1)]

    @property
    def forward_flops(self) -> int:
        """Of the products alone; a multiplication and an addition are two."""
        weights = sum(4 * self.hidden * (width + self.hidden) for width in self.widths)
        return 2 * self.batch * self.steps * weights

    @property
    def training_flops(self) -> int:
        """Forward, and twice that backward, less the gradient of the input, which a trainer does not take."""
        of_the_input = 2 * self.batch * self.steps * 4 * self.hidden * self.input
        return 3 * self.forward_flops - of_the_input


Weights = tuple[Tensor, Tensor, Tensor]


def open_stack(shape: Shape) -> MultiLayerLSTM:
    """Without a projection: its output is the top layer's h. The biases are drawn too, so that none is left out."""
    torch.manual_seed(0)
    model = MultiLayerLSTM(shape.input, shape.hidden, shape.layers, output_dim=None)
    for layer in model.layers:
        for gate in GATES:
            nn.init.uniform_(getattr(layer, f"b_{gate}"), -0.1, 0.1)
    return model


def _packed(layer: LSTMLayer, *, gradients: bool) -> Weights:
    def part(kind: str) -> Tensor:
        parameters = [getattr(layer, f"{kind}{gate}") for gate in GATES]
        return torch.cat([(p.grad if gradients else p).detach() for p in parameters], -1)

    return part("W_x").t().contiguous(), part("W_h").t().contiguous(), part("b_")


def weights(model: MultiLayerLSTM) -> list[Weights]:
    """Of each layer, in torch's layout: [4 hidden, input], [4 hidden, hidden] and [4 hidden], gates i, f, g, o."""
    return [_packed(layer, gradients=False) for layer in model.layers]


def gradients(model: nn.Module) -> list[Tensor]:
    """Those of all weights, in the layout and order of `weights`, whichever form the stack has."""
    if isinstance(model, MultiLayerLSTM):
        return [part for layer in model.layers for part in _packed(layer, gradients=True)]
    # nn.LSTM, or LSTMCells one after the other: of their two biases, which are only ever added, the first.
    return [value.grad for name, value in model.named_parameters() if "bias_hh" not in name]


def closed_stack(model: MultiLayerLSTM) -> nn.LSTM:
    twin = nn.LSTM(model.input_dim, model.hidden_dim, model.num_layers, batch_first=True)
    for k, layer in enumerate(weights(model)):
        _fill([getattr(twin, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")], layer)
    return twin


def cells(model: MultiLayerLSTM) -> nn.ModuleList:
    found = nn.ModuleList()
    for layer in weights(model):
        cell = nn.LSTMCell(layer[0].shape[1], model.hidden_dim)
        _fill([cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh], layer)
        found.append(cell)
    return found


@torch.no_grad()
def _fill(parameters: Sequence[Tensor], layer: Weights) -> None:
    *to_copy, second_bias = parameters
    for parameter, value in zip(to_copy, layer, strict=True):
        parameter.copy_(value)
    second_bias.zero_()


def demand_equal(
    where: object, name: str, found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = FLOAT32_TOLERANCE
) -> None:
    """Exit unless no value is off by more than `tolerance` of its tensor's largest: what is not equal is not timed."""
    for ours, theirs in zip(found, expected, strict=True):
        allowed = tolerance * float(theirs.abs().max())
        off = float((ours - theirs).abs().max())
        if not off <= allowed:
            sys.exit(
                f"{where}: {name} is off by {off:.2g}, and at most {allowed:.2g} is rounding; it does not compute the "
                "same, so nothing was timed"
            )
