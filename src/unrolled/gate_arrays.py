"""Weights of a layer as three NumPy arrays with the gates side by side: what those of other libraries pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .interop import check_has_place, check_not_residual
from .layer import GATES, LSTMLayer
from .stack import MultiLayerLSTM

# bfloat16 is that of the package ml_dtypes, which JAX and Keras use.
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class GateArrays(NamedTuple):
    """Gates in the order i, f, g, o: `w_x` [input, 4 * hidden], `w_h` [hidden, 4 * hidden], `bias` [4 * hidden].

    `peepholes`: [3, hidden], of i, f, o. What is not `trained` becomes parameters that are frozen.
    """

    w_x: NDArray[Any]
    w_h: NDArray[Any]
    bias: NDArray[Any] | None
    trained: bool = True
    peepholes: NDArray[Any] | None = None


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


def stack_of(layers: Sequence[Sequence[GateArrays]], names: Sequence[str], call: str, **kind: Any) -> MultiLayerLSTM:
    """A stack without dropout and projection, on the CPU, of copies of the arrays; a bias that is None is zero, frozen.

    Each layer is its forward direction, alone or with the backward one behind it. `names` are the caller's for the
    layers, and `call`, with one of them in its braces, converts that one alone. `kind`: options of all layers.
    Raises TypeError for arrays of several dtypes, ValueError for layers of several widths or numbers of directions.
    """
    bottom, directions = layers[0][0], len(layers[0])
    hidden = rows(bottom.w_h)
    for k, (layer, name) in enumerate(zip(layers, names, strict=True)):
        alone = f"; {call.format(name)} is this one alone" if len(layers) > 1 else ""
        if len(layer) != directions:
            raise ValueError(f"{name} has {len(layer)} direction(s) and {names[0]} has {directions}{alone}")
        for arrays in layer:
            _check_dtype(arrays, bottom, name, names[0])
            expected = (hidden * directions if k else rows(bottom.w_x), hidden)
            if (rows(arrays.w_x), rows(arrays.w_h)) != expected:
                raise ValueError(
                    f"{name} has {rows(arrays.w_x)} inputs and {rows(arrays.w_h)} units, expected {expected[0]} and "
                    f"{expected[1]}: the layers of a MultiLayerLSTM have one hidden width{alone}"
                )
    shape, dtype = (rows(bottom.w_x), hidden, len(layers)), _tensor(bottom.w_x[:0]).dtype
    options: dict[str, Any] = {"bidirectional": directions == 2, "device": "meta", "dtype": dtype, **kind}
    options["peephole"] = any(arrays.peepholes is not None for layer in layers for arrays in layer)
    model = MultiLayerLSTM(*shape, output_dim=None, **options).to_empty(device="cpu")
    for empty, layer in zip(directions_of(model), layers, strict=True):
        for direction, arrays in zip(empty, layer, strict=True):
            _fill(direction, arrays)
    return model


def directions_of(model: MultiLayerLSTM) -> list[tuple[LSTMLayer, ...]]:
    """Layers, bottom first: each its forward direction, with the backward one behind it where there is one."""
    kinds = [model.layers] if model.reverse_layers is None else [model.layers, model.reverse_layers]
    return cast(list[tuple[LSTMLayer, ...]], list(zip(*kinds, strict=True)))


def arrays_of(layer: LSTMLayer) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Copies of a layer's w_x, w_h and bias as in `GateArrays`; bfloat16, which NumPy lacks, as float32, exactly."""
    check_has_place(layer, "a layer of Keras or Flax")
    with torch.no_grad():
        w_x, w_h, bias = (
            torch.cat([getattr(layer, f"{kind}{gate}") for gate in GATES], -1) for kind in ("W_x", "W_h", "b_")
        )
    return _array(w_x), _array(w_h), _array(bias)


def layers_of(model: MultiLayerLSTM | LSTMLayer, call: str) -> list[tuple[LSTMLayer, ...]]:
    """As `directions_of`. `call`, such as "to_keras", is for the sentences.

    Raises TypeError for another module, ValueError for a residual stack and a projection inside the recurrence.
    """
    if isinstance(model, MultiLayerLSTM | LSTMLayer):
        if isinstance(model, MultiLayerLSTM):
            check_not_residual(model, "a list of layers of Keras or Flax")
        layers: list[tuple[LSTMLayer, ...]] = [(model,)] if isinstance(model, LSTMLayer) else directions_of(model)
        if layers[0][0].proj_dim is not None:
            raise ValueError(
                f"model has proj_dim={layers[0][0].proj_dim}, a projection inside the recurrence, which {call} has no "
                "place for: expected proj_dim=None"
            )
        return layers
    hint = ""
    if isinstance(model, nn.LSTM | nn.LSTMCell):
        hint = f"; {call}(from_torch(model)) converts this one"
    elif isinstance(model, nn.Module):
        inside = [path for path, part in model.named_modules() if isinstance(part, MultiLayerLSTM | LSTMLayer)]
        hint = f'; it holds one: {call}(model.get_submodule("{inside[0]}"))' if inside else ""
    raise TypeError(f"model is of type {type(model).__name__}, expected a MultiLayerLSTM or an LSTMLayer{hint}")


def _check_dtype(arrays: GateArrays, bottom: GateArrays, name: str, first: str) -> None:
    for array in arrays[:3]:
        if array is not None and array.dtype != bottom.w_x.dtype:
            raise TypeError(
                f"{name} has weights of {array.dtype.name} and {first} of {bottom.w_x.dtype.name}, expected one dtype: "
                "convert them with astype"
            )


def _fill(layer: LSTMLayer, arrays: GateArrays) -> None:
    bias = np.zeros_like(arrays.w_h[0]) if arrays.bias is None else arrays.bias
    with torch.no_grad():
        for kind, array in (("W_x", arrays.w_x), ("W_h", arrays.w_h), ("b_", bias)):
            trained = arrays.trained and not (kind == "b_" and arrays.bias is None)
            for gate, columns in zip(GATES, _tensor(array).chunk(4, -1), strict=True):
                if gate == "f" and layer.options.coupled:
                    continue
                getattr(layer, f"{kind}{gate}").copy_(columns).requires_grad_(trained)
        if layer.options.peephole:
            none = np.zeros((3, layer.hidden_dim), arrays.w_h.dtype)
            for gate, row in zip("ifo", _tensor(none if arrays.peepholes is None else arrays.peepholes), strict=True):
                if gate == "f" and layer.options.coupled:
                    continue
                getattr(layer, f"p_{gate}").copy_(row).requires_grad_(arrays.trained)


def _tensor(array: NDArray[Any]) -> Tensor:
    array = np.array(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(value: Tensor) -> NDArray[Any]:
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
