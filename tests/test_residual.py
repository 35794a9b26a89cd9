"""Residual stacks: from the second layer on, what a layer reads is added to what it gives; wherever a stack runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import F64, gradients, masks, normal, redraw
from torch import Tensor
from worlds import BACKENDS, dtype_of, needs_library, remove_library

from unrolled import LSTMLayer, MultiLayerLSTM, Stepper, to_torch
from unrolled.gate_arrays import layers_of
from unrolled.recurrence import BackendUnavailable


def new_model(backend: str = "auto", layers: int = 3, **options: Any) -> MultiLayerLSTM:
    given: dict[str, Any] = {"residual": True, "backend": backend, "dtype": dtype_of(backend), **options}
    model = redraw(MultiLayerLSTM(5, 7, layers, **given))
    assert isinstance(model, MultiLayerLSTM)
    return model


def by_hand(model: MultiLayerLSTM, x: Tensor, state: Any, where: dict[str, Tensor]) -> Tensor:
    """y_1 = h_1, y_k = h_k + y_{k-1}, as the docstring has it."""
    y = None
    for k, layer in enumerate(model.layers):
        assert isinstance(layer, LSTMLayer)
        h, _ = layer(x if y is None else y, state[0][k], state[1][k], **where)
        y = h if y is None else h + y
    assert y is not None
    assert model.proj is not None
    return model.proj(y)


@pytest.mark.parametrize("kind", ["none", "both"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_trace_and_gradients(backend: str, kind: str) -> None:
    model, where = new_model(backend), masks(kind, 4, 9)
    x = normal(4, 9, 5, seed=1).to(dtype_of(backend)).requires_grad_()
    state = (normal(3, 4, 7, seed=2).to(x), normal(3, 4, 7, seed=3).to(x))
    leaves = {"x": x, **dict(model.named_parameters())}
    expected = by_hand(model, x, state, where)
    trace = model.trace(x, state, **where)
    near = 1e-11 if dtype_of(backend) == F64 else 2e-5
    theirs = gradients({"y": expected}, leaves)
    for output in (model(x, state, **where)[0], trace.output):
        torch.testing.assert_close(output, expected, rtol=near, atol=near)
        for name, value in gradients({"y": output}, leaves).items():
            torch.testing.assert_close(value, theirs[name], rtol=near, atol=near, msg=name)
    # What is traced and carried is the layer's own.
    assert model.proj is not None
    h = sum(layer.h for layer in trace.layers)
    torch.testing.assert_close(model.proj(h), expected, rtol=near, atol=near)
    torch.testing.assert_close(trace.state.h[1], trace.layers[1].state[0])
    total = trace.gradients(trace.output.square().sum())
    bias = torch.autograd.grad(trace.output.square().sum(), model.layers[0].b_o)[0]
    torch.testing.assert_close(total[0].o.sum((0, 1)), bias, rtol=near, atol=near * 100)


def test_behind_a_row_s_length_nothing_is_added() -> None:
    model, where = new_model(output_dim=None, dtype=torch.float32), masks("lengths", 4, 9)
    output, _ = model(torch.randn(4, 9, 5), **where)
    ended = torch.arange(9) >= where["lengths"][:, None]
    assert not output[ended].any()
    assert output[~ended].all()


def test_in_both_directions() -> None:
    model = new_model("portable", 2, bidirectional=True, output_dim=None)
    x = normal(4, 9, 5, seed=1)
    trace = model.trace(x)
    forward, backward, upper_forward, upper_backward = (layer.h for layer in trace.layers)
    expected = torch.cat([forward + upper_forward, backward + upper_backward], -1)
    torch.testing.assert_close(trace.output, expected)


def test_dropout_lies_on_what_a_layer_reads_and_not_on_what_is_added() -> None:
    model = new_model("portable", 2, dropout=0.5, output_dim=None).train()
    model.dropout.p = 0.0
    with torch.no_grad():
        for parameter in model.layers[1].parameters():
            parameter.zero_()
    x = normal(4, 9, 5, seed=1)
    plain = model(x)[0]
    model.dropout.p = 0.5
    dropped = model(x)[0]
    # h_2 is 0, so what comes out is y_1 = h_1, dropped once.
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert 0.3 < kept.double().mean() < 0.7


@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_library), False], ids=["library", "no library"])
@pytest.mark.parametrize("output_dim", ["input", None])
def test_a_stepper_adds_too(library: bool, output_dim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        remove_library(monkeypatch)
    model = new_model(dtype=torch.float32, output_dim=output_dim)
    x = torch.randn(2, 5, 5)
    with torch.no_grad():
        expected, state = model(x)
    stepper = Stepper(model, 2)
    assert stepper.backend == "portable"
    steps = torch.stack([torch.as_tensor(stepper.step(x[:, t])).clone() for t in range(5)], 1)
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stepper.state.h, state.h, rtol=1e-4, atol=1e-5)
    assert Stepper(model, 1).compare(x).largest_difference < 1e-4
    if library:
        for given, said in (({"weights": "int8"}, 'weights="int8"'), ({"strict": True}, "strict=True")):
            with pytest.raises(BackendUnavailable) as error:
                Stepper(model, 1, **given)
            assert str(error.value) == (
                f"{said} needs the native kernel, and there is none of a residual stack; without it, a stepper runs "
                'weights="float32" with strict=False'
            )


def test_what_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        MultiLayerLSTM(3, 4, residual=True)
    assert str(error.value) == "residual=True adds from the second layer on, and num_layers=1: leave residual out"
    model = MultiLayerLSTM(3, 4, 2, residual=True)
    assert repr(model).startswith("MultiLayerLSTM(\n  3, 4, num_layers=2, residual=True\n")
    with pytest.raises(ValueError) as error:
        to_torch(model)
    sentence = "the stack has residual=True, which {} has no place for: convert its layers one by one"
    assert str(error.value) == sentence.format("an nn.LSTM")
    with pytest.raises(ValueError) as error:
        layers_of(model, "to_keras")
    assert str(error.value) == sentence.format("a list of layers of Keras or Flax")
    assert to_torch(model.layers[1]).hidden_size == 4
