"""The fixtures that other tests trust: poisoned memory, restored settings, seeds."""

from __future__ import annotations

import pytest
import torch
from conftest import settings_kept

FRESH = {
    "empty": lambda like: torch.empty(like.shape, dtype=like.dtype),
    "empty_like": lambda like: torch.empty_like(like),
    "empty_strided": lambda like: torch.empty_strided(like.shape, like.stride(), dtype=like.dtype),
    "new_empty": lambda like: like.new_empty(like.shape),
    "new_empty_strided": lambda like: like.new_empty_strided(like.shape, like.stride()),
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_poisoned_memory_is_nan(make, dtype):
    assert make(torch.zeros(3, 2, dtype=dtype)).isnan().all()


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH.keys())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_poisoned_integers_are_out_of_any_range(make, dtype):
    assert (make(torch.zeros(3, 2, dtype=dtype)) == torch.iinfo(dtype).max).all()


@pytest.mark.usefixtures("poison")
def test_poison_reaches_what_an_operator_allocates():
    @torch.library.custom_op("unrolled_tests::forgets_to_write", mutates_args=())
    def forgets_to_write(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape)

    assert forgets_to_write(torch.zeros(2)).isnan().all()


def test_poison_is_gone_afterwards():
    assert "new_empty" not in vars(torch.Tensor)
    assert torch.empty.__module__ != "conftest"


def test_settings_come_back_after_a_failure_too():
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()

    @settings_kept()
    def careless():
        torch.set_num_threads(before[0] + 1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        careless()
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == before


def test_unseeded_draws_follow_the_printed_seed(request):
    drawn = torch.rand(2)
    generator = torch.Generator().manual_seed(request.config.getoption("randomly_seed", 0))
    assert torch.equal(drawn, torch.rand(2, generator=generator))


def test_an_explicit_seed_is_the_same_in_every_run(seed):
    assert seed == 1997
    assert torch.rand(2).tolist() == torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()
