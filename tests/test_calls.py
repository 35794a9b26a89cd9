"""What is left out of a call of a Function, and what must not be: the wrappers of transforms that have ended."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from paths import assert_equal
from torch import Tensor
from torch.func import functional_call, vjp
from worlds import needs_library

from unrolled import LSTMLayer
from unrolled.recurrence import products
from unrolled.recurrence.calls import Function, below_autograd


class _Square(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def test_a_function_differentiates_with_and_without_a_transform() -> None:
    x = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(_Square.apply(x).sum(), x)
    assert torch.equal(gradient, 2 * x)
    assert torch.equal(torch.func.grad(lambda v: _Square.apply(v).sum())(x.detach()), 2 * x)


def outlived(x: Tensor) -> Tensor:
    """2 x, in the wrapper of a transform that has ended."""
    kept: list[Tensor] = []

    def look(v: Tensor) -> Tensor:
        kept.append(2 * v)
        return v.sum()

    torch.func.grad(look)(x)
    assert torch._C._functorch.is_dead_tensor_wrapper(kept[0])
    return kept[0]


def test_a_function_takes_tensors_that_outlived_their_transform() -> None:
    x = torch.randn(3)
    assert torch.equal(_Square.apply(outlived(x)), 4 * x * x)


@needs_library
def test_an_operator_takes_tensors_that_outlived_their_transform() -> None:
    x, w, bias = torch.randn(3, 5), torch.randn(5, 4), torch.randn(4)
    product = torch.ops.unrolled.product.default
    assert torch.equal(below_autograd(product, outlived(x), w, bias, True), product(2 * x, w, bias, True))


@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_a_backward_pass_that_outlived_its_transform_has_its_gradients(backend: str) -> None:
    layer, x, cotangent = LSTMLayer(3, 4, backend=backend), torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    _, back = vjp(lambda values: functional_call(layer, values, (x,))[0], parameters)
    layer(x)[0].backward(cotangent)
    (ours,) = back(cotangent)
    assert_equal(ours, {name: layer.get_parameter(name).grad for name in parameters})


@needs_library
@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_of_frozen_recurrent_weights_is_not_computed(frozen: bool) -> None:
    layer = LSTMLayer(3, 4)
    for gate in "ifgo":
        layer.get_parameter(f"W_h{gate}").requires_grad_(not frozen)
    h, _ = layer(torch.randn(2, 5, 3))
    with mock.patch.object(products, "weight_gradients", wraps=products.weight_gradients) as made:
        h.sum().backward()
    # The other one is that of the input's weights.
    assert made.call_count == (1 if frozen else 2)
    assert (layer.W_hf.grad is None) == frozen
