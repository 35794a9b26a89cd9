"""What training keeps for its backward pass, in floats for each token; and gates that are made again."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from paths import assert_equal, counted
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from worlds import BACKENDS, KERNELS, dtype_of

from unrolled import LSTMLayer, LSTMState, MultiLayerLSTM

backends = pytest.mark.parametrize("backend", BACKENDS)
kernels = pytest.mark.parametrize("kernel", KERNELS)
WIDTH, HIDDEN, LAYERS, ROWS = 24, 32, 3, 5


def pair(backend: str, **options: Any) -> tuple[MultiLayerLSTM, MultiLayerLSTM]:
    """The same stack twice, of which the second makes its gates again."""
    torch.manual_seed(8)
    model = MultiLayerLSTM(5, 7, 2, **{"backend": backend, "dtype": dtype_of(backend), **options})
    again = copy.deepcopy(model)
    again.recompute = True
    return model, again


def arguments(backend: str, kind: str) -> dict[str, Any]:
    torch.manual_seed(9)
    x = torch.randint(5, (4, 9)) if kind == "ids" else torch.randn(4, 9, 5, dtype=dtype_of(backend))
    state = LSTMState(*(torch.randn(2, 4, 7, dtype=dtype_of(backend)) for _ in "hc"))
    return {"x": x, "state": state, "resets": torch.rand(4, 9) < 0.2, "lengths": torch.tensor([9, 0, 4, 7])}


def train(model: MultiLayerLSTM, given: dict[str, Any], order: int = 1) -> list[Tensor]:
    """Outputs and gradients of that order, in everything that is a float."""
    leaves = [leaf.detach().requires_grad_() for leaf in tree_leaves(given) if leaf.is_floating_point()]
    found = iter(leaves)
    x = next(found) if given["x"].is_floating_point() else given["x"]
    output, state = model(**{**given, "x": x, "state": LSTMState(*found)})
    loss = output.pow(3).sum() + state.h.pow(2).sum() + state.c.pow(3).sum()
    leaves += model.parameters()
    for _ in range(order - 1):
        loss = sum(value.pow(2).sum() for value in torch.autograd.grad(loss, leaves, create_graph=True))
    return [output.detach(), *(value.detach() for value in state), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["floats", "ids"])
@backends
def test_gates_that_are_made_again_give_the_same_bits(backend: str, kind: str, dropout: float) -> None:
    model, again = pair(backend, dropout=dropout)
    given = arguments(backend, kind)
    torch.manual_seed(0)
    expected = train(model, given)
    torch.manual_seed(0)
    for value, other in zip(train(again, given), expected, strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("order", [2, 3])
@backends
def test_at_higher_orders_too(backend: str, order: int) -> None:
    model, again = pair(backend)
    given = arguments(backend, "floats")
    assert_equal(train(again, given, order), train(model, given, order))


@kernels
def test_the_kernel_runs_once_more_for_each_layer_and_only_in_training(kernel: str) -> None:
    _, model = pair(kernel)
    given = arguments(kernel, "floats")
    with counted() as ran:
        train(model, given)
    assert (ran[kernel], ran[f"{kernel}_backward"], ran["states"]) == (4, 2, 0)
    with torch.no_grad(), counted() as ran:
        model(**given)
    assert ran["states" if kernel == "cpu" else kernel] == 2
    # A trace holds the gates: there is nothing to make again.
    with counted() as ran:
        trace = model.trace(**given)
        torch.autograd.grad(trace.output.sum(), list(model.parameters()))
    assert ran[kernel] == 2


def test_the_option_is_an_attribute_of_layers_and_stacks() -> None:
    layer, model = LSTMLayer(3, 4, recompute=True), MultiLayerLSTM(3, 4, 2, recompute=True)
    assert layer.recompute
    assert [each.recompute for each in model.layers] == [True, True]
    model.recompute = False
    assert [each.recompute for each in model.layers] == [False, False]
    assert not model.recompute
    assert "recompute" not in "".join(model.state_dict())
    assert repr(layer) == "LSTMLayer(3, 4, recompute=True)"
    assert not LSTMLayer(3, 4).recompute


# Memory


class Made(TorchDispatchMode):
    """The memory of everything that operators inside return."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return results

    def alive(self) -> int:
        gc.collect()
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def batch(kind: str, steps: int) -> Tensor:
    return torch.randint(WIDTH, (ROWS, steps)) if kind == "ids" else torch.randn(ROWS, steps, WIDTH)


