"""A layer's computation, opened: its gates, and the total gradients of a loss in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import recurrence
from .recurrence import Cell, Scanned
from .reversal import turned


class LayerGradients(NamedTuple):
    """The total gradients of a loss in one layer, later steps included, each of the shape of the trace's field.

    `h` and `c`: dL/dh_t and dL/dc_t. `i`, `f`, `g`, `o`: with respect to the gates' pre-activations. Of a coupled cell
    the pre-activation of f is that of i, negated: `i - f` is what goes on to the weights of i. With layer normalisation
    the pre-activations are the sums before it: what goes on to x, h and the weights.
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

    A projected h is [batch, time, proj]. What a backward layer computed stands at the step of the input that it belongs
    to. `state` is (h, c) after the last step that a row ran, each [batch, width]. All fields are differentiable.
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
    _w_hr: Tensor | None
    _resets: Tensor | None
    _lengths: Tensor | None
    _cell: Cell
    _c0: Tensor
    _compiled: bool = False
    # From the order in which steps and rows ran to that of the fields.
    _places: tuple[Callable[[Tensor], Tensor], ...] = ()
    _edited: bool = False

    @staticmethod
    def of(
        scanned: Scanned,
        initial: tuple[Tensor, Tensor],
        recurrent: tuple[Tensor, Tensor | None],
        resets: Tensor | None,
        lengths: Tensor | None,
        cell: Cell = Cell(),  # noqa: B008 (a tuple)
    ) -> LayerTrace:
        """Of what a scan gave, from its `initial` h and c and `recurrent` weights, W_h and W_hr."""
        i, f, g, o = scanned.gates.unbind(2)
        h0, c0 = initial
        last = recurrence.last_step(scanned.h, h0, lengths), recurrence.last_step(scanned.c, c0, lengths)
        trace = LayerTrace(scanned.h, scanned.c, i, f, g, o, last, scanned, *recurrent, resets, lengths, cell, c0)
        return replace(trace, _compiled=torch.compiler.is_compiling())

    def as_edited(self) -> LayerTrace:
        """Of a layer that ran step by step, with another hand in it."""
        return replace(self, _edited=True)

    def turned(self) -> LayerTrace:
        """Of a backward layer, which ran each row from its end: the fields in the order of its input."""
        return self._placed(lambda values: turned(values, self._lengths))

    def permuted(self, rows: Tensor) -> LayerTrace:
        """With the rows in another order, the state's too."""

        def place(values: Tensor) -> Tensor:
            return values.index_select(0, rows)

        h, c = self.state
        return replace(self._placed(place), state=(place(h), place(c)))

    def _placed(self, place: Callable[[Tensor], Tensor]) -> LayerTrace:
        fields: dict[str, Any] = {name: place(getattr(self, name)) for name in LayerGradients._fields}
        return replace(self, **fields, _places=(*self._places, place))

    def gradients(self, loss: Tensor) -> LayerGradients:
        """The total gradients of the scalar `loss` in this layer; the graph is kept.

        Raises RuntimeError if the trace was taken without gradients, or if `loss` does not depend on it.
        """
        return gradients((self,), loss)[0]

    def __repr__(self) -> str:
        widths = "h" if self.h.shape == self.c.shape else f"h: {list(self.h.shape)}"
        return f"LayerTrace({widths}, c, i, f, g, o: {list(self.c.shape)} {self.c.dtype})"

    def _repr_html_(self) -> str:
        from .trace_html import fragment

        return fragment(f"LayerTrace, c {list(self.c.shape)}", [self])


def gradients(layers: Sequence[LayerTrace], loss: Tensor) -> tuple[LayerGradients, ...]:
    """`LayerTrace.gradients` of several layers in one backward pass."""
    if any(trace._compiled for trace in layers):
        # Its outputs hang side by side on one node: what reaches h through c and later steps would be missing.
        raise RuntimeError(
            "this trace was taken by a compiled call, whose graph cannot be entered; take it with the module itself, "
            "model.trace(...), outside torch.compile"
        )
    if any(trace._edited for trace in layers):
        raise RuntimeError(
            "this trace was edited, so it ran step by step: torch.autograd.grad(loss, values) of the values that the "
            "edit saw, or returned, is the total gradient there"
        )
    # What the scan gave, of which the fields may be an arrangement, and the state always is.
    wanted = [(scanned.h, scanned.c, scanned.gates, scanned.pre) for scanned in (trace._scanned for trace in layers)]
    if any(pre is None or not (h.requires_grad and c.requires_grad) for h, c, _, pre in wanted):
        raise RuntimeError(
            "this trace was taken without gradients: under torch.no_grad(), or with an input, input weights and biases "
            "none of which requires them; take it outside torch.no_grad(), and with frozen weights write "
            "layer.W_xi.requires_grad_() before it"
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
    return tuple(_totals(trace, *grads[4 * k : 4 * k + 4]) for k, trace in enumerate(layers))


@torch.no_grad()
def _totals(
    trace: LayerTrace,
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    grad_gates: Tensor | None,
    grad_pre: Tensor | None,
) -> LayerGradients:
    scanned = trace._scanned
    dh, dc, dpre = recurrence.total_gradients(
        scanned,
        torch.zeros_like(scanned.h) if grad_h is None else grad_h,
        torch.zeros_like(scanned.c) if grad_c is None else grad_c,
        torch.zeros_like(scanned.gates) if grad_gates is None else grad_gates,
        torch.zeros_like(scanned.gates.transpose(0, 1)) if grad_pre is None else grad_pre,
        trace._w_h,
        trace._c0,
        trace._resets,
        trace._lengths,
        trace._w_hr,
        trace._cell,
    )
    totals = LayerGradients(dh, dc, *dpre.unbind(2))
    for place in trace._places:
        totals = LayerGradients(*map(place, totals))
    return totals
