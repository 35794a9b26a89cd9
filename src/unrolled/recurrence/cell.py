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

What is random has masks of the row, the step and the unit (`threefry`), or in evaluation, without `keys`, none:

    zoneout      with probability p a unit of c or h is what it was: c_t = c_{t-1}, h_t = h_{t-1}; o and h_t still see
                 the c_t that was not held. In evaluation p c_{t-1} + (1 - p) c_t, and so for h (Krueger et al.,
                 "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", ICLR 2017).
    recurrent    g is 0 with probability p, else g / (1 - p), in c_t alone (Semeniuta, Severyn & Barth, "Recurrent
    dropout      Dropout without Memory Loss", COLING 2016).
    h_mask       what h_{t-1} is multiplied by on its way into W_h, in every step alike: 0 or 1 / (1 - p) (Gal &
                 Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks", 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import threefry

# As in torch.nn.LayerNorm.
EPSILON = 1e-5

# What each of the four numbers of a place is for.
_OF_H, _OF_C, _OF_G = 0, 1, 2


class Drawn(NamedTuple):
    """The masks of a step, or of several: True where a unit of h or c is held, and where g is dropped.

    In evaluation floats, the probability of being held; None where nothing of this kind happens.
    """

    held_h: Tensor | float | None = None
    held_c: Tensor | float | None = None
    dropped_g: Tensor | None = None
    # What is left of g is multiplied by this.
    scale: float = 1.0

    def at(self, step: int) -> Drawn:
        """Those of one step of several."""
        held_h, held_c = (mask[step] if isinstance(mask, Tensor) else mask for mask in (self.held_h, self.held_c))
        return Drawn(held_h, held_c, None if self.dropped_g is None else self.dropped_g[step], self.scale)

    def written(self, g: Tensor) -> Tensor:
        """g as c takes it in, and a gradient with respect to that as one with respect to g."""
        return g if self.dropped_g is None else g.masked_fill(self.dropped_g, 0) * self.scale


class Cell(NamedTuple):
    """The options of one layer's cell. `peephole` [3, H]: p_i, p_f, p_o; `clip` 0: c has no bounds.

    `hard_gates`: i, f and o are x / 6 + 1/2 within 0..1, as `torch.nn.functional.hardsigmoid`, and no sigmoid. `relu`:
    max(x, 0) in the place of both tanh. `norm` [2, 5, H]: the gains and the shifts of i, f, g, o and c; a bias would be
    normalised too. `keys` int64 [B]: of the rows' masks, which there are in training; `h_mask` [B, H], of a projected h
    [B, P]. `zoneout_h`, `zoneout_c` and `recurrent_dropout` are probabilities; `first` is the number of the first step
    by which masks are drawn. The fields, in this order, are the last arguments of every operator.
    """

    peephole: Tensor | None = None
    clip: float = 0.0
    hard_gates: bool = False
    relu: bool = False
    norm: Tensor | None = None
    keys: Tensor | None = None
    h_mask: Tensor | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0
    first: int = 0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those of `TENSORS`."""
        return self.peephole, self.norm, self.keys, self.h_mask

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Cell:
        """This cell with others in the place of its own `tensors`."""
        if all(ours is other for ours, other in zip(self.tensors, tensors, strict=True)):
            return self
        return self._replace(**dict(zip(TENSORS, tensors, strict=True)))  # type: ignore[arg-type]

    @property
    def is_plain(self) -> bool:
        """Whether it equals `PLAIN`. Asked that way, torch takes 80 microseconds to find a tensor unlike None."""
        return all(value is None for value in self.tensors) and self == PLAIN

    @property
    def is_held_or_dropped(self) -> bool:
        """Whether anything of h or c is held, or of g dropped."""
        return any((self.zoneout_h, self.zoneout_c, self.recurrent_dropout))

    def drawn(
        self, first: int, steps: int, widths: tuple[int, int], words: Callable[..., Tensor] = threefry.words
    ) -> Drawn:
        """The masks of some steps, [steps, B, width] each, for h and c of these `widths`."""
        if self.keys is None:
            return Drawn(self.zoneout_h or None, self.zoneout_c or None)
        if not self.is_held_or_dropped:
            return Drawn()
        of_h, of_c = widths
        found = words(self.keys, self.first + first, steps, max(widths))

        def mask(which: int, width: int, probability: float) -> Tensor | None:
            if not probability:
                return None
            return threefry.below(found[..., :width], which, threefry.threshold(probability))

        held = mask(_OF_H, of_h, self.zoneout_h), mask(_OF_C, of_c, self.zoneout_c)
        return Drawn(*held, mask(_OF_G, of_c, self.recurrent_dropout), 1 / (1 - self.recurrent_dropout))

    def dropped_h(self, h: Tensor) -> Tensor:
        """h as W_h takes it in, and a gradient with respect to that as one with respect to h."""
        return h if self.h_mask is None else h * self.h_mask

    @property
    def planes(self) -> int:
        """How many numbers of a unit are kept of a step as its gates: behind i, f, g, o the sums that were normed."""
        return 4 if self.norm is None else 8

    @property
    def gradient_planes(self) -> int:
        """How many numbers of a unit the gradient of the cell's own tensors is: the norm's, and then the peephole's."""
        return (0 if self.norm is None else 10) + (0 if self.peephole is None else 3)

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


OF_GATES, OF_C = slice(0, 4), 4

PLAIN = Cell()


# The fields that are tensors, and where each one's axis of rows lies; None: it has none.
TENSORS: dict[str, int | None] = {"peephole": None, "norm": None, "keys": 0, "h_mask": 0}
# Of these, what has a derivative.
DIFFERENTIABLE = ("peephole", "norm")


def held(new: Tensor, before: Tensor, where: Tensor | float | None) -> Tensor:
    """`before` where a mask says so, else `new`; of a probability, what is to be expected."""
    if where is None:
        return new
    return before * where + new * (1 - where) if isinstance(where, float) else torch.where(where, before, new)


def to_new(grad: Tensor, where: Tensor | float | None) -> Tensor:
    """The gradient of `new` in `held`."""
    if where is None:
        return grad
    return grad * (1 - where) if isinstance(where, float) else grad.masked_fill(where, 0)


def to_before(grad: Tensor, where: Tensor | float | None) -> Tensor | None:
    """The gradient of `before` in `held`; None: it has none."""
    if where is None:
        return None
    return grad * where if isinstance(where, float) else grad.masked_fill(~where, 0)


def standardized(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with mean 0 and, but for EPSILON, variance 1 over its last axis; and the factor that was needed, [..., 1]."""
    centred = x - x.mean(-1, keepdim=True)
    factor = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return centred * factor, factor


def through_norm(grad: Tensor, standard: Tensor, factor: Tensor) -> Tensor:
    """The gradient of x from that of `standard`; `standard` and `factor` are what `standardized` returned."""
    mean, along = grad.mean(-1, keepdim=True), (grad * standard).mean(-1, keepdim=True)
    return (grad - mean - standard * along) * factor
