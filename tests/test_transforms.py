"""Every order of differentiation, reverse and forward: the values, and which path computed them.

Values are compared with the same transform of the plain reference, in float64: a transform can be right at first order
and silently wrong at the next, and shapes prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import OUTPUTS, Case, Shape, make
from paths import assert_equal, counted
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from worlds import KERNELS, dtype_of

from unrolled import BackendUnavailable
from unrolled.recurrence import reference, scan
from unrolled.recurrence.choose import forward_mode_active

F64 = torch.float64

MASKED = [
    Shape(2, 3, 1, 2),
    Shape(2, 3, 1, 2, ("resets",)),
    Shape(3, 3, 1, 2, ("lengths",)),
    Shape(3, 3, 1, 2, ("resets", "lengths")),
    Shape(3, 3, 2, 2, ("ids", "resets", "lengths")),
]
masked = pytest.mark.parametrize("shape", MASKED, ids=lambda s: s.name)
kernels = pytest.mark.parametrize("kernel", KERNELS)
plain_and_all_masks = pytest.mark.parametrize(
    "shape", [pytest.param(MASKED[0], marks=pytest.mark.slow), MASKED[3]], ids=lambda s: s.name
)


def case_of(shape: Shape, dtype: torch.dtype = F64) -> Case:
    case = make(shape, seed=1)
    assert case.resets is None or (case.resets.any() and not case.resets.all())
    assert case.lengths is None or {0, shape.steps} <= set(case.lengths.tolist())
    floats, cotangents = (
        {name: value.to(dtype) for name, value in values.items()} for values in (case.floats, case.cotangents)
    )
    return replace(case, floats=floats, cotangents=cotangents)


def of_floats(case: Case, backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """`scan` as a function of the case's floats alone, in their order."""

    def function(*floats: Tensor) -> tuple[Tensor, ...]:
        arguments = dict(zip(case.floats, floats, strict=True))
        x = arguments.pop("x", case.ids)
        assert x is not None
        scanned = scan(x, **arguments, resets=case.resets, lengths=case.lengths, backend=backend)
        return scanned.h, scanned.c, scanned.gates

    return function


def leaves(case: Case) -> list[Tensor]:
    return [value.clone().requires_grad_() for value in case.floats.values()]


def narrow(case: Case) -> tuple[list[Tensor], tuple[Tensor | None, Tensor | None]]:
    """The floats (pre, w_h, h0, c0) and the masks of the operator itself."""
    steps, rows = case.cotangents["h"].shape[1], case.cotangents["h"].shape[0]
    pre = case.cotangents["gates"].transpose(0, 1).reshape(steps, rows, 4, -1)
    floats = [pre, *(case.floats[name] for name in ("w_h", "h0", "c0"))]
    masks = (None if case.resets is None else case.resets.t().contiguous(), case.lengths)
    return [value.clone().requires_grad_() for value in floats], masks


# Finite differences, which need float64


