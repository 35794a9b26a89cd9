"""Where a run computes and what it draws from: device, threads, random numbers; afterwards all is as it was."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .config import ConfigError


def device_named(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` is a CUDA device if there is one. ConfigError for what can't be used here.

    With a `local_rank`, that of the ranks on this machine, each takes a CUDA device of its own, whichever is named.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local_rank is not None and name.startswith("cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} can't be used: {reason}; --device cpu works everywhere") from None
    return device


def check_autocast(device: torch.device) -> None:
    """ConfigError where bfloat16 would only be emulated, and slower than float32."""
    if device.type == "cuda":
        native, what = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    else:
        x86 = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
        native, what = not x86 or torch.cpu._is_avx512_bf16_supported(), "this processor"
    if not native:
        raise ConfigError(
            f"autocast=bfloat16 gains nothing here: {what} has no instructions for it and would emulate them; leave "
            "--autocast out"
        )


@contextmanager
def randomness(seed: int, step: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Torch's generators seeded from (seed, step), and from the rank where there are several."""
    (derived,) = np.random.SeedSequence([seed, step, *([rank] if rank else [])]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(derived))
        yield


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch's number of CPU threads; None leaves it alone. ConfigError for less than one."""
    if count is not None and count < 1:
        raise ConfigError(f"threads must be at least 1, got {count}")
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
