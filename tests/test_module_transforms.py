"""Transforms of whole modules: a layer's and a stack's values against plain loops in float64, and what ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain
import pytest
import torch
from paths import assert_equal, counted
from torch import Tensor, nn
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._pytree import tree_map
from worlds import KERNELS, dtype_of

from unrolled import LSTMLayer, MultiLayerLSTM

F64 = torch.float64
WIDTH, HIDDEN, LAYERS, ROWS, STEPS = 3, 2, 2, 3, 4
# So that no order of differentiation is small: squares of small slopes would be zeros.
LOUD = 30
Params = dict[str, Tensor]
kernels = pytest.mark.parametrize("kernel", KERNELS)
kinds = pytest.mark.parametrize("kind", ["layer", "stack"])


@pytest.fixture(autouse=True)
def _plain_without_retained_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.func` refuses `retain_grad`."""
    monkeypatch.setattr(plain, "_retained", lambda value: value)


class Subject:
    """One module with its inputs, and the same function of parameters and x in both forms: ours, and plain loops."""

    def __init__(self, kind: str, kernel: str, seed: int = 0) -> None:
        self.kind, self.dtype = kind, dtype_of(kernel)
        self.module: nn.Module = plain.redraw(
            LSTMLayer(WIDTH, HIDDEN, dtype=self.dtype)
            if kind == "layer"
            else MultiLayerLSTM(WIDTH, HIDDEN, LAYERS, output_dim=2, dtype=self.dtype),
            seed,
        )
        self.calls = 1 if kind == "layer" else LAYERS
        self.x = plain.normal(ROWS, STEPS, WIDTH, seed=1, dtype=self.dtype)
        state = (ROWS, HIDDEN) if kind == "layer" else (LAYERS, ROWS, HIDDEN)
        self.state = tuple(plain.normal(*state, seed=s, dtype=self.dtype).tanh() for s in (2, 3))
        resets = torch.zeros(ROWS, STEPS, dtype=torch.bool)
        resets[0, 2] = resets[2, 0] = True
        self.masks = {"resets": resets, "lengths": torch.tensor([STEPS, 0, 3])}

    @property
    def params(self) -> Params:
        return {name: value.detach() for name, value in self.module.named_parameters()}

    def ours(self, params: Params, x: Tensor, **masks: Tensor) -> Tensor:
        masks = masks or self.masks
        if self.kind == "layer":
            h, c = functional_call(self.module, params, (x, *self.state), masks)
            return LOUD * ((h**3).sum() + (c**3).sum())
        output, state = functional_call(self.module, params, (x, self.state), masks)
        return LOUD * ((output**3).sum() + (state.h**3).sum() + (state.c**3).sum())

    def plain(self, params: Params, x: Tensor, **masks: Tensor) -> Tensor:
        masks, (h0, c0) = masks or self.masks, (value.to(F64) for value in self.state)
        if self.kind == "layer":
            run = plain.run_layer(params, x, h0, c0, **masks)
            return LOUD * ((run.sequence("h") ** 3).sum() + (run.sequence("c") ** 3).sum())
        output, layers = plain.run_stack(params, x, h0, c0, **masks)
        last = [value for layer in layers for value in layer.state or ()]
        return LOUD * ((output**3).sum() + sum((value**3).sum() for value in last))

    def equal(self, transform: Callable[[Callable[..., Tensor], Any, Any], Any], params: Any, x: Any) -> Any:
        """Demand that `transform` of our function is that of the plain one; return what ran."""
        with counted() as ran:
            ours = transform(self.ours, params, x)
        exact = transform(self.plain, *tree_map(lambda value: value.to(F64), (params, x)))
        assert_equal(ours, tree_map(lambda value: value.to(self.dtype), exact))
        return ran


