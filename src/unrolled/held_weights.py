"""A model's weights as its recurrence takes them, made once for many calls: a short call spends longer on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .layer import LSTMLayer
from .recurrence import Packed, at_hand
from .snapshot import Snapshot


class HeldWeights:
    """Every layer's weights with the gates side by side, and packed for the kernel, for calls in inference mode.

    They are made at the first call, and anew once the model has others, as far as `Snapshot` notices that.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._snapshot: Snapshot | None = None
        self._made: list[tuple[LSTMLayer, tuple[Tensor, Tensor, Tensor]]] = []
        self._packed: list[Packed] = []

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """In here the layers take these instead of making their own."""
        if self._snapshot is None or self._snapshot.stale():
            self._make()
        for layer, weights in self._made:
            layer._held = weights
        try:
            with at_hand(self._packed):
                yield
        finally:
            for layer, _ in self._made:
                layer._held = None

    def _make(self) -> None:
        self._snapshot = Snapshot(self._model)
        layers = [each for each in self._model.modules() if isinstance(each, LSTMLayer) and each.cell is None]
        with torch.inference_mode():
            self._made = [(layer, layer._weights()) for layer in layers]
        self._packed = [Packed(w_h) for _, (_, w_h, _) in self._made]
