"""Windows over time, the state that goes between them, and where its gradient ends."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recurrent_models import (
    MODELS,
    ROWS,
    TIME,
    WIDTH,
    Cells,
    Nested,
    Ours,
    Torchs,
    by_windows,
    gradients,
    sequences,
    tensors,
)
from torch import Tensor, nn

from unrolled import CarriedState, LSTMState, TimeWindows


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return request.param()


@given(steps=st.integers(0, 40), length=st.integers(1, 45), burn_in=st.integers(0, 45))
def test_windows_cover_each_step_once_and_have_what_came_before(steps: int, length: int, burn_in: int):
    x = torch.arange(2 * steps).view(2, steps)
    y = torch.arange(2 * steps * 3).view(2, steps, 3)
    windows = TimeWindows(x, y, length=length, burn_in=burn_in)
    found = list(windows)
    assert len(windows) == len(found) == -(-steps // length)
    begin = 0
    for window in found:
        x_part, y_part = window
        end = min(begin + length, steps)
        assert torch.equal(x_part, x[:, begin:end])
        assert torch.equal(y_part, y[:, begin:end])
        assert torch.equal(window.before[0], x[:, max(0, begin - burn_in) : begin])
        assert torch.equal(window.before[1], y[:, max(0, begin - burn_in) : begin])
        begin = end
    assert begin == steps


def test_windows_are_a_sequence_of_views():
    x = torch.zeros(ROWS, 10)
    windows = TimeWindows(x, length=4)
    (last,) = windows[-1]
    last[1, 0] = 7
    assert x[1, 8] == 7
    assert [part.shape[1] for (part,) in windows] == [part.shape[1] for (part,) in windows] == [4, 4, 2]
    assert [part.shape[1] for (part,) in windows[1:]] == [4, 2]
    assert [part.shape[1] for (part,) in reversed(windows)] == [2, 4, 4]
    with pytest.raises(IndexError, match="no window 3: there are 3, counted from 0"):
        windows[3]


@pytest.mark.parametrize(
    ("given", "keywords", "error", "message"),
    [
        ([], {"length": 5}, TypeError, r"one or more tensors \[batch, time, \.\.\.\]: TimeWindows\(x, y, length=50\)"),
        ([(2, 9)], {"length": 0}, ValueError, "length=0 must be at least 1"),
        ([(2, 9)], {"length": 5, "burn_in": -1}, ValueError, "burn_in=-1 must be at least 0"),
        ([(2, 9)], {"length": 5.0}, TypeError, "length is 5.0, expected a whole number: the steps through"),
        ([(2, 9), (9,)], {"length": 5}, ValueError, r"tensor 1 is \[9\], expected .*: one sequence alone is x\[None\]"),
        (
            [(2, 9), (2, 8)],
            {"length": 5},
            ValueError,
            r"tensor 1 is \[2, 8\] and tensor 0 is \[2, 9\], expected the same batch and time",
        ),
        ([(2, 9), (3, 9)], {"length": 5}, ValueError, r"tensor 1 is \[3, 9\] and tensor 0 is \[2, 9\]"),
    ],
)
def test_what_cannot_be_cut_is_refused(given, keywords, error, message):
    with pytest.raises(error, match=message):
        TimeWindows(*(torch.zeros(shape) for shape in given), **keywords)


def test_an_array_is_refused():
    with pytest.raises(TypeError, match=r"tensor 1 is ndarray, expected .*: torch\.as_tensor\(\.\.\.\)"):
        TimeWindows(torch.zeros(2, 9), np.zeros((2, 9)), length=5)


def test_a_nested_tensor_is_refused():
    nested = torch.nested.nested_tensor([torch.zeros(3, 2), torch.zeros(4, 2)], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"tensor 0 is a nested tensor; pad it, x\.to_padded_tensor\(0\)"):
        TimeWindows(nested, length=5)


@pytest.mark.parametrize("length", [1, 5, 7, 22])
def test_the_gradient_is_that_of_a_loop_that_detaches(model: nn.Module, length: int):
    x, y = sequences()
    loss, found = by_windows(model, x, y, length)

    def detached(part):
        if isinstance(part, Tensor):
            return part.detach()
        if isinstance(part, Nested):
            return Nested([(h.detach(), c.detach()) for h, c in part.layers], part.count)
        return tuple(value.detach() for value in part)

    model.zero_grad()
    state, total = None, 0.0
    for begin in range(0, TIME, length):
        output, state = model(x[:, begin : begin + length], state)
        total = total + (output - y[:, begin : begin + length]).square().sum()
        state = detached(state)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-12)
    for ours, reference in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


def test_one_window_is_no_truncation_and_two_are_one(model: nn.Module):
    x, y = sequences()
    loss, found = by_windows(model, x, y, TIME)
    model.zero_grad()
    whole = (model(x)[0] - y).square().sum()
    whole.backward()
    assert loss == whole.item()
    assert all(map(torch.equal, found, gradients(model)))
    truncated, other = by_windows(model, x, y, 12)
    # The numbers go on across the cut, the gradient does not.
    assert truncated == pytest.approx(loss, rel=1e-12)
    assert max((a - b).abs().max().item() for a, b in zip(found, other, strict=True)) > 1e-3


def test_the_state_keeps_its_kind_and_loses_its_graph(model: nn.Module):
    x, _ = sequences()
    carried = CarriedState()
    assert carried.state is None
    _, made = model(x)
    carried.state = made
    assert type(carried.state) is type(made)
    assert len(tensors(made)) == len(tensors(carried.state)) > 1
    for mine, theirs in zip(tensors(carried.state), tensors(made), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad
    carried.state = None
    assert carried.state is None


def test_no_window_can_reach_into_an_earlier_one():
    """What goes wrong without it: the second backward pass walks into a graph that is gone."""
    model, (x, y) = Torchs(), sequences()

    def plainly() -> None:
        state = None
        for x_part, y_part in TimeWindows(x, y, length=5):
            output, state = model(x_part, state)
            (output - y_part).square().sum().backward()

    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        plainly()
    assert by_windows(model, x, y, 5)[0] == pytest.approx((model(x)[0] - y).square().sum().item(), rel=1e-12)


def test_a_gradient_crosses_the_steps_inside_a_window():
    model, (x, y) = Cells(), sequences()
    model.zero_grad()
    state = CarriedState().state
    total = 0.0
    for step in range(TIME):
        output, state = model(x[:, step : step + 1], state)
        total = total + (output - y[:, step : step + 1]).square().sum()
    total.backward()
    found = gradients(model)
    _, whole = by_windows(model, x, y, TIME)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_state_made_in_inference_mode_can_be_trained_from(model: nn.Module):
    x, y = sequences()
    carried = CarriedState()
    with torch.inference_mode():
        _, carried.state = model(x[:, :9], carried.state)
        assert all(tensor.is_inference() for tensor in tensors(carried.state))
    (model(x[:, 9:], carried.state)[0] - y[:, 9:]).square().sum().backward()
    found = gradients(model)
    model.zero_grad()
    with torch.no_grad():
        _, state = model(x[:, :9])
    (model(x[:, 9:], state)[0] - y[:, 9:]).square().sum().backward()
    assert all(map(torch.equal, found, gradients(model)))


def test_a_carried_state_can_be_copied():
    carried = CarriedState()
    carried.state = LSTMState(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
    other = copy.deepcopy(carried)
    other.reset([0])
    assert carried.state.h.sum() == 6
    assert other.state.h.sum() == 3


def test_a_state_of_something_else_is_refused():
    with pytest.raises(TypeError, match="made of tensors in tuples, lists and dicts, and this one has float"):
        CarriedState().state = (torch.zeros(1, 2, 3), 0.5)


def test_warming_up_gives_the_same_state_and_no_gradient(model: nn.Module):
    x, y = sequences()
    carried = CarriedState()
    (window,) = TimeWindows(x, y, length=12, burn_in=7)[1:]
    carried.warm_up(model, window.before[0])
    _, expected = model(x[:, 5:12])
    for mine, theirs in zip(tensors(carried.state), tensors(expected), strict=True):
        assert torch.equal(mine, theirs)
    output, carried.state = model(window[0], carried.state)
    (output - window[1]).square().sum().backward()
    found = gradients(model)

    model.zero_grad()
    early = x[:, 5:12].clone().requires_grad_()
    _, state = model(early)
    state = [tensor.detach() for tensor in tensors(state)]
    if isinstance(expected, Nested):
        state = Nested([(state[0], state[1]), (state[2], state[3])], {"steps": state[4]})
    (model(x[:, 12:], state if isinstance(state, Nested) else tuple(state))[0] - y[:, 12:]).square().sum().backward()
    assert early.grad is None
    assert all(map(torch.equal, found, gradients(model)))


def test_the_first_window_has_nothing_to_warm_up_on(model: nn.Module):
    x, _ = sequences()
    carried = CarriedState()
    carried.warm_up(model, TimeWindows(x, length=12, burn_in=7)[0].before[0])
    assert carried.state is None
    _, carried.state = model(x)
    before = tensors(carried.state)
    carried.warm_up(model, x[:, :0])
    assert all(map(torch.equal, before, tensors(carried.state)))


def test_warming_up_goes_on_from_what_is_carried_and_passes_masks_on():
    model, (x, _) = Ours(), sequences()
    resets = torch.zeros(ROWS, TIME, dtype=torch.bool)
    resets[1, 3] = True
    carried = CarriedState()
    carried.warm_up(model, x[:, :10], resets=resets[:, :10])
    carried.warm_up(model, x[:, 10:], resets=resets[:, 10:])
    _, expected = model(x, resets=resets)
    assert all(map(torch.equal, carried.state, expected))
    assert not torch.equal(expected.h, model(x)[1].h)


def test_warming_up_under_autocast_leaves_the_gradients_alone():
    torch.manual_seed(0)
    model, carried = nn.LSTM(WIDTH, WIDTH, batch_first=True), CarriedState()
    x = torch.randn(ROWS, TIME, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        carried.warm_up(model, x[:, :9])
        output, carried.state = model(x[:, 9:], carried.state)
    output.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
