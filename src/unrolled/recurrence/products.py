"""The large products around a recurrence, by MKL or by the native library, into memory that is taken again.

The library's own sum each output in one fixed order, whatever rows it is computed with; and on x86 processors that MKL
was not made for they are also the faster ones. Under `torch.func` and in compiled graphs only strict mode takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import kernels, seam
from .calls import Function, below_autograd, is_untransformed

_LIBRARY = torch.library.Library("unrolled", "FRAGMENT")
_LIBRARY.define("product(Tensor x, Tensor w, Tensor? bias, bool strict) -> Tensor")
_LIBRARY.define("weight_gradient(Tensor x, Tensor grad, Tensor? skip, bool with_bias) -> (Tensor, Tensor)")


def linear(x: Tensor, w: Tensor, bias: Tensor, *, native: bool, strict: bool = False) -> Tensor:
    """x [N, K] times w [K, M], plus bias [M].

    `native`: the native library is there, and the operators below may be taken; `strict`: they must be, with its own
    product.
    """
    if strict or (native and _plain_call(x, w)):
        run: Callable[..., Tensor] = torch.ops.unrolled.product if torch.compiler.is_compiling() else _Product.apply
        product: Tensor = run(x, w, bias, strict)
        return product
    return torch.addmm(bias, x, w)


def weight_gradient(x: Tensor, grad: Tensor, skip: Tensor | None) -> Tensor:
    """`seam.weight_gradient`, by the operator where nothing else has a say in it."""
    if _plain_call(x, grad) and not torch.is_grad_enabled():
        gradient: Tensor = torch.ops.unrolled.weight_gradient.default(x, grad, skip, False)[0]
        return gradient
    return seam.weight_gradient(x, grad, skip)


class Inputs:
    """The input's share of pre-activations, chunk by chunk and without gradients: weights are packed once."""

    def __init__(self, w_x: Tensor, bias: Tensor, *, strict: bool) -> None:
        self._w, self._bias = w_x.flatten(1), bias.flatten()
        self._own = are_own(strict)
        self._scratch: Tensor | None = None
        self._table: Tensor | None = None

    def write(self, x: Tensor, out: Tensor) -> Tensor | None:
        """x W_x for `x` [B, T, I], or ids [B, T], into `out` [T, B, 4, H]; what is still to be added, if anything."""
        flat = out.flatten(0, 1).flatten(1)
        if x.dim() == 2:
            torch.index_select(self._rows(x.numel()), 0, x.t().reshape(-1), out=flat)
            return self._bias if self._table is None else None
        x = x.transpose(0, 1).reshape(flat.shape[0], self._w.shape[0])
        if self._own:
            _, self._scratch = kernels.product(x, self._w, self._bias, flat, scratch=self._scratch)
            return None
        torch.mm(x, self._w, out=flat)
        return self._bias

    def _rows(self, looked_up: int) -> Tensor:
        """What ids look up: the weights, or from as many ids on as there are rows a table with the bias in it."""
        if self._table is None and looked_up >= self._w.shape[0]:
            self._table = self._w + self._bias
        return self._w if self._table is None else self._table


def _plain_call(*values: Tensor) -> bool:
    """Whether nothing but this call has a say in the product: no transform, no compiler, no autocast."""
    return all(value.dtype == torch.float32 and value.is_cpu for value in values) and is_untransformed()


class _Product(Function):
    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor, strict: bool) -> Tensor:
        out: Tensor = below_autograd(torch.ops.unrolled.product.default, x, w, bias, strict)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad)
        x, w = ctx.saved_tensors
        for_x, for_w, for_bias, _ = ctx.needs_input_grad
        grad_x = grad_w = grad_bias = None
        if for_x:
            grad_x = below_autograd(torch.ops.unrolled.product.default, grad, w.mT, None, False)
        if for_w or for_bias:
            grad_w, grad_bias = torch.ops.unrolled.weight_gradient.default(x, grad, None, True)
        return grad_x, grad_w, grad_bias, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _map_product(info, in_dims, *args)


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    return *differentiable_gradients(grad, x, w, ctx.needs_input_grad[:3]), None


