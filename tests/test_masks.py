"""Zoneout, recurrent and variational dropout, weight drop: equations on every backend, seeds, refusals."""

from __future__ import annotations

from typing import Any

import masked_loop
import pytest
import torch
from plain import gradients, layer_inputs, masks, normal, redraw
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from worlds import BACKENDS, KERNELS, dtype_of, needs_library, remove_library

import unrolled
from unrolled import LSTMLayer, MultiLayerLSTM, Stepper, to_torch
from unrolled.machine import randomness
from unrolled.recurrence import kernels, native

F64 = torch.float64
EACH: list[dict[str, Any]] = [
    {"zoneout": 0.3},
    {"zoneout": (0.0, 0.4)},
    {"recurrent_dropout": 0.3},
    {"variational_dropout": 0.3},
    {"weight_drop": 0.3},
]
ALL: dict[str, Any] = {
    "zoneout": (0.3, 0.2),
    "recurrent_dropout": 0.25,
    "variational_dropout": 0.2,
    "weight_drop": 0.3,
    "peephole": True,
    "coupled": True,
    "cell_clip": 0.7,
}
# Where no cell can be had before its whole row is there.
NORMED: list[dict[str, Any]] = [
    {"layer_norm": True, "zoneout": (0.3, 0.2), "variational_dropout": 0.2},
    {"layer_norm": True, "recurrent_dropout": 0.3},
    {"layer_norm": True, **ALL},
]
SEED = torch.tensor(1997)


def named(options: dict[str, Any]) -> str:
    if options is NORMED[-1]:
        return "all, normed"
    return "all" if options is ALL else "+".join(f"{name}={value}" for name, value in options.items())


def new_layer(backend: str, **options: Any) -> LSTMLayer:
    layer = redraw(LSTMLayer(5, 7, backend=backend, dtype=dtype_of(backend), **options))
    assert isinstance(layer, LSTMLayer)
    return layer


