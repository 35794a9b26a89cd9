"""What may be otherwise in a cell: its options, and the functions that they choose.

In the notation of `reference`, in a cell with every option here:

    i = gate(pre_i + p_i * c_{t-1});   f = gate(pre_f + p_f * c_{t-1});   g = squashed(pre_g)
    c_t = clipped(f * c_{t-1} + i * g)
    o = gate(pre_o + p_o * c_t)
    h_t = o * squashed(c_t)

Peepholes: Gers & Schmidhuber, "Recurrent Nets that Time and Count", IJCNN 2000. A coupled cell, f = 1 - i (Greff et
al., "LSTM: A Search Space Odyssey", 2017), needs nothing here: with the weights of i negated in the place of those of
f, gate(-pre_i) is 1 - gate(pre_i), for both gate functions.

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

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import threefry

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
    max(x, 0) in the place of both tanh. `keys` int64 [B]: of the rows' masks, which there are in training; `h_mask`
    [B, H], of a projected h [B, P]. `zoneout_h`, `zoneout_c` and `recurrent_dropout` are probabilities. The fields, in
    this order, are the last arguments of every operator.
    """

    peephole: Tensor | None = None
    clip: float = 0.0
    hard_gates: bool = False
    relu: bool = False
    keys: Tensor | None = None
    h_mask: Tensor | None = None
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    recurrent_dropout: float = 0.0

    @property
    def is_masked(self) -> bool:
        """Whether anything here is held, dropped or multiplied by a mask."""
        return any((self.zoneout_h, self.zoneout_c, self.recurrent_dropout, self.h_mask is not None))

    def drawn(
        self, first: int, steps: int, widths: tuple[int, int], words: Callable[..., Tensor] = threefry.words
    ) -> Drawn:
        """The masks of some steps, [steps, B, width] each, for h and c of these `widths`."""
        if self.keys is None:
            return Drawn(self.zoneout_h or None, self.zoneout_c or None)
        if not (self.zoneout_h or self.zoneout_c or self.recurrent_dropout):
            return Drawn()
        of_h, of_c = widths
        found = words(self.keys, first, steps, max(widths))

        def mask(which: int, width: int, probability: float) -> Tensor | None:
            if not probability:
                return None
            return threefry.below(found[..., :width], which, threefry.threshold(probability))

        held = mask(_OF_H, of_h, self.zoneout_h), mask(_OF_C, of_c, self.zoneout_c)
        return Drawn(*held, mask(_OF_G, of_c, self.recurrent_dropout), 1 / (1 - self.recurrent_dropout))

    def dropped_h(self, h: Tensor) -> Tensor:
        """h as W_h takes it in, and a gradient with respect to that as one with respect to h."""
        return h if self.h_mask is None else h * self.h_mask

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


# The fields that are tensors, and where each one's axis of rows lies; None: it has none.
TENSORS: dict[str, int | None] = {"peephole": None, "keys": 0, "h_mask": 0}
# Of these, what has a derivative.
DIFFERENTIABLE = ("peephole",)


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
