"""Truncated backpropagation through time in a loop of your own: windows over time, and the state between them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from .state import Rows, check_carried, mapped

_INDICES = (torch.int8, torch.int16, torch.int32, torch.int64)


class TimeWindow(tuple[Tensor, ...]):
    """One window of every tensor, in the order in which they were given: `x, y = window`.

    `before`: the same of the steps that only warm the state up, at most `burn_in`; no steps for the first window.
    """

    before: tuple[Tensor, ...]


class TimeWindows(Sequence[TimeWindow]):
    """Tensors [batch, time, ...] cut along time into windows of `length` steps, which are views.

    Every step lies in exactly one window; the last one is shorter where `length` does not divide the time. With
    `burn_in`, a window also has the steps just before it (`TimeWindow.before`), for loops that carry no state: these
    steps warm one up from zeros, so that windows can be taken in any order.
    """

    def __init__(self, *tensors: Tensor, length: int, burn_in: int = 0) -> None:
        """TypeError or ValueError for what is no tensor [batch, time, ...], or differs in batch or time."""
        self.length = _whole("length", length, least=1, meaning="the steps through which the gradient goes back")
        self.burn_in = _whole("burn_in", burn_in, least=0, meaning="the steps before a window that warm the state up")
        _check_aligned(tensors)
        self._tensors = tensors
        self._steps = tensors[0].shape[1]

    def __len__(self) -> int:
        return -(-self._steps // self.length)

    @overload
    def __getitem__(self, index: int) -> TimeWindow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TimeWindow]: ...
    def __getitem__(self, index: int | slice) -> TimeWindow | list[TimeWindow]:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        try:
            begin = range(len(self))[index] * self.length
        except IndexError:
            raise IndexError(f"no window {index}: there are {len(self)}, counted from 0") from None
        window = TimeWindow(x[:, begin : begin + self.length] for x in self._tensors)
        window.before = tuple(x[:, max(0, begin - self.burn_in) : begin] for x in self._tensors)
        return window

    def __iter__(self) -> Iterator[TimeWindow]:
        return (self[k] for k in range(len(self)))


class CarriedState:
    """The state that goes from each window to the next: its numbers, never its graph.

    `state` is None, which models take for zeros, until it is set; what is set is detached at once, so no gradient can
    cross from one window into an earlier one. It is an `LSTMState`, the (h, c) of `nn.LSTM`, or whatever tuples, lists
    and dicts of tensors a model returns and takes.

    `batch_axis`: where the rows lie, for `reset(rows)`. None: axis 1 of tensors of three axes, [layers, batch, hidden],
    and axis 0 of tensors of two, [batch, hidden].
    """

    def __init__(self, *, batch_axis: int | None = None) -> None:
        self.batch_axis = batch_axis
        self._state: Any = None

    @property
    def state(self) -> Any:
        return mapped(self._state, _trainable)

    @state.setter
    def state(self, state: Any) -> None:
        self._state = mapped(state, Tensor.detach)

    def warm_up(self, model: Callable[..., tuple[Any, Any]], x: Tensor, **arguments: Any) -> None:
        """Read x [batch, time, ...] without gradients, `model(x, state, **arguments)`, and keep only the state.

        The model runs in its own mode, dropout included. An x of no steps changes nothing. ValueError for a
        bidirectional model.
        """
        check_carried(model, "CarriedState")
        if x.shape[1]:
            with torch.no_grad():
                _, self.state = model(x, self.state, **arguments)

    def reset(self, rows: Rows | None = None) -> None:
        """Start afresh: the whole batch (`state` is None again), or, with zeros, the rows whose sequences have ended.

        `rows`: a bool for each row, or as in `LSTMState.rows`, each row at most once. TypeError, ValueError or
        IndexError for rows that can't be, and for a tensor whose batch axis is not known.
        """
        if rows is None:
            self._state = None
        else:
            self._state = mapped(self._state, lambda tensor: _restarted(tensor, rows, self._axis(tensor)))

    def _axis(self, tensor: Tensor) -> int:
        axis = tensor.dim() - 2 if self.batch_axis is None and tensor.dim() in (2, 3) else self.batch_axis
        if axis is None or not -tensor.dim() <= axis < tensor.dim():
            given = "" if axis is None else f", and batch_axis={axis} is none of its axes"
            raise ValueError(
                f"the state has a tensor {list(tensor.shape)}{given}; reset(rows) has to know along which axis the "
                "rows lie: CarriedState(batch_axis=...)"
            )
        return axis


def _whole(name: str, value: Any, *, least: int, meaning: str) -> int:
    try:
        steps = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected a whole number: {meaning}") from None
    if steps < least:
        raise ValueError(f"{name}={steps} must be at least {least}: {meaning}")
    return steps


def _check_aligned(tensors: tuple[Any, ...]) -> None:
    if not tensors:
        raise TypeError("TimeWindows takes one or more tensors [batch, time, ...]: TimeWindows(x, y, length=50)")
    for n, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"tensor {n} is {type(tensor).__name__}, expected a tensor [batch, time, ...]: torch.as_tensor(...)"
            )
        if tensor.is_nested:
            raise TypeError(
                f"tensor {n} is a nested tensor; pad it, x.to_padded_tensor(0), and pass a mask of its steps beside it"
            )
        if tensor.dim() < 2:
            raise ValueError(
                f"tensor {n} is {list(tensor.shape)}, expected [batch, time, ...]: one sequence alone is x[None]"
            )
        if tensor.shape[:2] != tensors[0].shape[:2]:
            raise ValueError(
                f"tensor {n} is {list(tensor.shape)} and tensor 0 is {list(tensors[0].shape)}, expected the same batch "
                "and time; what does not change with time stays out of the windows"
            )


def _trainable(tensor: Tensor) -> Tensor:
    """Autograd takes no tensors that inference mode made, but, outside of it, their copies."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def _restarted(tensor: Tensor, rows: Rows, axis: int) -> Tensor:
    """A copy: the window that made the numbers may not have gone backward yet."""
    shape = [1] * tensor.dim()
    shape[axis] = -1
    return tensor.masked_fill(_flags(rows, tensor.shape[axis]).to(tensor.device).view(shape), 0)


def _flags(rows: Any, count: int) -> Tensor:
    """`rows` as a bool for each of `count` rows."""
    if isinstance(rows, slice):
        rows = range(count)[rows]
    try:
        chosen = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"rows is {rows!r}, expected a bool for each row, or the numbers of rows") from None
    shape = list(chosen.shape)
    if chosen.dtype == torch.bool:
        if shape != [count]:
            raise ValueError(f"rows is bool {shape}, expected a bool for each of the state's rows: [{count}]")
        return chosen
    flags = torch.zeros(count, dtype=torch.bool, device=chosen.device)
    if not chosen.numel():
        return flags
    if chosen.dtype not in _INDICES:
        dtype = str(chosen.dtype).removeprefix("torch.")
        raise TypeError(f"rows is {dtype} {shape}: flags are rows.bool(), and the rows' numbers rows.long()")
    chosen = chosen.long().flatten()
    if not -count <= int(chosen.min()) <= int(chosen.max()) < count:
        raise IndexError(f"rows {chosen.tolist()} do not all exist: the state has {count} rows, counted from 0")
    if (chosen % count).unique().numel() != chosen.numel():
        raise ValueError(f"rows {chosen.tolist()} name a row twice; if they are flags, they must be bool: rows.bool()")
    flags[chosen] = True
    return flags
