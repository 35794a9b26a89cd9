"""To torch's modules and back: the same numbers, gradients and training, the same bits of weights, and refusals."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from plain import F64, GATES, gradients, new_model, normal, redraw
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from unrolled import LSTM, LSTMLayer, MultiLayerLSTM, from_torch, to_torch

B, T, I, H = 4, 6, 5, 7
KINDS = (("W_x", "weight_ih"), ("W_h", "weight_hh"), ("b_", "bias_ih"))

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
shapes = pytest.mark.parametrize("layers", [1, 2, 3])
structures = pytest.mark.parametrize(
    "structure",
    [{}, {"bidirectional": True}, {"proj_size": 3}, {"bidirectional": True, "proj_size": 3}],
    ids=["plain", "both directions", "projected", "both directions, projected"],
)
biases = pytest.mark.parametrize("bias", [True, False])


def new_lstm(layers: int = 2, **options: Any) -> nn.LSTM:
    lstm = redraw(nn.LSTM(I, H, layers, **{"batch_first": True, "dtype": F64} | options))
    assert isinstance(lstm, nn.LSTM)
    return lstm


def new_cell(**options: Any) -> nn.LSTMCell:
    cell = redraw(nn.LSTMCell(I, H, dtype=F64, **options))
    assert isinstance(cell, nn.LSTMCell)
    return cell


def inputs(layers: int, proj: int = 0) -> dict[str, Tensor]:
    x, h0, c0 = normal(B, T, I, seed=1), normal(layers, B, proj or H, seed=2).tanh(), normal(layers, B, H, seed=3)
    return {name: value.requires_grad_() for name, value in (("x", x), ("h0", h0), ("c0", c0))}


def results(module: nn.Module, given: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """output, h_n and c_n of a call, and its gradients, those of the weights under the module's own names."""
    output, (h, c) = module(given["x"], (given["h0"], given["c0"]))
    outputs = {"output": output, "h_n": h, "c_n": c}
    return outputs, gradients(outputs, given | {n: p for n, p in module.named_parameters() if p.requires_grad})


def assert_close(got: Tensor, expected: Tensor, name: str) -> None:
    """Equal but for float64's rounding over some 20 steps of sums over some 20 terms of order 1 to 10."""
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, msg=lambda text: f"{name}: {text}")


def assert_same_results(model: MultiLayerLSTM, lstm: nn.LSTM) -> None:
    """The numbers of both in one call, and every gradient: torch's packed ones cut by hand, gate by gate."""
    given = inputs(lstm.num_layers * (2 if lstm.bidirectional else 1), lstm.proj_size)
    (got, got_grads), (expected, expected_grads) = results(model, given), results(lstm, given)
    for name, value in expected.items():
        assert_close(got[name], value, name)
    for name in given:
        assert_close(got_grads[name], expected_grads[name], name)
    names = [("layers", "")] + ([("reverse_layers", "_reverse")] if lstm.bidirectional else [])
    for k, (layers, suffix) in itertools.product(range(lstm.num_layers), names):
        for kind, packed in KINDS[: 3 if lstm.bias else 2]:
            rows = expected_grads[f"{packed}_l{k}{suffix}"]
            for number, gate in enumerate(("i", "f", "g", "o")):
                own = f"{layers}.{k}.{kind}{gate}"
                assert_close(got_grads[own], rows[number * H : (number + 1) * H].t(), own)
        if lstm.proj_size:
            own = f"{layers}.{k}.W_hr"
            assert_close(got_grads[own], expected_grads[f"weight_hr_l{k}{suffix}"].t(), own)


@shapes
@biases
@structures
def test_from_torch_gives_the_same_numbers_and_gradients(structure: dict[str, Any], layers: int, bias: bool) -> None:
    lstm = new_lstm(layers, bias=bias, **structure)
    model = from_torch(lstm)
    assert (model.input_dim, model.hidden_dim, model.num_layers, model.output_dim) == (I, H, layers, None)
    assert model.proj is None
    assert_same_results(model, lstm)


@shapes
@pytest.mark.parametrize("output_dim", [None, 4])
def test_to_torch_gives_the_same_numbers_and_gradients(layers: int, output_dim: int | None) -> None:
    model = new_model("auto", layers, output_dim=output_dim)
    lstm = to_torch(model)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.batch_first) == (I, H, layers, True)
    x = normal(B, T, I, seed=1)
    top = lstm(x)[0]
    assert_close(model(x)[0], top if model.proj is None else model.proj(top), "output")
    model.proj = None
    assert_same_results(model, lstm)


@biases
def test_a_cell_is_a_layer_and_a_layer_a_module_of_one_layer(bias: bool) -> None:
    cell, x = new_cell(bias=bias), normal(B, T, I, seed=1)
    h = c = torch.zeros(B, H, dtype=F64)
    expected: list[tuple[Tensor, Tensor]] = []
    for step in x.unbind(1):
        h, c = cell(step, (h, c))
        expected.append((h, c))
    layer = from_torch(cell)
    assert isinstance(layer, LSTMLayer)
    every_h, every_c = layer(x)
    assert_close(every_h, torch.stack([each for each, _ in expected], 1), "h")
    assert_close(every_c, torch.stack([each for _, each in expected], 1), "c")
    lstm = to_torch(layer)
    assert lstm.num_layers == 1
    output, (h_n, c_n) = lstm(x)
    assert_close(output, every_h, "output")
    assert_close(h_n[0], h, "h_n")
    assert_close(c_n[0], c, "c_n")


