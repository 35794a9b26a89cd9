"""One LSTM layer over a whole sequence, with a parameter of its own for each gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import recurrence
from .arguments import check_input, check_layer_state, check_masks, check_same_rows
from .recurrence import Scanned

# The order in which parameters are registered and drawn: part of the state_dict's and the seeds' contract.
_DRAWN = ("f", "i", "o", "g")
# The order of the gate axis everywhere else.
GATES = ("i", "f", "g", "o")


class LayerGradients(NamedTuple):
    """The total gradients of a loss in one layer, each [batch, time, hidden], later steps included.

    `h` and `c`: dL/dh_t and dL/dc_t. `i`, `f`, `g`, `o`: with respect to the gates' pre-activations.
    """

    h: Tensor
    c: Tensor
    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LayerTrace:
    """Everything one layer computed: `h`, `c` and the activated gates, each [batch, time, hidden].

    `state` is (h, c) after each row's last valid step, each [batch, hidden]. All fields are differentiable.
    """

    h: Tensor
    c: Tensor
    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor
    state: tuple[Tensor, Tensor]
    _scanned: Scanned
    _w_h: Tensor
    _resets: Tensor | None
    _lengths: Tensor | None
    _compiled: bool

    def gradients(self, loss: Tensor) -> LayerGradients:
        """The total gradients of the scalar `loss` in this layer; the graph is kept.

        Raises RuntimeError if the trace was taken without gradients, or if `loss` does not depend on it.
        """
        return gradients((self,), loss)[0]

    def __repr__(self) -> str:
        rows, steps, hidden = self.h.shape
        return f"LayerTrace(h, c, i, f, g, o: [{rows}, {steps}, {hidden}] {self.h.dtype})"


def gradients(layers: Sequence[LayerTrace], loss: Tensor) -> tuple[LayerGradients, ...]:
    """`LayerTrace.gradients` of several layers in one backward pass."""
    if any(trace._compiled for trace in layers):
        # Its outputs hang side by side on one node: what reaches h through c and later steps would be missing.
        raise RuntimeError(
            "this trace was taken by a compiled call, whose graph cannot be entered; take it with the module itself, "
            "model.trace(...), outside torch.compile"
        )
    wanted = [(trace.h, trace.c, trace._scanned.pre) for trace in layers]
    if any(pre is None or not (h.requires_grad and c.requires_grad) for h, c, pre in wanted):
        raise RuntimeError(
            "this trace was taken without gradients: under torch.no_grad(), or with an input, input weights and biases "
            "none of which requires them; take it outside torch.no_grad(), and with frozen weights write "
            "layer.b_i.requires_grad_() before it"
        )
    if loss.numel() != 1:
        raise ValueError(f"loss is {list(loss.shape)}, expected a scalar: loss.sum() or loss.mean()")
    inputs: list[Any] = [value for layer in wanted for value in layer if value is not None]
    grads: Sequence[Tensor | None] = [None]
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    if all(grad is None for grad in grads):
        raise RuntimeError(
            "loss does not depend on this trace; compute it from what the trace holds (its output, state, h, c or "
            "gates): another call of the model, even on the same x, is another computation"
        )
    return tuple(_totals(trace, *grads[3 * k : 3 * k + 3]) for k, trace in enumerate(layers))


@torch.no_grad()
def _totals(trace: LayerTrace, grad_h: Tensor | None, grad_c: Tensor | None, grad_pre: Tensor | None) -> LayerGradients:
    scanned = trace._scanned
    dh, dc, dpre = recurrence.total_gradients(
        scanned,
        torch.zeros_like(scanned.h) if grad_h is None else grad_h,
        torch.zeros_like(scanned.c) if grad_c is None else grad_c,
        torch.zeros_like(scanned.gates.transpose(0, 1)) if grad_pre is None else grad_pre,
        trace._w_h,
        trace._resets,
        trace._lengths,
    )
    return LayerGradients(dh, dc, *dpre.unbind(2))


class LSTMLayer(nn.Module):
    """One layer: h **and** c of every step, and with `trace` the gates too.

    Parameters, for each gate in `f`, `i`, `o`, `g`: `W_x*` [input, hidden], `W_h*` [hidden, hidden] (Xavier-uniform,
    Glorot & Bengio 2010) and `b_*` [hidden] (zeros). The equations are in `unrolled.recurrence.reference`.

    `strict`: every row has the same bits in any batch, chunk or thread count. `recompute`: training keeps h and c only,
    and the backward pass makes the gates again, for one forward pass more.
    """

    W_xf: nn.Parameter
    W_hf: nn.Parameter
    b_f: nn.Parameter
    W_xi: nn.Parameter
    W_hi: nn.Parameter
    b_i: nn.Parameter
    W_xo: nn.Parameter
    W_ho: nn.Parameter
    b_o: nn.Parameter
    W_xg: nn.Parameter
    W_hg: nn.Parameter
    b_g: nn.Parameter

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        backend: str = "auto",
        strict: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if input_dim < 1 or hidden_dim < 1:
            raise ValueError(f"input_dim={input_dim} and hidden_dim={hidden_dim} must both be at least 1")
        recurrence.check_name(backend)
        self.input_dim, self.hidden_dim = input_dim, hidden_dim
        self.backend, self.strict, self.recompute = backend, strict, recompute
        for gate in _DRAWN:
            for name, shape in (
                (f"W_x{gate}", (input_dim, hidden_dim)),
                (f"W_h{gate}", (hidden_dim, hidden_dim)),
                (f"b_{gate}", (hidden_dim,)),
            ):
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every matrix anew and zero the biases."""
        for gate in _DRAWN:
            nn.init.xavier_uniform_(getattr(self, f"W_x{gate}"))
            nn.init.xavier_uniform_(getattr(self, f"W_h{gate}"))
            nn.init.zeros_(getattr(self, f"b_{gate}"))

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """h and c of every step, [batch, time, hidden] each.

        `x`: floats [batch, time, input] or ids [batch, time]; `h0`, `c0` [batch, hidden], zeros if None; `resets` bool
        [batch, time]: that row starts from zeros before that step; `lengths` [batch]: the row's valid steps, after
        which h and c are 0. Raises TypeError, ValueError or IndexError for arguments that do not fit.
        """
        if self.recompute and torch.is_grad_enabled():
            h, c = checkpoint(self._states, x, h0, c0, resets, lengths, use_reentrant=False, preserve_rng_state=False)
        else:
            h, c = self._states(x, h0, c0, resets, lengths)
        return h, c

    def trace(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> LayerTrace:
        """`forward`, opened: the same computation with its gates. The arguments are those of `forward`."""
        h0, c0 = self._initial(x, h0, c0, resets, lengths)
        w_x, w_h, bias = self._weights()
        scanned = recurrence.scan(
            x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, backend=self.backend, strict=self.strict
        )
        i, f, g, o = scanned.gates.unbind(2)
        last = recurrence.last_step(scanned.h, h0, lengths), recurrence.last_step(scanned.c, c0, lengths)
        compiled = torch.compiler.is_compiling()
        return LayerTrace(scanned.h, scanned.c, i, f, g, o, last, scanned, w_h, resets, lengths, compiled)

    def extra_repr(self) -> str:
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        options = "".join(f", {name}=True" for name in ("strict", "recompute") if getattr(self, name))
        return f"{self.input_dim}, {self.hidden_dim}{backend}{options}"

    def _states(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h0, c0 = self._initial(x, h0, c0, resets, lengths)
        w_x, w_h, bias = self._weights()
        return recurrence.states(
            x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, backend=self.backend, strict=self.strict
        )

    def _initial(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The state to start from, after all arguments have been checked."""
        like = self.b_f
        rows = check_layer_state(h0, c0, self.hidden_dim, like)
        check_input(x, self.input_dim, like)
        check_same_rows(x, rows, of_stack=False)
        check_masks(x, resets, lengths)
        if h0 is None or c0 is None:
            h0 = torch.zeros(x.shape[0], self.hidden_dim, device=like.device, dtype=like.dtype)
            c0 = torch.zeros_like(h0)
        return h0.to(like.dtype), c0.to(like.dtype)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_x [I, 4, H], W_h [H, 4, H] and b [4, H]."""
        w_x, w_h, bias = (
            torch.stack([getattr(self, f"{kind}{gate}") for gate in GATES], -2) for kind in ("W_x", "W_h", "b_")
        )
        return w_x, w_h, bias
