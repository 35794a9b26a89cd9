"""Why a run can't go on, in sentences: what happened, what is left, what to try."""

from __future__ import annotations

from pathlib import Path

import torch

from .config import TrainConfig


def begun_elsewhere(run: Path) -> str:
    return (
        f"{run} has a saved model on another machine and none on that of rank 0, which reads and writes it; share the "
        "directory, or make that machine the first: torchrun --node-rank 0 --master-addr HOST --master-port PORT"
    )


def diverged(what: str, config: TrainConfig, last: Path | None) -> str:
    left = f"{last} is the last good model" if last else "no model had been saved yet"
    clip = f"a smaller --clip (it is {config.clip:g})" if config.clip else "gradients clipped, --clip 1"
    return (
        f"{what}: training diverged; {left}. Begin again with a lower --lr (it is {config.lr:g}), a longer --warmup "
        f"(it is {config.warmup}) or {clip}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    # On the CPU torch has no class of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory(step: int, config: TrainConfig, device: torch.device) -> str:
    lanes, lots = config.lanes, config.accumulate
    wider = f"--accumulate {min(2 * lots, lanes)} makes the same step in less, or take " if lots < lanes else "take "
    return (
        f"step {step} of {lanes} lanes x {config.window} tokens does not fit into the memory of {device}; {wider}fewer "
        "--lanes (a run that is there already has to keep both: name another --out)"
    )


def not_saved(step: int, reason: str, newest: Path | None) -> str:
    return (
        f"the last model, of step {step}, could not be saved: {reason}; "
        f"{f'{newest} is the newest one' if newest else 'none has been saved before'}. Make room and give the same "
        "command again: it goes on from there"
    )
