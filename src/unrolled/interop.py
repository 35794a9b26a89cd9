"""Weights to and from `torch.nn.LSTM`: torch's packed matrices, and one parameter for each gate.

torch stacks the gates as rows, in the order i, f, g, o, and multiplies by the transpose: `weight_ih` is [4 * hidden,
input]. A layer here multiplies by each gate's own matrix, [input, hidden], as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from .cell_options import IN_THE_LAYER
from .drop_in import LSTM
from .layer import GATES, LSTMLayer
from .own_cell import name_of
from .stack import MultiLayerLSTM


@overload
def from_torch(module: nn.LSTM | LSTM, *, dropout: float | None = None) -> MultiLayerLSTM: ...


@overload
def from_torch(module: nn.LSTMCell) -> LSTMLayer: ...


def from_torch(module: nn.LSTM | LSTM | nn.LSTMCell, *, dropout: float | None = None) -> MultiLayerLSTM | LSTMLayer:
    """A stack that computes what an `nn.LSTM` or an `unrolled.LSTM` does; of an `nn.LSTMCell`, a layer.

    All layers, both directions, a projection of h (`proj_size` becomes `proj_dim`); the output is not projected.

    The weights are copies, in their dtype and on their device, frozen where they were, and the mode is kept. A bias is
    the sum of torch's two, and trains if either does. With `bias=False` there, biases are zero here and frozen;
    `requires_grad_()` lets them train.

    The result is batch-first, whatever `module.batch_first` is: with False there, x goes in as `x.transpose(0, 1)`, and
    the output comes out so. States are the same.

    torch drops out between layers only, a stack also its output. So a `module` with dropout between layers is refused
    until `dropout` gives the stack's rate. `model.trace(x).layers[-1].h` is the output before its dropout: what torch
    returns in training. The dropout of an `nn.LSTM` of one layer does nothing, and is 0 here.

    Raises TypeError for another kind of module.
    """
    if isinstance(module, nn.LSTMCell):
        if dropout is not None:
            raise TypeError("module is an LSTMCell; it becomes one layer, which has no dropout: from_torch(module)")
        layer = LSTMLayer(module.input_size, module.hidden_size, device="meta", dtype=module.weight_ih.dtype)
        _unpack(module, "", layer.to_empty(device=module.weight_ih.device))
        return layer.train(module.training)
    if not isinstance(module, nn.LSTM | LSTM):
        expected = "an nn.LSTM, an unrolled.LSTM or an nn.LSTMCell"
        raise _wrong_type("from_torch(module", module, (nn.LSTM, LSTM, nn.LSTMCell), expected)
    rate = _stack_dropout(module) if dropout is None else dropout
    shape, like = (module.input_size, module.hidden_size, module.num_layers), cast(Tensor, module.weight_ih_l0)
    options: dict[str, Any] = {"proj_dim": module.proj_size or None, "bidirectional": module.bidirectional}
    model = MultiLayerLSTM(*shape, rate, output_dim=None, **options, device="meta", dtype=like.dtype)
    model.to_empty(device=like.device)
    for suffix, empty in _named(model):
        _unpack(module, suffix, empty)
    return model.train(module.training)


def to_torch(model: MultiLayerLSTM | LSTMLayer | LSTM) -> nn.LSTM:
    """The `nn.LSTM` that computes what the layers of a stack do, one layer alone, or an `unrolled.LSTM`.

    That of an `unrolled.LSTM` has all its options and parameters; of the others it has `batch_first=True`. What a stack
    has behind its top layer are torch's modules already: `model(x)[0]` is `model.proj(model.dropout(lstm(x)[0]))`,
    without `proj` where that is None. Dropout between layers is the LSTM's.

    The weights are copies, in their dtype and on their device, frozen where they were, and the mode is kept. A bias
    goes into `bias_ih`; `bias_hh` is zero and frozen: if both trained, their sum would move twice as far as our one.

    Raises TypeError for another kind of module; ValueError for layers of several widths, for a projection that is not
    narrower than c, which torch refuses, for options that torch has no place for, and for a layer some of whose gates
    are frozen and some not, since torch has one parameter for all four.
    """
    if isinstance(model, LSTM):
        return _as_torch(model)
    if isinstance(model, MultiLayerLSTM):
        check_not_residual(model, "an nn.LSTM")
        layers, both = list(_named(model)), model.bidirectional
        # torch warns about a rate that would do nothing.
        dropout = model.dropout.p if model.num_layers > 1 else 0.0
    elif isinstance(model, LSTMLayer):
        layers, both, dropout = [("_l0", model)], False, 0.0
    else:
        expected = "a MultiLayerLSTM, an LSTMLayer or an unrolled.LSTM"
        raise _wrong_type("to_torch(model", model, (MultiLayerLSTM, LSTMLayer, LSTM), expected)
    _check_widths(layers, 2 if both else 1)
    for _, layer in layers:
        check_has_place(layer, "an nn.LSTM")
    first = layers[0][1]
    shape, like = (first.input_dim, first.hidden_dim, len(layers) // (2 if both else 1)), first.W_xo
    options: dict[str, Any] = {"bidirectional": both, "proj_size": first.proj_dim or 0, "dropout": dropout}
    lstm = nn.LSTM(*shape, batch_first=True, **options, device="meta", dtype=like.dtype).to_empty(device=like.device)
    for suffix, layer in layers:
        _pack(layer, suffix, lstm)
    return lstm.train(model.training)


def check_has_place(layer: LSTMLayer, noun: str) -> None:
    """ValueError where the layer is other than `noun` can be."""
    own = "" if layer.cell is None else f"cell={name_of(layer.cell)}"
    if changed := own or layer.options.changed(IN_THE_LAYER):
        raise ValueError(f"the layer has {changed}, which {noun} has no place for: build the model without")


def check_not_residual(model: MultiLayerLSTM, noun: str) -> None:
    """ValueError where layers are added to what they read."""
    if model.residual:
        raise ValueError(f"the stack has residual=True, which {noun} has no place for: convert its layers one by one")


def _named(model: MultiLayerLSTM) -> Iterator[tuple[str, LSTMLayer]]:
    """Each layer with what torch's names of its parameters end in, in the order of the state's first axis."""
    for k in range(model.num_layers):
        yield f"_l{k}", cast(LSTMLayer, model.layers[k])
        if model.reverse_layers is not None:
            yield f"_l{k}_reverse", cast(LSTMLayer, model.reverse_layers[k])


def _as_torch(model: LSTM) -> nn.LSTM:
    like = cast(Tensor, model.weight_ih_l0)
    options = {name: getattr(model, name) for name in _OPTIONS}
    lstm = nn.LSTM(**options, device="meta", dtype=like.dtype).to_empty(device=like.device)
    with torch.no_grad():
        for name, empty in lstm.named_parameters():
            value = getattr(model, name)
            empty.copy_(value).requires_grad_(value.requires_grad)
    return lstm.train(model.training)


_OPTIONS = (
    *("input_size", "hidden_size", "num_layers", "bias"),
    *("batch_first", "dropout", "bidirectional", "proj_size"),
)


def _unpack(module: nn.Module, suffix: str, layer: LSTMLayer) -> None:
    """Fill `layer` with the parameters of `module` whose names end in `suffix`."""
    # With gradients, so that a sum, as a parametrised weight, requires them where what it is made from does.
    with torch.enable_grad():
        packed = {"W_x": getattr(module, f"weight_ih{suffix}"), "W_h": getattr(module, f"weight_hh{suffix}")}
        if module.bias:
            packed["b_"] = getattr(module, f"bias_ih{suffix}") + getattr(module, f"bias_hh{suffix}")
        else:
            packed["b_"] = torch.zeros_like(packed["W_h"][:, 0])
    with torch.no_grad():
        for kind, value in packed.items():
            for gate, rows in zip(GATES, value.chunk(4), strict=True):
                getattr(layer, f"{kind}{gate}").copy_(rows.t()).requires_grad_(value.requires_grad)
        if layer.proj_dim is not None:
            projection = getattr(module, f"weight_hr{suffix}")
            layer.W_hr.copy_(projection.t()).requires_grad_(projection.requires_grad)


def _pack(layer: LSTMLayer, suffix: str, lstm: nn.LSTM) -> None:
    """Fill the parameters of `lstm` whose names end in `suffix` with those of `layer`."""
    for kind, packed in (("W_x", f"weight_ih{suffix}"), ("W_h", f"weight_hh{suffix}"), ("b_", f"bias_ih{suffix}")):
        with torch.enable_grad():
            gates = {f"{kind}{gate}": getattr(layer, f"{kind}{gate}") for gate in GATES}
        frozen = [name for name, value in gates.items() if not value.requires_grad]
        if 0 < len(frozen) < len(gates):
            trained = [name for name in gates if name not in frozen]
            raise ValueError(
                f"layer {_place(suffix)}: {', '.join(frozen)} frozen and {', '.join(trained)} not, but an nn.LSTM has "
                f"one parameter for them, {packed}: to_torch(copy.deepcopy(model).requires_grad_()), then freeze there"
            )
        with torch.no_grad():
            together = torch.cat([value.t() for value in gates.values()])
            getattr(lstm, packed).copy_(together).requires_grad_(not frozen)
    with torch.no_grad():
        getattr(lstm, f"bias_hh{suffix}").zero_().requires_grad_(False)
        if layer.proj_dim is not None:
            getattr(lstm, f"weight_hr{suffix}").copy_(layer.W_hr.t()).requires_grad_(layer.W_hr.requires_grad)


def _place(suffix: str) -> str:
    """Which layer it is: 1, or 1 backward."""
    return suffix.removeprefix("_l").replace("_reverse", " backward")


def _stack_dropout(module: nn.LSTM | LSTM) -> float:
    if module.dropout > 0 and module.num_layers > 1:
        raise ValueError(
            f"module has dropout={module.dropout} between its layers, and a MultiLayerLSTM would also drop its output: "
            f"from_torch(module, dropout={module.dropout}) takes that, and model.trace(x).layers[-1].h is the output "
            "before it; from_torch(module, dropout=0.0) drops nothing"
        )
    return 0.0


def _check_widths(layers: list[tuple[str, LSTMLayer]], directions: int) -> None:
    first = layers[0][1]
    hidden, width = first.hidden_dim, first.h_dim
    if first.proj_dim is not None and first.proj_dim >= hidden:
        raise ValueError(
            f"the layers have proj_dim={first.proj_dim} and hidden_dim={hidden}; an nn.LSTM projects h to fewer "
            "numbers than hidden_dim, and to no others"
        )
    for n, (suffix, layer) in enumerate(layers):
        expected = (first.input_dim if n < directions else directions * width, hidden, width)
        given = (layer.input_dim, layer.hidden_dim, layer.h_dim)
        if given != expected:
            of_h = (
                ("", "") if (given[2], hidden) == (given[1], width) else (f", and h {given[2]} wide", f" and {width}")
            )
            list_name = "reverse_layers" if suffix.endswith("_reverse") else "layers"
            raise ValueError(
                f"layer {_place(suffix)} has input_dim={given[0]} and hidden_dim={given[1]}{of_h[0]}, expected "
                f"{expected[0]} and {hidden}{of_h[1]}: an nn.LSTM has one hidden width; "
                f"to_torch(model.{list_name}[{n // directions}]) is this layer alone"
            )


def _wrong_type(call: str, given: Any, wanted: tuple[type[nn.Module], ...], expected: str) -> TypeError:
    hint = ""
    if isinstance(given, nn.Module):
        inside = [path for path, part in given.named_modules() if isinstance(part, wanted)]
        if inside:
            hint = f'; it holds one: {call}.get_submodule("{inside[0]}"))'
    return TypeError(f"{call.partition('(')[2]} is of type {type(given).__name__}, expected {expected}{hint}")
