"""One layer over time. Knows tensors, knows no modules; `scan` is the only door.

Outside, sequences are [batch, time, ...]; inside they are [time, batch, ...], so that a step is one contiguous block.
The transpose lives here and nowhere else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from . import cpu, edited, one_node, portable, products, reference
from .calls import is_plain
from .cell import PLAIN, Cell
from .choose import BackendUnavailable, Call, Choice, backends, check_name, choose, forward_mode_active
from .masks import drawn_seed, random_words, row_keys, sequence_mask, weight_mask
from .precision import full_precision
from .prepacked import Packed, at_hand
from .ranges import checked_range
from .restarts import Start, run_parts
from .threefry import of_layer

__all__ = [
    "BackendUnavailable",
    "Cell",
    "Choice",
    "Packed",
    "Scanned",
    "at_hand",
    "backends",
    "check_name",
    "checked",
    "drawn_seed",
    "last_step",
    "linear",
    "of_layer",
    "row_keys",
    "scan",
    "scan_edited",
    "sequence_mask",
    "states",
    "total_gradients",
    "variants",
    "weight_mask",
]


class Scanned(NamedTuple):
    """Everything one layer computed over a sequence.

    `h` [B, T, H] (where it is projected [B, T, P]), `c` [B, T, H] and `gates` [B, T, 4, H] (i, f, g, o, activated) are
    what the caller sees; `pre` is where the gradient of the input's share of the pre-activations, [T, B, 4, H], passes:
    the total one. It is None where none does, and in compiled graphs. The tensor itself is not kept: its memory is the
    backward pass's.
    """

    h: Tensor
    c: Tensor
    gates: Tensor
    pre: GradientEdge | None


def scan(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    start: Start | None = None,
    backend: str = "auto",
    strict: bool = False,
    clean: bool = False,
    x_mask: Tensor | None = None,
    followed: bool = True,
) -> Scanned:
    """Run one layer over `x` [B, T, I], or [B, T] integer ids, which stand for one-hot rows.

    `w_x` [I, 4, H], `w_h` [H, 4, H], `bias` [4, H]; `h0`, `c0` [B, H]; `resets` bool [B, T]; `lengths` integers [B].
    With `w_hr` [H, P], h is projected in every step: h [B, T, P], `w_h` [P, 4, H], `h0` [B, P]. `clean` says of a float
    x that it is 0 behind each row's end, and of int64 lengths that they are in range, as those of a layer below. `cell`
    has a notation of its own. `start`: h and c, [H] each (of a projected h, [P]), from which a row begins after a
    reset, zeros if None. `x_mask` [B, I] is what x is multiplied by in every step, or the one-hot rows that ids stand
    for. Without `followed` there is no `pre`.

    Shapes, dtypes and devices are the caller's to check. Raises IndexError for ids and ValueError for lengths out of
    range, BackendUnavailable where the backend cannot run the call.
    """
    chosen = choose(backend, _call(w_h, strict))
    x, lengths = (x, lengths) if clean else checked(x, lengths, w_x.shape[0])
    x, scale = _masked(x, x_mask)
    resets = None if resets is None else resets.t()
    alone = x.dim() == 3 and (start is None or resets is None)
    followed = followed and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    place: Tensor | None = None
    if chosen == "reference":
        pre = place = _inputs_step_by_step(x, w_x, bias, w_h.dtype, scale)
        with full_precision(w_h):
            h, c, gates = reference.scan(pre, w_h, h0, c0, resets, lengths, w_hr, cell, start)
    elif chosen == "cpu" and alone and is_plain(x, w_x, w_h, bias, h0, c0, resets, lengths, w_hr, *cell.tensors):
        if followed and any(value.requires_grad for value in (x, w_x, bias)):
            place = one_node.new_place(x.shape[1], x.shape[0], w_h.shape[2])
        given = x, w_x, w_h, bias, h0, c0, resets, lengths, w_hr, cell, place
        h, c, gates = one_node.scan(*given, strict=strict)
    else:
        pre = place = _inputs(x, w_x, bias, w_h.dtype, scale, native=chosen == "cpu", strict=strict)
        kernel = cpu.scan if chosen == "cpu" else portable.scan

        def run(first: int, pre: Tensor, *state_and_masks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            return kernel(pre, w_h, *state_and_masks, w_hr, *cell._replace(first=first))

        h, c, gates = run_parts(run, pre, h0, c0, resets, lengths, start)
    if cell.norm is not None:
        gates = gates[:, :, :4]
    edge = get_gradient_edge(place) if followed and place is not None and place.requires_grad else None
    return Scanned(h.transpose(0, 1), c.transpose(0, 1), gates.transpose(0, 1), edge)


def states(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    start: Start | None = None,
    backend: str = "auto",
    strict: bool = False,
    clean: bool = False,
    x_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h and c of `scan`: without gradients the native kernel stores nothing else where no masks are drawn."""
    opened = torch.is_grad_enabled() or torch.is_autocast_enabled(w_h.device.type)
    more = cell.keys is not None or not (start is None or resets is None)
    if opened or more or choose(backend, _call(w_h, strict)) != "cpu":
        options: dict[str, Any] = {"cell": cell, "backend": backend, "strict": strict, "clean": clean, "start": start}
        options |= {"x_mask": x_mask, "followed": False}
        scanned = scan(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, w_hr=w_hr, **options)
        return scanned.h, scanned.c
    x, lengths = (x, lengths) if clean else checked(x, lengths, w_x.shape[0])
    resets = None if resets is None else resets.t()
    h, c = cpu.states(x, w_x, w_h, bias, h0, c0, resets, lengths, strict, w_hr, cell)
    return h.transpose(0, 1), c.transpose(0, 1)


