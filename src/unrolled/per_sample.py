"""Per-sample gradients for Opacus: how its hooks get those of an `LSTMLayer`'s twelve parameters.

They differ from the sum over the batch in one thing: the products of each row are kept apart. dL/dpre_t of all rows and
steps passes by in the backward pass that there is anyway; from it, one batched product each gives x_t^T dL/dpre_t and
h_{t-1}^T dL/dpre_t, summed over time for each row.

Opacus' hooks see a module's positional arguments and the gradient of its first result. Masks are neither, and c is the
second result; what `prepare` puts in sees to both.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import recurrence
from .cell_options import IN_THE_LAYER
from .layer import GATES, LSTMLayer
from .own_cell import name_of
from .stack import MultiLayerLSTM


@dataclass(eq=False)
class _Call:
    """What a call was given, apart from x, and what passed by in its backward pass."""

    h0: Tensor | None
    c0: Tensor | None
    resets: Tensor | None
    lengths: Tensor | None
    h: Tensor | None = None
    grad_h: Tensor | None = None
    dpre: Tensor | None = None

    def follow(self, scanned: recurrence.Scanned) -> None:
        """Keep h, and, as they come, the gradients of h and of the pre-activations."""
        assert scanned.pre is not None
        self.h, place = scanned.h.detach(), scanned.pre.output_nr
        scanned.h.register_hook(self._keep_grad_h)
        scanned.pre.node.register_prehook(lambda grads: self._keep_dpre(grads[place]))

    def _keep_grad_h(self, grad: Tensor) -> None:
        self.grad_h = grad

    def _keep_dpre(self, grad: Tensor) -> None:
        self.dpre = grad.transpose(0, 1).flatten(2)


# Parallel to the list of activations that Opacus keeps in a layer while a backward pass is outstanding.
_CALLS: WeakKeyDictionary[nn.Module, list[_Call]] = WeakKeyDictionary()


def prepare(model: nn.Module) -> nn.Module:
    """Make every `LSTMLayer` in `model` ready for Opacus, in place; call it before `make_private`. Returns `model`.

    Raises ImportError without Opacus, TypeError for a layer of a derived class, parametrised ones among them, and
    ValueError for a strict stack, whose projection no hook sees.
    """
    try:
        from opacus.grad_sample import register_grad_sampler  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise ImportError("opacus is not installed: pip install 'unrolled[opacus]'") from None
    layers = [module for module in model.modules() if isinstance(module, LSTMLayer)]
    for layer in layers:
        if type(layer) is not LSTMLayer:
            raise TypeError(
                f"Opacus goes by a module's class, and {type(layer).__name__} is not LSTMLayer itself: take a "
                "parametrisation off first (torch.nn.utils.parametrize.remove_parametrizations), or use "
                "torch.func.vmap(torch.func.grad(loss)), which takes both"
            )
        own = "" if layer.cell is None else f"cell={name_of(layer.cell)}"
        if changed := own or layer.options.changed(IN_THE_LAYER):
            raise ValueError(
                f"a layer has {changed}, and Opacus' hooks here know the twelve parameters of a plain layer; use "
                "torch.func.vmap(torch.func.grad(loss)), which takes any"
            )
        if layer.proj_dim is not None:
            raise ValueError(
                f"a layer has proj_dim={layer.proj_dim}, and Opacus' hooks here know the twelve parameters of a layer "
                "without a projection of h; use torch.func.vmap(torch.func.grad(loss)), which takes both"
            )
    for module in model.modules():
        if isinstance(module, MultiLayerLSTM) and module.strict and module.proj is not None:
            raise ValueError("Opacus does not see the projection of a strict stack: model.strict = False")
    register_grad_sampler(LSTMLayer)(_per_sample)
    for layer in layers:
        if _arrange not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_arrange, with_kwargs=True)
            layer.register_full_backward_pre_hook(_refuse_c)
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    return model


def _arrange(layer: LSTMLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Leave Opacus x and h0 alone: it takes the first axis of all positional arguments for the batch.

    An h0 that requires gradients has its hook wait for the end of this layer's backward pass, when dL/dpre is there.
    """
    given = dict(zip(("x", "h0", "c0"), args, strict=False)) | kwargs
    if "x" not in given or not _followed(layer):
        return None
    x, masks = given.pop("x"), {name: given.get(name) for name in ("resets", "lengths")}
    h0, c0 = layer._initial(x, given.pop("h0", None), given.pop("c0", None), **masks)
    return (x, h0 if h0.requires_grad else h0.detach().requires_grad_()), {"c0": c0, **given}


