"""One LSTM layer over a whole sequence, with a parameter of its own for each gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import recurrence
from .arguments import check_input, check_layer_state, check_masks, check_same_rows
from .layer_trace import LayerTrace

# The order in which parameters are registered and drawn: part of the state_dict's and the seeds' contract.
_DRAWN = ("f", "i", "o", "g")
# The order of the gate axis everywhere else.
GATES = ("i", "f", "g", "o")


class LSTMLayer(nn.Module):
    """One layer: h **and** c of every step, and with `trace` the gates too.

    Parameters, for each gate in `f`, `i`, `o`, `g`: `W_x*` [input, hidden], `W_h*` [hidden, hidden] (Xavier-uniform,
    Glorot & Bengio 2010) and `b_*` [hidden] (zeros). The equations are in `unrolled.recurrence.reference`.

    `proj_dim`: h is projected in every step by `W_hr` [hidden, proj] (Xavier-uniform), h_t = (o * tanh(c_t)) W_hr, and
    `W_h*` are [proj, hidden] (Sak, Senior & Beaufays 2014). The native kernel does not have it, nor `strict`.

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
    W_hr: nn.Parameter

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        proj_dim: int | None = None,
        backend: str = "auto",
        strict: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if input_dim < 1 or hidden_dim < 1:
            raise ValueError(f"input_dim={input_dim} and hidden_dim={hidden_dim} must both be at least 1")
        if proj_dim is not None and proj_dim < 1:
            raise ValueError(f"proj_dim={proj_dim} must be at least 1, or None: h is not projected")
        recurrence.check_name(backend)
        self.input_dim, self.hidden_dim, self.proj_dim = input_dim, hidden_dim, proj_dim
        self.backend, self.strict, self.recompute = backend, strict, recompute
        for gate in _DRAWN:
            for name, shape in (
                (f"W_x{gate}", (input_dim, hidden_dim)),
                (f"W_h{gate}", (self.h_dim, hidden_dim)),
                (f"b_{gate}", (hidden_dim,)),
            ):
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if proj_dim is not None:
            self.W_hr = nn.Parameter(torch.empty(hidden_dim, proj_dim, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def h_dim(self) -> int:
        """The width of h: `proj_dim`, or without a projection `hidden_dim`."""
        return self.hidden_dim if self.proj_dim is None else self.proj_dim

    def reset_parameters(self) -> None:
        """Draw every matrix anew and zero the biases."""
        for gate in _DRAWN:
            nn.init.xavier_uniform_(getattr(self, f"W_x{gate}"))
            nn.init.xavier_uniform_(getattr(self, f"W_h{gate}"))
            nn.init.zeros_(getattr(self, f"b_{gate}"))
        if self.proj_dim is not None:
            nn.init.xavier_uniform_(self.W_hr)

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """h and c of every step, [batch, time, hidden] each; a projected h is [batch, time, proj].

        `x`: floats [batch, time, input] or ids [batch, time]; `h0`, `c0`: one step of h and c, zeros if None; `resets`
        bool [batch, time]: that row starts from zeros before that step; `lengths` [batch]: the row's valid steps, after
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
        w_hr = self._w_hr()
        options: dict[str, Any] = {"w_hr": w_hr, "backend": self.backend, "strict": self.strict}
        scanned = recurrence.scan(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, **options)
        return LayerTrace.of(scanned, (h0, c0), (w_h, w_hr), resets, lengths)

    def extra_repr(self) -> str:
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        options = "".join(f", {name}=True" for name in ("strict", "recompute") if getattr(self, name))
        projection = "" if self.proj_dim is None else f", proj_dim={self.proj_dim}"
        return f"{self.input_dim}, {self.hidden_dim}{projection}{backend}{options}"

    def _states(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        h0, c0 = self._initial(x, h0, c0, resets, lengths)
        w_x, w_h, bias = self._weights()
        options: dict[str, Any] = {"w_hr": self._w_hr(), "backend": self.backend, "strict": self.strict}
        return recurrence.states(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, **options)

    def _initial(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The state to start from, after all arguments have been checked."""
        like = self.b_f
        rows = check_layer_state(h0, c0, (self.h_dim, self.hidden_dim), like)
        check_input(x, self.input_dim, like)
        check_same_rows(x, rows, of_stack=False)
        check_masks(x, resets, lengths)
        if h0 is None or c0 is None:
            h0 = torch.zeros(x.shape[0], self.h_dim, device=like.device, dtype=like.dtype)
            c0 = torch.zeros(x.shape[0], self.hidden_dim, device=like.device, dtype=like.dtype)
        return h0.to(like.dtype), c0.to(like.dtype)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_x [I, 4, H], W_h [H, 4, H] (of a projected h, [P, 4, H]) and b [4, H]."""
        w_x, w_h, bias = (
            torch.stack([getattr(self, f"{kind}{gate}") for gate in GATES], -2) for kind in ("W_x", "W_h", "b_")
        )
        return w_x, w_h, bias

    def _w_hr(self) -> Tensor | None:
        return None if self.proj_dim is None else self.W_hr