@masked
def test_gradcheck_with_forward_mode_batched_and_undefined_gradients(shape: Shape) -> None:
    case = case_of(shape)
    assert gradcheck(
        of_floats(case, "auto"),
        leaves(case),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@plain_and_all_masks
def test_gradgradcheck_forward_over_reverse_reverse_over_reverse_and_batched(shape: Shape) -> None:
    case = case_of(shape)
    assert gradgradcheck(
        of_floats(case, "auto"),
        leaves(case),
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


@plain_and_all_masks
def test_gradcheck_and_gradgradcheck_of_the_registered_operator(shape: Shape) -> None:
    floats, masks = narrow(case_of(shape))

    def operator(*values: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.unrolled.portable(*values, *masks)

    assert gradcheck(operator, floats, check_batched_grad=True, check_undefined_grad=True)
    assert gradgradcheck(operator, floats, check_batched_grad=True)


@masked
@pytest.mark.parametrize(
    "missing",
    [
        pytest.param((), id="all"),
        pytest.param((1, 2), id="h alone", marks=pytest.mark.slow),
        pytest.param((0,), id="c and gates", marks=pytest.mark.slow),
    ],
)
def test_gradcheck_of_the_registered_backward_operator(shape: Shape, missing: tuple[int, ...]) -> None:
    (_, w_h, _, c0), (resets, lengths) = narrow(case_of(shape))
    floats, _ = narrow(case_of(shape))
    _, c, gates = reference.scan([*floats[0].detach()], w_h, floats[2], c0, resets, lengths)
    cotangents = [torch.randn_like(c), torch.randn_like(c), torch.randn_like(gates)]
    given = [k for k in range(3) if k not in missing]

    def operator(*values: Tensor) -> tuple[Tensor, ...]:
        grads: list[Tensor | None] = [None] * 3
        for k, value in zip(given, values[: len(given)], strict=True):
            grads[k] = value
        return torch.ops.unrolled.portable_backward(*grads, *values[len(given) :], resets, lengths)

    values = [value.detach().requires_grad_() for value in (*(cotangents[k] for k in given), w_h, c, gates, c0)]
    assert gradcheck(operator, values, check_batched_grad=True)


@plain_and_all_masks
@kernels
def test_the_registered_operator_equals_the_reference_at_two_orders_and_batched(kernel: str, shape: Shape) -> None:
    case = case_of(shape, dtype_of(kernel))
    cotangents = [
        torch.randn(5, *case.cotangents[name].transpose(0, 1).shape, dtype=dtype_of(kernel)) for name in OUTPUTS
    ]

    def orders(operator: Callable[..., Any]) -> list[tuple[Tensor, ...]]:
        floats, masks = narrow(case)
        outputs = operator(*floats, *masks)
        batched = torch.autograd.grad(outputs, floats, cotangents, is_grads_batched=True, retain_graph=True)
        first = torch.autograd.grad(outputs, floats, [value[0] for value in cotangents], create_graph=True)
        return [batched, first, torch.autograd.grad(sum(value.pow(3).sum() for value in first), floats)]

    with counted() as ran:
        ours = orders(getattr(torch.ops.unrolled, kernel).default)
    assert (ran[kernel], ran["reference.scan"]) == (1, 0)
    assert_equal(ours, orders(reference.scan))


# Higher orders


def third_order_by_autograd(loss: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    value = value.clone().requires_grad_()
    result = loss(value)
    for _ in range(2):
        (first,) = torch.autograd.grad(result, value, create_graph=True)
        result = first.pow(2).sum()
    (third,) = torch.autograd.grad(result, value)
    return third


def third_order_by_func(loss: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return grad(lambda v: grad(lambda u: grad(loss)(u).pow(2).sum())(v).pow(2).sum())(value)


def autograd_jacobian_forward_mode(loss: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(loss, value, vectorize=True, strategy="forward-mode")


KERNEL_ORDERS: dict[str, Callable[..., Any]] = {
    "grad": lambda loss, v: grad(loss)(v),
    "vjp": lambda loss, v: vjp(loss, v)[1](torch.tensor(0.7, dtype=v.dtype))[0],
    "jacrev(jacrev)": lambda loss, v: jacrev(jacrev(loss))(v),
    "grad(grad)": lambda loss, v: grad(lambda u: grad(loss)(u).pow(2).sum())(v),
    "autograd hessian": lambda loss, v: torch.autograd.functional.hessian(loss, v),
    "autograd hessian, vectorized": lambda loss, v: torch.autograd.functional.hessian(loss, v, vectorize=True),
    "third order by autograd": third_order_by_autograd,
    "third order by torch.func": third_order_by_func,
}
# What torch.func transforms takes torch's products, whose derivatives torch knows at every level.
BY_FUNC = {"grad", "vjp", "jacrev(jacrev)", "grad(grad)", "third order by torch.func"}
FORWARD_ORDERS: dict[str, Callable[..., Any]] = {
    "jvp": lambda loss, v: jvp(loss, (v,), (v.cos(),)),
    "jacfwd": lambda loss, v: jacfwd(loss)(v),
    "hessian": lambda loss, v: hessian(loss)(v),
    "jacfwd(jacfwd)": lambda loss, v: jacfwd(jacfwd(loss))(v),
    "jacrev(jacfwd)": lambda loss, v: jacrev(jacfwd(loss))(v),
    "jvp(grad)": lambda loss, v: jvp(grad(loss), (v,), (v.cos(),))[1],
    "grad(jvp)": lambda loss, v: grad(lambda u: jvp(loss, (u,), (v.cos(),))[1])(v),
    "jvp(jvp(grad))": lambda loss, v: jvp(lambda u: jvp(grad(loss), (u,), (v.cos(),))[1], (v,), (v.sin(),))[1],
    "autograd jacobian, forward mode": autograd_jacobian_forward_mode,
}


def loss_in(case: Case, backend: str, name: str) -> Callable[[Tensor], Tensor]:
    """A scalar of h, c and gates, cubic so that no order vanishes, as a function of one argument."""
    function = of_floats(case, backend)

    def loss(value: Tensor) -> Tensor:
        results = function(*{**case.floats, name: value}.values())
        return sum(((out * case.cotangents[of]) ** 3).sum() for out, of in zip(results, OUTPUTS, strict=True))

    return loss


IN = [(MASKED[0], "w_h"), *((MASKED[3], name) for name in ("x", "w_h", "h0", "c0"))]
in_each = pytest.mark.parametrize(("shape", "name"), IN, ids=[f"{name}-{shape.name}" for shape, name in IN])


@in_each
@pytest.mark.parametrize("order", KERNEL_ORDERS)
@kernels
def test_reverse_orders_equal_the_reference_and_run_the_kernel(
    kernel: str, shape: Shape, name: str, order: str
) -> None:
    case = case_of(shape, dtype_of(kernel))
    value = case.floats[name]
    with counted() as ran:
        ours = KERNEL_ORDERS[order](loss_in(case, "auto", name), value)
    assert ran[kernel] == 1
    if order in BY_FUNC:
        assert ran["product"] == ran["weight_gradient"] == 0
    assert ran[f"{kernel}_backward"] >= 1
    assert ran["reference.scan"] == 0
    assert (ran["reference.scan_backward"] == 0) == (order in ("grad", "vjp"))
    assert_equal(ours, KERNEL_ORDERS[order](loss_in(case, "reference", name), value))


@in_each
@pytest.mark.parametrize("order", FORWARD_ORDERS)
@kernels
def test_forward_orders_equal_the_reference_and_run_it(kernel: str, shape: Shape, name: str, order: str) -> None:
    case = case_of(shape, dtype_of(kernel))
    value = case.floats[name]
    with counted() as ran:
        ours = FORWARD_ORDERS[order](loss_in(case, "auto", name), value)
    assert set(ran) <= {"reference.scan", "reference.scan_backward", "checked_range"}
    assert ran["reference.scan"] == 1
    # Against the gradient of gradients: agreeing with itself would show nothing here.
    loss = loss_in(case, kernel, name)
    expected = {
        "jvp": lambda: (loss(value), (grad(loss)(value) * value.cos()).sum()),
        "jacfwd": lambda: grad(loss)(value),
        "autograd jacobian, forward mode": lambda: grad(loss)(value),
        "jvp(grad)": lambda: (jacrev(jacrev(loss))(value) * value.cos()).flatten(value.dim()).sum(-1),
        "grad(jvp)": lambda: (jacrev(jacrev(loss))(value) * value.cos()).flatten(value.dim()).sum(-1),
        "jvp(jvp(grad))": lambda: third_directional(loss, value),
    }.get(order, lambda: jacrev(jacrev(loss))(value))
    assert_equal(ours, expected())


def third_directional(loss: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    def along(function: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda v: (grad(function)(v) * direction).sum()

    return grad(along(along(loss, value.cos()), value.sin()))(value)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch.func.linearize's own
@kernels
def test_linearize_equals_jvp(kernel: str) -> None:
    case = case_of(MASKED[3], dtype_of(kernel))
    loss, x = loss_in(case, "auto", "x"), case.floats["x"]
    value, tangent_of = torch.func.linearize(loss, x)
    assert_equal((value, tangent_of(x.cos())), jvp(loss_in(case, "reference", "x"), (x,), (x.cos(),)))


def in_a_dual_level(loss: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with forward_ad.dual_level():
        loss(forward_ad.make_dual(x, x.cos()))


@pytest.mark.parametrize(
    "forward_mode",
    [
        in_a_dual_level,
        lambda loss, x: jvp(loss, (x,), (x.cos(),)),
        lambda loss, x: jacfwd(lambda u: vmap(loss)(u.expand(2, *u.shape)))(x),
    ],
    ids=["dual level", "jvp", "jacfwd of vmap"],
)
@kernels
def test_a_kernel_refuses_forward_mode_and_names_the_reference(kernel: str, forward_mode: Callable[..., Any]) -> None:
    case = case_of(MASKED[0], dtype_of(kernel))
    with pytest.raises(BackendUnavailable, match=rf"{kernel} +cannot run .*forward.mode(.|\n)*reference +runs this"):
        forward_mode(loss_in(case, kernel, "x"), case.floats["x"])


@kernels
def test_a_tangent_that_reaches_the_kernels_graph_is_an_error_not_a_silent_zero(kernel: str) -> None:
    case = case_of(MASKED[0], dtype_of(kernel))
    values = leaves(case)
    h, _, _ = of_floats(case, "auto")(*values)
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(torch.ones_like(h), torch.ones_like(h))
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.autograd.grad(h, values[0], cotangent, create_graph=True)


def test_forward_mode_active_means_that_a_dual_level_is_open() -> None:
    seen = []

    def look(value: Tensor) -> Tensor:
        seen.append(forward_mode_active())
        return value.sin().sum()

    x = torch.randn(3, dtype=F64)
    look(x), grad(look)(x), vmap(look)(x), vjp(look, x), jacrev(look)(x)
    assert seen == [False] * 5
    seen.clear()
    with forward_ad.dual_level():
        look(x)
        assert forward_mode_active()
    jvp(look, (x,), (x,)), jacfwd(look)(x), grad(lambda u: jvp(look, (u,), (x,))[1])(x), jvp(grad(look), (x,), (x,))
    jvp(lambda u: jvp(look, (u,), (x,))[1], (x,), (x,)), vmap(lambda u: jvp(look, (u,), (u,))[1])(x)
    assert seen == [True] * 7
    assert not forward_mode_active()
    with pytest.raises(ZeroDivisionError), forward_ad.dual_level():
        1 / 0
    assert not forward_mode_active()
