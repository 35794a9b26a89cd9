"""Where a run computes and what it draws from: device, threads, random numbers; afterwards all is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .config import ConfigError


def device_named(name: str) -> torch.device:
    """`auto` is a CUDA device if there is one. ConfigError for what can't be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} can't be used: {reason}; --device cpu works everywhere") from None
    return device


@contextmanager
def randomness(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded from (seed, step)."""
    (derived,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(derived))
        yield


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch's number of CPU threads; None leaves it alone."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
