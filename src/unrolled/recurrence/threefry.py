"""Random bits from a counter: what comes out depends on a key and a place alone, never on what was drawn before.

A seed and a row make a key (`row_keys`), by SplitMix64: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014. A key, a step and a unit make two words (`words`), by Threefry-2x32 with 13 rounds, the fewest
that its authors found without a flaw in the tests of TestU01: Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As
Easy as 1, 2, 3", SC 2011. csrc/threefry.h is the same in C++, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 13
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
# 2^64 / phi, and the two factors of SplitMix64, as torch has them: signed.
_GAMMA, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def of_layer(seed: Tensor, layer: int) -> Tensor:
    """The seed of one layer of a stack: its rows' keys lie 2^32 places of SplitMix64's sequence behind the last's."""
    return seed + _signed((layer << 32) * _GAMMA) if layer else seed


def row_keys(seed: Tensor, rows: Tensor) -> Tensor:
    """A key for each of `rows`, numbers below 2^32: the outputs of SplitMix64 that begins with `seed`, all int64."""
    z = seed + (rows + 1) * _GAMMA
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def words(keys: Tensor, first: int, steps: int, units: int) -> Tensor:
    """Two words for each place, int32 [2, steps, keys, units], of the steps from `first` on; `keys` int64 [keys].

    Steps are counted modulo 2^32: -1 is the last.
    """
    # What does not fit is cut off.
    low, high = keys.to(torch.int32), (keys >> 32).to(torch.int32)
    step = torch.arange(first, first + steps, device=keys.device, dtype=torch.int32)
    unit = torch.arange(units, device=keys.device, dtype=torch.int32)
    return torch.stack(_threefry((low.unsqueeze(-1), high.unsqueeze(-1)), (step.reshape(steps, 1, 1), unit)))


def _threefry(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 of words that are broadcast together, all int32."""
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    a, b = torch.broadcast_tensors(counter[0] + key[0], counter[1] + key[1])
    for turn in range(ROUNDS):
        a = a + b
        b = a ^ _rotated(b, _ROTATIONS[turn % 8])
        if turn % 4 == 3:
            into = turn // 4 + 1
            a, b = a + schedule[into % 3], b + schedule[(into + 1) % 3] + into
    return a, b


def below(drawn: Tensor, which: int, threshold: int) -> Tensor:
    """Where the number `which` of four that two words [2, ...] hold, each of 16 bits, is below the threshold."""
    word = drawn.select(0, which // 2)
    return ((word >> 16 if which % 2 else word) & 0xFFFF) < threshold


def threshold(probability: float) -> int:
    """Of 2^16: the probability to the nearest of these steps."""
    return round(probability * 2**16)


def _shifted(value: Tensor, count: int) -> Tensor:
    """To the right, zeros coming in, of int64."""
    return torch.bitwise_and(value >> count, 2 ** (64 - count) - 1)


def _rotated(word: Tensor, count: int) -> Tensor:
    """To the left, of int32."""
    return torch.bitwise_or(word << count, (word >> (32 - count)) & (2**count - 1))


def _signed(value: int) -> int:
    """The int64 with the value's last 64 bits."""
    return (value + 2**63) % 2**64 - 2**63
