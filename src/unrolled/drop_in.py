"""`LSTM`: what `torch.nn.LSTM` is to its callers, and what it lacks, from the same parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from . import recurrence
from .arguments import check_masks, kind_of
from .directions import Passed, run_layers
from .layer_trace import LayerGradients, LayerTrace, gradients

_State = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class LSTMTrace:
    """`output` and `state` as `LSTM.forward` returns them, and `layers` in the order of the state's first axis.

    With `bidirectional`, that is layer 0 forward, layer 0 backward, layer 1 forward, and so on.
    """

    output: Tensor | PackedSequence
    state: _State
    layers: tuple[LayerTrace, ...]

    def gradients(self, loss: Tensor) -> tuple[LayerGradients, ...]:
        """The total gradients of the scalar `loss`, layer by layer; the graph is kept for a later `loss.backward()`.

        Raises RuntimeError if the trace was taken without gradients.
        """
        return gradients(self.layers, loss)

    def _repr_html_(self) -> str:
        from .trace_html import fragment

        return fragment("LSTMTrace", self.layers)


class LSTM(nn.RNNBase):
    """`torch.nn.LSTM` by its constructor, `forward`, errors, `state_dict` and initial draw; fused, and open.

    The arguments are torch's, in torch's order: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0 (between layers only), bidirectional=False, proj_size=0, device=None, dtype=None. `backend`, `strict`
    and `recompute` are those of `MultiLayerLSTM`, and attributes that can be set. It is no `nn.LSTM` to `isinstance`,
    but an `nn.RNNBase`: torch.compile refuses every nn.LSTM.

    With `proj_size`, the native kernel cannot run, nor `strict`: BackendUnavailable.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        backend: str = "auto",
        strict: bool = False,
        recompute: bool = False,
        **options: Any,
    ) -> None:
        recurrence.check_name(backend)
        super().__init__("LSTM", input_size, hidden_size, *args, **options)
        self.backend, self.strict, self.recompute = backend, strict, recompute

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
        options = "".join(f", {name}=True" for name in ("strict", "recompute") if getattr(self, name))
        return super().extra_repr() + backend + options

    def _run(
        self, input: Any, hx: Any, resets: Tensor | None, lengths: Tensor | None, *, traced: bool
    ) -> tuple[Any, _State, tuple[LayerTrace, ...]]:
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
        output, (h, c), layers = self._layers(x, (h0, c0), resets, lengths, traced=traced)
        output = output if self.batch_first else output.transpose(0, 1)
        if not batched:
            output, h, c = output.squeeze(batch_axis), h.squeeze(1), c.squeeze(1)
        return output, (h, c), layers

    def _run_packed(
        self, packed: PackedSequence, hx: Any, resets: Tensor | None, lengths: Tensor | None, *, traced: bool
    ) -> tuple[PackedSequence, _State, tuple[LayerTrace, ...]]:
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
        output, state, layers = self._layers(x, (h0, c0), resets, lengths, traced=traced, clean=True)
        flat = output.transpose(0, 1).flatten(0, 1)
        flat = flat if places is None else flat.index_select(0, places)
        if original is not None:
            layers = tuple(layer.permuted(original) for layer in layers)
        return PackedSequence(flat, sizes, order, original), self.permute_hidden(state, original), layers

    def _initial(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> _State:
        """A checked state; zeros if None was given."""
        dtype = self._weight("weight_ih_l0").dtype
        if hx is None:
            # What does not fit in x is said before zeros are made for it.
            self.check_input(x, batch_sizes)
            sizes = self.get_expected_hidden_size(x, batch_sizes), self.get_expected_cell_size(x, batch_sizes)
            return x.new_zeros(sizes[0], dtype=dtype), x.new_zeros(sizes[1], dtype=dtype)
        self.check_forward_args(x, hx, batch_sizes)
        return hx[0].to(dtype), hx[1].to(dtype)

    def _layers(
        self,
        x: Tensor,
        state: _State,
        resets: Tensor | None,
        lengths: Tensor | None,
        *,
        traced: bool,
        clean: bool = False,
    ) -> Passed:
        """`x` [B, T, I] and the masks batch-first; `clean` as `recurrence.scan` has it."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        run = self._trace if traced else self._states
        layers = [[partial(run, f"_l{k}{suffix}", clean) for suffix in suffixes] for k in range(self.num_layers)]
        return run_layers(x, state, layers, self._drop, resets=resets, lengths=lengths)

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training)

    def _states(
        self,
        suffix: str,
        clean: bool,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        *,
        resets: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """h and c of every step of one direction of a layer, [B, T, ...]."""
        run = partial(self._run_states, suffix, clean, resets=resets, lengths=lengths)
        if self.recompute and torch.is_grad_enabled():
            h, c = checkpoint(run, x, h0, c0, use_reentrant=False, preserve_rng_state=False)
        else:
            h, c = run(x, h0, c0)
        return h, c

    def _run_states(
        self,
        suffix: str,
        clean: bool,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        *,
        resets: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        w_x, w_h, bias, w_hr = self._weights(suffix)
        options: dict[str, Any] = {"w_hr": w_hr, "backend": self.backend, "strict": self.strict, "clean": clean}
        return recurrence.states(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, **options)

    def _trace(
        self,
        suffix: str,
        clean: bool,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        *,
        resets: Tensor | None,
        lengths: Tensor | None,
    ) -> LayerTrace:
        w_x, w_h, bias, w_hr = self._weights(suffix)
        options: dict[str, Any] = {"w_hr": w_hr, "backend": self.backend, "strict": self.strict, "clean": clean}
        scanned = recurrence.scan(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, **options)
        return LayerTrace.of(scanned, (h0, c0), (w_h, w_hr), resets, lengths)

    def _weights(self, suffix: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """W_x, W_h, the bias and W_hr of one direction of a layer, as `recurrence.scan` takes them."""
        # torch's [4 hidden, width] read as [width, 4, hidden]. The input's product takes it as it lies; the recurrence
        # would copy it once for each operator that it goes through, so it is copied here.
        w_x = self._weight(f"weight_ih{suffix}").t().unflatten(1, (4, self.hidden_size))
        w_h = self._weight(f"weight_hh{suffix}").t().contiguous().unflatten(1, (4, self.hidden_size))
        if self.bias:
            bias = self._weight(f"bias_ih{suffix}") + self._weight(f"bias_hh{suffix}")
        else:
            bias = w_h.new_zeros(4 * self.hidden_size)
        w_hr = self._weight(f"weight_hr{suffix}").t() if self.proj_size else None
        return w_x, w_h, bias.unflatten(0, (4, self.hidden_size)), w_hr

    def _weight(self, name: str) -> Tensor:
        """By name at every call: it may be a parametrisation's, or one of torch.func's."""
        weight: Tensor = getattr(self, name)
        return weight
