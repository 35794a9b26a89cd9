"""Memory that is taken again: never while a tensor is on it, never beyond the limit, and not told from any other."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import Tensor

from unrolled.recurrence.memory import Pool

MIB = 2**20


def pool(limit: int = 64 * MIB) -> tuple[Pool, list[tuple[int, int]]]:
    fresh: list[tuple[int, int]] = []
    return Pool(limit, lambda address, size: fresh.append((address, size))), fresh


def floats(mib: float) -> tuple[int, int]:
    return int(mib * MIB) // 256, 64


def test_what_a_tensor_had_is_taken_again_when_it_is_gone() -> None:
    ours, fresh = pool()
    first = ours.empty(floats(4))
    address = first.data_ptr()
    second = ours.empty(floats(4))
    assert second.data_ptr() != address
    del first
    assert ours.empty(floats(4)).data_ptr() == address
    assert len(fresh) == 2


def test_not_while_a_view_or_a_graph_is_on_it() -> None:
    ours, _ = pool()
    base = ours.empty(floats(1)).fill_(1.0)
    address = base.data_ptr()
    view = base[3:, 1]
    leaf = torch.ones(64, requires_grad=True)
    product = base.detach() * leaf  # the graph keeps `base` for the backward pass
    del base
    others = [ours.empty(floats(1)).fill_(7.0) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    assert bool((view == 1).all())
    product.sum().backward()
    assert torch.equal(leaf.grad, torch.full((64,), float(floats(1)[0])))
    del view, product
    gc.collect()
    assert ours.empty(floats(1)).data_ptr() == address


def test_blocks_lie_where_large_pages_can() -> None:
    ours, fresh = pool()
    memory = ours.empty(floats(5))
    assert memory.data_ptr() % (2 * MIB) == 0
    assert fresh[0][0] == memory.data_ptr()
    assert fresh[0][1] >= memory.nbytes
    assert memory.untyped_storage().nbytes() == memory.nbytes


def test_small_results_and_empty_ones_are_torchs() -> None:
    ours, fresh = pool()
    for shape in ((), (0,), (3, 0, 5), (7, 5)):
        assert ours.empty(shape).shape == shape
    assert not fresh
    assert ours._held == 0


def test_sizes_that_are_near_share_a_block_and_other_sizes_make_room() -> None:
    ours, _ = pool(limit=16 * MIB)
    address = ours.empty((1000, 4000)).data_ptr()
    assert ours.empty((1000, 3950)).data_ptr() == address
    held = ours._held
    del address
    big = ours.empty(floats(12))  # the idle block has to go for it
    assert ours._held <= 16 * MIB
    assert ours._held != held
    beyond = ours.empty(floats(12))
    assert ours._held <= 16 * MIB
    assert beyond.data_ptr() != big.data_ptr()
    beyond.zero_()


def test_memory_is_filled_where_torch_fills_it() -> None:
    ours, _ = pool()
    ours.empty(floats(1)).fill_(3.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(ours.empty(floats(1)).isnan().all())
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_is_a_tensor_like_any_other() -> None:
    ours, _ = pool()
    values = ours.empty(floats(1)).fill_(2.0)
    copied = copy.deepcopy(values)
    assert copied.data_ptr() != values.data_ptr()
    assert float(values.numpy()[0, 0]) == 2.0
    values.share_memory_()
    assert values.is_shared()
    assert torch.equal(values, copied)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_default_device_changes_nothing(device: str) -> None:
    ours, _ = pool()
    with torch.device(device):
        memory = ours.empty(floats(1))
    assert memory.is_cpu
    assert memory.dtype == torch.float32


def test_threads_never_share_a_block() -> None:
    ours, _ = pool()
    wrong: list[Tensor] = []

    def work(mark: float) -> None:
        for _ in range(200):
            mine = ours.empty(floats(0.5)).fill_(mark)
            if not bool((mine == mark).all()):
                wrong.append(mine)

    threads = [threading.Thread(target=work, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
