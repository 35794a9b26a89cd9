"""Weights to and from `torch.nn.LSTM`: torch's packed matrices, and one parameter for each gate.

torch stacks the gates as rows, in the order i, f, g, o, and multiplies by the transpose: `weight_ih` is [4 * hidden,
input]. A layer here multiplies by each gate's own matrix, [input, hidden], as it stands.
"""

from __future__ import annotations

from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from .layer import GATES, LSTMLayer
from .stack import MultiLayerLSTM


@overload
def from_torch(module: nn.LSTM, *, dropout: float | None = None) -> MultiLayerLSTM: ...


@overload
def from_torch(module: nn.LSTMCell) -> LSTMLayer: ...


def from_torch(module: nn.LSTM | nn.LSTMCell, *, dropout: float | None = None) -> MultiLayerLSTM | LSTMLayer:
    """A stack without a projection that computes what an `nn.LSTM` does; of an `nn.LSTMCell`, a layer.

    The weights are copies, in their dtype and on their device, frozen where they were, and the mode is kept. A bias is
    the sum of torch's two, and trains if either does. With `bias=False` there, biases are zero here and frozen;
    `requires_grad_()` lets them train.

    The result is batch-first, whatever `module.batch_first` is: with False there, x goes in as `x.transpose(0, 1)`, and
    the output comes out so. States, [layers, batch, hidden], are the same.

    torch drops out between layers only, a stack also its output. So a `module` with dropout between layers is refused
    until `dropout` gives the stack's rate. `model.trace(x).layers[-1].h` is the output before its dropout: what torch
    returns in training. The dropout of an `nn.LSTM` of one layer does nothing, and is 0 here.

    Raises TypeError for another kind of module, ValueError for `bidirectional=True` and for a `proj_size`.
    """
    if isinstance(module, nn.LSTMCell):
        if dropout is not None:
            raise TypeError("module is an LSTMCell; it becomes one layer, which has no dropout: from_torch(module)")
        layer = LSTMLayer(module.input_size, module.hidden_size, device="meta", dtype=module.weight_ih.dtype)
        _unpack(module, "", layer.to_empty(device=module.weight_ih.device))
        return layer.train(module.training)
    if not isinstance(module, nn.LSTM):
        raise _wrong_type("from_torch(module", module, (nn.LSTM, nn.LSTMCell), "an nn.LSTM or an nn.LSTMCell")
    _check_recurrence(module)
    rate = _stack_dropout(module) if dropout is None else dropout
    shape, like = (module.input_size, module.hidden_size, module.num_layers), cast(Tensor, module.weight_ih_l0)
    model = MultiLayerLSTM(*shape, rate, output_dim=None, device="meta", dtype=like.dtype).to_empty(device=like.device)
    for k, empty in enumerate(model.layers):
        _unpack(module, f"_l{k}", empty)
    return model.train(module.training)


def to_torch(model: MultiLayerLSTM | LSTMLayer) -> nn.LSTM:
    """The `nn.LSTM`, with `batch_first=True`, that computes what the layers of a stack do, or one layer alone.

    What a stack has behind its top layer are torch's modules already: `model(x)[0]` is
    `model.proj(model.dropout(lstm(x)[0]))`, without `proj` where that is None. Dropout between layers is the LSTM's.

    The weights are copies, in their dtype and on their device, frozen where they were, and the mode is kept. A bias
    goes into `bias_ih`; `bias_hh` is zero and frozen: if both trained, their sum would move twice as far as our one.

    Raises TypeError for another kind of module; ValueError for layers of several widths, and for a layer some of whose
    gates are frozen and some not, since torch has one parameter for all four.
    """
    if isinstance(model, MultiLayerLSTM):
        layers = cast(list[LSTMLayer], list(model.layers))
        # torch warns about a rate that would do nothing.
        dropout = model.dropout.p if len(layers) > 1 else 0.0
    elif isinstance(model, LSTMLayer):
        layers, dropout = [model], 0.0
    else:
        raise _wrong_type("to_torch(model", model, (MultiLayerLSTM, LSTMLayer), "a MultiLayerLSTM or an LSTMLayer")
    _check_widths(layers)
    shape, like = (layers[0].input_dim, layers[0].hidden_dim, len(layers)), layers[0].b_f
    lstm = nn.LSTM(*shape, batch_first=True, dropout=dropout, device="meta", dtype=like.dtype)
    lstm.to_empty(device=like.device)
    for k, layer in enumerate(layers):
        _pack(layer, k, lstm)
    return lstm.train(model.training)


def _unpack(module: nn.Module, suffix: str, layer: nn.Module) -> None:
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


def _pack(layer: LSTMLayer, k: int, lstm: nn.LSTM) -> None:
    """Fill layer `k` of `lstm` with the parameters of `layer`."""
    for kind, packed in (("W_x", f"weight_ih_l{k}"), ("W_h", f"weight_hh_l{k}"), ("b_", f"bias_ih_l{k}")):
        with torch.enable_grad():
            gates = {f"{kind}{gate}": getattr(layer, f"{kind}{gate}") for gate in GATES}
        frozen = [name for name, value in gates.items() if not value.requires_grad]
        if 0 < len(frozen) < len(gates):
            trained = [name for name in gates if name not in frozen]
            raise ValueError(
                f"layer {k}: {', '.join(frozen)} frozen and {', '.join(trained)} not, but an nn.LSTM has one parameter "
                f"for them, {packed}: to_torch(copy.deepcopy(model).requires_grad_()), then freeze there"
            )
        with torch.no_grad():
            together = torch.cat([value.t() for value in gates.values()])
            getattr(lstm, packed).copy_(together).requires_grad_(not frozen)
    with torch.no_grad():
        getattr(lstm, f"bias_hh_l{k}").zero_().requires_grad_(False)


def _check_recurrence(module: nn.LSTM) -> None:
    if module.bidirectional:
        raise ValueError(
            "module is bidirectional, and a MultiLayerLSTM runs forward only: expected an nn.LSTM with "
            "bidirectional=False"
        )
    if module.proj_size:
        raise ValueError(
            f"module has proj_size={module.proj_size}, a projection inside the recurrence, which this version does not "
            "have: expected an nn.LSTM with proj_size=0"
        )


def _stack_dropout(module: nn.LSTM) -> float:
    if module.dropout > 0 and module.num_layers > 1:
        raise ValueError(
            f"module has dropout={module.dropout} between its layers, and a MultiLayerLSTM would also drop its output: "
            f"from_torch(module, dropout={module.dropout}) takes that, and model.trace(x).layers[-1].h is the output "
            "before it; from_torch(module, dropout=0.0) drops nothing"
        )
    return 0.0


def _check_widths(layers: list[LSTMLayer]) -> None:
    hidden = layers[0].hidden_dim
    for k, layer in enumerate(layers[1:], start=1):
        if (layer.input_dim, layer.hidden_dim) != (hidden, hidden):
            raise ValueError(
                f"layer {k} has input_dim={layer.input_dim} and hidden_dim={layer.hidden_dim}, expected {hidden} and "
                f"{hidden}: an nn.LSTM has one hidden width; to_torch(model.layers[{k}]) is this layer alone"
            )


def _wrong_type(call: str, given: Any, wanted: tuple[type[nn.Module], ...], expected: str) -> TypeError:
    hint = ""
    if isinstance(given, nn.Module):
        inside = [path for path, part in given.named_modules() if isinstance(part, wanted)]
        if inside:
            hint = f'; it holds one: {call}.get_submodule("{inside[0]}"))'
    return TypeError(f"{call.partition('(')[2]} is of type {type(given).__name__}, expected {expected}{hint}")
