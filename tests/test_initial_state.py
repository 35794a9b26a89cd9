"""A learned initial state: where sequences begin with it, that a reset begins one, its gradient, and who carries it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from plain import F64, assert_all_same, gradients, layer_inputs, masks, normal, redraw
from torch import Tensor
from torch.func import functional_call, grad, vmap
from worlds import BACKENDS, KERNELS, dtype_of, needs_library, remove_library

from unrolled import LSTMLayer, LSTMState, MultiLayerLSTM, Stepper, to_torch
from unrolled.model import LanguageModel, ModelConfig

KINDS = ("none", "resets", "lengths", "both")


def new_layer(backend: str, **options: Any) -> LSTMLayer:
    layer = redraw(LSTMLayer(5, 7, learn_initial_state=True, backend=backend, dtype=dtype_of(backend), **options))
    assert isinstance(layer, LSTMLayer)
    return layer


def by_hand(
    layer: LSTMLayer, x: Tensor, h: Tensor, c: Tensor, resets: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The plain cell; a reset puts the learned state in the place of h and c."""
    p, hs, cs = dict(layer.named_parameters()), [], []
    nothing = torch.zeros((), dtype=x.dtype)
    for t in range(x.shape[1]):
        if resets is not None:
            fresh = resets[:, t, None]
            h, c = torch.where(fresh, p["h_init"], h), torch.where(fresh, p["c_init"], c)
        i, f, g, o = (x[:, t] @ p[f"W_x{name}"] + h @ p[f"W_h{name}"] + p[f"b_{name}"] for name in "ifgo")
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        if "W_hr" in p:
            h = h @ p["W_hr"]
        if lengths is not None:
            live = (t < lengths)[:, None]
            h, c = torch.where(live, h, nothing), torch.where(live, c, nothing)
        hs.append(h)
        cs.append(c)
    return torch.stack(hs, 1), torch.stack(cs, 1)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("given_state", [True, False], ids=["a state", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_begins_with_it(backend: str, kind: str, given_state: bool) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    where, leaves = masks(kind, 4, 9), {**given, **dict(layer.named_parameters())}
    state = (given["h0"], given["c0"]) if given_state else layer.initial_state(4)

    def everything(h: Tensor, c: Tensor) -> dict[str, Tensor]:
        found = gradients({"h": h, "c": c}, leaves)
        return {"h": h, "c": c, **{f"grad {name}": value for name, value in found.items()}}

    h, c = layer(given["x"], *(state if given_state else ()), **where)
    assert_all_same(everything(h, c), everything(*by_hand(layer, given["x"], *state, **where)))
    with torch.no_grad():
        assert_all_same(dict(zip("hc", layer(given["x"], *state, **where), strict=True)), {"h": h, "c": c})


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_crosses_a_reset_and_nan_does_not_either(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    resets = torch.zeros(4, 9, dtype=torch.bool)
    resets[1, 4] = resets[2, 0] = True
    x, h0, c0 = given.values()
    with torch.no_grad():
        h0[2] = c0[2] = float("nan")
        spoilt = x.clone()
        spoilt[1, 2] = float("nan")
        rest, _ = layer(x[1:2, 4:])
        torch.testing.assert_close(layer(spoilt, h0, c0, resets=resets)[0][1, 4:], rest[0])
    h, c = layer(x, h0, c0, resets=resets)
    grads = torch.autograd.grad(h[1:3, 4:].sum() + c[1:3, 4:].sum(), [x, h0, c0, layer.h_init, layer.c_init])
    assert not grads[0][1, :4].any()
    assert not grads[1].any()
    assert not grads[2].any()
    for value in grads:
        assert torch.isfinite(value).all()
    assert grads[3].all()
    assert grads[4].all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_trace_and_its_total_gradients(backend: str) -> None:
    layer, given, where = new_layer(backend), layer_inputs(backend), masks("resets", 4, 9)
    trace = layer.trace(**given, **where)
    torch.testing.assert_close(trace.h, layer(**given, **where)[0])
    total = trace.gradients((trace.h * normal(4, 9, 7, seed=5).to(trace.h)).sum())
    expected = torch.autograd.grad((trace.h * normal(4, 9, 7, seed=5).to(trace.h)).sum(), [layer.W_xf, layer.b_o])
    torch.testing.assert_close(torch.einsum("bti,bth->ih", given["x"], total.f), expected[0])
    torch.testing.assert_close(total.o.sum((0, 1)), expected[1])


@pytest.mark.parametrize("backend", KERNELS)
def test_of_each_row_and_of_an_ensemble(backend: str) -> None:
    """Under vmap nobody can look which rows start afresh."""
    layer, x = new_layer(backend), normal(4, 9, 5, seed=1).to(dtype_of(backend))
    resets = masks("resets", 4, 9)["resets"]
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(own: dict[str, Tensor], row: Tensor, fresh: Tensor) -> Tensor:
        h, _ = functional_call(layer, own, (row.unsqueeze(0),), {"resets": fresh.unsqueeze(0)})
        return h.square().sum()

    mapped = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, resets)
    near = 1e-11 if dtype_of(backend) == F64 else 1e-4
    for k in range(4):
        for name, value in grad(loss)(weights, x[k], resets[k]).items():
            torch.testing.assert_close(mapped[name][k], value, rtol=near, atol=near, msg=name)


@pytest.mark.slow
def test_in_one_graph() -> None:
    layer, given, where = new_layer("auto"), layer_inputs("auto"), masks("resets", 4, 9)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [layer.h_init, layer.c_init]
    found = [torch.autograd.grad(call(**given, **where)[0].square().sum(), leaves) for call in (compiled, layer)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_gradients_by_finite_differences() -> None:
    layer = redraw(LSTMLayer(1, 2, learn_initial_state=True, backend="portable", dtype=F64))
    resets = torch.tensor([[False, True, False], [True, False, True]])

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        own = dict(zip(("h_init", "c_init", "W_hf"), given, strict=False))
        found: tuple[Tensor, ...] = functional_call(layer, own, (given[-1],), {"resets": resets})
        return found

    leaves = [layer.h_init, layer.c_init, layer.W_hf, normal(2, 3, 1, seed=1)]
    leaves = [value.detach().requires_grad_() for value in leaves]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", KERNELS)
def test_with_a_projection_and_the_options_of_a_cell(backend: str) -> None:
    options: dict[str, Any] = {"peephole": True, "cell_clip": 0.5, "learn_initial_state": True}
    options |= {"proj_dim": 3} if backend == "portable" else {}
    layer = redraw(LSTMLayer(5, 7, backend=backend, dtype=dtype_of(backend), **options))
    slow = LSTMLayer(5, 7, backend="reference", dtype=F64, **options)
    slow.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    x, where = normal(4, 9, 5, seed=1), masks("both", 4, 9)
    near = 1e-11 if backend == "portable" else 1e-5
    for ours, theirs in zip(layer(x.to(dtype_of(backend)), **where), slow(x, **where), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=near, atol=near)


def test_each_layer_and_direction_has_its_own() -> None:
    model = redraw(MultiLayerLSTM(5, 7, 2, bidirectional=True, proj_dim=3, learn_initial_state=True, dtype=F64))
    names = [name for name, _ in model.named_parameters() if name.endswith("_init")]
    assert names == [f"{kind}.{k}.{v}_init" for kind in ("layers", "reverse_layers") for k in (0, 1) for v in "hc"]
    x, where = normal(4, 9, 5, seed=1), masks("lengths", 4, 9)
    state = model.initial_state(4)
    assert [list(part.shape) for part in state] == [[4, 4, 3], [4, 4, 7]]
    assert torch.equal(state.c[1, 2], model.reverse_layers[0].c_init)
    for ours, theirs in zip(model(x, **where), model(x, state, **where), strict=True):
        assert_all_same(dict(enumerate(ours)), dict(enumerate(theirs)))
    zeros = model.zero_state(4)
    assert not torch.equal(model(x, zeros)[0], model(x)[0])
    no_steps = model(x[:, :0])[1]
    assert torch.equal(no_steps.c, state.c)
    # The backward direction starts afresh where the forward one does, from its own.
    resets = torch.zeros(4, 9, dtype=torch.bool)
    resets[:, 4] = True
    parts = [model(some)[0] for some in (x[:, :4], x[:, 4:])]
    torch.testing.assert_close(model(x, resets=resets)[0], torch.cat(parts, 1))


def test_it_starts_at_zero_and_trains() -> None:
    torch.manual_seed(0)
    model, plain = MultiLayerLSTM(3, 4, 2, learn_initial_state=True), None
    torch.manual_seed(0)
    plain = MultiLayerLSTM(3, 4, 2)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(model(x)[0], plain(x)[0])
    with pytest.raises(RuntimeError, match="h_init"):
        plain.load_state_dict(model.state_dict())
    model(x)[0].square().sum().backward()
    assert all(layer.h_init.grad.any() and layer.c_init.grad.any() for layer in model.layers)
    twin = MultiLayerLSTM(3, 4, 2, learn_initial_state=True)
    twin.load_state_dict(model.state_dict())
    assert repr(twin.layers[0]) == "LSTMLayer(3, 4, learn_initial_state=True)"


@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_library), False], ids=["library", "no library"])
def test_a_stepper_begins_with_it(library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        remove_library(monkeypatch)
    model = redraw(MultiLayerLSTM(3, 7, 2, learn_initial_state=True))
    x = torch.randn(2, 5, 3)
    stepper = Stepper(model, 2)
    with torch.no_grad():
        expected = model(x)[0]
        again = model(x, resets=torch.tensor([[False] * 5, [False, False, True, False, False]]))[0]
    torch.testing.assert_close(torch.as_tensor(stepper.steps(x)), expected, rtol=1e-4, atol=1e-5)
    stepper.reset()
    stepper.steps(x[:, :2])
    stepper.reset([1])
    torch.testing.assert_close(torch.as_tensor(stepper.steps(x[:, 2:])), again[:, 2:], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.layers[1].c_init.add_(1)
    assert stepper.stale
    before = stepper.state
    stepper.refresh()
    assert torch.equal(stepper.state.c, before.c)
    stepper.reset()
    assert torch.equal(stepper.state.c[1], model.layers[1].c_init.expand(2, -1))
    assert Stepper(model, 1).compare(x).largest_difference < 1e-4


def test_a_language_model_begins_texts_with_it() -> None:
    model = redraw(LanguageModel(ModelConfig(5, 7, 2, 3, learn_initial_state=True)))
    assert isinstance(model, LanguageModel)
    ids = torch.randint(5, (2, 6))
    state = model.initial_state(2)
    torch.testing.assert_close(model(ids)[0], model(ids, state)[0])
    assert not torch.allclose(model(ids)[0], model(ids, model.zero_state(2))[0])
    assert isinstance(state, LSTMState)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids)[0], model(ids)[0])


def test_torch_has_no_place_for_it() -> None:
    with pytest.raises(ValueError) as error:
        to_torch(MultiLayerLSTM(3, 4, learn_initial_state=True))
    assert str(error.value) == (
        "the layer has learn_initial_state=True, which an nn.LSTM has no place for: build the model without"
    )