def scan_edited(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    edit: edited.Edit,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    start: Start | None = None,
    x_mask: Tensor | None = None,
) -> Scanned:
    """`scan`, step by step in plain torch, with `edit` in every step; its `pre` is None."""
    if x.shape[1] == 0:
        return scan(x, w_x, w_h, bias, h0, c0, w_hr=w_hr, cell=cell, backend="reference")._replace(pre=None)
    x, lengths = checked(x, lengths, w_x.shape[0])
    x, scale = _masked(x, x_mask)
    pre = _inputs(x, w_x, bias, w_h.dtype, scale, native=False, strict=False)
    options: dict[str, Any] = {"w_hr": w_hr, "cell": cell, "start": start, "lengths": lengths}
    options["resets"] = None if resets is None else resets.t()
    with full_precision(w_h):
        made = list(edited.steps(pre, w_h, h0, c0, edit, **options))
    h, c, i, f, g, o = (torch.stack(values, 1) for values in zip(*made, strict=True))
    return Scanned(h, c, torch.stack([i, f, g, o], 2), None)


def variants(
    x: Tensor,
    w_x: Tensor,
    w_h: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    edit: edited.Edit,
    count: int,
    *,
    resets: Tensor | None = None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    start: Start | None = None,
) -> Tensor:
    """h [count, B, T, H] of the same sequence run `count` times side by side: `edit` gets values [count, B, width].

    The product with x is taken once for all of them. There is at least one step.
    """
    pre = _inputs(checked(x, None, w_x.shape[0])[0], w_x, bias, w_h.dtype, None, native=False, strict=False)
    h0, c0 = (first.expand(count, *first.shape) for first in (h0, c0))
    resets = None if resets is None else resets.t()
    with full_precision(w_h):
        made = edited.steps(pre, w_h, h0, c0, edit, resets=resets, w_hr=w_hr, cell=cell, start=start)
        return torch.stack([each.h for each in made], 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`torch.nn.functional.linear` of x [B, T, H] with bits for each row that no other row changes.

    Raises BackendUnavailable where the native kernel cannot run.
    """
    choose("cpu", Call(weight.device, weight.dtype, forward_mode_active(), strict=True))
    rows, steps = x.shape[:2]
    # Time-first, as the recurrence leaves it: a copy of the larger axis is saved.
    flat = x.transpose(0, 1).reshape(rows * steps, x.shape[2])
    product = products.linear(flat, weight.t(), bias, native=True, strict=True)
    return product.reshape(steps, rows, weight.shape[0]).transpose(0, 1)


def last_step(sequence: Tensor, initial: Tensor, lengths: Tensor | None) -> Tensor:
    """The last valid step [B, H] of `sequence` [B, T, H]; `initial` [B, H] where a row has none."""
    if sequence.shape[1] == 0:
        return initial
    if lengths is None:
        return sequence.select(1, -1)
    rows = sequence.shape[0]
    # Whole rows out of the memory that the recurrence left time-first: gather would look up every number.
    place = (lengths.long() - 1).clamp(min=0) * rows + torch.arange(rows, device=lengths.device)
    last = sequence.transpose(0, 1).reshape(-1, sequence.shape[2]).index_select(0, place)
    return torch.where((lengths == 0).unsqueeze(-1), initial, last)


def total_gradients(
    scanned: Scanned,
    grad_h: Tensor,
    grad_c: Tensor,
    grad_gates: Tensor,
    grad_pre: Tensor,
    w_h: Tensor,
    c0: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dh_t, as h lies, dL/dc_t [B, T, H] and dL/dpre_t [B, T, 4, H], later steps included.

    `grad_h`, `grad_c` and `grad_gates` are the explicit gradients of what `scanned` has; `grad_pre` [T, B, 4, H].
    """
    widths = scanned.h.shape[-1], scanned.c.shape[-1]
    with full_precision(w_h):
        dh, dc = reference.total_gradients(
            grad_h.transpose(0, 1),
            grad_c.transpose(0, 1),
            grad_gates.transpose(0, 1),
            grad_pre,
            w_h,
            scanned.c.transpose(0, 1),
            scanned.gates.transpose(0, 1),
            c0,
            None if resets is None else resets.t(),
            lengths,
            w_hr,
            cell,
            cell.drawn(0, scanned.c.shape[1], widths, random_words),
        )
    return dh.transpose(0, 1), dc.transpose(0, 1), grad_pre.transpose(0, 1)


def _call(w_h: Tensor, strict: bool) -> Call:
    return Call(w_h.device, w_h.dtype, forward_mode_active(), strict)


def _masked(x: Tensor, x_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x times a mask [B, I]; of ids, which are left alone, what their one-hot rows are multiplied by, [B, T, 1, 1]."""
    if x_mask is None:
        return x, None
    if x.dim() == 2:
        return x, x_mask.gather(1, x.long()).unsqueeze(-1).unsqueeze(-1)
    return x * x_mask.unsqueeze(1), None


def checked(x: Tensor, lengths: Tensor | None, width: int) -> tuple[Tensor, Tensor | None]:
    """x and lengths with their values checked; x is 0 behind a row's length, whatever it held."""
    if lengths is not None:
        steps = x.shape[1]
        lengths = checked_range(lengths, 0, steps, "lengths")
        x = x.masked_fill(reference.ended(lengths, steps).t().reshape(x.shape[:2] + (1,) * (x.dim() - 2)), 0)
    return checked_range(x, 0, width - 1, "ids") if x.dim() == 2 else x, lengths


def _inputs(
    x: Tensor, w_x: Tensor, bias: Tensor, dtype: torch.dtype, scale: Tensor | None, *, native: bool, strict: bool
) -> Tensor:
    """The input's share of every pre-activation, [T, B, 4, H]: one product for all steps, since none depends on h."""
    rows, steps = x.shape[:2]
    width, _, hidden = w_x.shape
    if scale is not None:
        return F.embedding(x.t(), w_x.flatten(1)).reshape(steps, rows, 4, hidden) * scale.transpose(0, 1) + bias
    if x.dim() == 2:
        # Adding the bias to the table costs less than adding it to every step, unless the table has more rows.
        return F.embedding(x.t(), (w_x + bias).flatten(1)).reshape(steps, rows, 4, hidden)
    flat = x.transpose(0, 1).reshape(steps * rows, width)
    # Autocast makes this product low-precision; the recurrence stays in the weights' own dtype.
    product = products.linear(flat, w_x.flatten(1), bias.flatten(), native=native, strict=strict).to(dtype)
    return product.reshape(steps, rows, 4, hidden)


def _inputs_step_by_step(x: Tensor, w_x: Tensor, bias: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """The same, one step at a time.

    A product's bits depend on its row count, so this is what makes a sequence give the same bits wherever it is split.
    """
    if scale is not None:
        return w_x[x.t()] * scale.transpose(0, 1) + bias
    if x.dim() == 2:
        return (w_x + bias)[x.t()]
    steps = [torch.addmm(bias.flatten(), x_t, w_x.flatten(1)).to(dtype) for x_t in x.unbind(1)]
    # Without steps it hangs on the graph all the same: a loss over nothing has a backward pass too.
    pre = torch.stack(steps) if steps else x.new_zeros(0, x.shape[0], 1) + bias.flatten()
    return pre.reshape(*pre.shape[:2], *w_x.shape[1:])
