"""What may be otherwise in a cell: its options, and the functions that they choose.

In the notation of `reference`, in a cell with every option here:

    i = gate(pre_i + p_i * c_{t-1});   f = gate(pre_f + p_f * c_{t-1});   g = squashed(pre_g)
    c_t = clipped(f * c_{t-1} + i * g)
    o = gate(pre_o + p_o * c_t)
    h_t = o * squashed(c_t)

Peepholes: Gers & Schmidhuber, "Recurrent Nets that Time and Count", IJCNN 2000. A coupled cell, f = 1 - i (Greff et
al., "LSTM: A Search Space Odyssey", 2017), needs nothing here: with the weights of i negated in the place of those of
f, gate(-pre_i) is 1 - gate(pre_i), for both gate functions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Cell(NamedTuple):
    """The options of one layer's cell. `peephole` [3, H]: p_i, p_f, p_o; `clip` 0: c has no bounds.

    `hard_gates`: i, f and o are x / 6 + 1/2 within 0..1, as `torch.nn.functional.hardsigmoid`, and no sigmoid. `relu`:
    max(x, 0) in the place of both tanh. The fields, in this order, are the last arguments of every operator.
    """

    peephole: Tensor | None = None
    clip: float = 0.0
    hard_gates: bool = False
    relu: bool = False

    def gate(self, x: Tensor) -> Tensor:
        # Not F.hardsigmoid: its slope is a float32's 1/6 in float64 too. F.hardtanh has none at its bounds, as below.
        return F.hardtanh(x / 6 + 0.5, 0.0, 1.0) if self.hard_gates else x.sigmoid()

    def gate_(self, x: Tensor) -> None:
        """`gate`, in place."""
        if self.hard_gates:
            F.hardsigmoid(x, inplace=True)
        else:
            x.sigmoid_()

    def squash(self, x: Tensor, out: Tensor) -> None:
        """`squashed`, into `out`, which may be x."""
        if self.relu:
            torch.clamp(x, min=0, out=out)
        else:
            torch.tanh(x, out=out)

    def gate_slope(self, y: Tensor) -> Tensor:
        """The derivative of `gate`, from what it returned: of the hard one 0 where it returned 0 or 1."""
        return ((y > 0) & (y < 1)).to(y.dtype) / 6 if self.hard_gates else y * (1 - y)

    def squashed(self, x: Tensor) -> Tensor:
        return x.relu() if self.relu else x.tanh()

    def squashed_slope(self, y: Tensor) -> Tensor:
        """The derivative of `squashed`, from what it returned."""
        return (y > 0).to(y.dtype) if self.relu else 1 - y * y

    def clipped(self, c: Tensor) -> Tensor:
        """c within -clip..clip; where a bound was reached it has no gradient, as one can see from the result."""
        return F.hardtanh(c, -self.clip, self.clip) if self.clip else c

    def clips(self, c: Tensor) -> Tensor:
        """Where c, clipped or not yet, has reached a bound."""
        return c.abs() >= self.clip


PLAIN = Cell()
