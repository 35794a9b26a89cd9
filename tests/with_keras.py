"""Keras' own LSTM layers beside stacks made of them, in float64; test_keras_weights.py runs this file apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers
from numpy.typing import NDArray
from plain import redraw
from ports import SIZES, assert_near, drawn, results

from unrolled import LSTMLayer, MultiLayerLSTM, from_keras, to_keras

# On torch Keras' generic loop over steps, and a Dense, round their products to float32, whatever a layer's dtype.
ROUNDED = np.dtype("float32")

# Keras' own use of NumPy, in get_weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

I, H = 5, 7

BIASES = pytest.mark.parametrize("use_bias", [True, False])


def built(features: int, units: int, depth: int = 1, *, seed: int = 0, **options: Any) -> list[layers.LSTM]:
    """Layers on top of each other, every weight drawn, biases included."""
    made = []
    for k in range(depth):
        layer = layers.LSTM(units, return_sequences=True, return_state=True, dtype="float64", **options)
        layer.build((None, None, units if k else features))
        layer.set_weights([drawn(*w.shape, seed=seed + 3 * k + n) for n, w in enumerate(layer.get_weights())])
        made.append(layer)
    return made


def inputs(sizes: tuple[int, int, int, int], depth: int) -> list[NDArray]:
    rows, steps, features, units = sizes
    return [drawn(rows, steps, features, seed=50), *(drawn(depth, rows, units, seed=51 + k) for k in range(2))]


def of_keras(stack: list[layers.LSTM], x: NDArray, h: NDArray, c: NDArray, **options: Any) -> list[NDArray]:
    last_h, last_c = [], []
    for layer, h0, c0 in zip(stack, h, c, strict=True):
        x, h1, c1 = layer(x, initial_state=[keras.ops.array(h0), keras.ops.array(c0)], **options)
        last_h.append(h1)
        last_c.append(c1)
    return [keras.ops.convert_to_numpy(each) for each in (x, keras.ops.stack(last_h), keras.ops.stack(last_c))]


@SIZES
@BIASES
def test_outputs_and_states_agree(sizes: tuple[int, int, int, int], depth: int, use_bias: bool):
    stack, given = built(*sizes[2:], depth, use_bias=use_bias), inputs(sizes, depth)
    assert_near(results(from_keras(stack), *given), of_keras(stack, *given))


@BIASES
def test_both_directions_agree_there_and_back(use_bias: bool):
    stack, x = [], drawn(4, 6, I, seed=50)
    h, c = (drawn(4, 4, H, seed=51 + k) for k in range(2))
    for k, features in enumerate((I, 2 * H)):
        lstm = layers.LSTM(H, return_sequences=True, return_state=True, dtype="float64", use_bias=use_bias)
        both = layers.Bidirectional(lstm, dtype="float64")
        both.build((None, None, features))
        both.set_weights([drawn(*w.shape, seed=20 * k + n) for n, w in enumerate(both.get_weights())])
        stack.append(both)
    model = from_keras(stack)
    ours = results(model, x, h, c)
    assert_near(ours, of_both(stack, x, h, c))
    assert_near(results(from_keras([each.get_weights() for each in stack], bidirectional=True), x, h, c), ours)
    for each, arrays in zip(stack, to_keras(model, use_bias=use_bias), strict=True):
        each.set_weights([0 * array for array in arrays])
        each.set_weights(arrays)
    assert_near(of_both(stack, x, h, c), ours)


def of_both(stack: list[layers.Bidirectional], x: NDArray, h: NDArray, c: NDArray) -> list[NDArray]:
    """A Bidirectional's states are h and c forward, then h and c backward."""
    last: list[Any] = []
    for k, both in enumerate(stack):
        initial = [keras.ops.array(each[2 * k + d]) for d in (0, 1) for each in (h, c)]
        x, *states = both(x, initial_state=initial)
        last += states
    return [keras.ops.convert_to_numpy(each) for each in (x, keras.ops.stack(last[::2]), keras.ops.stack(last[1::2]))]


