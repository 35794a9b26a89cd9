"""The products around the native recurrence: whose they are, and that either's values and derivatives are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Shape, make, run
from paths import assert_equal, counted
from tolerance import assert_close
from torch import Tensor
from torch.func import grad, jacrev, vmap
from worlds import needs_library

from unrolled.recurrence import kernels, products

pytestmark = needs_library

F32, F64 = torch.float32, torch.float64


@pytest.fixture(params=[True, False], ids=["own", "MKL's"], autouse=True)
def own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this processor were one on which the library's own products are the faster ones."""
    monkeypatch.setattr(kernels, "prefers_own_products", lambda: request.param)
    return request.param


def operands(dtype: torch.dtype = F32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, dtype=dtype).requires_grad_() for size in ((9, 5), (5, 12), (12,))]


def linear(*values: Tensor, native: bool = True, strict: bool = False) -> Tensor:
    return products.linear(*values, native=native, strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,), (0, 2), ()], ids=str)
def test_values_and_gradients_are_torchs(wanted: tuple[int, ...], strict: bool) -> None:
    values = [value.requires_grad_(k in wanted) for k, value in enumerate(operands())]
    leaves = [value for value in values if value.requires_grad]
    with counted() as ran:
        ours = linear(*values, strict=strict)
        assert ran["product"] == 1
        theirs = torch.addmm(values[2], *values[:2])
        assert_equal(ours, theirs)
        if not leaves:
            return
        assert_equal(torch.autograd.grad(ours.pow(2).sum(), leaves), torch.autograd.grad(theirs.pow(2).sum(), leaves))
    # What nobody asked for is not computed.
    assert ran["product"] == 1 + (0 in wanted)
    assert ran["weight_gradient"] == (1 in wanted or 2 in wanted)


@pytest.mark.parametrize("strict", [False, True])
def test_second_order(strict: bool) -> None:
    def second(function: Any) -> list[Tensor]:
        values = operands()
        first = torch.autograd.grad(function(*values).pow(3).sum(), values, create_graph=True)
        return [*first, *torch.autograd.grad(sum(value.pow(2).sum() for value in first), values)]

    assert_equal(second(lambda *v: linear(*v, strict=strict)), second(lambda x, w, b: torch.addmm(b, x, w)))


@pytest.mark.parametrize("strict", [False, True])
def test_transforms(strict: bool, own: bool) -> None:
    x, w, bias = (value.detach() for value in operands())
    many, weights = torch.randn(4, 9, 5), torch.randn(4, 5, 12)

    def transforms(function: Any) -> list[Any]:
        def loss(*values: Tensor) -> Tensor:
            return function(*values).pow(3).sum()

        return [
            grad(loss, (0, 1, 2))(x, w, bias),
            jacrev(grad(loss))(x, w, bias),
            vmap(function, (0, None, None))(many, w, bias),
            vmap(function, (None, 0, None))(x, weights, bias),
            vmap(function, (0, 0, None))(many, weights, bias),
            vmap(function, (None, None, 0))(x, w, torch.stack([bias, -bias])),
            vmap(grad(loss, (0, 1, 2)), (0, None, None))(many, w, bias),
            vmap(grad(loss, (0, 1, 2)), (0, 0, None))(many, weights, bias),
        ]

    with counted() as ran:
        ours = transforms(lambda *values: linear(*values, strict=strict))
    assert_equal(ours, transforms(lambda x, w, b: torch.addmm(b, x, w)))
    # Only what must have the library's own product has it: unmapped, which is the two plain gradients here.
    assert ran["product"] == (2 if strict else 0)
    assert ran["weight_gradient"] == 0


@pytest.mark.parametrize(
    ("x", "native"), [(torch.randn(3, 4), False), (torch.randn(3, 4, dtype=F64), True)], ids=["portable", "float64"]
)
def test_what_is_not_the_librarys_to_compute_is_torchs(x: Tensor, native: bool) -> None:
    w, bias = torch.randn(4, 5, dtype=x.dtype), torch.randn(5, dtype=x.dtype)
    with counted() as ran:
        ours = linear(x, w, bias, native=native)
    assert ran["product"] == 0
    assert torch.equal(ours, torch.addmm(bias, x, w))
    with torch.autocast("cpu", torch.bfloat16), counted() as ran:
        assert linear(x.float(), w.float(), bias.float()).dtype == torch.bfloat16
    assert ran["product"] == 0


