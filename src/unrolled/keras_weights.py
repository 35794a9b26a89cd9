"""Weights to and from `keras.layers.LSTM`: its kernels, and one parameter for each gate.

Keras has the gates as columns, in the order i, f, c (our g), o, and multiplies by them as they stand, so nothing is
transposed. It has one bias, as a layer here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from .gate_arrays import GateArrays, arrays_of, check_shape, floats, layers_of, rows, stack_of
from .layer import LSTMLayer
from .stack import MultiLayerLSTM

KerasWeights: TypeAlias = Sequence[NDArray[Any]]


class KerasLayer(Protocol):
    """What of a `keras.layers.LSTM` or `LSTMCell` is read."""

    trainable: bool

    def get_weights(self) -> list[Any]: ...

    def get_config(self) -> dict[str, Any]: ...


def from_keras(
    layers: KerasLayer | KerasWeights | Sequence[KerasLayer | KerasWeights], *, bidirectional: bool = False
) -> MultiLayerLSTM:
    """A stack without a projection that computes what one `keras.layers.LSTM`, or several on top of each other, do.

    Each is a layer of Keras 3 or 2, on any of its backends, an `LSTMCell`, a `Bidirectional` of an LSTM whose outputs
    are concatenated, or what `get_weights()` of one returns: kernel [features, 4 * units], recurrent kernel [units,
    4 * units] and, unless `use_bias=False`, bias [4 * units]; with `bidirectional`, both directions', forward first.

    The weights are copies on the CPU, in their dtype, frozen where `trainable` is False there. Without a bias, biases
    are zero here and frozen. Keras remembers no more of the model than each layer's part, so the stack has no dropout.

    Raises ValueError for a layer that is not built or computes something else (other activations, `go_backwards`,
    dropout of its own) and for shapes that do not fit, TypeError for anything else.
    """
    given: dict[str, Any] = {"layers": layers}
    if isinstance(layers, Sequence) and not _is_arrays(layers):
        given = {f"layers[{k}]": each for k, each in enumerate(layers)}
        if not given:
            raise ValueError(f"layers is empty, {_EXPECTED}")
    found = [_directions(each, name, bidirectional) for name, each in given.items()]
    return stack_of(found, list(given), "from_keras({})")


@overload
def to_keras(model: LSTMLayer, *, use_bias: bool = True) -> list[NDArray[Any]]: ...


@overload
def to_keras(model: MultiLayerLSTM, *, use_bias: bool = True) -> list[list[NDArray[Any]]]: ...


def to_keras(
    model: MultiLayerLSTM | LSTMLayer, *, use_bias: bool = True
) -> list[NDArray[Any]] | list[list[NDArray[Any]]]:
    """Of a layer, what `set_weights` of a built `keras.layers.LSTM` takes; of a stack, a list of these, bottom first.

    With `bidirectional`, each is for a `Bidirectional`.

    What a stack has behind its layers stays behind: `proj` is a `Dense` of [`proj.weight.T`, `proj.bias`]. Arrays are
    copies in the weights' dtype, bfloat16 as float32. `use_bias` is that of the Keras layers.

    Raises TypeError for another kind of module, ValueError for biases that `use_bias=False` would lose.
    """
    written: list[list[NDArray[Any]]] = []
    for k, directions in enumerate(layers_of(model, "to_keras")):
        written.append([])
        for layer in directions:
            w_x, w_h, bias = arrays_of(layer)
            if not use_bias and np.any(bias):
                raise ValueError(
                    f"layer {k} has biases that are not 0, and use_bias=False has no place for them: make the Keras "
                    "layer with use_bias=True, its default"
                )
            written[-1] += [w_x, w_h, bias] if use_bias else [w_x, w_h]
    return written[0] if isinstance(model, LSTMLayer) else written


_EXPECTED = "expected a keras.layers.LSTM, what its get_weights() returns, or a list of either, bottom first"


def _is_layer(value: Any) -> bool:
    return hasattr(value, "get_weights") and hasattr(value, "get_config")


def _is_lstm(layer: Any) -> bool:
    """By name, so that Keras need not be imported: of Keras 3, of Keras 2, and classes derived from theirs."""
    return bool({each.__name__ for each in type(layer).__mro__} & {"LSTM", "LSTMCell"})


def _is_arrays(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(hasattr(each, "__array__") for each in value)


def _directions(given: Any, name: str, bidirectional: bool) -> list[GateArrays]:
    if not _is_layer(given):
        if not _is_arrays(given):
            raise TypeError(f"{name} is of type {type(given).__name__}, {_EXPECTED}")
        if not bidirectional:
            return [_arrays(given, True, name)]
        if len(given) not in (4, 6):
            raise ValueError(
                f"{name} has {len(given)} arrays, expected the 6 of a Bidirectional LSTM (kernel, recurrent_kernel, "
                "bias of each direction), or 4 without biases"
            )
        half = len(given) // 2
        return [_arrays(given[:half], True, f"{name}, forward"), _arrays(given[half:], True, f"{name}, backward")]
    if any(each.__name__ == "Bidirectional" for each in type(given).__mro__):
        if given.merge_mode != "concat":
            raise ValueError(
                f"{name} has merge_mode={given.merge_mode!r}, and a bidirectional stack has both outputs side by side: "
                "expected merge_mode='concat'"
            )
        both = {f"{name}.forward_layer": given.forward_layer, f"{name}.backward_layer": given.backward_layer}
        return [_of_layer(layer, label, backward=k == 1) for k, (label, layer) in enumerate(both.items())]
    return [_of_layer(given, name)]


def _of_layer(layer: Any, name: str, *, backward: bool = False) -> GateArrays:
    _check_layer(layer, name, backward)
    return _arrays(layer.get_weights(), layer.trainable, name)


def _arrays(weights: Sequence[Any], trained: bool, name: str) -> GateArrays:
    if len(weights) not in (2, 3):
        raise ValueError(
            f"{name} has {len(weights)} arrays, expected the 3 of one LSTM (kernel, recurrent_kernel, bias), or 2 "
            "without a bias; those of several go in as a list of such lists: [layer.get_weights() for layer in ...]; "
            "of a Bidirectional, with bidirectional=True"
        )
    labels = ("kernel", "recurrent_kernel", "bias")
    arrays = [floats(array, f"{label} of {name}") for array, label in zip(weights, labels, strict=False)]
    features, units = rows(arrays[0]), rows(arrays[1])
    shapes = ((features, 4 * units), (units, 4 * units), (4 * units,))
    for array, shape, label in zip(arrays, shapes, labels, strict=False):
        check_shape(array, shape, f"{label} of {name}")
    return GateArrays(arrays[0], arrays[1], arrays[2] if len(arrays) == 3 else None, trained)


def _check_layer(layer: KerasLayer, name: str, backward: bool) -> None:
    if not _is_lstm(layer):
        inside = [f"{name}.layers[{k}]" for k, each in enumerate(getattr(layer, "layers", ())) if _is_lstm(each)]
        hint = f"; it holds some: from_keras([{', '.join(inside)}])" if inside else ""
        if _is_lstm(getattr(layer, "cell", None)):
            hint = f"; it runs a cell: from_keras({name}.cell)"
        raise TypeError(f"{name} is of type {type(layer).__name__}, {_EXPECTED}{hint}")
    config = layer.get_config()
    for option, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if config[option] != wanted:
            raise ValueError(
                f"{name} has {option}={config[option]!r}, which from_keras does not take over: expected {wanted!r}"
            )
    alone = f"from_keras({name}.get_weights())"
    if config.get("go_backwards", backward) != backward:
        raise ValueError(f"{name} has go_backwards=True, expected False: {alone}, and x.flip(1) in place of x")
    for option in ("dropout", "recurrent_dropout"):
        if config[option]:
            raise ValueError(
                f"{name} has {option}={config[option]}, which drops the same units at every step, and a stack drops "
                f"others at each: {alone} takes the weights without it"
            )
    if not layer.get_weights():
        raise ValueError(
            f"{name} is not built, so it has no weights: call it once, or {name}.build((None, None, features))"
        )
