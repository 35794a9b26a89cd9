"""What can't be taken to torch or from it: each refusal says what to type, and that works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from unrolled import LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, from_torch, to_torch

I, H = 5, 7


def uneven(**options: Any) -> MultiLayerLSTM:
    model = MultiLayerLSTM(I, H, 2, **options)
    if model.reverse_layers is None:
        model.layers[1] = LSTMLayer(H, 9)
    else:
        model.reverse_layers[1] = LSTMLayer(6, H, proj_dim=2)
    return model


def half_frozen() -> MultiLayerLSTM:
    model = MultiLayerLSTM(I, H, 2)
    for gate in "fo":
        getattr(model.layers[1], f"W_x{gate}").requires_grad_(False)
    return model


def language_model() -> LanguageModel:
    return LanguageModel(ModelConfig(vocabulary=3, hidden=4))


NOT_OF_TORCH = "expected an nn.LSTM, an unrolled.LSTM or an nn.LSTMCell"
NOT_OURS = "expected a MultiLayerLSTM, an LSTMLayer or an unrolled.LSTM"
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a wide projection": (
        lambda: to_torch(MultiLayerLSTM(I, H, proj_dim=9)),
        ValueError,
        "the layers have proj_dim=9 and hidden_dim=7; an nn.LSTM projects h to fewer numbers than hidden_dim, and to "
        "no others",
    ),
    "two projections": (
        lambda: to_torch(uneven(bidirectional=True, proj_dim=3)),
        ValueError,
        "layer 1 backward has input_dim=6 and hidden_dim=7, and h 2 wide, expected 6 and 7 and 3: an nn.LSTM has one "
        "hidden width; to_torch(model.reverse_layers[1]) is this layer alone",
    ),
    "dropout": (
        lambda: from_torch(nn.LSTM(I, H, 2, dropout=0.3).eval()),
        ValueError,
        "module has dropout=0.3 between its layers, and a MultiLayerLSTM would also drop its output: "
        "from_torch(module, dropout=0.3) takes that, and model.trace(x).layers[-1].h is the output before it; "
        "from_torch(module, dropout=0.0) drops nothing",
    ),
    "a cell with dropout": (
        lambda: from_torch(nn.LSTMCell(I, H), dropout=0.3),
        TypeError,
        "module is an LSTMCell; it becomes one layer, which has no dropout: from_torch(module)",
    ),
    "a GRU": (lambda: from_torch(nn.GRU(I, H)), TypeError, f"module is of type GRU, {NOT_OF_TORCH}"),
    "weights": (lambda: from_torch({}), TypeError, f"module is of type dict, {NOT_OF_TORCH}"),
    "one of ours": (lambda: from_torch(uneven()), TypeError, f"module is of type MultiLayerLSTM, {NOT_OF_TORCH}"),
    "what holds one": (
        lambda: from_torch(nn.Sequential(nn.ReLU(), nn.Sequential(nn.LSTM(I, H)))),
        TypeError,
        f'module is of type Sequential, {NOT_OF_TORCH}; it holds one: from_torch(module.get_submodule("1.0"))',
    ),
    "two widths": (
        lambda: to_torch(uneven()),
        ValueError,
        "layer 1 has input_dim=7 and hidden_dim=9, expected 7 and 7: an nn.LSTM has one hidden width; "
        "to_torch(model.layers[1]) is this layer alone",
    ),
    "half frozen": (
        lambda: to_torch(half_frozen()),
        ValueError,
        "layer 1: W_xf, W_xo frozen and W_xi, W_xg not, but an nn.LSTM has one parameter for them, weight_ih_l1: "
        "to_torch(copy.deepcopy(model).requires_grad_()), then freeze there",
    ),
    "one of torch's": (lambda: to_torch(nn.LSTM(I, H)), TypeError, f"model is of type LSTM, {NOT_OURS}"),
    "what holds ours": (
        lambda: to_torch(language_model()),
        TypeError,
        f'model is of type LanguageModel, {NOT_OURS}; it holds one: to_torch(model.get_submodule("lstm"))',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_type(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_what_it_says_works() -> None:
    assert to_torch(uneven().layers[1]).hidden_size == 9
    assert to_torch(copy.deepcopy(half_frozen()).requires_grad_()).weight_ih_l1.requires_grad
    assert to_torch(language_model().get_submodule("lstm")).hidden_size == 4
    holder = nn.Sequential(nn.ReLU(), nn.Sequential(nn.LSTM(I, H)))
    assert from_torch(holder.get_submodule("1.0")).hidden_dim == H