def test_the_gradient_of_weights_is_differentiable_where_gradients_are_enabled() -> None:
    x, _, _ = operands()
    gradient = torch.randn(9, 3, requires_grad=True)
    with counted() as ran:
        ours = products.weight_gradient(x, gradient, None)
    assert ran["weight_gradient"] == 0
    assert_equal(torch.autograd.grad(ours.pow(2).sum(), [x, gradient]), _of_torch(x, gradient))
    with torch.no_grad(), counted() as ran:
        assert_equal(products.weight_gradient(x, gradient, None), x.mT @ gradient)
    assert ran["weight_gradient"] == 1


def _of_torch(x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((x.mT @ gradient).pow(2).sum(), [x, gradient])


@pytest.mark.parametrize("batched", [(0, None), (None, 0), (0, 0)], ids=str)
def test_the_operator_of_the_weights_gradient_maps(batched: tuple[int | None, int | None]) -> None:
    x, gradient = (torch.randn(*([4] if axis == 0 else []), 9, n) for axis, n in zip(batched, (5, 3), strict=True))
    grad_w, grad_bias = vmap(torch.ops.unrolled.weight_gradient, (*batched, None, None))(x, gradient, None, True)
    assert_equal(grad_w, (x.mT @ gradient))
    assert_equal(grad_bias, gradient.sum(-2).expand(4, 3))


@pytest.mark.parametrize("mapped", [(None, None, 0), (0, None, 0), (0, 0, None)], ids=str)
def test_mapped_rows_are_skipped_by_selection(mapped: tuple[int | None, ...]) -> None:
    shapes = ((9, 5), (9, 3), (9,))
    x, gradient, skip = (
        torch.randn(*([4] if axis == 0 else []), *shape) for axis, shape in zip(mapped, shapes, strict=True)
    )
    skip = skip > 0
    x = torch.where(skip.unsqueeze(-1), torch.nan, x) if mapped[0] == 0 else x
    grad_w, grad_bias = vmap(torch.ops.unrolled.weight_gradient, (*mapped, None))(x, gradient, skip, True)
    expected = x.masked_fill(skip.unsqueeze(-1), 0).mT @ gradient
    assert_equal(grad_w, expected)
    assert_equal(grad_bias, gradient.sum(-2).expand(4, 3))


@pytest.mark.parametrize(
    "shape",
    [Shape(5, 9, 7, 33, ("resets", "lengths")), Shape(4, 9, 300, 8, ("ids",)), Shape(3, 0, 3, 5)],
    ids=lambda s: s.name,
)
def test_a_layer_is_within_the_bound_with_either(shape: Shape) -> None:
    case = make(shape, seed=7)
    exact, plain = run("reference", case, F64), run("reference", case, F32)
    for name, value in run("cpu", case, F32).items():
        assert_close(value, plain[name], exact[name], name)


@pytest.mark.parametrize("kind", ["floats", "ids"])
def test_chunks_without_gradients_take_the_same(kind: str) -> None:
    torch.manual_seed(2)
    w_x, bias = torch.randn(6, 4, 5), torch.randn(4, 5)
    x = torch.randn(3, 8, 6) if kind == "floats" else torch.randint(6, (3, 8))
    rows = torch.nn.functional.one_hot(x, 6).float() if kind == "ids" else x
    expected = torch.einsum("bti,igh->tbgh", rows, w_x) + bias
    for strict in (False, True):
        inputs = products.Inputs(w_x, bias, strict=strict)
        # The last chunk is shorter, and of ids fewer than there are rows in the table.
        for start, stop in ((0, 4), (4, 7), (7, 8)):
            out = torch.full((stop - start, 3, 4, 5), float("nan"))
            lacking = inputs.write(x[:, start:stop], out)
            assert lacking is None or not strict or kind == "ids"
            whole = out if lacking is None else out + lacking.view(4, 5)
            assert_equal(whole, expected[start:stop])
