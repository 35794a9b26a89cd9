"""The recurrent state of a stack: the last hidden and cell state of every layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

Rows = int | slice | list[int] | Tensor


class LSTMState(NamedTuple):
    """Hidden state `h` and cell state `c`, each [layers, batch, hidden]."""

    h: Tensor
    c: Tensor

    @classmethod
    def zeros(
        cls,
        layers: int,
        batch: int,
        hidden: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LSTMState:
        """The state before the first step; `h` and `c` do not share memory."""
        shape = (layers, batch, hidden)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def detach(self) -> LSTMState:
        """The same numbers, cut off from the graph: what is carried from one training window to the next."""
        return LSTMState(self.h.detach(), self.c.detach())

    def rows(self, index: Rows) -> LSTMState:
        """The chosen rows of the batch axis, which stays: an int gives [layers, 1, hidden].

        Raises IndexError where a row does not exist.
        """
        if isinstance(index, int):
            size = self.h.shape[1]
            if not -size <= index < size:
                raise IndexError(f"row {index} of a state with {size} rows; rows are 0 to {size - 1}")
            index = [index]
        return LSTMState(self.h[:, index], self.c[:, index])

    def to(self, *args: Any, **kwargs: Any) -> LSTMState:
        """`Tensor.to` on both."""
        return LSTMState(self.h.to(*args, **kwargs), self.c.to(*args, **kwargs))
