"""The random bits: known answers, places, the same from every kernel, and statistics."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from worlds import remove_library

from unrolled.recurrence import kernels, masks, native, threefry

SEED = torch.tensor(1997)


def test_threefry_gives_the_words_of_its_authors() -> None:
    """Of the file of known answers that comes with Random123, for 13 rounds."""
    for key, counter, expected in (
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0xFD36D048, 0x2D17272C)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xBA3E4725, 0xF27D669E)),
    ):
        words = [[torch.tensor(word).to(torch.int32) for word in pair] for pair in (key, counter)]
        found = threefry._threefry(tuple(words[0]), tuple(words[1]))
        assert [int(word) % 2**32 for word in found] == list(expected)


def test_row_keys_are_the_outputs_of_splitmix64() -> None:
    keys = threefry.row_keys(torch.tensor(0), torch.arange(3))
    assert [key % 2**64 for key in keys.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x6C45D188009454F]
    of_layer = threefry.row_keys(threefry.of_layer(SEED, 3), torch.arange(2))
    assert torch.equal(of_layer, threefry.row_keys(SEED, torch.arange(2) + 3 * 2**32))


def test_words_depend_on_their_place_alone() -> None:
    keys = threefry.row_keys(SEED, torch.arange(4))
    whole = threefry.words(keys, 0, 9, 11)
    assert torch.equal(threefry.words(keys[2:3], 5, 2, 7), whole[:, 5:7, 2:3, :7])
    assert torch.equal(threefry.words(keys, -1, 2, 3)[:, 1], whole[:, 0, :, :3])
    assert whole.flatten(1).unique(dim=1).shape[1] == 9 * 4 * 11


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("units", [0, 1, 7, 16, 33])
def test_the_operator_gives_the_same_bits(units: int, steps: int) -> None:
    keys = threefry.row_keys(SEED, torch.arange(3))
    for first in (0, 70_000, -3):
        expected = threefry.words(keys, first, steps, units)
        assert torch.equal(masks.random_words(keys, first, steps, units), expected)
        for name in native.instruction_sets():
            with kernels.instruction_set(name):
                assert torch.equal(masks.random_words(keys, first, steps, units), expected), name


@pytest.mark.parametrize("device", ["cpu", "cpu without a library"])
def test_keys_and_multipliers_as_operators(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cpu":
        remove_library(monkeypatch)
    keys = masks.row_keys(SEED, 5, 2**32 - 2)
    assert torch.equal(keys, threefry.row_keys(SEED, torch.arange(5) + 2**32 - 2))
    assert torch.equal(masks.row_keys(torch.tensor(-3), 2), threefry.row_keys(torch.tensor(-3), torch.arange(2)))
    for dtype in (torch.float32, torch.float64):
        for first, steps, units in ((-1, 1, 33), (3, 4, 7), (0, 0, 3), (0, 2, 0)):
            found = torch.ops.unrolled.multiplier(keys, first, steps, units, 0.3, dtype)
            dropped = threefry.below(threefry.words(keys, first, steps, units), 0, threefry.threshold(0.3))
            assert torch.equal(found, (~dropped).to(dtype) / 0.7)


@pytest.mark.parametrize("dim", [0, 1])
def test_mapped_keys_and_multipliers_are_those_of_each(dim: int) -> None:
    seeds = torch.arange(6).reshape(2, 3) + 7
    keys = vmap(vmap(lambda seed: masks.row_keys(seed, 4)))(seeds)
    assert torch.equal(keys[1, 2], masks.row_keys(seeds[1, 2], 4))
    mapped = vmap(lambda each: masks.sequence_mask(each, "h", 9, 0.4, torch.float32), in_dims=dim)(keys[0])
    for k in range(keys.shape[1 + dim]):
        assert torch.equal(mapped[k], masks.sequence_mask(keys[0].select(dim, k), "h", 9, 0.4, torch.float32))


def test_masks_are_random() -> None:
    """How often, and that neither the numbers of a place nor those of neighbours know of each other."""
    words = threefry.words(threefry.row_keys(SEED, torch.arange(16)), 0, 64, 64)
    bits = torch.stack([threefry.below(words, which, threefry.threshold(0.3)) for which in range(4)]).double()
    count = bits[0].numel()
    assert (bits.mean((1, 2, 3)) - 0.3).abs().max() < 4 * (0.21 / count) ** 0.5
    bits = (bits - bits.mean()) / bits.std()
    pairs = [(bits[k], bits[n]) for k in range(4) for n in range(k)]
    pairs += [(bits.narrow(d, 0, bits.shape[d] - 1), bits.narrow(d, 1, bits.shape[d] - 1)) for d in (1, 2, 3)]
    assert max(abs(float((a * b).mean())) for a, b in pairs) < 4.5 * count**-0.5
