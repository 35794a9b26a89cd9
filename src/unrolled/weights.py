"""Named tensors to the bytes of a safetensors file and back, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .manifest import CheckpointError


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """One after the other; tensors that share memory, as tied weights do, each in full."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain[name] = value.detach().cpu().contiguous()
        memory = plain[name].untyped_storage().data_ptr()
        if memory in seen:
            plain[name] = plain[name].clone()
        seen.add(memory)
    data: bytes = safetensors.torch.save(plain)
    return data


def unpacked(path: Path, raw: bytes) -> dict[str, Tensor]:
    """The tensors of the file `path`, whose contents are `raw`. CheckpointError where they are something else."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file that can be read ({error})") from None
    return tensors


def check_shapes(path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    """CheckpointError that names the first tensor of a file which is missing, of another shape, or one too many."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{path} has no tensor {name}; it is not of this model")
        if found[name].shape != shape:
            raise CheckpointError(f"{path}: {name} is {list(found[name].shape)}, expected {list(shape)}")
    for name in found:
        if name not in expected:
            raise CheckpointError(f"{path} has a tensor {name} that this model does not have")
