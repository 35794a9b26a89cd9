"""A carried state whose rows begin afresh; carried states with lanes, masks and episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recurrent_models import MODELS, ROWS, TIME, Ours, gradients, rows_of, sequences, tensors
from torch import nn

from unrolled import CarriedState, Lanes, LanguageModel, LSTMState, ModelConfig, Split, TimeWindows, nats


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return request.param()


def test_reset_starts_every_row_from_zeros_with_any_batch(model: nn.Module):
    x, _ = sequences()
    carried = CarriedState()
    _, carried.state = model(x, carried.state)
    carried.reset()
    assert carried.state is None
    output, carried.state = model(x[:2], carried.state)
    assert torch.equal(output, model(x[:2])[0])


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([True, False, True]),
        np.array([True, False, True]),
        [True, False, True],
        [0, 2],
        [-3, -1],
        torch.tensor([0, 2]),
        torch.tensor([2, 0], dtype=torch.int32),
        np.array([0, 2]),
        slice(None, None, 2),
        range(0, 3, 2),
    ],
    ids=repr,
)
def test_reset_rows_start_from_zeros_and_others_go_on(model: nn.Module, rows):
    x, _ = sequences()
    carried = CarriedState()
    _, carried.state = model(x[:, :9], carried.state)
    before = tensors(carried.state)
    carried.reset(rows)
    for old, new in zip(before, tensors(carried.state), strict=True):
        assert torch.equal(rows_of(new)[1], rows_of(old)[1])
        assert (rows_of(new)[[0, 2]] == 0).all()
        assert (rows_of(old) != 0).any(), "the numbers that a graph may need stay"
    whole, fresh = model(x)[0], model(x[:, 9:])[0]
    output, _ = model(x[:, 9:], carried.state)
    torch.testing.assert_close(output[[0, 2]], fresh[[0, 2]], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(output[1], whole[1, 9:], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "rows", [[], slice(0, 0), torch.zeros(0, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.bool)], ids=repr
)
def test_resetting_no_rows_changes_nothing(rows):
    carried, state = CarriedState(), LSTMState(torch.randn(1, ROWS, 2), torch.randn(1, ROWS, 2))
    carried.reset(rows)
    assert carried.state is None
    carried.state = state
    carried.reset(rows)
    assert all(map(torch.equal, carried.state, state))


@pytest.mark.parametrize("row", [1, np.int64(1), torch.tensor(1), -2])
def test_one_row_is_a_number(row):
    carried = CarriedState()
    carried.state = torch.ones(ROWS, 2)
    carried.reset(row)
    assert carried.state.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_resets_are_by_selection():
    carried = CarriedState()
    carried.state = torch.tensor([[float("nan"), float("inf")], [1.0, 2.0]])
    carried.reset([0])
    assert carried.state.tolist() == [[0, 0], [1, 2]]


def test_a_window_can_go_backward_after_its_rows_were_reset(model: nn.Module):
    """Episodes end while the last window's loss is still to be taken."""
    x, y = sequences()
    carried = CarriedState()
    output, carried.state = model(x, carried.state)
    carried.reset([0])
    (output - y).square().sum().backward()
    found = gradients(model)
    model.zero_grad()
    (model(x)[0] - y).square().sum().backward()
    assert all(map(torch.equal, found, gradients(model)))


def test_the_batch_axis_can_be_told():
    carried = CarriedState(batch_axis=0)
    carried.state = {"map": torch.ones(2, 3, 4, 5), "h": torch.ones(2, 3, 6)}
    carried.reset(torch.tensor([False, True]))
    assert carried.state["map"].sum((1, 2, 3)).tolist() == [60, 0]
    assert carried.state["h"].sum((1, 2)).tolist() == [18, 0]


