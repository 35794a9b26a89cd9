"""Stepper: a trained stack run step by step or in runs of steps, its weights packed once, its state kept in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NoReturn, Protocol, SupportsIndex

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .calibration import Calibration, calibrate
from .parts import Parts, Steppable, take_apart
from .recurrence import BackendUnavailable
from .recurrence.native import missing
from .recurrence.native_step import KINDS, NativeStep
from .recurrence.step import PlainStep, StackWeights
from .snapshot import Snapshot
from .state import LSTMState, Rows
from .step_arguments import (
    check_frame,
    check_ids,
    check_out,
    check_sequence,
    check_sizes,
    check_state,
    check_steps,
    check_tensor,
    chosen_rows,
    wrong_id,
)


class _Engine(Protocol):
    """What takes the steps. `h` and `c` [layers, rows, hidden] can be written between two of them."""

    @property
    def takes_frames(self) -> bool: ...
    @property
    def takes_ids(self) -> bool: ...
    @property
    def h(self) -> Tensor: ...
    @property
    def c(self) -> Tensor: ...
    def take_frames(self, weights: StackWeights) -> None: ...
    def take_ids(self, weights: StackWeights) -> None: ...
    def frames(self, x: Tensor, out: Tensor) -> None: ...
    def ids(self, ids: Tensor, out: Tensor) -> None: ...
    def several_frames(self, x: Tensor, out: Tensor) -> None: ...
    def several_ids(self, ids: Tensor, out: Tensor) -> None: ...


class Stepper:
    """`batch_size` rows of `model`, one time step a call: `stepper.step(x)` gives what the model would give behind it.

    `stepper.steps(x)` takes many steps at once, with the same bits, and in less time for each.

    `model` is a float32 `LanguageModel`, `MultiLayerLSTM`, `LSTMLayer`, `LSTM` or `torch.nn.LSTM` on the CPU, in one
    direction and without a projection of h. It is run as in evaluation, without dropout, and keeps its mode; hooks do
    not run. `weights`: "float32", "bfloat16" (weights rounded, arithmetic in float32) or "int8" (weights and inputs of
    products; `compare` says what it loses).

    The weights are a snapshot: where a parameter has changed since, `step` raises until `refresh`. Changes that torch
    does not count stay unseen: into `parameter.data`, through NumPy, or of parameters made in inference mode.

    `threads`: as many as torch has now, if None. With 1, and an `out`, a step is a plain call: it takes no memory,
    wakes no thread and waits for none. `strict` is a promise that the native kernel keeps: the same bits for any
    `batch_size`, place in the batch and number of threads, and in float32 those of a whole sequence with strict=True.

    Without the native library, and of a residual stack: float32 alone, in plain torch, on torch's own threads and not
    strict.

    One thread at a time: a second one inside `step` gets a RuntimeError. Several steppers run at once, and may share a
    model. A stepper is not copied or pickled.

    Raises TypeError or ValueError for arguments that do not fit, BackendUnavailable for what needs the native library.
    """

    def __init__(
        self,
        model: Steppable,
        batch_size: int,
        weights: Literal["float32", "bfloat16", "int8"] = "float32",
        threads: int | None = None,
        strict: bool = False,
    ) -> None:
        threads = torch.get_num_threads() if threads is None else threads
        check_sizes(batch_size, threads)
        if weights not in KINDS:
            raise ValueError(f"weights={weights!r} is not one of {', '.join(KINDS)}")
        self.batch_size, self.weights, self.threads, self.strict = batch_size, weights, threads, strict
        self._model, self._inside = model, threading.Lock()
        parts = take_apart(model)
        if weights == "int8" and any(layer.options.activation == "relu" for layer in parts.layers):
            raise ValueError(
                'weights="int8" keeps h in steps of 1/127 from -1 to 1, and with activation="relu" h has no bounds: '
                'take "bfloat16" or "float32"'
            )
        self._pack(parts)

    @property
    def backend(self) -> str:
        """What runs the step: "cpu", the native kernel, or "portable", plain torch."""
        return "cpu" if isinstance(self._engine, NativeStep) else "portable"

    @property
    def stale(self) -> bool:
        """Whether a parameter has changed since the weights were packed."""
        return self._snapshot.stale()

    @property
    def state(self) -> LSTMState:
        """A copy of h and c, each [layers, batch, hidden]; set it to go on from another one."""
        with self._alone():
            return LSTMState(self._engine.h.clone(), self._engine.c.clone())

    @state.setter
    def state(self, state: LSTMState | tuple[Tensor, Tensor]) -> None:
        checked = check_state(state, self._engine.c.shape, self.batch_size, whole=True)
        with self._alone():
            self._write(slice(None), checked)

    def set_rows(self, index: Rows, state: LSTMState | tuple[Tensor, Tensor]) -> None:
        """Go on from `state`, each [layers, chosen rows, hidden], in some rows; `index` is that of `LSTMState.rows`.

        Raises IndexError where a row does not exist.
        """
        rows = chosen_rows(index, self.batch_size)
        checked = check_state(state, self._engine.c.shape, rows.numel(), whole=False)
        with self._alone():
            self._write(rows, checked)

    def reset(self, rows: Rows | None = None) -> None:
        """Start from the model's initial state, zeros or learned, in all rows or some.

        Raises IndexError where a row does not exist.
        """
        chosen = slice(None) if rows is None else chosen_rows(rows, self.batch_size)
        with self._alone():
            self._write(chosen, self._start)

    def refresh(self) -> None:
        """Take the model's weights as they are now; the state stays. ValueError where the sizes are no longer those."""
        parts = take_apart(self._model)
        if _sizes(parts) != _sizes(self._parts):
            raise ValueError("the model's sizes are not what they were: Stepper(model, batch_size) makes a new stepper")
        with self._alone():
            before = LSTMState(self._engine.h, self._engine.c)
            self._pack(parts)
            self._write(slice(None), before)

    def step(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """One step of every row, and the state moves on: logits [batch, output], or h of the top layer without them.

        `x`: float32 frames [batch, input], or ids [batch], int32, int64 or uint8. The result is fresh, or `out`,
        contiguous float32 [batch, output], written and returned; it may be the memory of `x`. Neither carries a
        gradient.

        Raises RuntimeError where a parameter has changed (`refresh` takes the change over) or another thread is inside;
        TypeError, ValueError or IndexError for arguments that do not fit. The state is then what it was.
        """
        if self._snapshot.stale():
            self._refuse_stale()
        if out is None:
            out = torch.empty(self._out_shape)
        elif not (
            type(out) is Tensor
            and out.dtype is torch.float32
            and out.shape == self._out_shape
            and out.is_contiguous()
            and out.is_cpu
            and not out.is_neg()
        ):
            check_out(out, self._out_shape)
        if not self._inside.acquire(False):
            self._refuse_company()
        try:
            # What is usual is told apart first: these questions are most of what a small step costs.
            usual = (
                type(x) is Tensor and x.layout is torch.strided and x.is_cpu and x.is_contiguous() and not x.is_neg()
            )
            if usual and x.dtype is torch.float32 and x.shape == self._frame_shape and self._engine.takes_frames:
                self._engine.frames(x, out)
            elif usual and x.dtype is torch.int64 and x.shape == self._ids_shape and self._engine.takes_ids:
                self._take_ids(x, out)
            else:
                self._take_unusual(x, out)
        finally:
            self._inside.release()
        # torch has not seen the write, and must not take what a graph has kept of `out` for unchanged.
        increment_version(out)
        return out

    def steps(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Steps of every row, one after the other, with the bits of `step`: logits [batch, time, output], or h of the
        top layer without them.

        `x`: float32 frames [batch, time, input], or ids [batch, time]. `out`, [batch, time, output], and what is raised
        are as in `step`.
        """
        if self._snapshot.stale():
            self._refuse_stale()
        parts, (rows, width) = self._parts, self._frame_shape
        check_steps(x, rows, width, ids_only=parts.ids_only)
        shape = (rows, x.shape[1], parts.output)
        if out is None:
            out = torch.empty(shape)
        else:
            check_out(out, shape)
        with self._alone():
            if x.dtype.is_floating_point:
                self._engine.several_frames(_plain(x), out)
            else:
                self._ready_for_ids()
                self._take_ids(_plain(x.long()), out)
        increment_version(out)
        return out

    def compare(self, x: Tensor) -> Calibration:
        """What these weights cost on data of yours: ids [time] or [batch, time], or frames [batch, time, input].

        Every sequence starts from zeros, in a stepper made for this; the state here stays. The float32 model runs
        beside it. Raises what `step` raises.
        """
        if self._snapshot.stale():
            self._refuse_stale()
        x = check_sequence(x, self._parts.layers[0].input_dim, ids_only=self._parts.ids_only)
        beside = Stepper(self._model, x.shape[0], self.weights, self.threads, self.strict)
        return calibrate(self.weights, beside.steps, self._parts, x)

    def __repr__(self) -> str:
        layers, _, hidden = self._engine.c.shape
        strict = ", strict=True" if self.strict else ""
        return (
            f"Stepper({layers} layers of {hidden}, batch_size={self.batch_size}, weights={self.weights!r}, "
            f"threads={self.threads}{strict}, backend={self.backend!r})"
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a Stepper is neither copied nor pickled, since its packed weights belong to this process: make another, "
            "Stepper(model, batch_size), and set its .state to this one's"
        )

    def _pack(self, parts: Parts) -> None:
        """Take the weights of `parts`; the state is then the initial one."""
        # Buffers made in inference mode could not be written outside it.
        with torch.inference_mode(False), torch.no_grad():
            snapshot, weights = Snapshot(self._model), parts.weights()
            engine: _Engine
            reason = missing()
            lack = None if reason is None else f": {reason}"
            if weights.residual:
                lack = " of a residual stack"
            if lack is None:
                engine = NativeStep(weights, self.batch_size, self.weights, self.threads)
            elif self.weights != "float32" or self.strict:
                asked = "strict=True" if self.weights == "float32" else f'weights="{self.weights}"'
                raise BackendUnavailable(
                    f"{asked} needs the native kernel, and there is none{lack}; without it, a stepper runs "
                    'weights="float32" with strict=False'
                )
            else:
                engine = PlainStep(weights, self.batch_size)
            if parts.ids_only:
                engine.take_ids(weights)
            else:
                engine.take_frames(weights)
            self._start = parts.initial_state()
        self._engine, self._parts, self._snapshot = engine, parts, snapshot
        self._write(slice(None), self._start)
        self._frame_shape = (self.batch_size, parts.layers[0].input_dim)
        self._ids_shape = (self.batch_size,)
        self._out_shape = (self.batch_size, parts.output)

    def _take_ids(self, ids: Tensor, out: Tensor) -> None:
        try:
            if ids.dim() == 1:
                self._engine.ids(ids, out)
            else:
                self._engine.several_ids(ids, out)
        except IndexError:
            raise wrong_id(ids, self._parts.vocabulary, embedded=self._parts.embedding is not None) from None

    def _take_unusual(self, x: Tensor, out: Tensor) -> None:
        """What has to be converted first, the first ids of a model that reads both, and what has to be refused."""
        parts, (rows, width) = self._parts, self._frame_shape
        check_tensor(x, rows, width, ids_only=parts.ids_only)
        if x.dtype.is_floating_point:
            check_frame(x, rows, width)
            self._engine.frames(_plain(x), out)
            return
        check_ids(x, rows, width, ids_only=parts.ids_only)
        self._ready_for_ids()
        self._take_ids(_plain(x.long()), out)

    def _ready_for_ids(self) -> None:
        if not self._engine.takes_ids:
            with torch.inference_mode(False):
                self._engine.take_ids(self._parts.weights())

    def _write(self, rows: slice | Tensor, state: LSTMState) -> None:
        with torch.no_grad():
            self._engine.h[:, rows] = state.h
            self._engine.c[:, rows] = state.c

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._inside.acquire(blocking=False):
            self._refuse_company()
        try:
            yield
        finally:
            self._inside.release()

    def _refuse_company(self) -> NoReturn:
        raise RuntimeError(
            "another thread is inside this stepper; give each thread one of its own: Stepper(model, batch_size)"
        )

    def _refuse_stale(self) -> NoReturn:
        names = self._snapshot.changed()
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"{names[0]}{more} changed" if names else "parameters were removed"
        raise RuntimeError(
            f"{what} since this stepper packed the model's weights; stepper.refresh() packs them as they are now, and "
            "keeps the state"
        )


def _plain(x: Tensor) -> Tensor:
    """The same numbers where pointers can read them."""
    return x.detach().contiguous().resolve_neg()


def _sizes(parts: Parts) -> tuple[int, ...]:
    layer = parts.layers[0]
    return layer.input_dim, layer.hidden_dim, len(parts.layers), parts.output, parts.vocabulary
