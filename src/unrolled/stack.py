"""Layers on top of each other: dropout between them, and a projection of the top one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from . import recurrence
from .arguments import check_input, check_same_rows, check_state
from .layer import LayerGradients, LayerTrace, LSTMLayer, gradients
from .state import LSTMState


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """A stack's computation, opened: its output, its final state, and every layer's h, c and gates, bottom first.

    A layer's h is the undropped one, as it is carried; the layer above saw it after dropout.
    """

    output: Tensor
    state: LSTMState
    layers: tuple[LayerTrace, ...]

    def gradients(self, loss: Tensor) -> tuple[LayerGradients, ...]:
        """The total gradients of the scalar `loss`, layer by layer; the graph is kept for a later `loss.backward()`.

        `torch.autograd.grad(loss, trace.layers[k].c)` would give only the explicit part, since a layer's recurrence is
        one operator. Raises RuntimeError if the trace was taken without gradients.
        """
        return gradients(self.layers, loss)

    def __repr__(self) -> str:
        return f"Trace(output: {list(self.output.shape)}, layers: {list(self.layers)})"


class MultiLayerLSTM(nn.Module):
    """A stack of `LSTMLayer`: the output sequence of layer k is the input sequence of layer k + 1.

    Dropout (a fresh mask for every element) lies between layers and before the projection, never on the recurrence.
    `output_dim`: "input" projects back to the input's width, an int to another one, None leaves the projection out, and
    the output is then the top layer's h after dropout. `strict` and `recompute` are the layers', and `strict` holds for
    the projection too.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        output_dim: int | Literal["input"] | None = "input",
        backend: str = "auto",
        strict: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1")
        self.input_dim, self.hidden_dim, self.num_layers = input_dim, hidden_dim, num_layers
        self.output_dim = input_dim if output_dim == "input" else output_dim
        if self.output_dim is not None and (isinstance(self.output_dim, str) or self.output_dim < 1):
            raise ValueError(f'output_dim={output_dim!r} must be at least 1, "input" (the input\'s width) or None')
        self.layers = nn.ModuleList(
            LSTMLayer(
                input_dim if k == 0 else hidden_dim,
                hidden_dim,
                backend=backend,
                strict=strict,
                recompute=recompute,
                device=device,
                dtype=dtype,
            )
            for k in range(num_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.proj = (
            None if self.output_dim is None else nn.Linear(hidden_dim, self.output_dim, device=device, dtype=dtype)
        )
        self._draw_projection()

    @property
    def backend(self) -> str:
        """The bottom layer's; setting it sets every layer's."""
        return self._layers()[0].backend

    @backend.setter
    def backend(self, name: str) -> None:
        recurrence.check_name(name)
        for layer in self._layers():
            layer.backend = name

    @property
    def strict(self) -> bool:
        """The bottom layer's, and the projection's; setting it sets every layer's."""
        return self._layers()[0].strict

    @strict.setter
    def strict(self, value: bool) -> None:
        for layer in self._layers():
            layer.strict = value

    @property
    def recompute(self) -> bool:
        """The bottom layer's; setting it sets every layer's."""
        return self._layers()[0].recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        for layer in self._layers():
            layer.recompute = value

    def reset_parameters(self) -> None:
        """Draw every parameter anew, in the order in which the constructor does."""
        for layer in self._layers():
            layer.reset_parameters()
        if self.proj is not None:
            self.proj.reset_parameters()
        self._draw_projection()

    def zero_state(self, batch: int) -> LSTMState:
        """Zeros [layers, batch, hidden] on the weights' device and in their dtype."""
        like = self._layers()[0].b_f
        return LSTMState.zeros(self.num_layers, batch, self.hidden_dim, device=like.device, dtype=like.dtype)

    def forward(
        self,
        x: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """One output row for each input step, [batch, time, output], and the state after the last valid step.

        `x`: floats [batch, time, input] or ids [batch, time]; `state`: h and c, each [layers, batch, hidden], zeros if
        None; `resets` bool [batch, time]: that row starts from zeros before that step; `lengths` [batch]: the row's
        valid steps, after which the output is the projection's bias. Raises TypeError, ValueError or IndexError for
        arguments that do not fit.
        """
        state = self._initial(x, state)
        last_h, last_c = [], []
        for layer, h0, c0 in zip(self.layers, state.h, state.c, strict=True):
            h, c = layer(x, h0, c0, resets=resets, lengths=lengths)
            last_h.append(recurrence.last_step(h, h0, lengths))
            last_c.append(recurrence.last_step(c, c0, lengths))
            x = self.dropout(h)
        return self._project(x), LSTMState(torch.stack(last_h), torch.stack(last_c))

    def trace(
        self,
        x: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Trace:
        """`forward`, opened: the same computation, dropout included, with every layer's gates. Arguments as there."""
        state = self._initial(x, state)
        traces = []
        for layer, h0, c0 in zip(self._layers(), state.h, state.c, strict=True):
            traces.append(layer.trace(x, h0, c0, resets=resets, lengths=lengths))
            x = self.dropout(traces[-1].h)
        last_h, last_c = zip(*(trace.state for trace in traces), strict=True)
        return Trace(self._project(x), LSTMState(torch.stack(last_h), torch.stack(last_c)), tuple(traces))

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.hidden_dim}, num_layers={self.num_layers}"

    def _layers(self) -> list[LSTMLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _draw_projection(self) -> None:
        if self.proj is not None:
            nn.init.xavier_uniform_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def _initial(self, x: Tensor, state: LSTMState | tuple[Tensor, Tensor] | None) -> LSTMState:
        like = self._layers()[0].b_f
        check_input(x, self.input_dim, like)
        if state is None:
            return self.zero_state(x.shape[0])
        state = check_state(state, self.num_layers, self.hidden_dim, like)
        check_same_rows(x, state.h.shape[1], of_stack=True)
        return state

    def _project(self, h: Tensor) -> Tensor:
        if self.proj is None:
            return h
        return recurrence.linear(h, self.proj.weight, self.proj.bias) if self.strict else self.proj(h)
