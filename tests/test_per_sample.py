"""Per-sample gradients through Opacus' hooks: those of vmap(grad), and of plain loops over single rows."""

from __future__ import annotations

import copy
import sys
from typing import Any

import plain
import pytest
import torch
from paths import assert_equal, counted
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations
from worlds import KERNELS, dtype_of

from unrolled import LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, per_sample

opacus = pytest.importorskip("opacus", reason="Opacus is an extra: pip install 'unrolled[opacus]'")
from opacus.grad_sample import GradSampleModule  # noqa: E402

F64 = torch.float64
WIDTH, HIDDEN, ROWS, STEPS = 5, 7, 4, 6
kernels = pytest.mark.parametrize("kernel", KERNELS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha"),
]


def new(kind: str, dtype: torch.dtype, **options: Any) -> nn.Module:
    layer = LSTMLayer(WIDTH, HIDDEN, dtype=dtype, **options)
    return plain.redraw(
        layer if kind == "layer" else MultiLayerLSTM(WIDTH, HIDDEN, 2, output_dim=3, dtype=dtype, **options)
    )


def batch(kind: str, ids: bool, masks: str, dtype: torch.dtype) -> dict[str, Any]:
    x = plain.normal(ROWS, STEPS, WIDTH, seed=1, dtype=dtype)
    size = (ROWS, HIDDEN) if kind == "layer" else (2, ROWS, HIDDEN)
    h, c = (plain.normal(*size, seed=s, dtype=dtype).tanh() for s in (2, 3))
    state = {"h0": h, "c0": c} if kind == "layer" else {"state": (h, c)}
    return {"x": x.abs().argmax(-1) if ids else x, **state, **plain.masks(masks, ROWS, STEPS)}


def row(given: dict[str, Any], k: int) -> dict[str, Any]:
    def one(name: str, value: Any) -> Any:
        return tuple(v[:, k : k + 1] for v in value) if name == "state" else value[k : k + 1]

    return {name: one(name, value) for name, value in given.items()}


def loss_of(module: nn.Module, given: dict[str, Any]) -> Tensor:
    """Of h alone."""
    x, rest = given["x"], {name: value for name, value in given.items() if name != "x"}
    return (module(x, **rest)[0] ** 2).sum()


def plain_rows(module: nn.Module, kind: str, given: dict[str, Any]) -> dict[str, Tensor]:
    """Each parameter's gradients, [batch, ...], by plain loops in float64 over one row after the other."""
    weights = {name: value.detach().to(F64).requires_grad_() for name, value in module.named_parameters()}
    rows = []
    for k in range(ROWS):
        own = row(given, k)
        x = own.pop("x")
        x = x.to(F64) if x.is_floating_point() else nn.functional.one_hot(x, WIDTH).to(F64)
        h, c = (value.to(F64) for value in own.pop("state", None) or (own.pop("h0"), own.pop("c0")))
        if kind == "layer":
            out = plain.run_layer(weights, x, h, c, **own).sequence("h")
        else:
            out, _ = plain.run_stack(weights, x, h, c, **own)
        rows.append(torch.autograd.grad((out**2).sum(), list(weights.values())))
    dtype = next(module.parameters()).dtype
    return {name: torch.stack(each).to(dtype) for name, each in zip(weights, zip(*rows, strict=True), strict=True)}


def hooked(module: nn.Module) -> Any:
    return GradSampleModule(per_sample.prepare(module), loss_reduction="sum")


def samples(wrapped: Any) -> dict[str, Tensor]:
    return {name.removeprefix("_module."): value.grad_sample for name, value in wrapped.named_parameters()}


@pytest.mark.parametrize("masks", ["none", "resets", "lengths", "both"])
@pytest.mark.parametrize("ids", [False, True], ids=["floats", "ids"])
@pytest.mark.parametrize("kind", ["layer", "stack"])
@kernels
def test_the_gradients_of_each_row(kernel: str, kind: str, ids: bool, masks: str) -> None:
    dtype = dtype_of(kernel)
    module, given = new(kind, dtype), batch(kind, ids, masks, dtype)
    exact = plain_rows(module, kind, given)
    wrapped = hooked(module)
    with counted() as ran:
        loss_of(wrapped, given).backward()
    layers = 1 if kind == "layer" else 2
    assert (ran[kernel], ran[f"{kernel}_backward"], ran["reference.scan"]) == (layers, layers, 0)
    found = samples(wrapped)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        assert_equal(found[name], value)
    # And the batch's own gradients are as ever.
    for name, parameter in module.named_parameters():
        assert_equal(parameter.grad, exact[name].sum(0))


