"""Every mistake in a call: the exception's type, and a sentence with what was got, what was expected, what to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mistakes import ID_RANGES, INPUTS, LAYER_STATES, MASKS, NESTED, PAIR, STATES, B, H, I, L, T, X, flags, floats, ids
from torch.nn.utils.rnn import pack_sequence
from worlds import BACKENDS

from unrolled.layer import LSTMLayer
from unrolled.stack import MultiLayerLSTM
from unrolled.state import LSTMState


def calls() -> Iterator[Callable[..., Any]]:
    """The four doors: forward and trace of a layer and of a stack."""
    for module in (LSTMLayer(I, H), MultiLayerLSTM(I, H, L)):
        yield module
        yield module.trace


@pytest.mark.parametrize("mistake", INPUTS)
def test_a_wrong_x(mistake: str) -> None:
    x, error, message = INPUTS[mistake]
    for call in calls():
        _assert_raises(error, message, call, x)


@pytest.mark.parametrize("mistake", MASKS)
def test_wrong_resets_or_lengths(mistake: str) -> None:
    options, error, message = MASKS[mistake]
    for call in calls():
        _assert_raises(error, message, call, X, **options)


@pytest.mark.parametrize("mistake", STATES)
def test_a_wrong_state_of_a_stack(mistake: str) -> None:
    state, error, message = STATES[mistake]
    model = MultiLayerLSTM(I, H, L)
    for call in (model, model.trace):
        _assert_raises(error, message, call, X, state)


@pytest.mark.parametrize("mistake", LAYER_STATES)
def test_a_wrong_state_of_a_layer(mistake: str) -> None:
    state, error, message = LAYER_STATES[mistake]
    layer = LSTMLayer(I, H)
    for call in (layer, layer.trace):
        _assert_raises(error, message, call, X, *state)


@pytest.mark.parametrize("mistake", ID_RANGES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_out_of_range(backend: str, dtype: torch.dtype, mistake: str) -> None:
    values, message = ID_RANGES[mistake]
    if dtype == torch.uint8 and mistake == "below":
        values, message = [[255, 0, 1]], message.replace("-1", "255")
    message += "; check the tokenizer, or build with a larger input_dim"
    x = torch.tensor(values).to(dtype)
    for module in (LSTMLayer(I, H, backend=backend), MultiLayerLSTM(I, H, L, backend=backend)):
        _assert_raises(IndexError, message, module, x)
        _assert_raises(IndexError, message, module, x, lengths=torch.tensor([3]))


def test_a_state_of_one_layer_without_its_axis_is_told_how_to_get_it() -> None:
    _assert_raises(
        ValueError,
        "state.h is [4, 7], expected [layers, batch, hidden] = [1, batch, 7]: state.h.unsqueeze(0) adds the layer "
        "axis; model.zero_state(batch) starts from zeros",
        MultiLayerLSTM(I, H, 1),
        X,
        (floats(B, H), floats(B, H)),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conversions_name_the_weights_dtype(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    model = MultiLayerLSTM(I, H, L, dtype=dtype)
    _assert_raises(
        TypeError,
        f"x is float32, but the weights are {name}: x.to(torch.{name}), or convert the model: model.to(torch.float32)",
        model,
        X,
    )
    _assert_raises(
        TypeError,
        f"x is int64 [4, 6, 5]; three axes are frames, which must be floats: x.to(torch.{name}); ids have two axes, "
        "[batch, time]",
        model,
        ids(B, T, I),
    )


def test_a_time_first_x_of_ids_is_noticed_by_its_state() -> None:
    _assert_raises(
        ValueError,
        "x is [6, 4], so it has 6 rows, but the state has 4; is x time-first? x.transpose(0, 1) makes it batch-first",
        MultiLayerLSTM(I, H, L),
        ids(T, B),
        PAIR,
    )


def test_a_model_on_another_device_names_both() -> None:
    _assert_raises(
        ValueError,
        'x is on cpu, but the weights are on meta: x.to("meta"), or move the model: model.to("cpu")',
        MultiLayerLSTM(I, H, L, device="meta"),
        X,
    )


def test_what_the_messages_tell_to_write_works() -> None:
    layer, model = LSTMLayer(I, H), MultiLayerLSTM(I, H, L)
    packed = pack_sequence([floats(3, I), floats(2, I)])
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    assert model(padded, lengths=lengths)[0].shape == (2, 3, I)
    assert model(NESTED.to_padded_tensor(0), lengths=torch.tensor([3, 6]))[0].shape == (2, 6, I)
    assert model(floats(B, I)[:, None])[0].shape == (B, 1, I)
    assert model(floats(T, I)[None])[0].shape == (1, T, I)
    assert model(floats(T, B, I).transpose(0, 1), PAIR)[0].shape == (B, T, I)
    assert model(X, lengths=flags(B, T).sum(1))[0].shape == (B, T, I)
    assert layer(X, PAIR[0][1], PAIR[1][1])[0].shape == (B, T, H)
    rows = [2, 0]
    assert layer(X[rows], PAIR[0][0][rows], PAIR[1][0][rows])[0].shape == (2, T, H)
    assert model(X[rows], LSTMState(*PAIR).rows(rows))[1].h.shape == (L, 2, H)
    assert model(torch.as_tensor(np.zeros((B, T), dtype=np.int64)))[0].shape == (B, T, I)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_may_be_any_integers(dtype: torch.dtype) -> None:
    lengths = torch.tensor([6, 3, 0, 1])
    model, x = MultiLayerLSTM(I, H, L), torch.randn(B, T, I)
    for ours, expected in zip(model(x, lengths=lengths.to(dtype))[1], model(x, lengths=lengths)[1], strict=True):
        assert torch.equal(ours, expected)


def test_a_refused_call_leaves_the_arguments_as_they_were() -> None:
    x, lengths = torch.tensor([[0, 9]]), torch.tensor([2])
    with pytest.raises(IndexError):
        LSTMLayer(I, H)(x, lengths=lengths)
    assert x.tolist() == [[0, 9]]
    assert lengths.tolist() == [2]


def _assert_raises(error: type[Exception], message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert str(caught.value) == message
    assert type(caught.value) is error
