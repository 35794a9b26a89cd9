"""Which backend runs a call, and why each other one does not: a value that can be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.autograd.forward_ad

from . import native

AUTO = "auto"


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run this call; the message has every backend's reason."""


class Call(NamedTuple):
    """What decides where a call can run."""

    device: torch.device
    dtype: torch.dtype
    forward_mode: bool
    strict: bool = False


class Verdict(NamedTuple):
    """One backend's answer to a call: `refusal` is None where it can run it."""

    backend: str
    refusal: str | None
    description: str


@dataclass(frozen=True)
class Choice:
    """The backend that `backend="auto"` takes for a call (None: none can), and every backend's verdict."""

    call: Call
    verdicts: tuple[Verdict, ...]

    @property
    def backend(self) -> str | None:
        return next((verdict.backend for verdict in self.verdicts if verdict.refusal is None), None)

    def __str__(self) -> str:
        mode = ", forward-mode differentiation" if self.call.forward_mode else ""
        mode += ", strict" if self.call.strict else ""
        lines = [f"{str(self.call.dtype).removeprefix('torch.')} on {self.call.device}{mode}"]
        for verdict in self.verdicts:
            if verdict.refusal is not None:
                text = f"cannot run this: {verdict.refusal}"
            elif verdict.backend == self.backend:
                text = f"runs this: {verdict.description}"
            else:
                text = f'on request (backend="{verdict.backend}"): {verdict.description}'
            lines.append(f"  {verdict.backend:<10} {text}")
        return "\n".join(lines)

    __repr__ = __str__


_DESCRIPTIONS = {
    "cpu": "the native kernel, fused and threaded",
    "portable": "fused in plain torch, needs no compiler",
    "reference": "the equations step by step; slow, open to a debugger and to forward mode",
}
NAMES = (AUTO, *_DESCRIPTIONS)


def _missing() -> str | None:
    return native.missing()


# A compiled graph holds the answer: a library does not come or go while it lives. This is what
# torch.compiler.assume_constant_result does, which would load the whole compiler, and sympy, here.
_missing.__dict__["_dynamo_marked_constant"] = True


def _refusal(backend: str, call: Call) -> str | None:
    if not call.dtype.is_floating_point:
        return f"it takes floating-point weights, got {str(call.dtype).removeprefix('torch.')}"
    if backend == "cpu" and (call.device.type != "cpu" or call.dtype != torch.float32):
        return "it takes float32 on the CPU"
    if backend == "cpu" and (missing := _missing()) is not None:
        return missing
    if backend != "cpu" and call.strict:
        return "its products round differently for other row counts"
    if backend != "reference" and call.forward_mode:
        return "it has no forward-mode derivative; the reference has"
    return None


def consider(call: Call) -> Choice:
    """Every backend's verdict on a call, in the order in which "auto" prefers them."""
    return Choice(call, tuple(Verdict(name, _refusal(name, call), text) for name, text in _DESCRIPTIONS.items()))


def choose(requested: str, call: Call) -> str:
    """The backend to run. Raises ValueError for an unknown name, BackendUnavailable where the call cannot run."""
    check_name(requested)
    if requested == AUTO:
        for name in _DESCRIPTIONS:
            if _refusal(name, call) is None:
                return name
    elif _refusal(requested, call) is None:
        return requested
    raise BackendUnavailable(f'backend="{requested}" cannot run this call:\n{consider(call)}')


def check_name(requested: str) -> None:
    if requested not in NAMES:
        raise ValueError(f"backend={requested!r} is not one of {', '.join(NAMES)}")


def forward_mode_active() -> bool:
    """Whether a forward-mode level is open. torch has no public name for this; a test holds it to its meaning."""
    return torch.autograd.forward_ad._current_level >= 0


def backends(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    forward_mode: bool = False,
    strict: bool = False,
) -> Choice:
    """Which backend would run a call with such weights, and why each other one would not; printing it shows a table."""
    return consider(Call(torch.device(device), dtype, forward_mode, strict))