@pytest.mark.parametrize("options", [{"implementation": 1}, {"unroll": True}, {"unit_forget_bias": False}], ids=str)
def test_what_changes_no_number_is_taken(options: dict[str, Any]):
    stack, given = built(I, H, 2, **options), inputs((4, 6, I, H), 2)
    assert_near(results(from_keras(stack), *given), of_keras(stack, *given))


@SIZES
@BIASES
def test_what_to_keras_gives_computes_what_the_stack_does(sizes: tuple[int, int, int, int], depth: int, use_bias: bool):
    model = redraw(MultiLayerLSTM(*sizes[2:], depth, output_dim=None, dtype=torch.float64))
    if not use_bias:
        for layer in model.layers:
            for gate in "ifgo":
                torch.nn.init.zeros_(getattr(layer, f"b_{gate}"))
    stack, given = built(*sizes[2:], depth, seed=9, use_bias=use_bias), inputs(sizes, depth)
    for layer, weights in zip(stack, to_keras(model, use_bias=use_bias), strict=True):
        layer.set_weights(weights)
    assert_near(of_keras(stack, *given), results(model, *given))


def test_float32_agrees_to_its_rounding():
    stack, given = built(I, H, 2), inputs((4, 6, I, H), 2)
    for_32 = [layers.LSTM(H, return_sequences=True, return_state=True, dtype="float32") for _ in stack]
    for layer, wide, features in zip(for_32, stack, (I, H), strict=True):
        layer.build((None, None, features))
        layer.set_weights([0.3 * array for array in wide.get_weights()])
    narrow = [array.astype("float32") for array in given]
    model = from_keras(for_32)
    assert model.layers[0].b_f.dtype == torch.float32
    assert_near(results(model, *narrow), of_keras(for_32, *narrow))


def test_steps_that_are_masked_at_a_rows_end_are_beyond_its_length():
    """Keras repeats the last output there, unless zero_output_for_mask; states are those of the last valid step."""
    stack, given = built(I, H, 2, zero_output_for_mask=True), inputs((4, 6, I, H), 2)
    lengths = torch.tensor([6, 2, 5, 1])
    mask = keras.ops.array((torch.arange(6) < lengths[:, None]).numpy())
    assert_near(results(from_keras(stack), *given, lengths=lengths), of_keras(stack, *given, mask=mask), ROUNDED)


def test_a_cell_and_a_layer_in_a_model():
    cell = layers.LSTMCell(H, dtype="float64")
    rnn = layers.RNN(cell, return_sequences=True, return_state=True, dtype="float64")
    x, h, c = inputs((4, 6, I, H), 1)
    expected = of_keras([rnn], x, h, c)
    assert_near(results(from_keras(rnn.cell), x, h, c), expected, ROUNDED)
    model = keras.Sequential(
        [
            keras.Input((None, I)),
            layers.LSTM(H, return_sequences=True, dtype="float64"),
            layers.Dropout(0.5),
            layers.LSTM(H, return_sequences=True, dtype="float64"),
            layers.Dense(3, dtype="float64"),
        ]
    )
    with pytest.raises(TypeError) as caught:
        from_keras(model)
    assert str(caught.value).endswith("; it holds some: from_keras([layers.layers[0], layers.layers[2]])")
    stack = from_keras([model.layers[0], model.layers[2]])
    weight, bias = map(torch.from_numpy, model.layers[-1].get_weights())
    with torch.no_grad():
        output = stack(torch.from_numpy(x))[0] @ weight + bias
    assert_near([output.numpy()], [keras.ops.convert_to_numpy(model(x))], ROUNDED)


