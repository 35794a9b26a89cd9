from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unrolled import (
    CarriedState,
    Lanes,
    LanguageModel,
    LSTMLayer,
    LSTMState,
    ModelConfig,
    MultiLayerLSTM,
    Split,
    TimeWindows,
    nats,
)

ROWS, TIME, WIDTH = 3, 23, 4


class Ours(nn.Module):
    """A stack with a head: returns (output, LSTMState)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = MultiLayerLSTM(WIDTH, 5, 2, backend="reference", dtype=torch.float64)

    def forward(self, x, state=None, **masks):
        return self.lstm(x, state, **masks)


class Torchs(nn.Module):
    """nn.LSTM: returns (output, (h, c)), each [layers, batch, hidden]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dtype=torch.float64)

    def forward(self, x, state=None):
        return self.lstm(x, state)


class Layer(nn.Module):
    """One LSTMLayer: returns (h of every step, the last step's (h, c)), each [batch, hidden]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = LSTMLayer(WIDTH, WIDTH, backend="reference", dtype=torch.float64)

    def forward(self, x, state=None):
        h, c = self.layer(x, *(state or (None, None)))
        return h, (h[:, -1], c[:, -1])


class Nested(NamedTuple):
    layers: list[tuple[Tensor, Tensor]]
    count: dict[str, Tensor | None]


class Cells(nn.Module):
    """nn.LSTMCells step by step, with a state of tuples in a list in a tuple, a dict and a None."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))

    def forward(self, x, state=None):
        layers = [None, None] if state is None else list(state.layers)
        steps = torch.zeros(len(x), 1, dtype=torch.float64) if state is None else state.count["steps"]
        output = []
        for step in x.unbind(1):
            for k, cell in enumerate(self.cells):
                layers[k] = cell(step, layers[k])
                step = layers[k][0]
            output.append(step * (1 + steps.cos()))
            steps = steps + 1
        return torch.stack(output, dim=1), Nested(layers, {"steps": steps, "nothing": None})


MODELS = [Ours, Torchs, Layer, Cells]


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    return request.param()


def sequences(steps: int = TIME) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    x, y = torch.randn(2, ROWS, steps, WIDTH, dtype=torch.float64)
    return x, y


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters()]


def by_windows(model: nn.Module, x: Tensor, y: Tensor, length: int) -> tuple[float, list[Tensor]]:
    """The loss of all windows and its gradient, each window's taken before the next one is read."""
    model.zero_grad()
    carried, total = CarriedState(), 0.0
    for x_part, y_part in TimeWindows(x, y, length=length):
        output, carried.state = model(x_part, carried.state)
        loss = (output - y_part).square().sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def tensors(state) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state or ()
    return [tensor for part in parts for tensor in tensors(part)]


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor with the batch axis first."""
    return tensor.transpose(0, 1) if tensor.dim() == 3 else tensor


# Windows.


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
        ([(2, 9)], {"length": 5, "burn_in": -1}, ValueError, "burn_in=-1 must be 0 or more"),
        ([(2, 9)], {"length": 5.0}, TypeError, "float"),
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


# The carried state and its gradient.


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


# Burn-in.


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


# Resets.


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


# With the rest of the library.


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
