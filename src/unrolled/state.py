"""The recurrent state of a stack, the last hidden and cell state of every layer; and states of any other form."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

Rows = SupportsIndex | slice | list[int] | Tensor


class LSTMState(NamedTuple):
    """Hidden state `h` and cell state `c`, each [layers, batch, hidden].

    A projected h is [layers, batch, proj]. A bidirectional model has two of each layer, forward and backward:
    [2 * layers, batch, ...], layer 0 forward, layer 0 backward, layer 1 forward, and so on.
    """

    h: Tensor
    c: Tensor

    @classmethod
    def zeros(
        cls,
        layers: int,
        batch: int,
        hidden: int,
        *,
        proj: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LSTMState:
        """The state before the first step; `h` and `c` do not share memory. `proj`: the width of a projected h."""
        h, c = (
            torch.zeros((layers, batch, width), device=device, dtype=dtype)
            for width in (hidden if proj is None else proj, hidden)
        )
        return cls(h, c)

    def detach(self) -> LSTMState:
        """The same numbers, cut off from the graph: what is carried from one training window to the next."""
        return LSTMState(self.h.detach(), self.c.detach())

    def rows(self, index: Rows) -> LSTMState:
        """The chosen rows of the batch axis, which stays: an int gives [layers, 1, hidden].

        Raises IndexError where a row does not exist.
        """
        # NumPy's integers and tensors without an axis count as ints: they too would drop the batch axis.
        if isinstance(index, SupportsIndex) and getattr(index, "ndim", 0) == 0:
            row, size = operator.index(index), self.h.shape[1]
            if not -size <= row < size:
                raise IndexError(f"row {row} does not exist: the state has {size} rows, counted from 0")
            index = [row]
        return LSTMState(self.h[:, index], self.c[:, index])

    def to(self, *args: Any, **kwargs: Any) -> LSTMState:
        """`Tensor.to` on both."""
        return LSTMState(self.h.to(*args, **kwargs), self.c.to(*args, **kwargs))


def check_carried(model: object, who: str) -> None:
    """Raise ValueError for a bidirectional model, which leaves no state to go on from; `who` would have gone on."""
    if getattr(model, "bidirectional", False):
        raise ValueError(
            f"{type(model).__name__} is bidirectional: its backward layers begin at a sequence's end, so nothing can "
            f"go on from the state that they leave; {who} takes models with bidirectional=False"
        )


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`state`, made of tensors and None in tuples, lists and dicts, with every tensor changed. TypeError for others."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, dict):
        return {key: mapped(part, change) for key, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [mapped(part, change) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    raise TypeError(f"a state is made of tensors in tuples, lists and dicts, and this one has {type(state).__name__}")
