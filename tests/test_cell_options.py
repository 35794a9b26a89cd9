"""The options of a layer: their parameters, their equations, what they exclude, and who refuses a layer with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import gradients, layer_inputs, masks, normal, redraw
from torch.nn import functional as F
from worlds import BACKENDS, dtype_of, needs_library, remove_library

import unrolled
from unrolled import LSTMLayer, MultiLayerLSTM, Stepper, to_torch
from unrolled.cell_options import LayerOptions
from unrolled.gate_arrays import arrays_of

F64 = torch.float64
IN_THE_CELL: list[dict[str, Any]] = [
    {"peephole": True},
    {"cell_clip": 0.5},
    {"gate_activation": "hard_sigmoid"},
    {"activation": "relu"},
    {"layer_norm": True},
]
OTHERS: list[dict[str, Any]] = [{"coupled": True}, {"bias": False}, {"coupled": True, "peephole": True}]
EACH = [*IN_THE_CELL, *OTHERS]


def named(options: dict[str, Any]) -> str:
    return "+".join(f"{name}={value}" for name, value in options.items())


def new_layer(backend: str, **options: Any) -> LSTMLayer:
    layer = redraw(LSTMLayer(5, 7, backend=backend, dtype=dtype_of(backend), **options))
    assert isinstance(layer, LSTMLayer)
    return layer


def by_hand(
    layer: LSTMLayer, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, resets: Any = None, lengths: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The equations as the docstring of the options has them, in the weights' own dtype."""
    p, options = dict(layer.named_parameters()), layer.options
    nothing = torch.zeros((), dtype=x.dtype)
    gate = (lambda v: (v / 6 + 0.5).clamp(0, 1)) if options.gate_activation == "hard_sigmoid" else torch.sigmoid
    squash = torch.relu if options.activation == "relu" else torch.tanh

    def normed(name: str, values: torch.Tensor) -> torch.Tensor:
        if options.layer_norm:
            values = F.layer_norm(values, values.shape[-1:]) * p[f"gain_{name}"]
        return values + p.get(f"b_{name}", nothing)

    def pre(name: str, x_t: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        own = normed(name, x_t @ p[f"W_x{name}"] + h @ p[f"W_h{name}"])
        return own + p.get(f"p_{name}", nothing) * cell

    hs, cs = [], []
    for t in range(x.shape[1]):
        live = torch.ones(len(x), 1, dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
        if resets is not None:
            h, c = (torch.where(resets[:, t, None], nothing, value) for value in (h, c))
        i, g = gate(pre("i", x[:, t], c)), squash(pre("g", x[:, t], nothing))
        f = 1 - i if options.coupled else gate(pre("f", x[:, t], c))
        c = f * c + i * g
        if options.cell_clip is not None:
            c = c.clamp(-options.cell_clip, options.cell_clip)
        h = gate(pre("o", x[:, t], c)) * squash(normed("c", c))
        h, c = torch.where(live, h, nothing), torch.where(live, c, nothing)
        hs.append(h)
        cs.append(c)
    return torch.stack(hs, 1), torch.stack(cs, 1)


@pytest.mark.parametrize("kind", ["none", "both"])
@pytest.mark.parametrize("options", EACH, ids=named)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_each_option_computes(backend: str, options: dict[str, Any], kind: str) -> None:
    layer, given = new_layer(backend, **options), layer_inputs(backend)
    found = layer(**given, **masks(kind, 4, 9))
    exact = redraw(LSTMLayer(5, 7, dtype=F64, **options))
    doubles = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    x, h0, c0 = doubles.values()
    expected = by_hand(exact, x, h0, c0, **masks(kind, 4, 9))
    near = 1e-11 if dtype_of(backend) == F64 else 2e-5
    leaves = ({**given, **dict(layer.named_parameters())}, {**doubles, **dict(exact.named_parameters())})
    grads = [gradients({"h": out[0], "c": out[1]}, each) for out, each in zip((found, expected), leaves, strict=True)]
    for ours, theirs in zip((*found, *grads[0].values()), (*expected, *grads[1].values()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=near, atol=near)


@pytest.mark.parametrize("options", EACH, ids=named)
def test_without_gradients_and_in_a_trace_it_is_the_same(options: dict[str, Any]) -> None:
    layer, given = new_layer("auto", **options), layer_inputs("auto")
    h, c = layer(**given)
    with torch.no_grad():
        for value, other in zip(layer(**given), (h, c), strict=True):
            torch.testing.assert_close(value, other.detach())
    trace = layer.trace(**given)
    torch.testing.assert_close(trace.h, h)
    loss = (trace.h * normal(4, 9, 7, seed=5)).sum()
    total = trace.gradients(loss)
    expected = torch.autograd.grad(loss, [layer.W_xo, layer.W_xi])
    x = given["x"]
    of_i = total.i - total.f if layer.options.coupled else total.i
    torch.testing.assert_close(torch.einsum("bti,bth->ih", x, total.o), expected[0])
    torch.testing.assert_close(torch.einsum("bti,bth->ih", x, of_i), expected[1])


@pytest.mark.parametrize("options", EACH, ids=named)
def test_total_gradients_of_c_are_those_of_another_start(options: dict[str, Any]) -> None:
    """dL/dc_t is the gradient of the state that the rest of the sequence starts from."""
    layer, given = new_layer("reference", **options), layer_inputs("reference")
    trace = layer.trace(**given)
    weight = normal(4, 9, 7, seed=5)
    total = trace.gradients((trace.h * weight).sum())
    h, c = (value[:, 3].detach().requires_grad_() for value in (trace.h, trace.c))
    rest, _ = layer(given["x"][:, 4:], h, c)
    grads = torch.autograd.grad((rest * weight[:, 4:]).sum() + (h * weight[:, 3]).sum(), [h, c])
    torch.testing.assert_close(total.h[:, 3], grads[0])
    # c_3 also reaches the loss through h_3, which the rest does not know of.
    through_h = _through_h(layer, trace.c[:, 3], total.h[:, 3] * trace.o[:, 3])
    through_o = total.o[:, 3] * layer.p_o if layer.options.peephole else 0
    torch.testing.assert_close(total.c[:, 3], grads[1] + through_h + through_o)


def _through_h(layer: LSTMLayer, c: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of c from that of what h takes of it."""
    c = c.detach().requires_grad_()
    seen = F.layer_norm(c, c.shape[-1:], layer.gain_c, layer.b_c) if layer.options.layer_norm else c
    return torch.autograd.grad(seen.relu() if layer.options.activation == "relu" else seen.tanh(), c, grad)[0]


def test_parameters() -> None:
    assert "p_i" not in dict(LSTMLayer(3, 4).named_parameters())
    layer = LSTMLayer(3, 4, peephole=True, coupled=True, bias=False)
    assert list(dict(layer.named_parameters())) == [
        *("W_xi", "W_hi", "W_xo", "W_ho", "W_xg", "W_hg", "p_i", "p_o"),
    ]
    assert not layer.p_i.any()
    assert not layer.p_o.any()
    assert repr(layer) == "LSTMLayer(3, 4, peephole=True, coupled=True, bias=False)"


def test_where_parameters_start() -> None:
    torch.manual_seed(3)
    layer = LSTMLayer(3, 6, forget_bias=1.0, recurrent_init="orthogonal")
    assert layer.b_f.tolist() == [1.0] * 6
    assert not layer.b_i.any()
    for gate in "ifgo":
        w = getattr(layer, f"W_h{gate}")
        torch.testing.assert_close(w @ w.t(), torch.eye(6), rtol=0, atol=1e-5)
    assert (layer.W_xf.abs() <= (6 / 9) ** 0.5).all()
    torch.manual_seed(3)
    plain = LSTMLayer(3, 6)
    torch.manual_seed(3)
    assert torch.equal(LSTMLayer(3, 6, peephole=True, cell_clip=2.0).W_xg, plain.W_xg)


def test_a_peephole_of_zeros_changes_nothing() -> None:
    torch.manual_seed(4)
    plain = LSTMLayer(3, 6)
    torch.manual_seed(4)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(LSTMLayer(3, 6, peephole=True)(x)[0], plain(x)[0])


def test_a_stack_hands_its_options_to_every_layer() -> None:
    model = MultiLayerLSTM(3, 4, 2, bidirectional=True, peephole=True, coupled=True, cell_clip=2.0)
    expected = LayerOptions(peephole=True, coupled=True, cell_clip=2.0)
    assert [layer.options for layer in model._layers()] == [expected] * 4
    out, state = model(torch.randn(2, 5, 3))
    assert out.shape == (2, 5, 3)
    assert state.c.abs().max() <= 2
    again = MultiLayerLSTM(3, 4, 2, bidirectional=True, peephole=True, coupled=True, cell_clip=2.0)
    again.load_state_dict(model.state_dict())


def test_with_a_projection_of_h() -> None:
    layer = LSTMLayer(5, 7, proj_dim=3, dtype=F64, **{k: v for each in IN_THE_CELL for k, v in each.items()})
    slow = LSTMLayer(5, 7, proj_dim=3, backend="reference", dtype=F64, **vars(layer.options))
    slow.load_state_dict(redraw(layer).state_dict())
    x = normal(4, 9, 5, seed=1)
    for ours, theirs in zip(layer(x), slow(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gate_activation": "tanh"}, "gate_activation='tanh' is not one of 'sigmoid', 'hard_sigmoid'"),
        ({"activation": "gelu"}, "activation='gelu' is not one of 'tanh', 'relu'"),
        ({"recurrent_init": "zeros"}, "recurrent_init='zeros' is not one of 'xavier', 'orthogonal'"),
        ({"cell_clip": 0.0}, "cell_clip=0.0 must be above 0 and finite, or None: c has no bounds"),
        ({"cell_clip": float("nan")}, "cell_clip=nan must be above 0 and finite, or None: c has no bounds"),
        (
            {"forget_bias": 1.0, "coupled": True},
            "forget_bias=1.0 is where b_f starts, and with coupled=True there is none: leave forget_bias out",
        ),
        (
            {"forget_bias": 1.0, "bias": False},
            "forget_bias=1.0 is where b_f starts, and with bias=False there is none: leave forget_bias out",
        ),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("module", [LSTMLayer, MultiLayerLSTM])
def test_what_is_refused(module: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        module(3, 4, **options)
    assert str(error.value) == sentence
    with pytest.raises(TypeError, match="peepholes"):
        module(3, 4, peepholes=True)


@pytest.mark.parametrize("options", [*EACH, {k: v for each in EACH for k, v in each.items()}], ids=named)
@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_library), False], ids=["library", "no library"])
def test_a_stepper_computes_it(library: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        remove_library(monkeypatch)
    model = redraw(MultiLayerLSTM(3, 19, 2, **options))
    x = torch.randn(2, 5, 3)
    stepper = Stepper(model, 2)
    assert stepper.backend == ("cpu" if library else "portable")
    with torch.no_grad():
        expected, state = model(x)
    steps = torch.stack([torch.as_tensor(stepper.step(x[:, t])).clone() for t in range(5)], 1)
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stepper.state.c, state.c, rtol=1e-4, atol=1e-5)
    stepper.reset()
    torch.testing.assert_close(torch.as_tensor(stepper.steps(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_stepper_notices_other_peepholes() -> None:
    model = MultiLayerLSTM(3, 4, peephole=True)
    stepper = Stepper(model, 1)
    with torch.no_grad():
        model.layers[0].p_o.add_(1)
    assert stepper.stale
    stepper.refresh()
    x = torch.randn(1, 1, 3)
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(stepper.step(x[:, 0])), model(x)[0][:, 0])


def test_int8_has_no_room_for_an_h_without_bounds() -> None:
    with pytest.raises(ValueError) as error:
        Stepper(MultiLayerLSTM(3, 4, activation="relu"), 1, weights="int8")
    assert str(error.value) == (
        'weights="int8" keeps h in steps of 1/127 from -1 to 1, and with activation="relu" h has no bounds: take '
        '"bfloat16" or "float32"'
    )


@pytest.mark.parametrize("options", [*IN_THE_CELL, {"coupled": True}, {"bias": False}], ids=named)
def test_torch_has_no_place_for_it(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    for model in (LSTMLayer(3, 4, **options), MultiLayerLSTM(3, 4, **options)):
        with pytest.raises(ValueError) as error:
            to_torch(model)
        assert str(error.value) == (
            f"the layer has {name}={value!r}, which an nn.LSTM has no place for: build the model without"
        )


@pytest.mark.parametrize("options", [*IN_THE_CELL, {"coupled": True}, {"bias": False}], ids=named)
def test_keras_and_flax_have_no_place_for_it(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    sentence = (
        f"the layer has {name}={value!r}, which a layer of Keras or Flax has no place for: build the model without"
    )
    with pytest.raises(ValueError) as error:
        arrays_of(LSTMLayer(3, 4, **options))
    assert str(error.value) == sentence


def test_what_only_starts_elsewhere_goes_everywhere() -> None:
    layer = LSTMLayer(3, 4, forget_bias=1.0, recurrent_init="orthogonal")
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(to_torch(layer)(x)[0], layer(x)[0], rtol=1e-5, atol=1e-6)
    assert unrolled.Stepper(layer, 1) is not None


def test_hard_sigmoid_is_torchs() -> None:
    layer = LSTMLayer(1, 1, gate_activation="hard_sigmoid", dtype=F64)
    with torch.no_grad():
        for name in ("W_xi", "W_xf", "W_xg", "W_xo"):
            getattr(layer, name).fill_(1.0)
    x = torch.linspace(-4, 4, 17, dtype=F64).reshape(-1, 1, 1)
    torch.testing.assert_close(layer.trace(x).i.flatten(), F.hardsigmoid(x).flatten())
