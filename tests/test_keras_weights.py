"""Keras' arrays to a stack and back, without Keras; tests/with_keras.py compares with its layers, outputs and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plain import redraw
from ports import drawn, run_apart
from torch import nn

from unrolled import LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, from_keras, to_keras

I, H = 5, 7
# The order of https://keras.io's LSTM: i, f, c, o; its c is our g.
KERAS_ORDER = ("i", "f", "g", "o")


def weights(features: int = I, units: int = H, *, seed: int = 0, dtype: str = "float64") -> list[NDArray]:
    shapes = ((features, 4 * units), (units, 4 * units), (4 * units,))
    return [drawn(*shape, seed=seed + k, dtype=dtype) for k, shape in enumerate(shapes)]


@pytest.mark.slow
def test_with_keras_itself():
    run_apart("with_keras.py", "keras")


def test_every_gate_goes_to_its_place():
    lists = [weights(), weights(H, seed=3)]
    model = from_keras(lists)
    assert (model.input_dim, model.hidden_dim, model.num_layers, model.proj, model.dropout.p) == (I, H, 2, None, 0)
    for (kernel, recurrent, bias), layer in zip(lists, model.layers, strict=True):
        for number, gate in enumerate(KERAS_ORDER):
            columns = slice(number * H, (number + 1) * H)
            assert np.array_equal(getattr(layer, f"W_x{gate}").detach(), kernel[:, columns])
            assert np.array_equal(getattr(layer, f"W_h{gate}").detach(), recurrent[:, columns])
            assert np.array_equal(getattr(layer, f"b_{gate}").detach(), bias[columns])


TANH = {"activation": "tanh", "recurrent_activation": "sigmoid"}


def test_one_list_of_arrays_is_a_stack_of_one_layer():
    model = from_keras(tuple(weights()))
    assert model.num_layers == 1
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_there_and_back_has_the_same_bits(dtype: str):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy alone has no bfloat16")
    lists = [weights(dtype=dtype), weights(H, seed=3, dtype=dtype)]
    model = from_keras(lists)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    for back, given in zip(to_keras(model), lists, strict=True):
        for one, other in zip(back, given, strict=True):
            assert one.dtype == ("float32" if dtype == "bfloat16" else dtype)
            assert np.array_equal(one, other.astype(one.dtype))


def test_a_layer_is_asked_for_its_weights():
    like = LSTM(trainable=False, get_config=lambda: {**dict.fromkeys(("dropout", "recurrent_dropout"), 0.0), **TANH})
    for given in (like, [like]):
        model = from_keras(given)
        assert np.array_equal(to_keras(model)[0][0], weights()[0])
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_nothing_is_shared_and_nothing_is_drawn():
    given, generator = weights(1, 1), torch.get_rng_state()
    model = from_keras(given)
    back = to_keras(model)[0]
    assert torch.equal(torch.get_rng_state(), generator)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for array in (*given, *back):
        array += 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    # A strided view is copied too.
    kernel, recurrent, bias = weights()
    turned = from_keras([np.asfortranarray(kernel), recurrent[::-1], bias[::-1]])
    assert np.array_equal(to_keras(turned)[0][1], recurrent[::-1])


@pytest.mark.parametrize("arrays", [3, 2], ids=["biases", "no biases"])
def test_both_directions_are_six_arrays_forward_first(arrays: int):
    lists = [
        [*weights(features, seed=10 * k)[:arrays], *weights(features, seed=10 * k + 5)[:arrays]]
        for k, features in enumerate((I, 2 * H))
    ]
    model = from_keras(lists, bidirectional=True)
    assert (model.bidirectional, model.num_layers) == (True, 2)
    for given, forward, backward in zip(lists, model.layers, model.reverse_layers, strict=True):
        assert np.array_equal(forward.W_xg.detach(), given[0][:, 2 * H : 3 * H])
        assert np.array_equal(backward.W_hg.detach(), given[arrays + 1][:, 2 * H : 3 * H])
    for back, given in zip(to_keras(model, use_bias=arrays == 3), lists, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(back, given, strict=True))


def test_without_a_bias_it_is_zero_and_frozen_and_can_be_left_out_again():
    model = from_keras(weights()[:2])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"layers.0.b_{gate}" for gate in "ifgo"}
    assert not any(model.get_parameter(name).any() for name in frozen)
    [back] = to_keras(model, use_bias=False)
    assert [array.shape for array in back] == [(I, 4 * H), (H, 4 * H)]
    assert len(to_keras(model)[0]) == 3


def test_a_layer_is_one_list_and_a_projection_stays_behind():
    layer = redraw(LSTMLayer(I, H))
    assert isinstance(layer, LSTMLayer)
    assert [array.shape for array in to_keras(layer)] == [(I, 4 * H), (H, 4 * H), (4 * H,)]
    assert np.array_equal(to_keras(layer)[0][:, H : 2 * H], layer.W_xf.detach())
    assert len(to_keras(MultiLayerLSTM(I, H, 3, output_dim=2))) == 3


class Other:
    """A layer of Keras that is no LSTM, or a model. Each has a dtype, as arrays do."""

    trainable, dtype = True, "float64"

    def __init__(self, **attributes: Any):
        vars(self).update(attributes)

    def get_weights(self) -> list[NDArray]:
        return weights()

    def get_config(self) -> dict[str, Any]:
        return {}


class LSTM(Other):
    """Like Keras'."""