def in_one(function: Callable[..., Tensor], params: Params, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """As a function of the bottom layer's W_hf alone."""
    name = next(name for name in params if name.endswith("W_hf"))
    return lambda value: function({**params, name: value}, x), params[name]


def of_one(order: Callable[..., Any]) -> Callable[..., Any]:
    def transform(function: Callable[..., Tensor], params: Params, x: Tensor) -> Any:
        loss, value = in_one(function, params, x)
        return order(loss)(value)

    return transform


REVERSE: dict[str, Callable[..., Any]] = {
    "grad in every parameter": lambda f, params, x: grad(f)(params, x),
    "grad in x": lambda f, params, x: grad(f, argnums=1)(params, x),
    "jacrev": of_one(jacrev),
    "jacrev(jacrev)": of_one(lambda f: jacrev(jacrev(f))),
    "third order": of_one(lambda f: grad(lambda u: grad(lambda v: grad(f)(v).pow(2).sum())(u).pow(2).sum())),
}
FORWARD: dict[str, Callable[..., Any]] = {
    "jvp in every parameter": lambda f, params, x: jvp(lambda p: f(p, x), (params,), (tree_map(torch.cos, params),)),
    "jvp in x": lambda f, params, x: jvp(lambda u: f(params, u), (x,), (x.cos(),)),
    "jacfwd": of_one(jacfwd),
    "hessian": of_one(hessian),
    "hessian in x": lambda f, params, x: hessian(lambda u: f(params, u))(x),
    "jacfwd(jacfwd)": of_one(lambda f: jacfwd(jacfwd(f))),
}


@pytest.mark.parametrize("name", REVERSE)
@kinds
@kernels
def test_reverse_orders_are_the_plain_loops_and_run_the_kernel(kernel: str, kind: str, name: str) -> None:
    subject = Subject(kind, kernel)
    ran = subject.equal(REVERSE[name], subject.params, subject.x)
    assert ran[kernel] == subject.calls
    assert ran[f"{kernel}_backward"] >= 1
    assert ran["reference.scan"] == 0


@pytest.mark.parametrize("name", FORWARD)
@kinds
@kernels
def test_forward_mode_is_the_plain_loops_and_runs_the_reference(kernel: str, kind: str, name: str) -> None:
    subject = Subject(kind, kernel)
    ran = subject.equal(FORWARD[name], subject.params, subject.x)
    assert (ran[kernel], ran["reference.scan"]) == (0, subject.calls)


@kinds
@kernels
def test_maps_over_samples_and_members_are_the_plain_loops_one_by_one(kernel: str, kind: str) -> None:
    subject, members = Subject(kind, kernel), 3
    samples = plain.normal(4, *subject.x.shape, seed=5, dtype=subject.dtype)
    ensemble = stack_module_state([Subject(kind, kernel, seed).module for seed in range(members)])[0]
    ensemble = {name: value.detach() for name, value in ensemble.items()}

    def one_by_one(over_params: bool, over_x: bool) -> tuple[Any, Any, Any]:
        size = members if over_params else len(samples)
        params, x = ensemble if over_params else subject.params, samples if over_x else subject.x
        wide = tree_map(lambda value: value.to(F64), (params, x))
        rows = []
        for k in range(size):
            own = {name: v[k] for name, v in wide[0].items()} if over_params else wide[0]
            rows.append(grad(subject.plain)(own, wide[1][k] if over_x else wide[1]))
        return params, x, {name: torch.stack([row[name] for row in rows]).to(subject.dtype) for name in rows[0]}

    for over_params, over_x, calls in ((False, True, 1), (True, False, members), (True, True, members)):
        params, x, exact = one_by_one(over_params, over_x)
        x = x[:members] if over_params and over_x else x
        with counted() as ran:
            ours = vmap(grad(subject.ours), (0 if over_params else None, 0 if over_x else None))(params, x)
        assert_equal(ours, exact)
        assert (ran[kernel], ran["reference.scan"]) == (calls * subject.calls, 0)


# As methods use them


@kinds
@kernels
def test_a_gradient_penalty(kernel: str, kind: str) -> None:
    """Gulrajani et al. 2017: the critic's gradient in its input has length 1, learned through that gradient."""
    subject = Subject(kind, kernel)

    def penalty(function: Callable[..., Tensor], params: Params, x: Tensor) -> Any:
        params = {name: value.clone().requires_grad_() for name, value in params.items()}
        x = x.clone().requires_grad_()
        score = function(params, x, lengths=torch.tensor([STEPS, 2, 3]))
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        loss = score + 10 * (slope.flatten(1).norm(dim=1) - 1).pow(2).mean()
        # A projection's bias does not reach the slope, and the score alone has it.
        return loss.detach(), *torch.autograd.grad(loss, [x, *params.values()])

    ran = subject.equal(penalty, subject.params, subject.x)
    assert (ran[kernel], ran["reference.scan"]) == (subject.calls, 0)
    assert ran["reference.scan_backward"] == subject.calls


@kinds
@kernels
def test_learning_through_two_inner_steps(kernel: str, kind: str) -> None:
    """Finn et al. 2017: the gradient, in the first weights, of a loss after steps that were themselves gradients."""
    subject = Subject(kind, kernel)

    def outer(function: Callable[..., Tensor], params: Params, x: Tensor) -> Any:
        first = {name: value.clone().requires_grad_() for name, value in params.items()}
        adapted = first
        for _ in range(2):
            slopes = torch.autograd.grad(function(adapted, x), list(adapted.values()), create_graph=True)
            adapted = {name: w - 0.05 * slope for (name, w), slope in zip(adapted.items(), slopes, strict=True)}
        loss = function(adapted, x.flip(0))
        return loss.detach(), *torch.autograd.grad(loss, list(first.values()))

    ran = subject.equal(outer, subject.params, subject.x)
    assert (ran[kernel], ran["reference.scan"]) == (3 * subject.calls, 0)


@kinds
def test_gradgradcheck_of_a_module(kind: str) -> None:
    subject = Subject(kind, "portable")
    names = [name for name in subject.params if name.endswith(("W_hf", "W_xg", "b_o"))][:3]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return subject.ours({**subject.params, **dict(zip(names, values, strict=True))}, x)

    leaves = [value.clone().requires_grad_() for value in (subject.x, *(subject.params[name] for name in names))]
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@kinds
@kernels
def test_checkpointed(kernel: str, kind: str, reentrant: bool) -> None:
    subject = Subject(kind, kernel)

    def gradients(function: Callable[..., Tensor], params: Params, x: Tensor) -> Any:
        params = {name: value.clone().requires_grad_() for name, value in params.items()}
        names, x = list(params), x.clone().requires_grad_()

        def flat(x: Tensor, *values: Tensor) -> Tensor:
            return function(dict(zip(names, values, strict=True)), x)

        if function == subject.ours:
            loss = torch.utils.checkpoint.checkpoint(flat, x, *params.values(), use_reentrant=reentrant)
        else:
            loss = flat(x, *params.values())
        loss.backward()
        return loss.detach(), x.grad, *(value.grad for value in params.values())

    ran = subject.equal(gradients, subject.params, subject.x)
    assert (ran[kernel] + ran["states"], ran["reference.scan"]) == (2 * subject.calls, 0)


@pytest.mark.parametrize("order", [1, 2, 3])
@kinds
@kernels
def test_backward_after_eval(kernel: str, kind: str, order: int) -> None:
    """And the gradient of that gradient, and the next; a stack's dropout is off."""
    subject = Subject(kind, kernel)
    if isinstance(subject.module, MultiLayerLSTM):
        subject.module.dropout.p = 0.9
    subject.module.eval()

    def gradients(function: Callable[..., Tensor], params: Params, x: Tensor) -> Any:
        params = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = function(params, x)
        for _ in range(order - 1):
            slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            loss = sum(slope.pow(2).sum() for slope in slopes)
        return torch.autograd.grad(loss, list(params.values()))

    ran = subject.equal(gradients, subject.params, subject.x)
    assert (ran[kernel], ran[f"{kernel}_backward"] > 0, ran["reference.scan"]) == (subject.calls, True, 0)
    assert (ran["reference.scan_backward"] > 0) == (order > 1)
