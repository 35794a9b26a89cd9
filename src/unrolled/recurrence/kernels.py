"""The calls into the native library: its structs, and one function for each kernel, from tensors to tensors.

Every tensor is float32 on the CPU; layout and size are checked here, since behind this file there are only addresses.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_float, c_int64, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from . import native
from .cell import PLAIN, Cell
from .memory import LIMIT, Pool
from .structs import Backward, CellStruct, Forward, Gradient, Multiplier, Product, RandomWords, Run, WeightGradient
from .threefry import threshold

# Scratch up to this size stays with its thread from call to call: fresh memory costs more than what is done in it.
_KEPT = 64 * 2**20


_forced: bytes | None = None


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Within, every kernel runs on this set, one of `native.instruction_sets()`."""
    global _forced
    if name not in native.instruction_sets():
        raise ValueError(f"instruction set {name!r} is not one of {', '.join(native.instruction_sets())}")
    before, _forced = _forced, name.encode("ascii")
    try:
        yield
    finally:
        _forced = before


@functools.cache
def prefers_own_products() -> bool:
    """Whether the kernels' own products are the faster ones here: on x86 processors that MKL was not made for."""
    return bool(_library().unrolled_prefers_own_products())


def forward(
    pre: Tensor,
    w_h: Tensor,
    state: tuple[Tensor, Tensor],
    masks: tuple[Tensor | None, Tensor | None],
    out: tuple[Tensor, Tensor, Tensor | None],
    *,
    bias: Tensor | None = None,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    scratch: Tensor | None = None,
) -> Tensor:
    """Run `pre` [T, B, 4, H] through the recurrence into `out`: h [T, B, H], c [T, B, H] or [B, H] (the last step's),
    gates [T, B, 4, H] or None. Returns the scratch, which a next call with the same weights may be given again.

    `bias` [4, H] is added where `pre` lacks it. With layer normalisation gates are [T, B, 8, H], and where they are
    None the sums are written over `pre`. With `w_hr` [H, P] h is [T, B, P].
    """
    steps, rows, _, hidden = pre.shape
    h, c, gates = out
    packed = scratch is not None
    projected = _projected(w_hr)
    if scratch is None:
        floats = _library().unrolled_forward_scratch(hidden, projected)
        scratch = kept("forward", floats)[:floats]
    pre, w_h, h0, c0 = pre.contiguous(), w_h.contiguous(), state[0].contiguous(), state[1].contiguous()
    width, w_hr = projected or hidden, None if w_hr is None else w_hr.contiguous()
    bias = None if bias is None else bias.contiguous()
    resets, lengths = _masks(masks, steps, rows)
    cell = contiguous(cell)
    _expect(pre, (steps, rows, 4, hidden))
    _expect(w_h, (width, 4, hidden))
    _expect(h0, (rows, width))
    _expect(c0, (rows, hidden))
    _expect(h, (steps, rows, width))
    _expect(w_hr, (hidden, width))
    _expect(bias, (4, hidden))
    keep_c = c.dim() == 3
    _expect(c, (steps, rows, hidden) if keep_c else (rows, hidden))
    _expect(gates, (steps, rows, cell.planes, hidden))
    h_in = None
    if cell.h_mask is not None:
        h_in = kept("h_in", 2 * rows * width)[: 2 * rows * width]
        torch.mul(h0, cell.h_mask, out=h_in[: rows * width].view(rows, width))
    unprojected = kept("unprojected", rows * hidden) if projected else None
    call = Forward(
        *(steps, rows, hidden),
        *_addresses(pre, w_h, h0, c0, resets, lengths, h, c, gates, scratch),
        *(scratch.numel(), keep_c, packed, cell_struct(cell, rows, hidden, width)),
        *_addresses(None if cell.norm is None else pre, cell.h_mask, h_in),
        *(projected, *_addresses(w_hr, unprojected, bias)),
    )
    _check(_library().unrolled_forward(ctypes.byref(_run()), ctypes.byref(call)))
    return scratch


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    w_h: Tensor,
    c: Tensor,
    gates: Tensor,
    c0: Tensor,
    masks: tuple[Tensor | None, Tensor | None],
    *,
    w_hr: Tensor | None = None,
    cell: Cell = PLAIN,
    grad_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.scan_backward`; `grads` are the cotangents of h, c and gates, whose outer axes may be strided.

    Into `grad_bias` [4, H], without layer normalisation, goes the gradient of what is added to every pre-activation.
    """
    steps, rows, planes, hidden = gates.shape
    projected = _projected(w_hr)
    w_h, c, gates, c0 = w_h.contiguous(), c.contiguous(), gates.contiguous(), c0.contiguous()
    width, w_hr = projected or hidden, None if w_hr is None else w_hr.contiguous()
    grad_h = _rows_apart(grads[0], (steps, rows, width))
    grad_c = _rows_apart(grads[1], (steps, rows, hidden))
    grad_gates = _rows_apart(None if grads[2] is None else grads[2].flatten(2), (steps, rows, planes * hidden))
    resets, lengths = _masks(masks, steps, rows)
    cell = contiguous(cell)
    grad_pre = empty((steps, rows, 4, hidden))
    grad_h0, grad_c0, grad_projected = empty((rows, width)), empty((rows, hidden)), empty((steps, rows, projected))
    grad_cell = empty((rows, cell.gradient_planes, hidden))
    scratch = kept("backward", _library().unrolled_backward_scratch(hidden, projected))
    unprojected = kept("unprojected", rows * hidden) if projected else None
    bias_sums = None if grad_bias is None else kept("bias_sums", rows * 8 * hidden)
    _expect(grad_bias, (4, hidden))
    _expect(w_h, (width, 4, hidden))
    _expect(w_hr, (hidden, width))
    _expect(c, (steps, rows, hidden))
    _expect(c0, (rows, hidden))
    _expect(gates, (steps, rows, cell.planes, hidden))
    call = Backward(
        *(steps, rows, hidden),
        *(_gradient(grad) for grad in (grad_h, grad_c, grad_gates)),
        *_addresses(w_h, c, gates, c0, resets, lengths, grad_pre, grad_h0, grad_c0, scratch),
        *(scratch.numel(), cell_struct(cell, rows, hidden, width), *_addresses(grad_cell, cell.h_mask)),
        *(projected, *_addresses(w_hr, unprojected, grad_projected, grad_bias, bias_sums)),
    )
    _check(_library().unrolled_backward(ctypes.byref(_run()), ctypes.byref(call)))
    return grad_pre, grad_h0, grad_c0, grad_cell, grad_projected


def row_keys(seed: Tensor, first: int, rows: int) -> Tensor:
    """`threefry.row_keys` of the rows from `first` on; `seed` int64 [] on the CPU."""
    keys = torch.empty(rows, dtype=torch.int64)
    place = c_uint64(int(seed.item())), c_int64(first), c_int64(rows)
    _check(_library().unrolled_row_keys(*place, c_void_p(keys.data_ptr())))
    return keys


def random_words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    """`threefry.words`."""
    keys = _checked_keys(keys)
    words = torch.empty(2, steps, len(keys), units, dtype=torch.int32)
    call = RandomWords(first, steps, len(keys), units, *_addresses(keys, words))
    _check(_library().unrolled_random_words(ctypes.byref(_run()), ctypes.byref(call)))
    return words


def multiplier(keys: Tensor, first: int, steps: int, units: int, probability: float) -> Tensor:
    """0 with this probability, else 1 / (1 - probability), [steps, keys, units]."""
    keys = _checked_keys(keys)
    found = empty((steps, len(keys), units))
    # Rounded as the quotient of two floats.
    scale = 1 / c_float(1 - probability).value
    call = Multiplier(first, steps, len(keys), units, keys.data_ptr(), threshold(probability), scale, found.data_ptr())
    _check(_library().unrolled_multiplier(ctypes.byref(_run()), ctypes.byref(call)))
    return found


def _checked_keys(keys: Tensor) -> Tensor:
    if keys.dim() != 1 or keys.dtype != torch.int64 or not keys.is_cpu:
        raise ValueError(f"keys are {list(keys.shape)} {keys.dtype} on {keys.device}, expected int64 [rows] on the CPU")
    return keys.contiguous()


def product(
    x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor | None = None, *, scratch: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [N, K] times w [K, M], plus bias [M], into `out` or a new tensor; and the scratch, for a next product with w.

    Each sum runs over K in order, starting from the bias: a row's bits depend on nothing but that row.
    """
    x = x if x.stride(1) == 1 and x.stride(0) >= 0 else x.contiguous()
    if 1 not in w.stride():
        w = w.clone(memory_format=torch.contiguous_format)  # `contiguous` leaves axes of one or none as they lie
    _expect_floats(x, w, bias)
    rows, depth, columns = x.shape[0], x.shape[1], w.shape[1]
    out = empty((rows, columns)) if out is None else out
    packed = scratch is not None
    if scratch is None:
        scratch = kept("product", _library().unrolled_product_scratch(depth, columns))
    bias = None if bias is None else bias.contiguous()
    _expect(out, (rows, columns))
    if w.shape[0] != depth or (bias is not None and bias.shape != (columns,)):
        raise ValueError(f"x {list(x.shape)}, w {list(w.shape)} and bias do not fit together")
    call = Product(
        *(rows, depth, columns, x.data_ptr(), x.stride(0), w.data_ptr(), w.stride(0), w.stride(1)),
        *_addresses(bias, out, scratch),
        *(scratch.numel(), packed),
    )
    _check(_library().unrolled_product(ctypes.byref(_run()), ctypes.byref(call)))
    return out, scratch


def weight_gradient(x: Tensor, grad: Tensor, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x^T grad [K, M] and the sum of grad [M], for x [N, K] and grad [N, M]; sums over N in order.

    `skip`, bool [N]: rows of x that count as zeros, whatever they hold.
    """
    x, grad = (value if value.stride(1) == 1 and value.stride(0) >= 0 else value.contiguous() for value in (x, grad))
    _expect_floats(x, grad)
    rows, depth, columns = x.shape[0], x.shape[1], grad.shape[1]
    if grad.shape[0] != rows:
        raise ValueError(f"x {list(x.shape)} and grad {list(grad.shape)} differ in rows")
    if skip is not None:
        skip = skip.contiguous()
        if skip.shape != (rows,) or skip.dtype != torch.bool:
            raise ValueError(f"skip is {list(skip.shape)} {skip.dtype}, expected bool [{rows}]")
    grad_w, grad_bias = empty((depth, columns)), empty((columns,))
    run = _run()
    scratch = kept("weight_gradient", _library().unrolled_weight_gradient_scratch(run.threads))
    call = WeightGradient(
        *(rows, depth, columns, x.data_ptr(), grad.data_ptr(), x.stride(0), grad.stride(0)),
        *_addresses(grad_w, grad_bias, scratch),
        *(scratch.numel(), *_addresses(skip)),
    )
    _check(_library().unrolled_weight_gradient(ctypes.byref(run), ctypes.byref(call)))
    return grad_w, grad_bias


def contiguous(cell: Cell) -> Cell:
    if cell is PLAIN:
        return cell
    return cell.with_tensors([None if value is None else value.contiguous() for value in cell.tensors])


def _projected(w_hr: Tensor | None) -> int:
    """The width of a projected h; 0: it is not."""
    if w_hr is None:
        return 0
    if w_hr.dim() != 2 or 0 in w_hr.shape:
        raise ValueError(f"w_hr is {list(w_hr.shape)}, expected [hidden, projected], each at least 1")
    return w_hr.shape[1]


def cell_struct(cell: Cell, rows: int, hidden: int, width: int) -> CellStruct:
    """A cell as the kernels take it; its tensors are contiguous. `width`: of h."""
    if cell.is_plain:
        return _PLAIN
    if cell.keys is not None and (cell.keys.shape != (rows,) or cell.keys.dtype != torch.int64):
        raise ValueError(f"keys are {list(cell.keys.shape)} {cell.keys.dtype}, expected int64 [{rows}]")
    _expect(cell.h_mask, (rows, width))
    _expect(cell.peephole, (3, hidden))
    _expect(cell.norm, (2, 5, hidden))
    peephole, norm, keys = _addresses(cell.peephole, cell.norm, cell.keys)
    # Without rows the keys lie nowhere, and there is nothing to draw.
    likely = (cell.zoneout_h, cell.zoneout_c, cell.recurrent_dropout) if rows else (0.0, 0.0, 0.0)
    return CellStruct(
        *(peephole, cell.clip, cell.hard_gates, cell.relu, norm, keys, *likely, 1 / (1 - cell.recurrent_dropout)),
        *(threshold(each) for each in likely),
        cell.first,
    )


_PLAIN = CellStruct(scale=1.0)


class _Kept(threading.local):
    def __init__(self) -> None:
        self.blocks: dict[str, Tensor] = {}


_kept = _Kept()


def kept(name: str, floats: int) -> Tensor:
    """Uninitialised memory of at least this size, this thread's own until it asks for the same name again."""
    block = _kept.blocks.get(name)
    if block is None or block.numel() < floats:
        if 4 * floats > _KEPT:
            return empty((floats,))
        # Not the pool's: what goes with a thread's Python state, as that ends, must need no Python to go. And not made
        # in inference mode: it could not be written outside it.
        with torch.inference_mode(False):
            block = _kept.blocks[name] = torch.empty(floats, dtype=torch.float32, device="cpu")
        _advise(block.data_ptr(), block.nbytes)
    return block


def empty(shape: tuple[int, ...]) -> Tensor:
    """Uninitialised float32 memory on the CPU; where it is large, memory that an earlier result has had."""
    return _pool().empty(shape)


@functools.cache
def _pool() -> Pool:
    return Pool(LIMIT, _advise)


def _advise(address: int, size: int) -> None:
    _library().unrolled_advise_large_pages(c_void_p(address), c_int64(size))


@functools.cache
def _library() -> ctypes.CDLL:
    """The library with torch's own threads under it."""
    found = native.library()
    if found is None:
        raise RuntimeError(f"Unrolled has no native library here: {native.missing()}")
    for name in ("forward", "backward", "product", "weight_gradient", "random_words", "multiplier", "row_keys"):
        getattr(found, f"unrolled_{name}").restype = c_char_p
    for name, arguments in (("forward", 2), ("backward", 2), ("product", 2), ("weight_gradient", 1)):
        scratch = getattr(found, f"unrolled_{name}_scratch")
        scratch.restype, scratch.argtypes = c_int64, [c_int64] * arguments
    found.unrolled_use_parallel_for(_parallel_for())
    return found


def _parallel_for() -> c_void_p | None:
    """torch's way into its own threads, or None where it has none that can wait for each other.

    A slot may spin until another one arrives, so all must run at once: OpenMP promises that, a queue of tasks does not.
    """
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).exists():
            function = getattr(ctypes.CDLL(str(folder / name)), "torch_parallel_for", None)
            return None if function is None else ctypes.cast(function, c_void_p)
    return None


def _run() -> Run:
    return Run(_forced, torch.get_num_threads())


def _check(wrong: bytes | None) -> None:
    if wrong is not None:
        raise RuntimeError(f"the native library refused a call: {wrong.decode('ascii')}")


def _expect(value: Tensor | None, shape: tuple[int, ...]) -> None:
    if value is None:
        return
    if value.shape != shape or value.dtype != torch.float32 or not value.is_cpu or not value.is_contiguous():
        raise ValueError(
            f"a kernel got {list(value.shape)} {value.dtype} on {value.device}, expected contiguous float32 "
            f"{list(shape)} on the CPU"
        )


def _expect_floats(*values: Tensor | None) -> None:
    for value in values:
        if value is not None and (value.dtype != torch.float32 or not value.is_cpu):
            raise ValueError(f"a kernel got {value.dtype} on {value.device}, expected float32 on the CPU")


def _masks(masks: tuple[Tensor | None, Tensor | None], steps: int, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """resets as contiguous bytes [T, B], lengths as contiguous int64 [B]."""
    resets, lengths = masks
    if resets is not None:
        resets = resets.contiguous()
        if resets.shape != (steps, rows) or resets.dtype != torch.bool:
            raise ValueError(f"resets is {list(resets.shape)} {resets.dtype}, expected bool [{steps}, {rows}]")
    if lengths is not None:
        lengths = lengths.contiguous()
        if lengths.shape != (rows,) or lengths.dtype != torch.int64:
            raise ValueError(f"lengths is {list(lengths.shape)} {lengths.dtype}, expected int64 [{rows}]")
    return resets, lengths


def _rows_apart(grad: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A cotangent whose last axis is contiguous: what lies batch-first is read as it lies."""
    if grad is None:
        return None
    if grad.shape != shape or grad.dtype != torch.float32 or not grad.is_cpu:
        raise ValueError(f"a cotangent is {list(grad.shape)} {grad.dtype} on {grad.device}, expected {list(shape)}")
    return grad if grad.stride(2) == 1 else grad.contiguous()


def _gradient(grad: Tensor | None) -> Gradient:
    return Gradient(None, 0, 0) if grad is None else Gradient(grad.data_ptr(), grad.stride(0), grad.stride(1))


def _addresses(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if tensor is None else tensor.data_ptr() for tensor in tensors)
