"""The state's own methods on printed numbers: what is chosen, what is shared, what hangs on the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unrolled.state import LSTMState, mapped


def counted() -> LSTMState:
    """h counts 0 to 23 over [2 layers, 3 rows, 4 units]; c is 100 more."""
    h = torch.arange(24.0).reshape(2, 3, 4)
    return LSTMState(h, h + 100)


def test_zeros_has_the_shape_dtype_and_device_that_were_asked_for() -> None:
    state = LSTMState.zeros(2, 3, 4, device="cpu", dtype=torch.float64)
    for part in state:
        assert part.shape == (2, 3, 4)
        assert part.dtype == torch.float64
        assert not part.any()
        assert not part.requires_grad
    assert LSTMState.zeros(1, 1, 1).h.dtype == torch.get_default_dtype()
    assert LSTMState.zeros(1, 1, 1, device="meta").c.device.type == "meta"
    assert LSTMState.zeros(2, 0, 4).h.shape == (2, 0, 4)


def test_zeros_of_h_and_c_are_separate_memory() -> None:
    state = LSTMState.zeros(1, 2, 3)
    state.h.fill_(1)
    assert not state.c.any()


def test_it_is_a_pair_with_names() -> None:
    state = counted()
    h, c = state
    assert h is state.h
    assert c is state.c
    assert state[0] is h
    assert isinstance(state, tuple)
    assert len(state) == 2
    assert LSTMState(c=c, h=h).h is h


def test_detach_keeps_the_numbers_and_leaves_the_graph() -> None:
    leaf = torch.randn(1, 2, 3, requires_grad=True)
    state = LSTMState(leaf * 2, leaf * 3)
    detached = state.detach()
    assert isinstance(detached, LSTMState)
    for part, original in zip(detached, state, strict=True):
        assert not part.requires_grad
        assert torch.equal(part, original)
        assert part.data_ptr() == original.data_ptr()
    assert state.h.requires_grad


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (2, [2]),
        (-1, [2]),
        (-3, [0]),
        (np.int64(1), [1]),
        (torch.tensor(1), [1]),
        (torch.tensor(-1, dtype=torch.int32), [2]),
        (slice(0, 2), [0, 1]),
        (slice(None, None, 2), [0, 2]),
        (slice(5, 9), []),
        ([2, 0], [2, 0]),
        ([1, 1, -1], [1, 1, 2]),
        ([], []),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([1]), [1]),
        (torch.tensor([0, 0], dtype=torch.int32), [0, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([False, False, False]), []),
        (np.array([2, 0]), [2, 0]),
    ],
    ids=repr,
)
def test_rows_picks_the_batch_rows_and_keeps_the_axis(index: Any, rows: list[int]) -> None:
    state = counted()
    chosen = state.rows(index)
    assert isinstance(chosen, LSTMState)
    for part, original in zip(chosen, state, strict=True):
        expected = [[original[layer, row].tolist() for row in rows] for layer in range(2)]
        assert part.shape == (2, len(rows), 4)
        assert part.tolist() == expected


@pytest.mark.parametrize("index", [3, -4, np.int64(3), torch.tensor(7)], ids=repr)
def test_a_row_that_does_not_exist_is_named(index: Any) -> None:
    with pytest.raises(IndexError, match=rf"row {int(index)} does not exist: the state has 3 rows, counted from 0"):
        counted().rows(index)


def test_no_row_exists_in_an_empty_state() -> None:
    with pytest.raises(IndexError, match="row 0 does not exist: the state has 0 rows"):
        LSTMState.zeros(2, 0, 4).rows(0)


@pytest.mark.parametrize(
    "index", [[0, 3], torch.tensor([5]), torch.tensor([True, False]), torch.tensor([True])], ids=repr
)
def test_lists_and_masks_that_do_not_fit_raise_index_errors(index: Any) -> None:
    with pytest.raises(IndexError):
        counted().rows(index)


def test_gradients_flow_through_the_chosen_rows_alone() -> None:
    h, c = (torch.zeros(2, 3, 4, requires_grad=True) for _ in range(2))
    chosen = LSTMState(h, c).rows([2, 2, 0])
    (chosen.h.sum() + 10 * chosen.c.sum()).backward()
    assert h.grad is not None
    assert c.grad is not None
    assert h.grad[:, :, 0].tolist() == [[1, 0, 2], [1, 0, 2]]
    assert c.grad[:, :, 0].tolist() == [[10, 0, 20], [10, 0, 20]]


def test_to_converts_both_and_keeps_what_already_fits() -> None:
    state = counted()
    doubled = state.to(torch.float64)
    assert isinstance(doubled, LSTMState)
    assert doubled.h.dtype == doubled.c.dtype == torch.float64
    assert torch.equal(doubled.c.float(), state.c)
    assert state.to("meta").h.device.type == "meta"
    assert state.to(device="cpu", dtype=torch.bfloat16).c.dtype == torch.bfloat16
    same = state.to("cpu")
    assert same.h is state.h
    copied: Tensor = state.to("cpu", copy=True).h
    assert copied.data_ptr() != state.h.data_ptr()


def test_mapped_keeps_the_form_and_reaches_every_tensor() -> None:
    one = torch.ones(2)
    state = {"lstm": LSTMState(one, 2 * one), "more": [(3 * one, None), 4 * one]}
    found = mapped(state, lambda tensor: tensor * 10)
    assert type(found["lstm"]) is LSTMState
    assert found["lstm"].c.tolist() == [20, 20]
    assert type(found["more"]) is list
    assert type(found["more"][0]) is tuple
    assert found["more"][0][0].tolist() == [30, 30]
    assert found["more"][0][1] is None
    assert found["more"][1].tolist() == [40, 40]
    assert one.tolist() == [1, 1]
    with pytest.raises(TypeError, match="made of tensors in tuples, lists and dicts, and this one has str"):
        mapped((one, "h"), torch.neg)
