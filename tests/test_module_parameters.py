"""What may become of a module's parameters: other dtypes, parametrisations, copies, memory shared with processes.

Each is held to plain loops over the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import plain
import pytest
import torch
import torch.multiprocessing as mp
from paths import assert_equal, counted
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from worlds import KERNELS, dtype_of, needs_library

from unrolled import LSTMLayer, MultiLayerLSTM

F32, F64 = torch.float32, torch.float64
WIDTH, HIDDEN, ROWS, STEPS = 5, 7, 4, 6
kernels = pytest.mark.parametrize("kernel", KERNELS)
kinds = pytest.mark.parametrize("kind", ["layer", "stack"])


def new(kind: str, dtype: torch.dtype) -> nn.Module:
    layer = LSTMLayer(WIDTH, HIDDEN, dtype=dtype)
    return plain.redraw(layer if kind == "layer" else MultiLayerLSTM(WIDTH, HIDDEN, 2, output_dim=3, dtype=dtype))


def inputs(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    return plain.normal(ROWS, STEPS, WIDTH, seed=1, dtype=dtype), plain.masks("both", ROWS, STEPS)


def loss_of(module: nn.Module, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """In float32 at least: half of the precision is what is tested, not sums in it."""
    first, second = module(x, **masks)
    values = (first, second) if isinstance(second, Tensor) else (first, *second)
    return sum((value.to(torch.promote_types(value.dtype, F32)) ** 2).sum() for value in values)


def plain_loss(kind: str, weights: dict[str, Tensor], x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    zeros = x.new_zeros(2, ROWS, HIDDEN)
    if kind == "layer":
        run = plain.run_layer(weights, x, zeros[0], zeros[0], **masks)
        return (run.sequence("h") ** 2).sum() + (run.sequence("c") ** 2).sum()
    output, layers = plain.run_stack(weights, x, zeros, zeros, **masks)
    return (output**2).sum() + sum((value**2).sum() for layer in layers for value in layer.state or ())


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """In float64, as leaves, by name."""
    return {name: value.detach().to(F64).requires_grad_() for name, value in module.named_parameters()}


def plain_gradients(kind: str, weights: dict[str, Tensor], x: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    loss = plain_loss(kind, weights, x.to(F64), masks)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


# Dtypes


def assert_near(got: Tensor, exact: Tensor, relative: float) -> None:
    off, scale = (got.to(F64) - exact).abs().max(), exact.abs().max()
    assert scale > 1e-3, "a comparison of zeros shows nothing"
    assert off <= relative * scale, f"off by {float(off / scale):.2g} of the largest value"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32, F64], ids=str)
@kinds
def test_parameters_of_every_float_dtype(kind: str, dtype: torch.dtype) -> None:
    """Each step rounds a few times: thirty roundings, which the largest value may show."""
    module, (x, masks) = new(kind, dtype), inputs(dtype)
    loss = loss_of(module, x, masks)
    loss.backward()
    weights = weights_of(module)
    assert_near(loss, plain_loss(kind, weights, x.to(F64), masks), 30 * torch.finfo(dtype).eps)
    for name, exact in plain_gradients(kind, weights, x, masks).items():
        gradient = module.get_parameter(name).grad
        assert gradient.dtype == dtype
        assert_near(gradient, exact, 30 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@kinds
@pytest.mark.parametrize("kernel", [pytest.param("cpu", marks=needs_library), "portable", "reference"])
def test_autocast_is_the_plain_loops_to_the_low_precision(kernel: str, kind: str, low: torch.dtype) -> None:
    module, (x, masks) = new(kind, F32), inputs(F32)
    module.backend = kernel
    with torch.autocast("cpu", low):
        loss = loss_of(module, x, masks)
    loss.backward()
    weights = weights_of(module)
    exact = plain_loss(kind, weights, x.to(F64), masks)
    assert_near(loss, exact, 8 * torch.finfo(low).eps)
    assert not torch.isclose(loss.to(F64), exact, rtol=1e-6, atol=0), "autocast changed nothing"
    for name, gradient in plain_gradients(kind, weights, x, masks).items():
        assert_near(module.get_parameter(name).grad, gradient, 8 * torch.finfo(low).eps)


# Parametrisations of one gate's matrix


class Masked(nn.Module):
    """Half of the connections cut."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", (torch.arange(like.numel()).reshape(like.shape) % 2 == 0).to(like.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.keep


def masked(layer: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    mask = Masked(layer.W_hf)
    parametrize.register_parametrization(layer, "W_hf", mask)
    return lambda own: own["original"] * mask.keep.to(F64)


def normed(layer: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """Salimans & Kingma 2016, a length for each row."""
    parametrizations.weight_norm(layer, "W_hf")
    with torch.no_grad():
        layer.parametrizations.W_hf.original0.mul_(1.5)
    return lambda own: own["original0"] * own["original1"] / own["original1"].norm(dim=1, keepdim=True)


PARAMETRISED = {"a mask": masked, "weight_norm": normed}


def where(kind: str, module: nn.Module) -> tuple[nn.Module, str]:
    return (module, "") if kind == "layer" else (module.layers[1], "layers.1.")


def exact_gradients(
    module: nn.Module, kind: str, value: Callable[[dict[str, Tensor]], Tensor], x: Tensor, masks: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Of the parametrised module's own parameters, by plain loops over what `value` makes of the originals."""
    leaves, (_, at) = weights_of(module), where(kind, module)
    prefix = f"{at}parametrizations.W_hf."
    own = {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
    loss = plain_loss(kind, {**leaves, f"{at}W_hf": value(own)}, x.to(F64), masks)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_gradients(module: nn.Module, exact: dict[str, Tensor], x: Tensor, masks: dict[str, Tensor]) -> None:
    names, values = zip(*module.named_parameters(), strict=True)
    assert list(names) == list(exact)
    ours = torch.autograd.grad(loss_of(module, x, masks), values)
    assert_equal(ours, [value.to(x.dtype) for value in exact.values()])


@pytest.mark.parametrize("name", PARAMETRISED)
@kinds
@kernels
def test_one_gate_parametrised(kernel: str, kind: str, name: str) -> None:
    module, (x, masks) = new(kind, dtype_of(kernel)), inputs(dtype_of(kernel))
    value = PARAMETRISED[name](where(kind, module)[0])
    with counted() as ran:
        assert_gradients(module, exact_gradients(module, kind, value, x, masks), x, masks)
    assert (ran[kernel], ran["reference.scan"]) == (1 if kind == "layer" else 2, 0)


@pytest.mark.parametrize("name", PARAMETRISED)
@kinds
@kernels
def test_a_parametrised_gate_is_saved_loaded_copied_and_taken_off(kernel: str, kind: str, name: str) -> None:
    module, (x, masks) = new(kind, dtype_of(kernel)), inputs(dtype_of(kernel))
    value = PARAMETRISED[name](where(kind, module)[0])
    train(module, x, masks)
    exact = exact_gradients(module, kind, value, x, masks)
    twin = copy.deepcopy(module)
    loaded = new(kind, dtype_of(kernel))
    PARAMETRISED[name](where(kind, loaded)[0])
    loaded.load_state_dict(module.state_dict())
    before = module(x, **masks)[0].detach()
    train(module, x, masks)
    assert not torch.equal(module(x, **masks)[0], before), "the copies are seen to be on their own"
    for other in (twin, loaded):
        assert_gradients(other, exact, x, masks)
    layer, _ = where(kind, twin)
    parametrize.remove_parametrizations(layer, "W_hf")
    assert set(twin.state_dict()) == set(new(kind, F32).state_dict())
    assert torch.equal(twin(x, **masks)[0], before)


# Copies, and memory shared with other processes


LR = 0.002


def train(module: nn.Module, x: Tensor, masks: dict[str, Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(module, x, masks).backward()
        optimizer.step()


def plain_training(kind: str, module: nn.Module, batches: list[Tensor], masks: Any, steps: int = 3) -> list[Tensor]:
    """The parameters after `steps` steps along the summed gradients of all batches."""
    weights = weights_of(module)
    for _ in range(steps):
        each = [plain_gradients(kind, weights, x, masks) for x in batches]
        weights = {name: (w - LR * sum(g[name] for g in each)).detach().requires_grad_() for name, w in weights.items()}
    return [value.detach().to(next(module.parameters()).dtype) for value in weights.values()]


@kinds
@kernels
def test_a_trained_module_copied(kernel: str, kind: str) -> None:
    module, (x, masks) = new(kind, dtype_of(kernel)), inputs(dtype_of(kernel))
    train(module, x, masks)
    twin, exact = copy.deepcopy(module), plain_training(kind, module, [x], masks)
    kept = [value.detach().clone() for value in module.parameters()]
    train(twin, x, masks)
    assert_equal([value.detach() for value in twin.parameters()], exact)
    assert all(torch.equal(value, before) for value, before in zip(module.parameters(), kept, strict=True))


def hogwild(module: nn.Module, x: Tensor, masks: dict[str, Tensor], meet: Any, lock: Any, steps: int) -> None:
    """A worker: gradients of its own batch at the shared weights, then its step in place. Meetings make it a number."""
    torch.set_num_threads(1)
    for _ in range(steps):
        gradients = torch.autograd.grad(loss_of(module, x, masks), list(module.parameters()))
        meet.wait()
        with lock, torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.sub_(LR * gradient)
        meet.wait()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@kinds
@kernels
def test_processes_train_shared_weights(kernel: str, kind: str, method: str) -> None:
    module, (x, masks) = new(kind, dtype_of(kernel)), inputs(dtype_of(kernel))
    loss_of(module, x, masks).backward()  # the parent has run the kernel before it forks
    module.zero_grad()
    batches = [x, x.flip(0)]
    exact = plain_training(kind, module, batches, masks)
    places = [value.data_ptr() for value in module.share_memory().parameters()]
    context = mp.get_context(method)
    meet, lock = context.Barrier(2, timeout=60), context.Lock()
    workers = [context.Process(target=hogwild, args=(module, batch, masks, meet, lock, 3)) for batch in batches]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert all(value.is_shared() for value in module.parameters())
    assert [value.data_ptr() for value in module.parameters()] == places
    assert_equal([value.detach() for value in module.parameters()], exact)