@pytest.mark.parametrize("kind", ["none", "both"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("options", [*EACH, ALL, *NORMED], ids=named)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_each_option_computes(backend: str, options: dict[str, Any], training: bool, kind: str) -> None:
    layer, given = new_layer(backend, **options).train(training), layer_inputs(backend)
    found = layer(**given, **masks(kind, 4, 9), seed=SEED)
    exact = redraw(LSTMLayer(5, 7, dtype=F64, **options)).train(training)
    assert isinstance(exact, LSTMLayer)
    doubles = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    expected = masked_loop.run(exact, SEED, *doubles.values(), **masks(kind, 4, 9))
    near = 1e-11 if dtype_of(backend) == F64 else 3e-5
    leaves = ({**given, **dict(layer.named_parameters())}, {**doubles, **dict(exact.named_parameters())})
    grads = [gradients({"h": out[0], "c": out[1]}, each) for out, each in zip((found, expected), leaves, strict=True)]
    for ours, theirs in zip((*found, *grads[0].values()), (*expected[:2], *grads[1].values()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=near, atol=near)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("options", [ALL, NORMED[-1]], ids=named)
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_a_projection_of_h(backend: str, options: dict[str, Any], training: bool) -> None:
    exact = redraw(LSTMLayer(5, 7, proj_dim=9, dtype=F64, **options)).train(training)
    layer = redraw(LSTMLayer(5, 7, proj_dim=9, backend=backend, dtype=dtype_of(backend), **options)).train(training)
    assert isinstance(exact, LSTMLayer)
    given = normal(4, 6, 5, seed=1), normal(4, 9, seed=2), normal(4, 7, seed=3)
    expected = masked_loop.run(exact, SEED, *given, **masks("both", 4, 6))
    theirs = gradients({"h": expected.h, "c": expected.c}, dict(exact.named_parameters()))
    h, c = layer(*(value.to(dtype_of(backend)) for value in given), **masks("both", 4, 6), seed=SEED)
    ours = gradients({"h": h, "c": c}, dict(layer.named_parameters()))
    near = 1e-11 if dtype_of(backend) == F64 else 3e-5
    for name, value in {"h": expected.h, "c": expected.c, **theirs}.items():
        torch.testing.assert_close({"h": h, "c": c, **ours}[name].double(), value, rtol=near, atol=near)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "options",
    [*EACH[:4], {k: v for k, v in ALL.items() if k != "coupled"}, {"zoneout": (0.2, 0.3), "learn_initial_state": True}],
    ids=named,
)
def test_total_gradients(options: dict[str, Any], training: bool) -> None:
    layer, given = new_layer("auto" if training else "reference", **options).train(training), layer_inputs("reference")
    given = {name: value.detach().to(layer.W_xo.dtype).requires_grad_() for name, value in given.items()}
    weight = normal(4, 9, 7, seed=5).to(layer.W_xo.dtype)
    trace = layer.trace(**given, **masks("both", 4, 9), seed=SEED)
    total = trace.gradients((trace.h * weight).sum() + (trace.c * weight).square().sum())
    loop = masked_loop.run(layer, SEED, *given.values(), **masks("both", 4, 9))
    ((loop.h * weight).sum() + (loop.c * weight).square().sum()).backward()
    near = 1e-10 if layer.W_xo.dtype == F64 else 1e-4
    for ours, theirs in ((total.h, loop.with_grad_h), (total.c, loop.with_grad_c)):
        expected = torch.stack([value.grad for value in theirs if value.grad is not None], 1)
        ended = masks("lengths", 4, 9)["lengths"].unsqueeze(1) <= torch.arange(9)
        torch.testing.assert_close(ours, expected.masked_fill(ended.unsqueeze(-1), 0), rtol=near, atol=near)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_gradients_by_finite_differences(backend: str, training: bool) -> None:
    layer = redraw(LSTMLayer(1, 2, backend=backend, dtype=F64, **{**ALL, "coupled": False, "cell_clip": None}))
    layer.train(training)
    weights, resets = dict(layer.named_parameters()), torch.tensor([[False, False, True], [False, True, False]])

    def function(*values: torch.Tensor) -> Any:
        own = dict(zip(weights, values[3:], strict=True))
        return functional_call(layer, own, values[:3], {"resets": resets, "seed": SEED})

    inputs = [normal(2, 3, 1, seed=1), normal(2, 2, seed=2), normal(2, 2, seed=3), *weights.values()]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=backend == "reference", fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@needs_library
@pytest.mark.parametrize("options", [ALL, NORMED[-1]], ids=named)
def test_second_order_of_the_native_kernel(options: dict[str, Any]) -> None:
    def penalty(backend: str) -> list[torch.Tensor]:
        layer = new_layer(backend, **{**options, "cell_clip": None})
        x = normal(3, 6, 5, seed=1).to(dtype_of(backend)).requires_grad_()
        leaves = [x, *layer.parameters()]
        grads = torch.autograd.grad(layer(x, seed=SEED)[0].square().sum(), leaves, create_graph=True)
        return [value.double() for value in torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)]

    for ours, theirs in zip(penalty("cpu"), penalty("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [ALL, NORMED[-1]], ids=named)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_zero_and_one(backend: str, options: dict[str, Any]) -> None:
    for rows, steps, hidden in ((0, 3, 2), (2, 0, 2), (1, 1, 1)):
        layer = LSTMLayer(1, hidden, backend=backend, dtype=dtype_of(backend), **options)
        x = torch.ones(rows, steps, 1, dtype=dtype_of(backend), requires_grad=True)
        for mode in (True, False):
            h, c = layer.train(mode)(x)
            assert h.shape == c.shape == (rows, steps, hidden)
            (h.sum() + c.sum()).backward()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_reset_leaves_is_zero_whatever_it_was(backend: str, layer_norm: bool) -> None:
    """Held units are then 0, and the gradient of the state is exactly 0."""
    layer = new_layer(backend, zoneout=0.9, variational_dropout=0.2, layer_norm=layer_norm)
    x = normal(2, 1, 5, seed=1).to(dtype_of(backend))
    state = [torch.full((2, 7), float("nan"), dtype=x.dtype, requires_grad=True) for _ in range(2)]
    h, c = layer(x, *state, resets=torch.ones(2, 1, dtype=torch.bool), seed=SEED)
    assert torch.isfinite(h).all()
    assert (h == 0).sum() > 4
    assert (c == 0).sum() > 4
    for value in torch.autograd.grad(h.sum() + c.sum(), state):
        assert not value.any()


@pytest.mark.parametrize("options", EACH[2:], ids=named)
def test_in_evaluation_dropout_does_nothing(options: dict[str, Any]) -> None:
    layer, plain, given = new_layer("auto", **options), new_layer("auto"), layer_inputs("auto")
    before = torch.random.get_rng_state()
    for ours, theirs in zip(layer.eval()(**given), plain(**given), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("options", [*EACH, ALL], ids=named)
def test_torchs_generator_decides(options: dict[str, Any]) -> None:
    model = MultiLayerLSTM(3, 8, 2, bidirectional=True, **options)
    x, outputs = torch.randn(3, 5, 3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append((model(x)[0], model.trace(x).output))
    assert torch.equal(outputs[0][0], outputs[1][0])
    torch.testing.assert_close(outputs[0][1], outputs[1][1])
    assert not torch.allclose(outputs[0][0], outputs[2][0])
    assert not torch.allclose(*outputs[0])
    torch.manual_seed(1)
    torch.randint(2**63 - 1, ())
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    model(x)
    assert torch.equal(torch.random.get_rng_state(), after)


def test_layers_directions_rows_and_steps_have_masks_of_their_own() -> None:
    model = MultiLayerLSTM(2, 400, 2, bidirectional=True, output_dim=None, zoneout=(0.5, 0.0))
    trace = model.trace(torch.randn(2, 3, 2))
    held = [layer.h[:, 1:] == layer.h[:, :-1] for layer in trace.layers]
    patterns = [pattern[row, step] for pattern in held for row in range(2) for step in range(2)]
    for k, pattern in enumerate(patterns):
        assert 140 < pattern.sum() < 260
        for other in patterns[:k]:
            assert 120 < (pattern != other).sum() < 280


def test_a_seed_is_a_place_of_one_number() -> None:
    layer = LSTMLayer(3, 4, zoneout=0.2)
    for wrong in (7, torch.tensor([7]), torch.tensor(7.0), torch.tensor(7, dtype=torch.int32)):
        with pytest.raises(ValueError) as error:
            layer(torch.randn(2, 5, 3), seed=wrong)  # type: ignore[arg-type]
        assert str(error.value) == (
            f"seed={wrong!r}, expected an int64 tensor without axes on cpu: torch.tensor(7), or None for one from "
            "torch's generator"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_recomputation_draws_the_same(backend: str) -> None:
    x = normal(3, 5, 5, seed=1).to(dtype_of(backend))
    results = []
    for way in ("plain", "recompute", "checkpoint"):
        layer = new_layer(backend, **ALL)
        layer.recompute = way == "recompute"
        torch.manual_seed(3)
        out = checkpoint(layer, x, use_reentrant=False) if way == "checkpoint" else layer(x)
        assert isinstance(out, tuple)
        results.append([out[0], *torch.autograd.grad(out[0].square().sum() + out[1].sum(), list(layer.parameters()))])
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", KERNELS)
def test_mapped_rows_have_the_masks_that_their_seeds_say(backend: str) -> None:
    layer, x = new_layer(backend, **ALL), normal(4, 6, 5, seed=1).to(dtype_of(backend))
    weights, seeds = {name: value.detach() for name, value in layer.named_parameters()}, torch.arange(4)

    def loss(own: dict[str, torch.Tensor], row: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        h, c = functional_call(layer, own, (row.unsqueeze(0),), {"seed": seed})
        return (h + c).square().sum()

    mapped = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, seeds)
    near = 1e-11 if dtype_of(backend) == F64 else 1e-4
    for k in range(4):
        for name, value in grad(loss)(weights, x[k], seeds[k]).items():
            torch.testing.assert_close(mapped[name][k], value, rtol=near, atol=near, msg=name)


def test_torchs_randomness_of_vmap_holds() -> None:
    layer, x = new_layer("portable", zoneout=0.5, variational_dropout=0.2), normal(1, 6, 5, seed=1).expand(3, 1, 6, 5)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda row: layer(row)[0])(x)
    same = vmap(lambda row: layer(row)[0], randomness="same")(x)
    assert torch.equal(same[0], same[1])
    different = vmap(lambda row: layer(row)[0], randomness="different")(x)
    assert not torch.allclose(different[0], different[1])


@pytest.mark.parametrize("backend", KERNELS)
def test_compiled_as_one_graph_it_trains_the_same(backend: str) -> None:
    layer, given = new_layer(backend, **ALL), layer_inputs(backend)
    leaves = [*given.values(), *layer.parameters()]

    def results(call: Any) -> list[torch.Tensor]:
        torch.manual_seed(5)
        h, c = call(**given)
        return [h, c, *torch.autograd.grad(h.square().sum() + c.sum(), leaves)]

    torch._dynamo.reset()
    near = 1e-11 if dtype_of(backend) == F64 else 1e-4
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(results(compiled), results(layer), strict=True):
        torch.testing.assert_close(ours, eager, rtol=near, atol=near)


@needs_library
@pytest.mark.parametrize("hidden", [37, 300])
@pytest.mark.parametrize("options", [ALL, NORMED[-1]], ids=named)
def test_every_instruction_set_and_thread_count_has_the_same_masks(options: dict[str, Any], hidden: int) -> None:
    """Of 300 units threads share a row's, and meet at every step."""
    layer, x = LSTMLayer(5, hidden, **options), torch.randn(9, 11, 5)
    leaves = list(layer.parameters())

    def results() -> list[torch.Tensor]:
        h, c = layer(x, seed=SEED)
        return [h, c, *torch.autograd.grad(h.sum() + c.square().sum(), leaves)]

    expected = results()
    for name in native.instruction_sets():
        with kernels.instruction_set(name):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                for value, other in zip(results(), expected, strict=True):
                    near = 1e-4 * (1 + float(other.detach().abs().max()))
                    torch.testing.assert_close(value, other, rtol=1e-3, atol=near)


def test_ids_are_one_hot_rows() -> None:
    layer, ids = new_layer("auto", variational_dropout=0.4), torch.randint(5, (4, 9))
    one_hot = torch.nn.functional.one_hot(ids, 5).to(layer.W_xo.dtype)
    for backend in ("auto", "reference"):
        layer.backend = backend
        for ours, theirs in zip(layer(ids, seed=SEED), layer(one_hot, seed=SEED), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_coupled_cell_stays_coupled() -> None:
    trace = new_layer("auto", coupled=True, weight_drop=0.4, zoneout=0.2).trace(layer_inputs("auto")["x"])
    torch.testing.assert_close(trace.f, 1 - trace.i)


def test_ranks_have_masks_of_their_own() -> None:
    layer, x, found = LSTMLayer(3, 50, zoneout=0.5), torch.randn(1, 4, 3), []
    for rank in (0, 1, 1):
        with randomness(7, 3, torch.device("cpu"), rank):
            found.append(layer(x)[0])
    assert torch.equal(found[1], found[2])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("options", [ALL, NORMED[-1]], ids=named)
@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_library), False], ids=["library", "no library"])
def test_a_stepper_evaluates(library: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if not library:
        remove_library(monkeypatch)
    model = redraw(MultiLayerLSTM(3, 19, 2, **options)).train()
    x = torch.randn(2, 5, 3)
    stepper = Stepper(model, 2)
    assert stepper.backend == ("cpu" if library else "portable")
    assert model.training
    with torch.no_grad():
        expected, state = model.eval()(x)
    steps = torch.stack([torch.as_tensor(stepper.step(x[:, t])).clone() for t in range(5)], 1)
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stepper.state.c, state.c, rtol=1e-4, atol=1e-5)
    stepper.reset()
    torch.testing.assert_close(torch.as_tensor(stepper.steps(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [ALL, NORMED[-1]], ids=named)
def test_without_gradients_training_draws_and_evaluation_expects(options: dict[str, Any]) -> None:
    layer, given = new_layer("auto", **options), layer_inputs("auto")
    for mode in (True, False):
        layer.train(mode)
        h, c = layer(**given, seed=SEED)
        with torch.no_grad():
            for value, other in zip(layer(**given, seed=SEED), (h, c), strict=True):
                torch.testing.assert_close(value, other.detach())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"zoneout": 1.0}, "zoneout=1.0 must be a probability from 0 to below 1"),
        ({"zoneout": (0.1, -0.1)}, "zoneout=(0.1, -0.1) must be a probability from 0 to below 1"),
        ({"zoneout": (0.1,)}, "zoneout=(0.1,) must be one number, of h and c alike, or a pair (of h, of c)"),
        ({"recurrent_dropout": float("nan")}, "recurrent_dropout=nan must be a probability from 0 to below 1"),
        ({"variational_dropout": 1}, "variational_dropout=1 must be a probability from 0 to below 1"),
        ({"weight_drop": -0.5}, "weight_drop=-0.5 must be a probability from 0 to below 1"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        MultiLayerLSTM(3, 4, **options)
    assert str(error.value) == sentence


def test_a_pair_that_json_has_made_a_list_is_a_pair() -> None:
    layer = LSTMLayer(3, 4, zoneout=[0.1, 0.2])  # type: ignore[arg-type]
    assert layer.options == LSTMLayer(3, 4, zoneout=(0.1, 0.2)).options
    assert repr(layer) == "LSTMLayer(3, 4, zoneout=(0.1, 0.2))"


@pytest.mark.parametrize("options", EACH, ids=named)
def test_who_carries_it(options: dict[str, Any], tmp_path: Any) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError) as error:
        to_torch(LSTMLayer(3, 4, **options))
    assert str(error.value) == (
        f"the layer has {name}={value!r}, which an nn.LSTM has no place for: build the model without"
    )
    if name == "zoneout":
        with pytest.raises(ValueError) as error:
            unrolled.export_onnx(MultiLayerLSTM(3, 4, **options), tmp_path / "model.onnx")
        assert str(error.value) == (
            f"a layer has zoneout={value!r}, which an exported model does not compute: build the model without, or "
            "run it in torch"
        )