@kernels
def test_vmap_of_grad_gives_the_same(kernel: str) -> None:
    module, given = new("layer", dtype_of(kernel)), batch("layer", False, "both", dtype_of(kernel))
    params = {name: value.detach() for name, value in module.named_parameters()}

    def loss(params: dict[str, Tensor], one: dict[str, Tensor]) -> Tensor:
        own = {name: value.unsqueeze(0) for name, value in one.items()}
        return (functional_call(module, params, (), own)[0] ** 2).sum()

    exact = vmap(grad(loss), (None, 0))(params, given)
    wrapped = hooked(module)
    loss_of(wrapped, given).backward()
    for name, value in samples(wrapped).items():
        assert_equal(value, exact[name])


@kernels
def test_what_lies_behind_a_rows_length_is_never_read(kernel: str) -> None:
    module, given = new("layer", dtype_of(kernel)), batch("layer", False, "lengths", dtype_of(kernel))
    exact = plain_rows(module, "layer", given)
    ended = torch.arange(STEPS) >= given["lengths"][:, None]
    given["x"] = given["x"].masked_fill(ended[..., None], float("nan"))
    wrapped = hooked(module)
    loss_of(wrapped, given).backward()
    for name, value in samples(wrapped).items():
        assert_equal(value, exact[name])


def test_calls_that_follow_each_other_keep_their_own_masks() -> None:
    """Two calls before one backward pass, and between them ones that Opacus does not follow."""
    module = new("layer", F64)
    one, two = (batch("layer", False, masks, F64) for masks in ("both", "none"))
    first, second = plain_rows(module, "layer", one), plain_rows(module, "layer", two)
    wrapped = hooked(module)
    wrapped.disable_hooks()
    wrapped(one["x"])
    wrapped.enable_hooks()
    loss = loss_of(wrapped, one)
    wrapped.eval()
    wrapped(one["x"], lengths=torch.ones(ROWS, dtype=torch.int64))
    wrapped.train()
    (loss + 3 * loss_of(wrapped, two)).backward()
    for name, value in samples(wrapped).items():
        assert_equal(value, first[name] + 3 * second[name])
    assert not per_sample._CALLS[module]


def test_frozen_parameters_have_none_and_the_others_have_theirs() -> None:
    module, given = new("layer", F64), batch("layer", False, "none", F64)
    exact = plain_rows(module, "layer", given)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == "W_hf")
    wrapped = hooked(module)
    loss_of(wrapped, given).backward()
    found = {name: value.grad_sample for name, value in module.named_parameters() if value.requires_grad}
    assert list(found) == ["W_hf"]
    assert_equal(found["W_hf"], exact["W_hf"])


@pytest.mark.parametrize(
    ("options", "forwards"),
    [({"recompute": True}, 3 * 2), ({"backend": "reference"}, 2)],
    ids=["recompute", "reference"],
)
def test_other_options_of_a_layer(options: dict[str, Any], forwards: int) -> None:
    module, given = new("stack", F64, **options), batch("stack", False, "both", F64)
    exact = plain_rows(module, "stack", given)
    wrapped = hooked(module)
    with counted() as ran:
        loss_of(wrapped, given).backward()
    assert ran["portable"] + ran["reference.scan"] == forwards
    for name, value in samples(wrapped).items():
        assert_equal(value, exact[name])


@kernels
def test_the_mean_of_a_batch_counts_as_the_sum_of_its_rows(kernel: str) -> None:
    module, given = new("stack", dtype_of(kernel)), batch("stack", False, "both", dtype_of(kernel))
    exact = plain_rows(module, "stack", given)
    wrapped = GradSampleModule(per_sample.prepare(module), loss_reduction="mean")
    (loss_of(wrapped, given) / ROWS).backward()
    for name, value in samples(wrapped).items():
        assert_equal(value, exact[name])


def test_a_copy_of_a_prepared_model_and_one_prepared_twice() -> None:
    module, given = new("layer", F64), batch("layer", False, "both", F64)
    exact = plain_rows(module, "layer", given)
    wrapped = hooked(copy.deepcopy(per_sample.prepare(per_sample.prepare(module))))
    loss_of(wrapped, given).backward()
    for name, value in samples(wrapped).items():
        assert_equal(value, exact[name])


