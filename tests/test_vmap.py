"""vmap over batches, per-sample gradients, ensembles: the reference's values, in as few kernel calls as promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from paths import assert_equal, counted
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap
from worlds import KERNELS, dtype_of

from unrolled import LSTMLayer, LSTMState, MultiLayerLSTM

LAYERS, SAMPLES, MEMBERS = 2, 4, 3
kernels = pytest.mark.parametrize("kernel", KERNELS)


class Batches:
    """A stack, an ensemble of it, and several batches of inputs with masks and states."""

    def __init__(self, kind: str, dtype: torch.dtype) -> None:
        torch.manual_seed(3)
        rows, steps, width, hidden = 3, 4, 3, 2
        models = [MultiLayerLSTM(width, hidden, LAYERS, dtype=dtype) for _ in range(MEMBERS)]
        with torch.no_grad():
            for bias in (p for model in models for name, p in model.named_parameters() if "b_" in name):
                bias.normal_()
        self.model = models[0]
        self.params = {name: value.detach() for name, value in self.model.named_parameters()}
        self.ensemble = {name: value.detach() for name, value in stack_module_state(models)[0].items()}
        self.x = torch.randn(SAMPLES, rows, steps, width, dtype=dtype)
        if kind == "ids":
            self.x = torch.randint(width, (SAMPLES, rows, steps))
        self.resets = torch.rand(SAMPLES, rows, steps) < 0.3
        self.lengths = torch.randint(steps + 1, (SAMPLES, rows))
        self.lengths[0] = torch.tensor([0, steps, 2])
        self.h = torch.randn(SAMPLES, LAYERS, rows, hidden, dtype=dtype).tanh()
        self.c = torch.randn(SAMPLES, LAYERS, rows, hidden, dtype=dtype)

    @property
    def all(self) -> tuple[Tensor, ...]:
        return self.x, self.resets, self.lengths, self.h, self.c

    @property
    def first(self) -> tuple[Tensor, ...]:
        return tuple(value[0] for value in self.all)

    def outputs(self, params: Any, x: Tensor, resets: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> Any:
        masks = {"resets": resets, "lengths": lengths}
        output, state = functional_call(self.model, params, (x, LSTMState(h, c)), masks)
        return output, state.h, state.c

    def loss(self, params: Any, *batch: Tensor) -> Tensor:
        return sum((value**3).sum() for value in self.outputs(params, *batch))

    def in_params(self, *batch: Tensor) -> Callable[[Any], Tensor]:
        return lambda params: self.loss(params, *batch)

    def in_x(self, *rest: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: self.loss(self.params, x, *rest)


EACH, NONE = (0,) * 5, (None,) * 5
# What is mapped, and how often each kernel of a layer may run: rows fold into one call, members take one each.
MAPPED: dict[str, tuple[Callable[[Batches], Any], int, int]] = {
    "vmap": (lambda b: vmap(b.outputs, (None, *EACH))(b.params, *b.all), 1, 0),
    "vmap of vmap": (
        lambda b: vmap(vmap(b.outputs, (None, *EACH)), (None, *EACH))(
            b.params, *(value.unflatten(0, (2, 2)) for value in b.all)
        ),
        1,
        0,
    ),
    "vmap over resets alone": (
        lambda b: vmap(b.outputs, (None, None, 0, None, None, None))(b.params, b.first[0], b.resets, *b.first[2:]),
        1,
        0,
    ),
    "vmap over lengths alone": (
        lambda b: vmap(b.outputs, (None, None, None, 0, None, None))(b.params, *b.first[:2], b.lengths, *b.first[3:]),
        1,
        0,
    ),
    "vmap over states alone": (
        lambda b: vmap(b.outputs, (None, None, None, None, 0, 0))(b.params, *b.first[:3], b.h, b.c),
        1,
        0,
    ),
    "per-sample gradients": (lambda b: vmap(grad(b.loss), (None, *EACH))(b.params, *b.all), 1, 1),
    "gradient of vmap": (lambda b: grad(lambda p: vmap(b.loss, (None, *EACH))(p, *b.all).pow(2).sum())(b.params), 1, 1),
    "ensemble": (lambda b: vmap(b.outputs, (0, *NONE))(b.ensemble, *b.first), MEMBERS, 0),
    "ensemble gradients": (lambda b: vmap(grad(b.loss), (0, *NONE))(b.ensemble, *b.first), MEMBERS, MEMBERS),
    "each member its sample": (
        lambda b: vmap(grad(b.loss), (0, *EACH))(b.ensemble, *(value[:MEMBERS] for value in b.all)),
        MEMBERS,
        MEMBERS,
    ),
    "ensemble x per-sample": (
        lambda b: vmap(vmap(grad(b.loss), (None, *EACH)), (0, *NONE))(b.ensemble, *b.all),
        MEMBERS,
        MEMBERS,
    ),
    "per-sample x ensemble": (
        lambda b: vmap(vmap(grad(b.loss), (0, *NONE)), (None, *EACH))(b.ensemble, *b.all),
        MEMBERS,
        MEMBERS,
    ),
    "vmap of jvp": (lambda b: vmap(lambda *s: jvp(b.in_params(*s), (b.params,), (b.params,))[1])(*b.all), 0, 0),
}


@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize("name", MAPPED)
@kernels
def test_mapped_stack_equals_the_reference_and_runs_the_kernel_no_more_than_it_must(
    kernel: str, name: str, kind: str
) -> None:
    transform, forwards, backwards = MAPPED[name]
    batches = Batches(kind, dtype_of(kernel))
    with counted() as ran:
        ours = transform(batches)
    assert (ran[kernel], ran[f"{kernel}_backward"]) == (forwards * LAYERS, backwards * LAYERS)
    assert (ran["reference.scan"] == 0) == (forwards > 0)
    assert ran["product"] == ran["weight_gradient"] == 0
    batches.model.backend = "reference"
    assert_equal(ours, transform(batches))


@pytest.mark.parametrize(("name", "calls"), [("hessian", 0), ("jacrev(jacrev)", LAYERS), ("jvp", 0), ("jvp(grad)", 0)])
@kernels
def test_mapped_orders_in_x(kernel: str, name: str, calls: int) -> None:
    batches = Batches("floats", dtype_of(kernel))
    orders = {
        "hessian": hessian,
        "jacrev(jacrev)": lambda f: jacrev(jacrev(f)),
        "jvp": lambda f: lambda x: jvp(f, (x,), (x.cos(),))[1],
        "jvp(grad)": lambda f: lambda x: jvp(grad(f), (x,), (x.cos(),))[1],
    }

    def transform() -> Tensor:
        return vmap(lambda x, *rest: orders[name](batches.in_x(*rest))(x))(*batches.all)

    with counted() as ran:
        ours = transform()
    assert ran[kernel] == calls
    batches.model.backend = "reference"
    assert_equal(ours, transform())


@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize("name", [name for name, (_, _, backwards) in MAPPED.items() if not backwards])
@kernels
def test_without_gradients_mapping_gives_the_same(kernel: str, name: str, kind: str) -> None:
    """There the native kernel takes another operator, which stores less."""
    transform, forwards, _ = MAPPED[name]
    batches = Batches(kind, dtype_of(kernel))
    with torch.no_grad(), counted() as ran:
        ours = transform(batches)
    assert ran["states" if kernel == "cpu" else kernel] == forwards * LAYERS
    batches.model.backend = "reference"
    with torch.no_grad():
        assert_equal(ours, transform(batches))


@kernels
def test_vmap_over_other_axes_and_in_chunks(kernel: str) -> None:
    b = Batches("floats", dtype_of(kernel))
    expected = vmap(grad(b.loss), (None, *EACH))(b.params, *b.all)
    moved = (b.x.movedim(0, 3), b.resets.movedim(0, 2), b.lengths.t(), b.h.movedim(0, 1), b.c.movedim(0, 3))
    assert_equal(vmap(grad(b.loss), (None, 3, 2, 1, 1, 3))(b.params, *moved), expected)
    assert_equal(vmap(grad(b.loss), (None, *EACH), chunk_size=3)(b.params, *b.all), expected)
    outputs = vmap(b.outputs, (None, *EACH))(b.params, *b.all)
    assert_equal(vmap(b.outputs, (None, *EACH), out_dims=(3, 1, 2))(b.params, *b.all)[0], outputs[0].movedim(0, 3))


@kernels
def test_vmap_of_a_trace_maps_the_gates(kernel: str) -> None:
    layer, x = LSTMLayer(3, 2, dtype=dtype_of(kernel)), torch.randn(4, 2, 5, 3, dtype=dtype_of(kernel))
    mapped = vmap(lambda x: [getattr(layer.trace(x), name) for name in "hcifgo"])(x)
    whole = layer.trace(x.flatten(0, 1))
    assert_equal(mapped, [getattr(whole, name).unflatten(0, (4, 2)) for name in "hcifgo"])


@kernels
def test_ranges_are_checked_under_vmap(kernel: str) -> None:
    batches = Batches("ids", dtype_of(kernel))
    x, lengths = batches.x.clone(), batches.lengths.clone()
    x[2, 1, 0], lengths[2, 1] = 3, 5
    mapped = vmap(batches.outputs, (None, *EACH))
    with pytest.raises(IndexError, match="ids must be from 0 to 2, got 3"):
        mapped(batches.params, x, batches.resets, batches.lengths.clamp(min=2), batches.h, batches.c)
    with pytest.raises(ValueError, match="lengths must be from 0 to 4, got 5"):
        mapped(batches.params, batches.x, batches.resets, lengths, batches.h, batches.c)