@pytest.mark.parametrize(
    ("axis", "shape", "message"),
    [
        (None, (2, 3, 4, 5), r"\[2, 3, 4, 5\]; reset\(rows\) has to know .*: CarriedState\(batch_axis=\.\.\.\)"),
        (None, (3,), r"a tensor \[3\]; reset"),
        (2, (2, 3), r"a tensor \[2, 3\], and batch_axis=2 is none of its axes; reset"),
    ],
)
def test_an_unknown_batch_axis_is_refused(axis, shape, message):
    carried = CarriedState(batch_axis=axis)
    carried.state = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        carried.reset([0])
    carried.reset()


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.tensor([True, False]), ValueError, r"rows is bool \[2\], expected a bool for each .* rows: \[3\]"),
        (True, ValueError, r"rows is bool \[\], expected a bool for each"),
        (torch.tensor([1.0, 0.0, 0.0]), TypeError, r"rows is float32 \[3\]: flags are rows\.bool\(\), and .*long\(\)"),
        (torch.tensor([1, 0, 0], dtype=torch.uint8), TypeError, r"rows is uint8 \[3\]: flags are rows\.bool\(\)"),
        (torch.tensor([1, 0, 0]), ValueError, r"rows \[1, 0, 0\] name a row twice; .* bool: rows\.bool\(\)"),
        ([0, -3], ValueError, r"rows \[0, -3\] name a row twice"),
        ([0, 3], IndexError, r"rows \[0, 3\] do not all exist: the state has 3 rows, counted from 0"),
        (-4, IndexError, r"rows \[-4\] do not all exist"),
        ("all", TypeError, "rows is 'all', expected a bool for each row, or the numbers of rows"),
        ([None], TypeError, r"rows is \[None\], expected"),
    ],
)
def test_rows_that_cannot_be_are_refused_and_the_state_stays(rows, error, message):
    carried, state = CarriedState(), LSTMState(torch.randn(2, ROWS, 2), torch.randn(2, ROWS, 2))
    carried.state = state
    with pytest.raises(error, match=message):
        carried.reset(rows)
    assert all(map(torch.equal, carried.state, state))


def test_a_language_model_over_lanes_scores_what_one_pass_does():
    torch.manual_seed(1)
    ids = np.random.default_rng(0).integers(11, size=201).astype(np.uint8)
    lanes = Lanes(Split(ids, np.array([0])), 1, 8, seed=0)
    model = LanguageModel(ModelConfig(11, hidden=6, embedding=3), dtype=torch.float64)
    carried, total = CarriedState(), 0.0
    for index in range(lanes.windows_per_epoch):
        window = lanes.window(0, index)
        logits, carried.state = model(window.inputs, carried.state, resets=window.resets)
        total += nats(logits, window.targets, window.scored).item()
    begin, steps = lanes.offset(0), 8 * lanes.windows_per_epoch
    stretch = torch.from_numpy(ids[begin : begin + steps + 1].astype(np.int64))[None]
    logits, _ = model(stretch[:, :-1], resets=torch.arange(begin, begin + steps)[None] == 0)
    assert total == pytest.approx(nats(logits, stretch[:, 1:]).item(), rel=1e-10)


def test_sequences_of_several_lengths_go_through_as_a_mask():
    model, (x, _) = Ours(), sequences()
    lengths = torch.tensor([23, 9, 4])
    valid = torch.arange(TIME) < lengths[:, None]
    carried, output = CarriedState(), []
    for x_part, valid_part in TimeWindows(x, valid, length=5):
        part, carried.state = model(x_part, carried.state, lengths=valid_part.sum(1))
        output.append(part)
    expected, state = model(x, lengths=lengths)
    torch.testing.assert_close(torch.cat(output, 1)[valid], expected[valid], rtol=1e-12, atol=1e-14)
    assert all(map(torch.equal, carried.state, state))


def test_episodes_that_end_while_acting_are_those_that_end_while_training():
    """Acting, one step at a time: rows are reset as episodes end. Training on the rollout: the same as `resets`."""
    model, (x, _) = Ours(), sequences()
    done = torch.rand(ROWS, TIME, generator=torch.Generator().manual_seed(0)) < 0.2
    assert done[:, :-1].any()
    carried, acted = CarriedState(), []
    with torch.inference_mode():
        for step in range(TIME):
            output, carried.state = model(x[:, step : step + 1], carried.state)
            acted.append(output)
            carried.reset(done[:, step])
    begins = torch.cat([torch.zeros(ROWS, 1, dtype=torch.bool), done[:, :-1]], dim=1)
    learning, trained = CarriedState(), []
    for x_part, begins_part in TimeWindows(x, begins, length=6):
        output, learning.state = model(x_part, learning.state, resets=begins_part)
        trained.append(output)
    torch.testing.assert_close(torch.cat(acted, 1), torch.cat(trained, 1), rtol=1e-12, atol=1e-14)
    learning.reset(done[:, -1])
    for mine, theirs in zip(carried.state, learning.state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
