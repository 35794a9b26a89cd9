"""Layers on top of each other: dropout between them, and a projection of the top one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from . import recurrence
from .arguments import check_input, check_same_rows, check_state
from .cell_options import LayerKeywords
from .directions import Passed, RunLayer, run_layers
from .edits import Edit, edited
from .layer import LSTMLayer
from .layer_trace import LayerGradients, LayerTrace, gradients
from .own_cell import NewStep, OwnTrace, check_new_step
from .state import LSTMState


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """A stack's computation, opened: its output, its final state, and every layer's h, c and gates, bottom first.

    With `bidirectional`, `layers` are in the order of the state's first axis: layer 0 forward, layer 0 backward, layer
    1 forward, and so on, each at the steps of its input. A layer's h is the undropped one, as it is carried; the layer
    above saw it after dropout.
    """

    output: Tensor
    state: LSTMState
    layers: tuple[LayerTrace, ...]

    def gradients(self, loss: Tensor) -> tuple[LayerGradients, ...]:
        """The total gradients of the scalar `loss`, layer by layer; the graph is kept for a later `loss.backward()`.

        `torch.autograd.grad(loss, trace.layers[k].c)` would give only the explicit part, since a layer's recurrence is
        one operator. Raises RuntimeError if the trace was taken without gradients.
        """
        if any(isinstance(layer, OwnTrace) for layer in self.layers):
            return tuple(layer.gradients(loss) for layer in self.layers)
        return gradients(self.layers, loss)

    def __repr__(self) -> str:
        return f"Trace(output: {list(self.output.shape)}, layers: {list(self.layers)})"

    def _repr_html_(self) -> str:
        from .trace_html import fragment

        return fragment(f"Trace, output {list(self.output.shape)}", self.layers)


class MultiLayerLSTM(nn.Module):
    """A stack of `LSTMLayer`: the output sequence of layer k is the input sequence of layer k + 1.

    Dropout (a fresh mask for every element) lies between layers and before the projection, never on the recurrence.
    `output_dim`: "input" projects back to the input's width, an int to another one, None leaves the projection out, and
    the output is then the top layer's h after dropout. `proj_dim`, `strict`, `recompute` and `options` are the
    layers', and `strict` holds for the projection of the output too.

    `residual`: from the second layer on, what came up from below is added to a layer's h: y_1 = h_1,
    y_k = h_k + y_{k-1}, where layer k reads y_{k-1} after dropout, and what comes out, or is projected, is the top y
    after dropout (Wu et al., "Google's Neural Machine Translation System", 2016, section 3.1). The first layer has no
    such way around it: its input is of another kind, and mostly of another width. h, as it is carried and traced, stays
    the layer's own.

    `cell`: what makes a cell of one's own for each layer and direction, called as `cell(input_dim, hidden_dim)`: a
    module's class, or a function. The layers are then as `LSTMLayer` has it.

    `bidirectional`: every layer k has a second one, `reverse_layers[k]`, which reads each row from its end to its
    beginning. What goes to the next layer, and comes out, is both h of a step side by side, forward first.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        *,
        output_dim: int | Literal["input"] | None = "input",
        proj_dim: int | None = None,
        bidirectional: bool = False,
        residual: bool = False,
        cell: NewStep | None = None,
        backend: str = "auto",
        strict: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerKeywords],
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers} must be at least 1")
        if residual and num_layers == 1:
            raise ValueError("residual=True adds from the second layer on, and num_layers=1: leave residual out")
        self.input_dim, self.hidden_dim, self.num_layers = input_dim, hidden_dim, num_layers
        self.proj_dim, self.bidirectional, self.residual = proj_dim, bidirectional, residual
        self.output_dim = input_dim if output_dim == "input" else output_dim
        if self.output_dim is not None and (isinstance(self.output_dim, str) or self.output_dim < 1):
            raise ValueError(f'output_dim={output_dim!r} must be at least 1, "input" (the input\'s width) or None')
        check_new_step(cell)
        of_layers: dict[str, Any] = {**options, "backend": backend, "strict": strict, "recompute": recompute}
        of_layers |= {"proj_dim": proj_dim, "device": device, "dtype": dtype}
        # What a layer hands up: h, of both directions side by side.
        width = (hidden_dim if proj_dim is None else proj_dim) * (2 if bidirectional else 1)

        def new_layers() -> nn.ModuleList:
            below = [width if k else input_dim for k in range(num_layers)]
            own: list[dict[str, Any]] = [{} if cell is None else {"cell": cell(n, hidden_dim)} for n in below]
            return nn.ModuleList(
                LSTMLayer(n, hidden_dim, **of_layers, **more) for n, more in zip(below, own, strict=True)
            )

        self.layers = new_layers()
        self.reverse_layers = new_layers() if bidirectional else None
        self.dropout = nn.Dropout(dropout)
        self.proj = None if self.output_dim is None else nn.Linear(width, self.output_dim, device=device, dtype=dtype)
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
        """Zeros, as in `LSTMState`, on the weights' device and in their dtype."""
        first, count = self._layers()[0], len(self._layers())
        h, c = first.state_size
        return LSTMState.zeros(count, batch, c, proj=h, device=first._like.device, dtype=first._like.dtype)

    def initial_state(self, batch: int) -> LSTMState:
        """The state that a call without one starts from: the learned one where there is one, else zeros."""
        if not self._layers()[0].options.learn_initial_state:
            return self.zero_state(batch)
        h, c = zip(*(layer.initial_state(batch) for layer in self._in_order()), strict=True)
        return LSTMState(torch.stack(h), torch.stack(c))

    def forward(
        self,
        x: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:
        """One output row for each input step, [batch, time, output], and the state after the last valid step.

        `x`: floats [batch, time, input] or ids [batch, time]; `state`: as in `LSTMState`, `initial_state` if None;
        `resets` bool [batch, time]: that row starts from `initial_state` before that step; `lengths` [batch]: the row's
        valid steps, after which the output is the projection's bias. Raises TypeError, ValueError or IndexError for
        arguments that do not fit.

        A backward layer begins at each row's end, from its part of `state`, and starts afresh wherever the forward one
        does: what lies on either side of a reset does not see the other. Its last step is the row's first.
        """
        passed = self._run(x, state, resets, lengths, traced=False)
        return self._project(self.dropout(passed.output)), passed.state

    def trace(
        self,
        x: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        edit: Edit | None = None,
    ) -> Trace:
        """`forward`, opened: the same computation, dropout included, with every layer's gates. Arguments as there.

        `edit(values, place)` gets i, f, g, c, o and h of every layer and step, each [batch, width] as it is made; what
        it returns takes their place, and the computation runs on with it. Edited layers run step by step in plain
        torch; with a `Clamp`, that is the layer which it names.
        """
        passed = self._run(x, state, resets, lengths, traced=True, edit=edit)
        return Trace(self._project(self.dropout(passed.output)), passed.state, passed.traces)

    def extra_repr(self) -> str:
        projection = "" if self.proj_dim is None else f", proj_dim={self.proj_dim}"
        both = ", bidirectional=True" if self.bidirectional else ""
        residual = ", residual=True" if self.residual else ""
        return f"{self.input_dim}, {self.hidden_dim}, num_layers={self.num_layers}{projection}{both}{residual}"

    def _layers(self) -> list[LSTMLayer]:
        """All of them, backward ones last: the order in which they are drawn."""
        return [*self.layers, *(self.reverse_layers or ())]

    def _in_order(self) -> list[LSTMLayer]:
        """All of them, in the order of the state's first axis."""
        lists = [self.layers] if self.reverse_layers is None else [self.layers, self.reverse_layers]
        return [layer for both in zip(*lists, strict=True) for layer in both]

    def _run(
        self,
        x: Tensor,
        state: LSTMState | tuple[Tensor, Tensor] | None,
        resets: Tensor | None,
        lengths: Tensor | None,
        *,
        traced: bool,
        edit: Edit | None = None,
    ) -> Passed:
        directions = [self.layers] if self.reverse_layers is None else [self.layers, self.reverse_layers]
        state = self._initial(x, state)
        # What a layer with a cell of its own gives does not show its state, and its trace costs nothing.
        layers: list[list[RunLayer]] = [
            [layer.trace if traced or layer.cell is not None else layer for layer in both]
            for both in zip(*directions, strict=True)
        ]
        if any(layer.training and layer.options.draws for layer in self._layers()):
            seed = recurrence.drawn_seed(state.h.device)
            layers = [
                [partial(run, seed=recurrence.of_layer(seed, len(both) * k + n)) for n, run in enumerate(both)]
                for k, both in enumerate(layers)
            ]
        if edit is not None:
            layers = edited(layers, edit)
        return run_layers(x, state, layers, self.dropout, resets=resets, lengths=lengths, residual=self.residual)

    def _draw_projection(self) -> None:
        if self.proj is not None:
            nn.init.xavier_uniform_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def _initial(self, x: Tensor, state: LSTMState | tuple[Tensor, Tensor] | None) -> LSTMState:
        like = self._layers()[0]._like
        check_input(x, self.input_dim, like)
        if state is None:
            return self.initial_state(x.shape[0])
        widths = self._layers()[0].state_size
        state = check_state(state, self.num_layers, 2 if self.bidirectional else 1, widths, like)
        check_same_rows(x, state.h.shape[1], of_stack=True)
        return state

    def _project(self, h: Tensor) -> Tensor:
        if self.proj is None:
            return h
        return recurrence.linear(h, self.proj.weight, self.proj.bias) if self.strict else self.proj(h)