def test_time_first_is_a_transpose_of_x() -> None:
    lstm, x = new_lstm(batch_first=False), normal(T, B, I, seed=1)
    output, (h, c) = lstm(x)
    same, state = from_torch(lstm)(x.transpose(0, 1))
    assert_close(same.transpose(0, 1), output, "output")
    assert_close(state.h, h, "h_n")
    assert_close(state.c, c, "c_n")


@structures
@pytest.mark.parametrize("bias", [True, False])
def test_an_unrolled_lstm_goes_the_same_ways(structure: dict[str, Any], bias: bool) -> None:
    theirs = new_lstm(2, bias=bias, batch_first=False, dropout=0.3, **structure).eval()
    ours = LSTM(I, H, 2, bias=bias, dropout=0.3, dtype=F64, **structure).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.weight_hh_l0.requires_grad_(False)
    back = to_torch(ours)
    assert (type(back), repr(back)) == (nn.LSTM, repr(theirs))
    assert trained(back) == trained(ours)
    assert back.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in back.state_dict().items())
    given = inputs(4 if theirs.bidirectional else 2, theirs.proj_size)
    x = given["x"].transpose(0, 1)
    assert_close(back(x)[0], theirs(x)[0], "output")
    assert_close(from_torch(ours, dropout=0.3)(given["x"])[0].transpose(0, 1), theirs(x)[0], "output of the stack")
    with torch.no_grad():
        back.weight_ih_l0.zero_()
    assert ours.weight_ih_l0.any()


@structures
@shapes
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_there_and_back_has_the_same_bits(layers: int, dtype: torch.dtype, structure: dict[str, Any]) -> None:
    lstm = new_lstm(layers, dtype=dtype, **structure)
    model = from_torch(lstm)
    back = to_torch(model)
    assert list(back.state_dict()) == list(lstm.state_dict())
    for name, value in back.state_dict().items():
        expected = lstm.state_dict()[name]
        if name.startswith("bias_ih"):
            expected = expected + lstm.state_dict()[name.replace("ih", "hh")]
        elif name.startswith("bias_hh"):
            expected = torch.zeros_like(expected)
        assert value.dtype == dtype
        assert torch.equal(value, expected)
    again = from_torch(back).state_dict()
    assert list(again) == list(model.state_dict())
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_every_gate_goes_to_its_place() -> None:
    """By the layout that torch documents, with no product in between: weight_ih_l0 is (W_ii|W_if|W_ig|W_io)."""
    lstm = new_lstm(2)
    model = from_torch(lstm)
    for k, layer in enumerate(model.layers):
        for number, gate in enumerate(("i", "f", "g", "o")):
            rows = slice(number * H, (number + 1) * H)
            assert torch.equal(getattr(layer, f"W_x{gate}"), getattr(lstm, f"weight_ih_l{k}")[rows].t())
            assert torch.equal(getattr(layer, f"W_h{gate}"), getattr(lstm, f"weight_hh_l{k}")[rows].t())


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("hidden", [1, 2])
def test_nothing_is_shared_and_everything_is_contiguous(width: int, hidden: int) -> None:
    """With one input or one unit a transpose has nothing to move, and would be a view of the original."""
    lstm = nn.LSTM(width, hidden, 2)
    model = from_torch(lstm)
    back = to_torch(model)
    storages = [p.untyped_storage().data_ptr() for m in (lstm, model, back) for p in m.parameters()]
    assert len(set(storages)) == len(storages)
    assert all(p.is_contiguous() for m in (model, back) for p in m.parameters())