@pytest.mark.parametrize(("rows", "steps"), [(0, 3), (2, 0), (0, 0)])
def test_no_rows_and_no_steps(rows: int, steps: int) -> None:
    """Poisson sampling draws empty batches."""
    wrapped = hooked(new("layer", F64))
    state = torch.ones(2, rows, HIDDEN, dtype=F64)
    wrapped(torch.ones(rows, steps, WIDTH, dtype=F64), *state)[0].sum().backward()
    for parameter in wrapped.parameters():
        assert torch.equal(parameter.grad_sample, parameter.new_zeros(rows, *parameter.shape))


# Refusals


@pytest.mark.parametrize("alone", [True, False], ids=["c alone", "h and c"])
def test_a_loss_that_uses_c_is_refused(alone: bool) -> None:
    wrapped, given = hooked(new("layer", F64)), batch("layer", False, "none", F64)
    h, c = wrapped(given["x"])
    with pytest.raises(RuntimeError, match=r"depends on c, and Opacus .* from h, or .*vmap\(torch\.func\.grad"):
        (c.sum() if alone else c.sum() + h.sum()).backward()


def test_the_last_state_of_a_stack_counts_too() -> None:
    wrapped, given = hooked(new("stack", F64)), batch("stack", False, "none", F64)
    output, state = wrapped(given["x"])
    with pytest.raises(RuntimeError, match="depends on c"):
        (output.sum() + state.c.sum()).backward()


def test_a_layer_that_was_not_prepared_says_what_to_call() -> None:
    per_sample.prepare(new("layer", F64))
    wrapped = GradSampleModule(new("layer", F64))
    with pytest.raises(RuntimeError, match=r"before it was prepared .*unrolled\.per_sample\.prepare\(model\)"):
        wrapped(torch.randn(2, 3, WIDTH, dtype=F64))[0].sum().backward()


def test_what_opacus_cannot_see_is_refused() -> None:
    layer = LSTMLayer(WIDTH, HIDDEN)
    parametrizations.weight_norm(layer, "W_hf")
    with pytest.raises(TypeError, match="ParametrizedLSTMLayer is not LSTMLayer itself: take a parametrisation off"):
        per_sample.prepare(layer)
    with pytest.raises(ValueError, match=r"projection of a strict stack: model\.strict = False"):
        per_sample.prepare(MultiLayerLSTM(WIDTH, HIDDEN, strict=True))
    for options, said in (
        (
            {"peephole": True},
            r"a layer has peephole=True, .* the twelve parameters of a plain layer; .*vmap\(torch\.func",
        ),
        ({"coupled": True}, "a layer has coupled=True"),
        ({"proj_dim": 2}, "a layer has proj_dim=2, .* without a projection of h; use torch"),
    ):
        with pytest.raises(ValueError, match=said):
            per_sample.prepare(MultiLayerLSTM(WIDTH, HIDDEN, **options))


def test_without_opacus_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.grad_sample", None)
    with pytest.raises(ImportError, match=r"opacus is not installed: pip install 'unrolled\[opacus\]'"):
        per_sample.prepare(LSTMLayer(WIDTH, HIDDEN))


# A private step, end to end


def test_a_private_step_clips_each_row_before_it_adds_them() -> None:
    """Without noise, a step is what plain loops give: each row's gradient cut to length 0.5, then their mean."""
    config = ModelConfig(vocabulary=WIDTH, hidden=HIDDEN, layers=2, embedding=3)
    model = plain.redraw(LanguageModel(config, dtype=F64))
    ids = torch.randint(WIDTH, (ROWS, STEPS), generator=torch.Generator().manual_seed(1))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss(module: nn.Module, ids: Tensor) -> Tensor:
        return nn.functional.cross_entropy(module(ids)[0][:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    rows = [torch.autograd.grad(loss(model, ids[k : k + 1]), list(model.parameters())) for k in range(ROWS)]
    lengths = [torch.cat([part.flatten() for part in each]).norm() for each in rows]
    assert max(lengths) > 0.5
    cut = [min(1.0, 0.5 / (float(length) + 1e-6)) for length in lengths]
    engine = opacus.PrivacyEngine(secure_mode=False)
    private, optimizer, loader = engine.make_private(
        module=per_sample.prepare(model),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(ids, batch_size=ROWS),
        noise_multiplier=0.0,
        max_grad_norm=0.5,
        poisson_sampling=False,
    )
    for chosen in loader:
        optimizer.zero_grad()
        loss(private, chosen).backward()
        optimizer.step()
    for k, (name, value) in enumerate(model.named_parameters()):
        step = sum(scale * each[k] for scale, each in zip(cut, rows, strict=True)) / ROWS
        assert_equal(value.detach() - before[name], -0.1 * step)
