"""Tensors as a file's bytes: tied ones in full, damage told."""

from pathlib import Path

import pytest
import torch

from unrolled.manifest import CheckpointError
from unrolled.weights import check_shapes, packed, unpacked


def test_tensors_come_back_also_those_that_share_memory() -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {
        "a": whole,
        "tied": whole,
        "row": whole[1],
        "turned": whole.T,
        "empty": torch.zeros(0),
        "none": torch.zeros(0),
    }
    again = unpacked(Path("file"), packed(tensors))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


def test_what_is_no_such_file() -> None:
    for raw in (b"", b"x" * 100, packed({"a": torch.ones(4)})[:-3]):
        with pytest.raises(CheckpointError, match=r"file is not a safetensors file that can be read"):
            unpacked(Path("file"), raw)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "has no tensor a; it is not of this model"),
        ({"a": torch.zeros(3)}, r"a is \[3\], expected \[2\]"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "has a tensor b that this model does not have"),
    ],
)
def test_shapes(found: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_shapes(Path("file"), {"a": torch.Size([2])}, found)
