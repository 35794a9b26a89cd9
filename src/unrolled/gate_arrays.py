"""Weights of a layer as three NumPy arrays with the gates side by side: what those of other libraries pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .interop import check_has_place
from .layer import GATES, LSTMLayer
from .stack import MultiLayerLSTM

# bfloat16 is that of the package ml_dtypes, which JAX and Keras use.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class GateArrays(NamedTuple):
    """Gates in the order i, f, g, o: `w_x` [input, 4 * hidden], `w_h` [hidden, 4 * hidden], `bias` [4 * hidden].

    What is not `trained` becomes parameters that are frozen.
    """

    w_x: NDArray[Any]
    w_h: NDArray[Any]
    bias: NDArray[Any] | None
    trained: bool = True


def floats(value: Any, name: str) -> NDArray[Any]:
    """`value` as an array; TypeError if it is none of floats that torch has too."""
    array = np.asarray(value)
    if array.dtype.name not in _FLOATS:
        kind = type(value).__name__ if array.dtype == object else f"{array.dtype.name} {type(value).__name__}"
        raise TypeError(f"{name} is of type {kind}, expected an array of {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]}")
    return array


def rows(array: NDArray[Any]) -> int:
    """0 without axes: `check_shape` then refuses the array."""
    return array.shape[0] if array.ndim else 0


def check_shape(array: NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} is {list(array.shape)}, expected {list(shape)}")


def stack_of(layers: Sequence[GateArrays], names: Sequence[str], call: str) -> MultiLayerLSTM:
    """A stack without dropout and projection, on the CPU, of copies of the arrays; a bias that is None is zero, frozen.

    `names` are the caller's for the layers, and `call`, with one of them in its braces, converts that one alone.
    Raises TypeError for arrays of several dtypes, ValueError for layers of several widths.
    """
    bottom = layers[0]
    hidden = bottom.w_h.shape[0]
    for arrays, name in zip(layers, names, strict=True):
        for array in arrays[:3]:
            if array is not None and array.dtype != bottom.w_x.dtype:
                raise TypeError(
                    f"{name} has weights of {array.dtype.name} and {names[0]} of {bottom.w_x.dtype.name}, expected one "
                    "dtype: convert them with astype"
                )
        expected = (bottom.w_x.shape[0] if arrays is bottom else hidden, hidden)
        if (arrays.w_x.shape[0], arrays.w_h.shape[0]) != expected:
            raise ValueError(
                f"{name} has {arrays.w_x.shape[0]} inputs and {arrays.w_h.shape[0]} units, expected {expected[0]} and "
                f"{expected[1]}: the layers of a MultiLayerLSTM have one hidden width; {call.format(name)} is this one "
                "alone"
            )
    shape, dtype = (bottom.w_x.shape[0], hidden, len(layers)), _tensor(bottom.w_x[:0]).dtype
    model = MultiLayerLSTM(*shape, output_dim=None, device="meta", dtype=dtype).to_empty(device="cpu")
    for layer, arrays in zip(model.layers, layers, strict=True):
        _fill(cast(LSTMLayer, layer), arrays)
    return model


def arrays_of(layer: LSTMLayer) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Copies of a layer's w_x, w_h and bias as in `GateArrays`; bfloat16, which NumPy lacks, as float32, exactly."""
    check_has_place(layer, "a layer of Keras or Flax")
    with torch.no_grad():
        w_x, w_h, bias = (
            torch.cat([getattr(layer, f"{kind}{gate}") for gate in GATES], -1) for kind in ("W_x", "W_h", "b_")
        )
    return _array(w_x), _array(w_h), _array(bias)


def layers_of(model: MultiLayerLSTM | LSTMLayer, call: str) -> list[LSTMLayer]:
    """The layers, bottom first. Raises TypeError for another module, which `call`, such as "to_keras", is a word of."""
    if isinstance(model, LSTMLayer):
        return [model]
    if isinstance(model, MultiLayerLSTM):
        return cast(list[LSTMLayer], list(model.layers))
    hint = ""
    if isinstance(model, nn.LSTM | nn.LSTMCell):
        hint = f"; {call}(from_torch(model)) converts this one"
    elif isinstance(model, nn.Module):
        inside = [path for path, part in model.named_modules() if isinstance(part, MultiLayerLSTM | LSTMLayer)]
        hint = f'; it holds one: {call}(model.get_submodule("{inside[0]}"))' if inside else ""
    raise TypeError(f"model is of type {type(model).__name__}, expected a MultiLayerLSTM or an LSTMLayer{hint}")


def _fill(layer: LSTMLayer, arrays: GateArrays) -> None:
    bias = np.zeros_like(arrays.w_h[0]) if arrays.bias is None else arrays.bias
    with torch.no_grad():
        for kind, array in (("W_x", arrays.w_x), ("W_h", arrays.w_h), ("b_", bias)):
            trained = arrays.trained and not (kind == "b_" and arrays.bias is None)
            for gate, columns in zip(GATES, _tensor(array).chunk(4, -1), strict=True):
                getattr(layer, f"{kind}{gate}").copy_(columns).requires_grad_(trained)


def _tensor(array: NDArray[Any]) -> Tensor:
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(value: Tensor) -> NDArray[Any]:
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
