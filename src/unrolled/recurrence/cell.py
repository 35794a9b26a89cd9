"""What may be otherwise in a cell: its options, and the functions that they choose.

In the notation of `reference`, in a cell with every option here:

    i = gate(pre_i + p_i * c_{t-1});   f = gate(pre_f + p_f * c_{t-1});   g = squashed(pre_g)
    c_t = clipped(f * c_{t-1} + i * g)
    o = gate(pre_o + p_o * c_t)
    h_t = o * squashed(c_t)

With layer normalisation pre_k = normed_k(x_t W_xk + h_{t-1} W_hk) for each gate k, h_t = o * squashed(normed_c(c_t)),
and, over the units of a row,

    normed_k(a) = gain_k * (a - mean(a)) / sqrt(mean((a - mean(a))^2) + EPSILON) + shift_k

It is c itself that goes on. Ba, Kiros & Hinton, "Layer Normalization", 2016.

Peepholes: Gers & Schmidhuber, "Recurrent Nets that Time and Count", IJCNN 2000. A coupled cell, f = 1 - i (Greff et
al., "LSTM: A Search Space Odyssey", 2017), needs nothing here: with the weights of i negated in the place of those of
f, gate(-pre_i) is 1 - gate(pre_i), for both gate functions, and the normed -a is the normed a negated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# As in torch.nn.LayerNorm.
EPSILON = 1e-5


class Cell(NamedTuple):
    """The options of one layer's cell. `peephole` [3, H]: p_i, p_f, p_o; `clip` 0: c has no bounds.

    `hard_gates`: i, f and o are x / 6 + 1/2 within 0..1, as `torch.nn.functional.hardsigmoid`, and no sigmoid. `relu`:
    max(x, 0) in the place of both tanh. `norm` [2, 5, H]: the gains and the shifts of i, f, g, o and c; a bias would be
    normalised too. The fields, in this order, are the last arguments of every operator.
    """

    peephole: Tensor | None = None
    clip: float = 0.0
    hard_gates: bool = False
    relu: bool = False
    norm: Tensor | None = None

    @property
    def planes(self) -> int:
        """How many numbers of a unit are kept of a step as its gates: behind i, f, g, o the sums that were normed."""
        return 4 if self.norm is None else 8

    @property
    def planes_of_norm(self) -> int:
        """How many numbers of a unit the gradient of the norm is; with one, the peephole's is made beside it."""
        return 0 if self.norm is None else 10 if self.peephole is None else 13

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

    def normed(self, x: Tensor, which: slice | int) -> Tensor:
        """x [..., gates, H] or, of c, [..., H], normalised over its units, times the gain, plus the shift."""
        if self.norm is None:
            return x
        return standardized(x)[0] * self.norm[0, which] + self.norm[1, which]


# Fields of which a backward pass gives the gradient.
TENSORS = ("peephole", "norm")
OF_GATES, OF_C = slice(0, 4), 4

PLAIN = Cell()


def standardized(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with mean 0 and, but for EPSILON, variance 1 over its last axis; and the factor that was needed, [..., 1]."""
    centred = x - x.mean(-1, keepdim=True)
    factor = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return centred * factor, factor


def through_norm(grad: Tensor, standard: Tensor, factor: Tensor) -> Tensor:
    """The gradient of x from that of `standard`; `standard` and `factor` are what `standardized` returned."""
    mean, along = grad.mean(-1, keepdim=True), (grad * standard).mean(-1, keepdim=True)
    return (grad - mean - standard * along) * factor
