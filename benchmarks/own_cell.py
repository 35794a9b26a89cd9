"""What a cell of one's own costs: the LSTM's equations as a step in the layer's loop, beside the same layer by kernels.

    python benchmarks/own_cell.py [--seconds 8] [--compiled] [--write PAGE]

A training step of one layer, all gradients taken, and a forward pass without gradients. `--compiled` adds the same step
through `torch.compile`, which takes a C++ compiler and some minutes. Nothing is timed but the layer's numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import Times, alternate
from page import add_write, provenance, table, write_section
from torch import Tensor, nn

from unrolled import LSTMLayer

# Batch, steps, input, hidden.
SHAPES = ((16, 64, 64, 64), (32, 64, 256, 256))
NEAR = 1e-3

State = tuple[Tensor, Tensor]


class Step(nn.Module):
    """The plain LSTM, as one writes it: two products and the equations."""

    def __init__(self, layer: LSTMLayer) -> None:
        super().__init__()
        w_x, w_h, bias = layer._weights()
        self.w_x, self.w_h, self.b = (nn.Parameter(value.detach().flatten(-2)) for value in (w_x, w_h, bias))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        i, f, g, o = torch.addmm(torch.addmm(self.b, x, self.w_x), h, self.w_h).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)


def runs_of(shape: tuple[int, ...], compiled: bool) -> dict[str, LSTMLayer]:
    """The layers to compare, by name, the library's first."""
    torch.manual_seed(1)
    layer = LSTMLayer(*shape[2:])
    found = {
        "the library's": layer,
        'backend="reference"': LSTMLayer(*shape[2:], backend="reference"),
        "cell=step": LSTMLayer(*shape[2:], cell=Step(layer)),
    }
    found['backend="reference"'].load_state_dict(layer.state_dict())
    if compiled:
        step: Any = torch.compile(Step(layer))
        found["cell=torch.compile(step)"] = LSTMLayer(*shape[2:], cell=step)
    return found


def trained(layer: LSTMLayer, x: Tensor, into_h: Tensor) -> Tensor:
    layer.zero_grad()
    h, _ = layer(x)
    h.backward(into_h)
    return h.detach()


@torch.no_grad()
def read(layer: LSTMLayer, x: Tensor) -> Tensor:
    h: Tensor = layer(x)[0]
    return h


def measured(shape: tuple[int, ...], seconds: float, compiled: bool) -> dict[str, dict[str, Times]]:
    batch, steps, width, hidden = shape
    x, into_h = torch.randn(batch, steps, width), torch.randn(batch, steps, hidden)
    layers = runs_of(shape, compiled)
    times = {}
    ways: dict[str, Callable[[LSTMLayer], Tensor]] = {
        "training": lambda layer: trained(layer, x, into_h),
        "forward": lambda layer: read(layer, x),
    }
    for what, way in ways.items():
        expected = way(layers["the library's"])
        for name, layer in layers.items():
            if float((way(layer) - expected).abs().max()) > NEAR:
                sys.exit(f"{name} is not what the layer computes")
        calls: dict[str, Callable[[], Any]] = {
            name: lambda layer=layer, way=way: way(layer) for name, layer in layers.items()
        }
        times[what] = alternate(calls, seconds=seconds)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each shape and pass, at least")
    parser.add_argument("--compiled", action="store_true", help="also the step through torch.compile")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance(), flush=True)
    rows = []
    for shape in SHAPES:
        for what, times in measured(shape, arguments.seconds, arguments.compiled).items():
            first = next(iter(times.values())).median
            for name, each in times.items():
                cells = (f"{each.median:.2f} ms", f"{each.median / first:.1f}")
                rows.append(["x".join(map(str, shape)), what, name, *cells])
    lines = table(("batch x steps x input x hidden", "pass", "cell", "time", "of the library's"), rows)
    print(*lines, sep="\n")
    if arguments.write:
        write_section(arguments.write, "own_cell", lines)


if __name__ == "__main__":
    main()