def test_a_conversion_draws_no_random_number_and_leaves_its_argument_alone() -> None:
    lstm, generator = new_lstm(), torch.get_rng_state()
    before = copy.deepcopy(lstm)
    model = from_torch(lstm)
    model_before = copy.deepcopy(model)
    to_torch(model)
    assert torch.equal(torch.get_rng_state(), generator)
    for one, other in ((lstm, before), (model, model_before)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
        assert one.training == other.training


def test_the_converted_module_is_like_any_other() -> None:
    """It can be moved, copied, and loaded into: torch's keeps a second list of its weights."""
    lstm, x = to_torch(new_model("auto")), normal(B, T, I, seed=1)
    for changed in (copy.deepcopy(lstm), nn.LSTM(I, H, 2, batch_first=True, dtype=F64)):
        changed.load_state_dict(lstm.state_dict())
        assert torch.equal(changed(x)[0], lstm(x)[0])
    assert lstm.float()(x.float())[0].dtype == torch.float32
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
    assert not lstm(x.float())[0].any()


@pytest.mark.parametrize("training", [True, False])
def test_device_dtype_and_mode_stay(training: bool) -> None:
    lstm, cell = (kind(I, H, device="meta", dtype=torch.bfloat16).train(training) for kind in (nn.LSTM, nn.LSTMCell))
    model, layer = from_torch(lstm), from_torch(cell)
    for module in (model, layer, to_torch(model), to_torch(layer)):
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
        assert {part.training for part in module.modules()} == {training}


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"])
def test_what_is_frozen_stays_so(name: str, no_grad: bool) -> None:
    lstm = new_lstm()
    lstm.get_parameter(name).requires_grad_(False)
    with torch.set_grad_enabled(not no_grad):
        model = from_torch(lstm)
        back = to_torch(model)
    kind = {"ih": "W_x", "hh": "W_h"}[name[7:9]]
    frozen = {f"layers.{name[-1]}.{kind}{gate}" for gate in GATES}
    assert trained(model) == {own for own, _ in model.named_parameters()} - frozen
    assert trained(back) == trained(lstm) - {"bias_hh_l0", "bias_hh_l1"}


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("frozen", [(), ("bias_ih_l0",), ("bias_hh_l0",), ("bias_ih_l0", "bias_hh_l0")])
def test_a_bias_trains_if_either_of_torchs_does(frozen: tuple[str, ...], no_grad: bool) -> None:
    lstm = new_lstm(1)
    for name in frozen:
        lstm.get_parameter(name).requires_grad_(False)
    with torch.set_grad_enabled(not no_grad):
        model = from_torch(lstm)
    assert {p.requires_grad for n, p in model.named_parameters() if ".b_" in n} == {len(frozen) < 2}


def step(module: nn.Module) -> None:
    """One of SGD with weight decay, by a gradient of clipped norm."""
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), 0.1, weight_decay=0.1)
    module(normal(B, T, I, seed=1))[0].square().sum().backward()
    nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    optimizer.step()


def test_what_to_torch_returns_trains_as_the_stack_does() -> None:
    model = new_model("auto", output_dim=None)
    lstm = to_torch(model)
    step(model)
    step(lstm)
    for name, value in from_torch(lstm).state_dict().items():
        assert_close(value, model.state_dict()[name], name)


def test_without_biases_what_from_torch_returns_trains_as_the_module_does() -> None:
    lstm = new_lstm(bias=False)
    model = from_torch(lstm)
    assert trained(model) == {name for name, _ in model.named_parameters() if ".W_" in name}
    step(model)
    step(lstm)
    for name, value in from_torch(lstm).state_dict().items():
        assert_close(value, model.state_dict()[name], name)
    assert not any(value.any() for name, value in model.state_dict().items() if ".b_" in name)


def test_a_parametrised_weight_is_taken_as_its_value() -> None:
    lstm = parametrizations.weight_norm(new_lstm(), "weight_hh_l0")
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(1.5)
        model = from_torch(lstm)
    assert torch.equal(to_torch(model).weight_hh_l0, lstm.weight_hh_l0)
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_dropout_lies_between_layers_as_torchs_does() -> None:
    """A rate of 1 leaves nothing to chance: every layer but the bottom one reads zeros."""
    lstm, x = new_lstm(3, dropout=1.0), normal(B, T, I, seed=1)
    model = from_torch(lstm, dropout=1.0)
    output, (h, c) = lstm(x)
    trace = model.trace(x)
    assert_close(trace.layers[-1].h, output, "the top layer's h")
    assert_close(trace.state.h, h, "h_n")
    assert_close(trace.state.c, c, "c_n")
    assert not trace.output.any()
    assert output.all()
    assert_close(model.eval()(x)[0], lstm.eval()(x)[0], "output in evaluation")


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_the_rate_that_is_given_is_the_stacks(rate: float) -> None:
    model = from_torch(new_lstm(dropout=0.3), dropout=rate)
    assert model.dropout.p == rate
    assert to_torch(model).dropout == rate


def test_the_dropout_of_one_layer_does_nothing_and_is_none() -> None:
    with pytest.warns(UserWarning, match="dropout option"):
        lstm = new_lstm(1, dropout=0.3)
    model, x = from_torch(lstm), normal(B, T, I, seed=1)
    assert model.dropout.p == 0
    assert_close(model(x)[0], lstm(x)[0], "output in training")
    assert from_torch(lstm, dropout=0.3).dropout.p == 0.3


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("output_dim", [None, 4])
def test_to_torch_with_the_stacks_own_dropout_behind_it_drops_as_the_stack_does(
    layers: int, output_dim: int | None
) -> None:
    model, x = new_model("auto", layers, 1.0, output_dim), normal(B, T, I, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lstm = to_torch(model)
    assert lstm.dropout == (1.0 if layers > 1 else 0.0)
    output = model.dropout(lstm(x)[0])
    assert_close(model(x)[0], output if model.proj is None else model.proj(output), "logits")
    assert_close(model(x)[1].h, lstm(x)[1][0], "h_n")