def test_a_projection_is_a_dense_layer():
    model = redraw(MultiLayerLSTM(I, H, 1, output_dim=3, dtype=torch.float64))
    dense = layers.Dense(3, dtype="float64")
    dense.build((None, None, H))
    dense.set_weights([model.proj.weight.detach().T.numpy(), model.proj.bias.detach().numpy()])
    [lstm], x = built(I, H), drawn(4, 6, I, seed=1)
    lstm.set_weights(to_keras(model)[0])
    with torch.no_grad():
        expected = model(torch.from_numpy(x))[0]
    assert_near([expected.numpy()], [keras.ops.convert_to_numpy(dense(lstm(x)[0]))], ROUNDED)


def test_a_new_layer_of_keras_forgets_little_and_ours_takes_that_over():
    layer = layers.LSTM(H)
    layer.build((None, None, I))
    [ours] = from_keras(layer).layers
    assert torch.equal(ours.b_f, torch.ones(H))
    assert not any(getattr(ours, f"b_{gate}").any() for gate in "igo")
    assert not LSTMLayer(I, H).b_f.any()


def test_what_is_frozen_stays_so():
    stack = built(I, H, 2)
    stack[1].trainable = False
    trained = {name for name, parameter in from_keras(stack).named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in from_keras(stack).named_parameters() if name.startswith("layers.0")}


def test_backwards_is_a_flip():
    """What the refusal says to do."""
    [layer] = stack = built(I, H, go_backwards=True)
    x, h, c = inputs((4, 6, I, H), 1)
    ours = results(from_keras(layer.get_weights()), np.flip(x, 1).copy(), h, c)
    assert_near(ours, of_keras(stack, x, h, c))


def test_dropout_plays_no_part_in_evaluation():
    """What the refusal says to do."""
    stack, given = built(I, H, 2, dropout=0.3, recurrent_dropout=0.2), inputs((4, 6, I, H), 2)
    model = from_keras([layer.get_weights() for layer in stack])
    assert_near(results(model, *given), of_keras(stack, *given, training=False), ROUNDED)


ACTIVATION = "which from_keras does not take over: expected {!r}"
DROPS = (
    "which drops the same units at every step, and a stack drops others at each: from_keras(layers.get_weights()) "
    "takes the weights without it"
)
NEITHER = "expected a keras.layers.LSTM, what its get_weights() returns, or a list of either, bottom first"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "activation": (
        lambda: built(I, H, activation="relu")[0],
        f"layers has activation='relu', {ACTIVATION.format('tanh')}",
    ),
    "recurrent_activation": (
        lambda: built(I, H, recurrent_activation="hard_sigmoid")[0],
        f"layers has recurrent_activation='hard_sigmoid', {ACTIVATION.format('sigmoid')}",
    ),
    "backwards": (
        lambda: built(I, H, go_backwards=True)[0],
        "layers has go_backwards=True, expected False: from_keras(layers.get_weights()), and x.flip(1) in place of x",
    ),
    "dropout": (lambda: built(I, H, dropout=0.3)[0], f"layers has dropout=0.3, {DROPS}"),
    "recurrent dropout": (lambda: built(I, H, recurrent_dropout=0.2)[0], f"layers has recurrent_dropout=0.2, {DROPS}"),
    "not built": (
        lambda: layers.LSTM(H),
        "layers is not built, so it has no weights: call it once, or layers.build((None, None, features))",
    ),
    "a GRU": (lambda: layers.GRU(H), f"layers is of type GRU, {NEITHER}"),
    "a sum of both directions": (
        lambda: layers.Bidirectional(layers.LSTM(H), merge_mode="sum"),
        "layers has merge_mode='sum', and a bidirectional stack has both outputs side by side: expected "
        "merge_mode='concat'",
    ),
    "both directions of a GRU": (
        lambda: layers.Bidirectional(layers.GRU(H)),
        f"layers.forward_layer is of type GRU, {NEITHER}",
    ),
    "an RNN": (
        lambda: layers.RNN(layers.LSTMCell(H)),
        f"layers is of type RNN, {NEITHER}; it runs a cell: from_keras(layers.cell)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_type(case: str):
    make, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as caught:
        from_keras(make())
    assert str(caught.value) == message