def differentiable_gradients(
    grad: Tensor, x: Tensor, w: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, w and the bias in `linear`, those that are needed, in torch's own operations, which know their derivatives.

    For a graph of the backward pass itself, and for batched cotangents.
    """
    for_x, for_w, for_bias = needed
    return grad @ w.mT if for_x else None, x.mT @ grad if for_w else None, grad.sum(0) if for_bias else None


def _map_product(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor, bias: Tensor | None, strict: bool
) -> Any:
    x, w = (value if dim is None else value.movedim(dim, 0) for value, dim in zip((x, w), in_dims[:2], strict=True))
    out = x @ w
    if bias is not None:
        out = out + (bias if in_dims[2] is None else bias.movedim(in_dims[2], 0).unsqueeze(1))
    return out, 0


def _map_weight_gradient(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, grad: Tensor, skip: Tensor | None, with_bias: bool
) -> Any:
    x, grad = (value if dim is None else value.movedim(dim, 0) for value, dim in zip((x, grad), in_dims, strict=False))
    if skip is not None and in_dims[2] is not None:
        skip = skip.movedim(in_dims[2], 0)
    grad_w, grad_bias = seam.weight_gradient(x, grad, skip), grad.sum(-2)
    if grad_w.dim() > grad_bias.dim() + 1:
        grad_bias = grad_bias.expand(info.batch_size, -1)
    if not with_bias:
        grad_bias = grad_bias[..., :0]
    return (grad_w, grad_bias), (0, 0)


def are_own(strict: bool) -> bool:
    """Whether products are the library's, whose sums start from the bias; behind torch's the recurrence adds it."""
    return strict or kernels.prefers_own_products()


def product(x: Tensor, w: Tensor, bias: Tensor | None, strict: bool, out: Tensor | None = None) -> Tensor:
    """`linear` without derivatives, `bias` None being zeros, into `out` or a new tensor: what the operator does."""
    out = kernels.empty((x.shape[0], w.shape[1])) if out is None else out
    if are_own(strict):
        return kernels.product(x, w, bias, out)[0]
    torch.mm(x, w, out=out)
    # addmm writes the bias into every row first, for the product to add to: up to a fifth slower.
    return out if bias is None else out.add_(bias)


def weight_gradients(x: Tensor, grad: Tensor, skip: Tensor | None, with_bias: bool) -> tuple[Tensor, Tensor]:
    """`weight_gradient` without derivatives, and the gradient of a bias or an empty tensor for it: the operator."""
    if kernels.prefers_own_products():
        grad_w, grad_bias = kernels.weight_gradient(x, grad, skip)
        return grad_w, grad_bias if with_bias else grad_bias.new_empty(0)
    if skip is not None:
        # Not masked_fill, which takes fresh memory, and at 4,096 rows of 256 twice the time (docs/experiments.md).
        x = kernels.empty((x.shape[0], x.shape[1])).copy_(x).index_fill_(0, skip.nonzero().squeeze(-1), 0)
    grad_w = torch.mm(x.t(), grad, out=kernels.empty((x.shape[1], grad.shape[1])))
    return grad_w, grad.sum(0) if with_bias else grad.new_empty(0)


_LIBRARY.impl("product", product, "CompositeExplicitAutograd")
_LIBRARY.impl("weight_gradient", weight_gradients, "CompositeExplicitAutograd")
torch.library.register_fake(
    "unrolled::product", lambda x, w, bias, strict: x.new_empty(x.shape[0], w.shape[1]), lib=_LIBRARY
)
torch.library.register_fake(
    "unrolled::weight_gradient",
    lambda x, grad, skip, with_bias: (
        x.new_empty(x.shape[1], grad.shape[1]),
        x.new_empty(grad.shape[1] if with_bias else 0),
    ),
    lib=_LIBRARY,
)
torch.library.register_autograd(
    "unrolled::product", _differentiable_backward, setup_context=_Product.setup_context, lib=_LIBRARY
)
torch.library.register_vmap("unrolled::product", _map_product, lib=_LIBRARY)
torch.library.register_vmap("unrolled::weight_gradient", _map_weight_gradient, lib=_LIBRARY)
