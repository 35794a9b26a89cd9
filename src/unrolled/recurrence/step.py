"""Time steps of a whole stack: what its weights are, and how plain torch takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cell import OF_C, OF_GATES, PLAIN, Cell, held


class LayerWeights(NamedTuple):
    """`w_x` [input, 4, hidden], `w_h` [hidden, 4, hidden], `bias` [4, hidden]; contiguous float32 on the CPU."""

    w_x: Tensor
    w_h: Tensor
    bias: Tensor


class StackWeights(NamedTuple):
    """`layers` bottom first; `projection`: [output, hidden] and its bias; `embedding` [vocabulary, input].

    `cells`: of each layer, or none where all are plain. `residual`: from the second layer on, what a layer reads is
    added to its h.
    """

    layers: tuple[LayerWeights, ...]
    projection: tuple[Tensor, Tensor] | None
    embedding: Tensor | None
    cells: tuple[Cell, ...] = ()
    residual: bool = False


class PlainStep:
    """A stack of `rows` rows with buffers for everything that a step computes, so that it allocates nothing.

    `h` and `c` [layers, rows, hidden] are the state, to be read and written between two steps.
    """

    def __init__(self, weights: StackWeights, rows: int) -> None:
        layers, hidden = len(weights.layers), weights.layers[0].w_h.shape[0]
        self.h, self.c = torch.zeros(layers, rows, hidden), torch.zeros(layers, rows, hidden)
        self._pre = torch.empty(rows, 4 * hidden)
        self._squashed_c = torch.empty(rows, hidden)
        self._cells = weights.cells or (PLAIN,) * layers
        self._gates = self._pre.view(rows, 4, hidden)
        self._i, self._f, self._g, self._o = self._gates.unbind(1)
        self._input_and_forget = self._gates[:, :2]
        self._layers = [(w_x.flatten(1), w_h.flatten(1), bias.flatten()) for w_x, w_h, bias in weights.layers]
        self._projection = None if weights.projection is None else (weights.projection[0].t(), weights.projection[1])
        self._table: Tensor | None = None
        # What goes up, where that is not h.
        self._sum = torch.empty(rows, hidden) if weights.residual else None

    takes_frames = True

    def take_frames(self, weights: StackWeights) -> None:
        """Nothing is left to do."""

    @property
    def takes_ids(self) -> bool:
        return self._table is not None

    def take_ids(self, weights: StackWeights) -> None:
        """Make ready for ids, of the embedding's rows or of one-hot ones: what each adds to the first layer's gates."""
        w_x, _, bias = self._layers[0]
        self._table = w_x + bias if weights.embedding is None else torch.addmm(bias, weights.embedding, w_x)

    @torch.no_grad()
    def frames(self, x: Tensor, out: Tensor) -> None:
        """Take a step on `x` [rows, input]; `out` [rows, output] may be `x` itself."""
        w_x, _, bias = self._layers[0]
        torch.addmm(bias, x, w_x, out=self._pre)
        self._climb(out)

    @torch.no_grad()
    def ids(self, ids: Tensor, out: Tensor) -> None:
        """Take a step on `ids` [rows] int64; IndexError, and nothing done, where one is out of range."""
        assert self._table is not None
        torch.index_select(self._table, 0, ids, out=self._pre)
        self._climb(out)

    def several_frames(self, x: Tensor, out: Tensor) -> None:
        """Take the steps of `x` [rows, time, input]; `out` [rows, time, output] may be `x` itself."""
        for frame, output in zip(x.unbind(1), out.unbind(1), strict=True):
            self.frames(frame, output)

    def several_ids(self, ids: Tensor, out: Tensor) -> None:
        """Take the steps of `ids` [rows, time] int64; IndexError, and nothing done, where one is out of range."""
        assert self._table is not None
        if bool(((ids < 0) | (ids >= self._table.shape[0])).any()):
            raise IndexError("an id is out of range")
        for each, output in zip(ids.unbind(1), out.unbind(1), strict=True):
            self.ids(each, output)

    def _climb(self, out: Tensor) -> None:
        for k, (w_x, w_h, bias) in enumerate(self._layers):
            if k:
                torch.addmm(bias, self._below(k), w_x, out=self._pre)
            h, c, cell = self.h[k], self.c[k], self._cells[k]
            h_before = h.clone() if cell.zoneout_h else h
            c_before = c.clone() if cell.zoneout_c else c
            self._pre.addmm_(h, w_h)
            if cell.norm is not None:
                self._gates.copy_(cell.normed(self._gates, OF_GATES))
            if cell.peephole is not None:
                self._input_and_forget.addcmul_(cell.peephole[:2], c.unsqueeze(1))
            cell.gate_(self._input_and_forget)
            cell.squash(self._g, self._g)
            c.mul_(self._f).addcmul_(self._i, self._g)
            if cell.clip:
                c.clamp_(-cell.clip, cell.clip)
            if cell.peephole is not None:
                self._o.addcmul_(cell.peephole[2], c)
            cell.gate_(self._o)
            cell.squash(cell.normed(c, OF_C), self._squashed_c)
            torch.mul(self._o, self._squashed_c, out=h)
            # In evaluation: nothing is drawn.
            if cell.zoneout_h:
                h.copy_(held(h, h_before, cell.zoneout_h))
            if cell.zoneout_c:
                c.copy_(held(c, c_before, cell.zoneout_c))
        top = self._below(len(self._layers))
        if self._projection is None:
            out.copy_(top)
        else:
            weight, bias = self._projection
            torch.addmm(bias, top, weight, out=out)

    def _below(self, k: int) -> Tensor:
        """What goes up from the layer below place `k`; asked once at each place, from 1 on."""
        h = self.h[k - 1]
        if self._sum is None:
            return h
        return self._sum.copy_(h) if k == 1 else self._sum.add_(h)
