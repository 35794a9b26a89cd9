"""`LSTM`: what `torch.nn.LSTM` is to its callers, and what it lacks, from the same parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import recurrence
from .arguments import check_masks, kind_of

_State = tuple[Tensor, Tensor]


class DirectionTrace(NamedTuple):
    """What one direction of one layer computed, at the step of the input that it belongs to, before dropout.

    `h` [batch, time, hidden or proj]; `c` and the activated gates [batch, time, hidden].
    """

    h: Tensor
    c: Tensor
    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor


@dataclass(frozen=True, eq=False)
class LSTMTrace:
    """`output` and `state` as `LSTM.forward` returns them, and `layers` in the order of the state's first axis.

    With `bidirectional`, that is layer 0 forward, layer 0 backward, layer 1 forward, and so on.
    """

    output: Tensor | PackedSequence
    state: _State
    layers: tuple[DirectionTrace, ...]


class _Call(NamedTuple):
    """A call's arguments, batch-first: x [B, T, I], h0 and c0 [layers * directions, B, ...], and the masks."""

    x: Tensor
    h0: Tensor
    c0: Tensor
    resets: Tensor | None
    lengths: Tensor | None


class LSTM(nn.RNNBase):
    """`torch.nn.LSTM` by its constructor, `forward`, errors, `state_dict` and initial draw; fused, and open.

    The arguments are torch's, in torch's order: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0 (between layers only), bidirectional=False, proj_size=0, device=None, dtype=None. `backend` and `strict`
    are those of `MultiLayerLSTM`, and attributes that can be set. It is no `nn.LSTM` to `isinstance`, but an
    `nn.RNNBase`: torch.compile refuses every nn.LSTM.

    With `proj_size`, the native kernel cannot run, nor `strict`: BackendUnavailable.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        backend: str = "auto",
        strict: bool = False,
        **options: Any,
    ) -> None:
        recurrence.check_name(backend)
        super().__init__("LSTM", input_size, hidden_size, *args, **options)
        self.backend, self.strict = backend, strict

    def flatten_parameters(self) -> None:
        """Do nothing: the parameters are used as they lie."""

    @overload
    def forward(
        self, input: Tensor, hx: _State | None = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, _State]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: _State | None = None, *, resets: Tensor | None = None, lengths: None = None
    ) -> tuple[PackedSequence, _State]: ...

    def forward(
        self, input: Any, hx: Any = None, *, resets: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Any, _State]:
        """The top layer's h of every step, and (h_n, c_n), each [layers * directions, batch, ...]: as `torch.nn.LSTM`.

        `resets` bool [batch, time], `lengths` [batch], whatever `batch_first` is: rows start from zeros before the
        steps where `resets` is True, and end where `lengths` says. The backward direction begins at each row's end, and
        afresh, too, where the forward one does: what lies on either side of a reset does not see the other.

        Raises RuntimeError, ValueError and TypeError where torch's does, and as `MultiLayerLSTM` does for the masks.
        """
        output, state, _ = self._run(input, hx, resets, lengths, traced=False)
        return output, state

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: _State | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> LSTMTrace:
        """`forward`, opened: the same computation with every layer's and direction's h, c and gates.

        Those are batch-first always, of a packed input padded and in the rows' own order, of an unbatched one with a
        batch of 1. All are differentiable.
        """
        return LSTMTrace(*self._run(input, hx, resets, lengths, traced=True))

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raise torch's errors for an input, a packed one's data among them, that does not fit the weights."""
        weight = self._weight("weight_ih_l0")
        if input.device != weight.device:
            raise RuntimeError(
                f"Input and parameter tensors are not at the same device, found input tensor at {input.device} and "
                f"parameter tensor at {weight.device}"
            )
        cast = torch.is_autocast_enabled(input.device.type) and input.dtype.is_floating_point
        if input.dtype != weight.dtype and not cast:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). Convert input: "
                f"input.to({weight.dtype})"
                + (f", or convert model: model.to({input.dtype})" if input.dtype.is_floating_point else "")
            )
        axes = 3 if batch_sizes is None else 2
        if input.dim() != axes:
            raise RuntimeError(f"input must have {axes} dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """[layers * directions, batch, hidden_size] for this input."""
        layers, rows, _ = self.get_expected_hidden_size(input, batch_sizes)
        return layers, rows, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Raise torch's errors for an input and a state that do not fit."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        for k, size in enumerate(expected):
            self.check_hidden_size(hidden[k], size, f"Expected hidden[{k}] size {{}}, got {{}}")
            if hidden[k].device != input.device:
                raise RuntimeError(
                    f"Input and hidden tensors are not at the same device, found input tensor at {input.device} and "
                    f"hidden[{k}] at {hidden[k].device}: hidden[{k}].to(input.device)"
                )
            if hidden[k].dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
                raise RuntimeError(
                    f"hidden[{k}] dtype ({hidden[k].dtype}) does not match input dtype ({input.dtype}): "
                    f"hidden[{k}].to({input.dtype})"
                )

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """Both of a state with their rows (axis 1) in another order."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def extra_repr(self) -> str:
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        return super().extra_repr() + backend + (", strict=True" if self.strict else "")

    def _run(
        self, input: Any, hx: Any, resets: Tensor | None, lengths: Tensor | None, *, traced: bool
    ) -> tuple[Any, _State, tuple[DirectionTrace, ...]]:
        pair = isinstance(hx, (tuple, list)) and len(hx) == 2 and all(isinstance(value, Tensor) for value in hx)
        if hx is not None and not pair:
            raise TypeError(f"hx is {kind_of(hx)}, expected a pair of tensors (h_0, c_0), or None for zeros")
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx, resets, lengths, traced=traced)
        if not isinstance(input, Tensor):
            raise TypeError(f"input is {kind_of(input)}, expected a tensor or a PackedSequence: torch.as_tensor(input)")
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched, batch_axis = input.dim() == 3, 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(batch_axis)
        if hx is not None:
            if any(value.dim() != input.dim() for value in hx):
                kind = f"{'' if batched else 'un'}batched {input.dim()}-D"
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {input.dim()}-D but got "
                    f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
            hx = hx if batched else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        h0, c0 = self._initial(x, hx, None)
        x = x if self.batch_first else x.transpose(0, 1)
        check_masks(x, resets, lengths)
        output, (h, c), layers = self._layers(_Call(x, h0, c0, resets, lengths), traced=traced)
        output = output if self.batch_first else output.transpose(0, 1)
        if not batched:
            output, h, c = output.squeeze(batch_axis), h.squeeze(1), c.squeeze(1)
        return output, (h, c), layers

    def _run_packed(
        self, packed: PackedSequence, hx: Any, resets: Tensor | None, lengths: Tensor | None, *, traced: bool
    ) -> tuple[PackedSequence, _State, tuple[DirectionTrace, ...]]:
        """By rows in the order in which they are packed; the masks, the state and the trace are in the rows' own."""
        if lengths is not None:
            raise TypeError("input is a PackedSequence, which has its rows' lengths: leave lengths out")
        data, sizes, order, original = packed
        hx = self.permute_hidden(hx, order) if hx is not None else None
        h0, c0 = self._initial(data, hx, sizes)
        steps, rows = len(sizes), int(sizes[0])
        places = None
        padded = data
        if int(sizes[-1]) != rows:
            # Packed values lie as in the padded tensor, time by time, without what is behind a row's end.
            inside = torch.arange(rows) < sizes.unsqueeze(1)
            lengths = inside.sum(0).to(data.device)
            places = inside.flatten().nonzero().squeeze(1).to(data.device)
            padded = data.new_zeros(steps * rows, data.shape[1]).index_copy(0, places, data)
        x = padded.unflatten(0, (steps, rows)).transpose(0, 1)
        if resets is not None:
            check_masks(x, resets, None)
            resets = resets if order is None else resets.index_select(0, order)
        output, state, layers = self._layers(_Call(x, h0, c0, resets, lengths), traced=traced)
        flat = output.transpose(0, 1).flatten(0, 1)
        flat = flat if places is None else flat.index_select(0, places)
        if original is not None:
            layers = tuple(DirectionTrace(*(part.index_select(0, original) for part in layer)) for layer in layers)
        return PackedSequence(flat, sizes, order, original), self.permute_hidden(state, original), layers

    def _initial(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> _State:
        """A checked state; zeros if None was given."""
        if hx is None:
            # What does not fit in x is said before zeros are made for it.
            self.check_input(x, batch_sizes)
            sizes = self.get_expected_hidden_size(x, batch_sizes), self.get_expected_cell_size(x, batch_sizes)
            hx = x.new_zeros(sizes[0]), x.new_zeros(sizes[1])
        self.check_forward_args(x, hx, batch_sizes)
        dtype = self._weight("weight_ih_l0").dtype
        return hx[0].to(dtype), hx[1].to(dtype)

    def _layers(self, call: _Call, *, traced: bool) -> tuple[Tensor, _State, tuple[DirectionTrace, ...]]:
        """The top layer's h [B, T, directions * width], the state after each row's last step, and what was traced."""
        x = call.x
        traces: list[DirectionTrace] = []
        last_h: list[Tensor] = []
        last_c: list[Tensor] = []
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        for layer in range(self.num_layers):
            outputs = []
            for suffix in suffixes:
                k = len(last_h)
                given = _Call(x, call.h0[k], call.c0[k], call.resets, call.lengths)
                given = _backward(given) if suffix else given
                parts = self._direction(given, f"_l{layer}{suffix}", traced=traced)
                last_h.append(recurrence.last_step(parts[0], given.h0, call.lengths))
                last_c.append(recurrence.last_step(parts[1], given.c0, call.lengths))
                if suffix:
                    parts = tuple(_turned(part, call.lengths) for part in (parts if traced else parts[:1]))
                outputs.append(parts[0])
                if traced:
                    traces.append(DirectionTrace(*parts))
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, (torch.stack(last_h), torch.stack(last_c)), tuple(traces)

    def _direction(self, call: _Call, suffix: str, *, traced: bool) -> tuple[Tensor, ...]:
        """h and c of every step, [B, T, ...], and with `traced` the gates i, f, g, o."""
        # torch's [4 hidden, width] read as [width, 4, hidden]. The input's product takes it as it lies; the recurrence
        # would copy it once for each operator that it goes through, so it is copied here.
        w_x = self._weight(f"weight_ih{suffix}").t().unflatten(1, (4, self.hidden_size))
        w_h = self._weight(f"weight_hh{suffix}").t().contiguous().unflatten(1, (4, self.hidden_size))
        if self.bias:
            bias = self._weight(f"bias_ih{suffix}") + self._weight(f"bias_hh{suffix}")
        else:
            bias = w_h.new_zeros(4 * self.hidden_size)
        bias = bias.unflatten(0, (4, self.hidden_size))
        w_hr = self._weight(f"weight_hr{suffix}").t() if self.proj_size else None
        run = recurrence.scan if traced else recurrence.states
        found = run(
            *(call.x, w_x, w_h, bias, call.h0, call.c0),
            resets=call.resets,
            lengths=call.lengths,
            w_hr=w_hr,
            backend=self.backend,
            strict=self.strict,
        )
        return (found.h, found.c, *found.gates.unbind(2)) if isinstance(found, recurrence.Scanned) else found

    def _weight(self, name: str) -> Tensor:
        """By name at every call: it may be a parametrisation's, or one of torch.func's."""
        weight: Tensor = getattr(self, name)
        return weight


def _backward(call: _Call) -> _Call:
    """The call of the direction that reads each row from its end."""
    resets = call.resets
    if resets is not None and resets.shape[1] > 0:
        # It starts afresh once it has passed the first step of a part, before the last one of the part in front.
        turned = _turned(resets, call.lengths)
        resets = torch.cat([torch.zeros_like(turned[:, :1]), turned[:, :-1]], 1)
    return call._replace(x=_turned(call.x, call.lengths), resets=resets)


def _turned(values: Tensor, lengths: Tensor | None) -> Tensor:
    """`values` [B, T, ...] with each row's valid steps in the opposite order, and the others where they are."""
    if lengths is None:
        return values.flip(1)
    steps = torch.arange(values.shape[1], device=values.device)
    ends = lengths.unsqueeze(1).long()
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    return values.gather(1, index.reshape(*index.shape, *(1,) * (values.dim() - 2)).expand_as(values))
