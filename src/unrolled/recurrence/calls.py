"""Calls of an `autograd.Function` and of an operator, without what torch's Python around them costs a small layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers

_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether nothing but these tensors has a say in a call: no transform, compiler, autocast, mode or subclass.

    A kernel may then be called as it is, without an operator around it that somebody could see.
    """
    return (
        is_untransformed()
        # torch has no public, or no typed, names for these; tests hold them to their meaning.
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
        and all(value is None or type(value) in _PLAIN_TYPES for value in tensors)
    )


def is_untransformed() -> bool:
    """Whether no transform, compiler or autocast is at work."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        # torch has no public name for this; a test holds it to its meaning.
        and not torch._C._are_functorch_transforms_active()
    )


class Function(torch.autograd.Function):
    """An `autograd.Function` with `setup_context`, whose `apply` takes no keywords.

    torch's reads the signature of `forward` at every call, to fill defaults in: 80 of 95 microseconds
    (docs/experiments.md).
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        # A transform that has ended leaves its wrappers on what it saved; torch's own takes them off here too.
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def below_autograd(operator: Callable[..., Any], *args: Any) -> Any:
    """The operator's kernel, by its dispatch: where a Function, or the backward pass of one, has the derivative.

    What `register_autograd` puts above the kernel would only be passed through, in Python.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*unwrap_dead_wrappers(args))
