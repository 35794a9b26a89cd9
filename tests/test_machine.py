"""Device, threads, random numbers, and bfloat16 where it gains."""

import platform

import pytest
import torch

from unrolled import machine
from unrolled.config import ConfigError
from unrolled.machine import check_autocast, device_named, randomness, threads


def test_the_same_place_draws_the_same_and_another_does_not() -> None:
    cpu, drawn = torch.device("cpu"), []
    before = torch.get_rng_state()
    for seed, step in ((1, 2), (1, 2), (2, 1), (1, 3)):
        with randomness(seed, step, cpu):
            drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_come_back_also_after_an_error() -> None:
    torch.set_num_threads(1)
    seen = []

    def failing() -> None:
        seen.append(torch.get_num_threads())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), threads(2):
        failing()
    assert seen == [2]
    assert torch.get_num_threads() == 1


def test_auto_is_what_there_is() -> None:
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_named("cpu") == torch.device("cpu")


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"autocast=bfloat16 gains nothing here: this processor has no instructions"):
        check_autocast(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    check_autocast(torch.device("cpu"))
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    check_autocast(torch.device("cpu"))
    assert platform.machine() == "aarch64"