def alive(model: MultiLayerLSTM, kind: str, steps: int) -> int:
    """Bytes that a loss holds, beyond x and the parameters."""
    x = batch(kind, steps)
    with Made() as made:
        loss = model(x)[0].sum()
    made.storages.pop(x.untyped_storage()._cdata, None)
    assert loss.requires_grad
    return made.alive()


def saved(model: MultiLayerLSTM, kind: str, steps: int) -> int:
    """Bytes that autograd is given to save, x included and every memory counted once."""
    storages = {}

    def pack(value: Tensor) -> Tensor:
        storages[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output, _ = model(batch(kind, steps))
    assert output.requires_grad
    return sum(storages.values())


def floats_for_each_token(bytes_of: Any, *arguments: Any) -> float:
    few, many = (bytes_of(*arguments, steps) for steps in (50, 90))
    return (many - few) / 4 / 40 / ROWS


# A projection, whose input is batch-first, keeps a copy of the top layer's h.
outputs = pytest.mark.parametrize(("output_dim", "for_projection"), [(None, 0), (6, HIDDEN)], ids=["bare", "projected"])
# An id is an int64: as much as two floats.
kinds = pytest.mark.parametrize(("kind", "for_input"), [("floats", WIDTH), ("ids", 2)], ids=["floats", "ids"])
# Every storage alive is asked for; the slow suite asks for the other kernel's too.
one_kernel = pytest.mark.parametrize("kernel", [KERNELS[0], pytest.param(KERNELS[1], marks=pytest.mark.slow)])


@outputs
@kinds
@one_kernel
def test_training_keeps_the_input_and_six_values_for_each_unit_of_each_layer(
    kernel: str, kind: str, for_input: int, output_dim: int | None, for_projection: int
) -> None:
    """H, c and four gates. The lowest layer's input is copied time-first; the next ones' is the h below."""
    model = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, output_dim=output_dim, backend=kernel)
    expected = for_input + 6 * HIDDEN * LAYERS + for_projection
    assert floats_for_each_token(alive, model, kind) == expected
    assert floats_for_each_token(saved, model, kind) == expected


@kinds
@one_kernel
def test_a_trace_keeps_no_more_than_training(kernel: str, kind: str, for_input: int) -> None:
    model = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, output_dim=None, backend=kernel)

    def held(steps: int) -> int:
        x = batch(kind, steps)
        with Made() as made:
            trace = model.trace(x)
        made.storages.pop(x.untyped_storage()._cdata, None)
        assert trace.output.requires_grad
        return made.alive()

    assert floats_for_each_token(held) == for_input + 6 * HIDDEN * LAYERS


@outputs
@kinds
@one_kernel
def test_with_recompute_it_keeps_what_goes_into_each_layer(
    kernel: str, kind: str, for_input: int, output_dim: int | None, for_projection: int
) -> None:
    model = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, output_dim=output_dim, backend=kernel, recompute=True)
    between_layers = HIDDEN * (LAYERS - 1)
    # The lowest layer's input is x itself, which is not copied: it is saved, and nothing but x.
    assert floats_for_each_token(alive, model, kind) == between_layers + for_projection
    assert floats_for_each_token(saved, model, kind) == for_input + between_layers + for_projection


@pytest.mark.parametrize("kind", ["floats", "ids"])
@one_kernel
def test_frozen_weights_keep_nothing(kernel: str, kind: str) -> None:
    model = MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, backend=kernel).requires_grad_(False)

    def left(steps: int) -> int:
        with Made() as made:
            model(batch(kind, steps))
        return made.alive()

    assert floats_for_each_token(left) == 0