def _forward(
    layer: LSTMLayer,
    x: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`LSTMLayer.forward`, followed where Opacus follows it."""
    if not _followed(layer):
        return LSTMLayer.forward(layer, x, h0, c0, resets=resets, lengths=lengths)
    call = _Call(*(None if value is None else value.detach() for value in (h0, c0, resets, lengths)))
    calls = _CALLS.setdefault(layer, [])
    # What lies behind belongs to passes that Opacus did not follow, or has dropped.
    del calls[_outstanding(layer) :]
    calls.append(call)
    if layer.recompute:
        return LSTMLayer.forward(layer, x, h0, c0, resets=resets, lengths=lengths)
    scanned = _scan(layer, x, h0, c0, resets, lengths)
    call.follow(scanned)
    return scanned.h, scanned.c


def _followed(layer: nn.Module) -> bool:
    return layer.training and torch.is_grad_enabled()


def _outstanding(layer: nn.Module) -> int:
    """How many calls Opacus has followed and not yet seen the backward pass of."""
    activations: Any = getattr(layer, "activations", ())
    return len(activations)


def _refuse_c(layer: nn.Module, grads: tuple[Tensor | None, ...] | Tensor) -> None:
    grad_c = grads[1]
    if grad_c is not None and bool(grad_c.any()):
        raise RuntimeError(
            "the loss depends on c, and Opacus passes on the gradient of a module's first result alone, which is h: "
            "compute the loss from h, or take per-sample gradients by torch.func.vmap(torch.func.grad(loss)), which "
            "follows both"
        )


@torch.no_grad()
def _per_sample(layer: LSTMLayer, activations: list[Tensor], grad_h: Tensor) -> dict[nn.Parameter, Tensor]:
    """The gradients of each parameter that requires them, [batch, ...], from dL/dh [batch, time, hidden]."""
    calls, at = _CALLS.get(layer, []), _outstanding(layer)
    if at >= len(calls):
        raise RuntimeError(
            "this layer was called before it was prepared for Opacus: unrolled.per_sample.prepare(model), once, before "
            "make_private"
        )
    call, x = calls[at], activations[0]
    del calls[at:]
    h, dpre = _pre_activations(layer, x, call, grad_h)
    h0 = h.new_zeros(h.shape[0], h.shape[2]) if call.h0 is None else call.h0
    before = torch.cat((h0.unsqueeze(1), h), 1)[:, :-1]
    if call.resets is not None:
        before = before.masked_fill(call.resets.unsqueeze(-1), 0)
    if call.lengths is not None:
        ended = (torch.arange(x.shape[1], device=x.device) >= call.lengths.unsqueeze(1)).unsqueeze(-1)
        # There dL/dpre is 0, and x and the state before a row of no steps may be NaN.
        before, x = before.masked_fill(ended, 0), x.masked_fill(ended.reshape(*x.shape[:2], *(1,) * (x.dim() - 2)), 0)
    found = {"W_x": _outer(x, dpre, layer.input_dim), "W_h": before.mT @ dpre, "b_": dpre.sum(1)}
    return {
        parameter: each
        for kind, gradient in found.items()
        for gate, each in zip(GATES, gradient.unflatten(-1, (4, -1)).unbind(-2), strict=True)
        if (parameter := layer.get_parameter(f"{kind}{gate}")).requires_grad
    }


def _pre_activations(layer: LSTMLayer, x: Tensor, call: _Call, grad_h: Tensor) -> tuple[Tensor, Tensor]:
    """h [B, T, H] and dL/dpre [B, T, 4H] of the call."""
    if call.h is not None and call.dpre is not None and call.grad_h is not None:
        # Of a mean over the batch Opacus makes the sum, outside the backward pass.
        rows: Any = layer.max_batch_len
        return call.h, call.dpre if torch.equal(grad_h, call.grad_h) else call.dpre * rows
    # Gates that were not kept, or that no gradient came to, are made once more.
    with torch.enable_grad():
        scanned = _scan(layer, x, call.h0, call.c0, call.resets, call.lengths)
        assert scanned.pre is not None
        (dpre,) = torch.autograd.grad([scanned.h], [scanned.pre], [grad_h])
    return scanned.h.detach(), dpre.transpose(0, 1).flatten(2)


def _scan(
    layer: LSTMLayer,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    lengths: Tensor | None,
) -> recurrence.Scanned:
    """The layer's call, with the gradient of its pre-activations to be had whatever is frozen."""
    h0, c0 = layer._initial(x, h0, c0, resets, lengths)
    w_x, w_h, bias = layer._weights()
    bias = bias if bias.requires_grad else bias.requires_grad_()
    return recurrence.scan(
        *(x, w_x, w_h, bias, h0, c0), resets=resets, lengths=lengths, backend=layer.backend, strict=layer.strict
    )


def _outer(x: Tensor, dpre: Tensor, width: int) -> Tensor:
    """The sum over time of x_t^T dpre_t for each row, [B, I, 4H]; ids are one-hot rows."""
    if x.dim() == 3:
        return x.mT @ dpre
    sums = dpre.new_zeros(x.shape[0], width, dpre.shape[-1])
    return sums.scatter_add_(1, x.long().unsqueeze(-1).expand_as(dpre), dpre)
