"""A layer as one node of the graph: the bits of the operators, but for sums of biases, and who does not get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from plain import normal
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import needs_library

from unrolled import LSTMLayer
from unrolled.recurrence import one_node

pytestmark = needs_library
F32 = torch.float32


class _Watched(TorchDispatchMode):
    """A mode that sees every operator, and so is shown them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def nodes() -> Iterator[list[Any]]:
    """Inside, the calls that run as one node."""
    calls: list[Any] = []
    run = one_node.scan

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return run(*args, **options)

    with mock.patch.object(one_node, "scan", counting):
        yield calls


def both(layer: LSTMLayer, run: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `run` gives with one node and, its forward pass watched, with the operators."""
    with nodes() as calls:
        one = run()
    assert calls
    with nodes() as calls, mock.patch.object(layer, "watched", True, create=True):
        operators = run()
    assert not calls
    return one, operators


def watched(layer: LSTMLayer) -> AbstractContextManager[Any]:
    """What a forward pass of `both` runs in."""
    return _Watched() if getattr(layer, "watched", False) else nullcontext()


def opened(layer: LSTMLayer, x: Tensor, **given: Any) -> Any:
    with watched(layer):
        return layer.trace(x, **given)


def values_and_gradients(layer: LSTMLayer, x: Tensor, *, unused: str = "", **given: Any) -> dict[str, Tensor]:
    """Everything of a trace, and the gradients of it, but for what the loss does not use, in all that has one."""
    x, state = (
        x.clone().requires_grad_(),
        {k: given.pop(k).clone().requires_grad_() for k in ("h0", "c0") if k in given},
    )
    trace = opened(layer, x, **state, **given)
    named = {name: getattr(trace, name) for name in ("h", "c", "i", "f", "g", "o")}
    used = {name: value for name, value in named.items() if name not in unused}
    loss = sum((value * normal(*value.shape, seed=k, dtype=F32)).sum() for k, value in enumerate(used.values()))
    totals = trace.gradients(loss)
    at = {"x": x, **state, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
    found = {**named, **{f"total {name}": value for name, value in totals._asdict().items()}}
    return found | {f"dL/d{name}": grad for name, grad in zip(at, grads, strict=True) if grad is not None}


def assert_same_bits(one: dict[str, Tensor], operators: dict[str, Tensor]) -> None:
    assert one.keys() == operators.keys()
    for name, value in one.items():
        if name.removeprefix("dL/d").startswith("b_"):  # summed by the kernel, in another order
            torch.testing.assert_close(value, operators[name], msg=name)
        else:
            assert torch.equal(value, operators[name]), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strict": {"strict": True},
    "no bias": {"bias": False},
    "projected": {"proj_dim": 3},
    "normed": {"layer_norm": True, "peephole": True},
    "normed without bias": {"layer_norm": True, "bias": False},
    "held and dropped": {"zoneout": 0.3, "recurrent_dropout": 0.2, "variational_dropout": 0.3},
    "dropped weights": {"weight_drop": 0.4, "coupled": True},
    "hard": {"gate_activation": "hard_sigmoid", "activation": "relu", "cell_clip": 0.2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("masks", ["", "resets", "lengths", "resets lengths"])
def test_one_node_has_the_bits_of_the_operators(options: dict[str, Any], masks: str) -> None:
    torch.manual_seed(3)
    layer, rows, steps = LSTMLayer(5, 7, **options), 4, 6
    given: dict[str, Any] = {
        "h0": normal(rows, layer.h_dim, seed=1, dtype=F32),
        "c0": normal(rows, 7, seed=2, dtype=F32),
    }
    if "resets" in masks:
        given["resets"] = torch.rand(rows, steps) < 0.3
    if "lengths" in masks:
        given["lengths"] = torch.tensor([6, 0, 3, 1])
    if layer.options.draws:
        given["seed"] = torch.tensor(11)
    x = normal(rows, steps, 5, seed=3, dtype=F32)
    assert_same_bits(*both(layer, lambda: values_and_gradients(layer, x, **given)))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1, 2, 5), (1, 9, 5, 1), (2, 3, 1, 33), (33, 2, 17, 16)])
@pytest.mark.parametrize("unused", ["", "c i f g o", "h i f g o", "h c"])
def test_sizes_and_what_a_loss_leaves_out(sizes: tuple[int, int, int, int], unused: str) -> None:
    rows, steps, width, hidden = sizes
    layer = LSTMLayer(width, hidden)
    x = normal(rows, steps, width, seed=3, dtype=F32)
    assert_same_bits(*both(layer, lambda: values_and_gradients(layer, x, unused=unused)))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
def test_no_rows_and_no_steps(sizes: tuple[int, int]) -> None:
    layer, x = LSTMLayer(5, 7), torch.zeros(*sizes, 5, requires_grad=True)
    with nodes() as calls:
        h, c = layer(x)
    (h.sum() + c.sum()).backward()
    assert len(calls) == 1
    assert h.shape == c.shape == (*sizes, 7)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in layer.parameters())
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_the_defaults_of_torch_have_no_say() -> None:
    layer, x = LSTMLayer(3, 4), normal(2, 5, 3, seed=1, dtype=F32)
    expected = values_and_gradients(layer, x)
    torch.set_default_dtype(torch.float64)
    try:
        with nodes() as calls, torch.device("meta"):
            trace = layer.trace(x)
            dpre = trace.gradients(trace.h.sum()).i
    finally:
        torch.set_default_dtype(F32)
    assert len(calls) == 1
    assert (dpre.dtype, dpre.device.type) == (F32, "cpu")
    assert torch.equal(trace.h, expected["h"])


@pytest.mark.parametrize("learns", ["W_hi", "W_xg", "b_o", "x", "h0", "c0"])
def test_only_what_learns_has_a_gradient(learns: str) -> None:
    layer = LSTMLayer(5, 7)
    given = {"x": normal(2, 4, 5, seed=1, dtype=F32)}
    given |= {name: normal(2, 7, seed=k, dtype=F32) for k, name in enumerate(("h0", "c0"))}
    one = {**given, **dict(layer.named_parameters())}[learns]

    def gradient() -> dict[str, Tensor]:
        with watched(layer):
            h, _ = layer(*given.values())
        return {learns: torch.autograd.grad(h.square().sum(), one)[0]}

    for parameter in layer.parameters():
        parameter.requires_grad_(parameter is one)
    one.requires_grad_()
    assert_same_bits(*both(layer, gradient))


def test_the_second_order_has_the_values_of_the_operators() -> None:
    layer, x = LSTMLayer(3, 4), normal(2, 5, 3, seed=1, dtype=F32)

    def penalty() -> dict[str, Tensor]:
        given = x.clone().requires_grad_()
        h = opened(layer, given).h
        (slope,) = torch.autograd.grad(h.square().sum(), given, create_graph=True)
        grads = torch.autograd.grad(slope.square().sum(), [given, *layer.parameters()])
        return dict(zip(["x", *dict(layer.named_parameters())], grads, strict=True))

    one, operators = both(layer, penalty)
    for name, value in one.items():
        torch.testing.assert_close(value, operators[name], rtol=1e-5, atol=1e-6)
        assert value.abs().max() > 1e-4


def test_learning_through_two_inner_steps_has_the_values_of_the_operators() -> None:
    layer, x = LSTMLayer(3, 4), normal(2, 5, 3, seed=1, dtype=F32)
    names = dict(layer.named_parameters())

    def learned_through() -> dict[str, Tensor]:
        now = dict(names)
        for _ in range(2):
            with watched(layer):
                h, _ = functional_call(layer, now, (x,))
            slopes = torch.autograd.grad(h.square().sum(), list(now.values()), create_graph=True)
            now = {name: value - 0.5 * slope for (name, value), slope in zip(now.items(), slopes, strict=True)}
        with watched(layer):
            h, _ = functional_call(layer, now, (x,))
        grads = torch.autograd.grad(h.square().sum(), list(names.values()))
        return dict(zip(names, grads, strict=True))

    one, operators = both(layer, learned_through)
    for name, value in one.items():
        torch.testing.assert_close(value, operators[name], rtol=1e-5, atol=1e-6)
        assert value.abs().max() > 1e-4


def test_batched_cotangents() -> None:
    layer, x = LSTMLayer(3, 4), normal(2, 5, 3, seed=1, dtype=F32).requires_grad_()
    with nodes() as calls:
        h, _ = layer(x)
    assert calls
    cotangents = normal(6, *h.shape, seed=2, dtype=F32)
    at = [x, *layer.parameters()]
    together = torch.autograd.grad(h, at, cotangents, retain_graph=True, is_grads_batched=True)
    for k, cotangent in enumerate(cotangents):
        alone = torch.autograd.grad(h, at, cotangent, retain_graph=True)
        for batched, value in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[k], value, rtol=1e-5, atol=1e-6)


def test_a_second_backward_pass_through_a_freed_graph_says_what_to_type() -> None:
    layer = LSTMLayer(3, 4)
    with nodes() as calls:
        h, _ = layer(normal(2, 5, 3, seed=1, dtype=F32))
    assert calls
    h.sum().backward()
    with pytest.raises(RuntimeError, match=r"state = state\.detach\(\)"):
        h.sum().backward()


def test_what_was_saved_is_still_what_it_was() -> None:
    """The gates lie where the pre-activations lay; an input that is changed in place is noticed."""
    layer, x = LSTMLayer(3, 4), normal(5, 2, 3, seed=1, dtype=F32).transpose(0, 1)
    h, _ = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


class _Marked(Tensor):
    """A tensor of a kind of its own."""


NOT_PLAIN: dict[str, Callable[[LSTMLayer, Tensor], Any]] = {
    "torch.func.grad": lambda layer, x: torch.func.grad(lambda v: layer(v)[0].sum())(x),
    "torch.vmap": lambda layer, x: torch.vmap(lambda v: layer(v.unsqueeze(0))[0])(x),
    "a subclass of Tensor": lambda layer, x: layer(x.as_subclass(_Marked)),
    "a subclass among the parameters": lambda layer, x: functional_call(
        layer, {name: value.detach().as_subclass(_Marked) for name, value in layer.named_parameters()}, (x,)
    ),
}


@pytest.mark.parametrize("run", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_others_are_shown_the_operators(run: Callable[[LSTMLayer, Tensor], Any]) -> None:
    layer, x = LSTMLayer(3, 4), normal(2, 5, 3, seed=1, dtype=F32)
    with nodes() as calls:
        layer(x)
        assert len(calls) == 1
        run(layer, x)
    assert len(calls) == 1


def test_autocast_and_another_dtype_are_shown_the_operators() -> None:
    layer, x = LSTMLayer(3, 4), normal(2, 5, 3, seed=1, dtype=F32)
    with nodes() as calls, torch.autocast("cpu", torch.bfloat16):
        layer(x)
    with nodes() as more:
        LSTMLayer(3, 4, dtype=torch.float64)(x.double())
        LSTMLayer(3, 4, backend="portable")(x)
    assert not calls
    assert not more


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_graph_computes_and_does_not_remember() -> None:
    layer, x, other = LSTMLayer(3, 4), *normal(2, 2, 5, 3, seed=1, dtype=F32)
    with nodes() as calls:
        traced = torch.jit.trace(nn.Sequential(layer), (x,), check_trace=False)
    assert not calls
    assert torch.equal(traced(other)[0], layer(other)[0])