NEITHER = "expected a keras.layers.LSTM, what its get_weights() returns, or a list of either, bottom first"
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "nothing": (lambda: from_keras([]), ValueError, f"layers is empty, {NEITHER}"),
    "an array": (lambda: from_keras(weights()[0]), TypeError, f"layers is of type ndarray, {NEITHER}"),
    "torch's": (lambda: from_keras(nn.LSTM(I, H)), TypeError, f"layers is of type LSTM, {NEITHER}"),
    "a list of torch's": (lambda: from_keras([nn.LSTM(I, H)]), TypeError, f"layers[0] is of type LSTM, {NEITHER}"),
    "another layer": (lambda: from_keras([Other()]), TypeError, f"layers[0] is of type Other, {NEITHER}"),
    "a model": (
        lambda: from_keras(Other(layers=[Other(), LSTM(), Other(), LSTM()])),
        TypeError,
        f"layers is of type Other, {NEITHER}; it holds some: from_keras([layers.layers[1], layers.layers[3]])",
    ),
    "all weights of a model": (
        lambda: from_keras(weights() + weights(H)),
        ValueError,
        "layers has 6 arrays, expected the 3 of one LSTM (kernel, recurrent_kernel, bias), or 2 without a bias; those "
        "of several go in as a list of such lists: [layer.get_weights() for layer in ...]; of a Bidirectional, with "
        "bidirectional=True",
    ),
    "one direction for both": (
        lambda: from_keras(weights(), bidirectional=True),
        ValueError,
        "layers has 3 arrays, expected the 6 of a Bidirectional LSTM (kernel, recurrent_kernel, bias of each "
        "direction), or 4 without biases",
    ),
    "a backward direction of another width": (
        lambda: from_keras([weights() + weights(), weights() + weights()], bidirectional=True),
        ValueError,
        "layers[1] has 5 inputs and 7 units, expected 14 and 7: the layers of a MultiLayerLSTM have one hidden width; "
        "from_keras(layers[1]) is this one alone",
    ),
    "to_keras of a projected layer": (
        lambda: to_keras(MultiLayerLSTM(I, H, proj_dim=3)),
        ValueError,
        "model has proj_dim=3, a projection inside the recurrence, which to_keras has no place for: expected "
        "proj_dim=None",
    ),
    "a GRU": (
        lambda: from_keras([drawn(I, 3 * H, seed=0), drawn(H, 3 * H, seed=0), drawn(2, 3 * H, seed=0)]),
        ValueError,
        "kernel of layers is [5, 21], expected [5, 28]",
    ),
    "another bias": (
        lambda: from_keras([weights(), [*weights(H)[:2], drawn(3, seed=0)]]),
        ValueError,
        "bias of layers[1] is [3], expected [28]",
    ),
    "no axes": (
        lambda: from_keras([np.float64(1), *weights()[1:]]),
        ValueError,
        "kernel of layers is [], expected [0, 28]",
    ),
    "integers": (
        lambda: from_keras([weights()[0].astype("int32"), *weights()[1:]]),
        TypeError,
        "kernel of layers is of type int32 ndarray, expected an array of float16, bfloat16, float32 or float64",
    ),
    "two dtypes": (
        lambda: from_keras([weights(), weights(H, dtype="float32")]),
        TypeError,
        "layers[1] has weights of float32 and layers[0] of float64, expected one dtype: convert them with astype",
    ),
    "two widths": (
        lambda: from_keras([weights(), weights(H, 9)]),
        ValueError,
        "layers[1] has 7 inputs and 9 units, expected 7 and 7: the layers of a MultiLayerLSTM have one hidden width; "
        "from_keras(layers[1]) is this one alone",
    ),
    "a bias that would be lost": (
        lambda: to_keras(from_keras([[*weights()[:2], np.zeros(4 * H)], weights(H)]), use_bias=False),
        ValueError,
        "layer 1 has biases that are not 0, and use_bias=False has no place for them: make the Keras layer with "
        "use_bias=True, its default",
    ),
    "another activation": (
        lambda: from_keras(LSTM(get_config=lambda: {**TANH, "recurrent_activation": "hard_sigmoid"})),
        ValueError,
        "layers has recurrent_activation='hard_sigmoid', which from_keras does not take over: expected 'sigmoid'",
    ),
    "to_keras of a cell with options": (
        lambda: to_keras(MultiLayerLSTM(I, H, peephole=True)),
        ValueError,
        "the layer has peephole=True, which a layer of Keras or Flax has no place for: build the model without",
    ),
    "to_keras of torch's": (
        lambda: to_keras(nn.LSTM(I, H)),
        TypeError,
        "model is of type LSTM, expected a MultiLayerLSTM or an LSTMLayer; to_keras(from_torch(model)) converts this "
        "one",
    ),
    "to_keras of what holds one": (
        lambda: to_keras(LanguageModel(ModelConfig(vocabulary=3, hidden=4))),
        TypeError,
        "model is of type LanguageModel, expected a MultiLayerLSTM or an LSTMLayer; it holds one: "
        'to_keras(model.get_submodule("lstm"))',
    ),
    "to_keras of nothing": (
        lambda: to_keras(None),
        TypeError,
        "model is of type NoneType, expected a MultiLayerLSTM or an LSTMLayer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_type(case: str):
    call, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
