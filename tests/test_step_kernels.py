"""The kernels of the step through their C interface: against float64, and bit for bit against those of the sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from step_calls import BFLOAT16, FLOAT32, INT8, NAN, SETS, Layer, Native, Sizes, Stack, needs_library, stack_of
from torch import Tensor

from unrolled.recurrence import kernels

pytestmark = needs_library

# What sigmoid, tanh and the products may add up to over a few steps of weights that keep the gates below about 4.
ROUNDING = 5e-6

# One unit; less than a vector; odd everything; several panels and a last one that is not full; no input, no output;
# more rows than a tile, than a chunk of 128; a depth above 128, where sums are made in parts.
SIZES = (
    Sizes(1, 1, 1, 1, 1),
    Sizes(2, 1, 5, 16, 3),
    Sizes(2, 3, 7, 33, 70),
    Sizes(3, 5, 64, 65, 0),
    Sizes(2, 2, 0, 100, 65),
    Sizes(1, 40, 9, 20, 5),
    Sizes(2, 131, 17, 24, 18),
    Sizes(2, 2, 140, 150, 30),
)


def rounded(stack: Stack) -> Stack:
    """The weights, not the biases, as bfloat16 holds them."""

    def near(w: Tensor | None) -> Tensor | None:
        return None if w is None else w.bfloat16().float()

    layers = [Layer(near(w_x), near(w_h), bias) for w_x, w_h, bias in stack.layers]  # type: ignore[arg-type]
    return Stack(layers, stack.projection and (stack.projection[0].bfloat16().float(), stack.projection[1]))


def frames(sizes: Sizes, steps: int) -> Iterator[Tensor | None]:
    for _ in range(steps):
        yield torch.randn(sizes.rows, sizes.input) if sizes.input else None


def cell(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = pre.unbind(1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def exact_step(stack: Stack, x: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """In float64, from the equations."""
    after = []
    for k, (w_x, w_h, bias) in enumerate(stack.layers):
        pre = bias.double() + torch.tensordot(h[k].double(), w_h.double(), 1)
        if w_x is not None and x is not None:
            pre = pre + torch.tensordot(x.double(), w_x.double(), 1)
        after.append(cell(pre, c[k].double()))
        x = after[-1][0]
    out = None if stack.projection is None else x @ stack.projection[0].double().T + stack.projection[1].double()
    return torch.stack([h for h, _ in after]), torch.stack([c for _, c in after]), out


def assert_near(found: tuple[Tensor | None, ...], exact: tuple[Tensor | None, ...], tolerance: float) -> None:
    for value, expected in zip(found, exact, strict=True):
        assert (value is None) == (expected is None)
        if value is not None:
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance)


def assert_same(found: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def named(sizes: Sizes) -> str:
    return "x".join(map(str, sizes))


every_size = pytest.mark.parametrize("sizes", SIZES, ids=named)
every_set = pytest.mark.parametrize("name", SETS)


@every_set
@every_size
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
def test_steps_are_the_equations_in_float64(kind: int, sizes: Sizes, name: str) -> None:
    stack = stack_of(sizes)
    step, used = Native(stack, sizes, kind, name, threads=2), rounded(stack) if kind == BFLOAT16 else stack
    h = c = torch.zeros(sizes.layers, sizes.rows, sizes.hidden, dtype=torch.float64)
    for x in frames(sizes, 3):
        h, c, out = exact_step(used, x, h, c)
        assert_near(step.step(x), (h, c, out), ROUNDING)


@every_set
@every_size
def test_a_step_has_the_bits_of_the_sequence(sizes: Sizes, name: str) -> None:
    stack, steps = stack_of(sizes), 3
    step = Native(stack, sizes, FLOAT32, name)
    taken, inputs = [], list(frames(sizes, steps))
    for x in inputs:
        taken.append(step.step(x))
    with kernels.instruction_set(name):
        value = None if inputs[0] is None else torch.stack(inputs).flatten(0, 1)
        for k, (w_x, w_h, bias) in enumerate(stack.layers):
            shape = (steps, sizes.rows, 4, sizes.hidden)
            if w_x is None:
                pre = bias.expand(shape)
            else:
                assert value is not None
                pre = kernels.product(value, w_x.flatten(1), bias.flatten())[0].view(shape)
            h, c = (torch.full((steps, sizes.rows, sizes.hidden), NAN) for _ in "hc")
            start = torch.zeros(2, sizes.rows, sizes.hidden)
            kernels.forward(pre, w_h, (start[0], start[1]), (None, None), (h, c, None))
            for t in range(steps):
                assert torch.equal(taken[t][0][k], h[t])
                assert torch.equal(taken[t][1][k], c[t])
            value = h.flatten(0, 1)
        if stack.projection is not None:
            weight, bias = stack.projection
            assert value is not None
            out = kernels.product(value, weight.T, bias)[0]
            assert torch.equal(torch.cat([one[2] for one in taken]), out)


@every_set
@every_size
def test_bfloat16_is_float32_of_rounded_weights(sizes: Sizes, name: str) -> None:
    stack = stack_of(sizes)
    one, other = Native(stack, sizes, BFLOAT16, name), Native(rounded(stack), sizes, FLOAT32, name)
    for x in frames(sizes, 2):
        assert_same(one.step(x), other.step(x))


def whole_weights(w: Tensor) -> tuple[Tensor, Tensor]:
    """[depth, ...] as whole numbers, and the scale of each column."""
    scale = w.abs().amax(0) / 127
    return torch.where(scale > 0, w / scale, 0.0).round().double(), scale.double()


def whole_rows(value: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    # A number by a tensor is torch's reciprocal, rounded, times the number: not the quotient.
    inverse = torch.full_like(largest, 127) / largest
    whole = (value * torch.where(largest > 0, inverse, 0.0)).clamp(-127, 127).round()
    return whole.double(), (largest / 127).double()


def int8_product(value: Tensor, w: Tensor, largest: Tensor) -> Tensor:
    """Sums of whole numbers, exact in float64, and then their scales."""
    (rows, of_rows), (weights, of_columns) = whole_rows(value, largest), whole_weights(w)
    sums = torch.tensordot(rows, weights, 1)
    return sums * of_columns * of_rows.view(-1, *[1] * (w.dim() - 1))


def int8_layer(layer: Layer, x: Tensor | None, is_state: bool, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones(len(h), 1)
    pre = layer.bias.double() + int8_product(h, layer.w_h, one)
    if layer.w_x is not None and x is not None:
        pre = pre + int8_product(x, layer.w_x, one if is_state else x.abs().amax(1, keepdim=True))
    return cell(pre, c.double())


@every_set
@every_size
def test_int8_is_what_its_description_says(sizes: Sizes, name: str) -> None:
    """Layer by layer from the kernel's own h: a difference in rounding would else end on another whole number."""
    stack = stack_of(sizes)
    step = Native(stack, sizes, INT8, name, threads=2)
    step.h.uniform_(-1.3, 1.3)  # beyond 1 counts as 1
    for x in frames(sizes, 3):
        h, c = step.h.clone(), step.c.clone()
        found_h, found_c, out = step.step(x)
        for k, layer in enumerate(stack.layers):
            below = found_h[k - 1] if k else x
            expected = int8_layer(layer, below, k > 0, h[k], c[k])
            assert_near((found_h[k], found_c[k]), expected, ROUNDING)
        if stack.projection is not None:
            weight, bias = stack.projection
            expected_out = bias.double() + int8_product(found_h[-1], weight.T, torch.ones(sizes.rows, 1))
            assert_near((out,), (expected_out,), ROUNDING)


@every_size
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8])
def test_a_row_has_the_same_bits_alone_and_for_any_threads(kind: int, sizes: Sizes) -> None:
    torch.set_num_threads(2)
    stack, x = stack_of(sizes), next(frames(sizes, 1))
    expected = Native(stack, sizes, kind).step(x)
    for threads in (2, 3, 50):
        assert_same(Native(stack, sizes, kind, threads=threads).step(x), expected)
    last = Native(stack, sizes._replace(rows=1), kind, threads=2).step(None if x is None else x[-1:].clone())
    assert_same(last, tuple(None if value is None else value[..., -1:, :] for value in expected))


@pytest.mark.skipif("avx512" not in SETS, reason="one instruction set to compare with another")
@every_size
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8])
def test_avx2_and_avx512_agree_bit_for_bit(kind: int, sizes: Sizes) -> None:
    stack = stack_of(sizes)
    one, other = (Native(stack, sizes, kind, name) for name in ("avx2", "avx512"))
    for x in frames(sizes, 2):
        assert_same(one.step(x), other.step(x))


@every_set
@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8])
def test_nan_and_infinity_reach_what_they_should_and_no_other_row(kind: int, bad: float, name: str) -> None:
    sizes = Sizes(2, 3, 21, 20, 6)
    stack, x = stack_of(sizes), torch.randn(3, 21)
    clean = Native(stack, sizes, kind, name).step(x)
    for place in ("x", "h"):
        step, dirty = Native(stack, sizes, kind, name), x.clone()
        (dirty if place == "x" else step.h[0])[1, 20 if place == "x" else 19] = bad
        found = step.step(dirty)
        for value, expected in zip(found, clean, strict=True):
            assert torch.equal(value[..., ::2, :], expected[..., ::2, :])
        if kind == INT8 or math.isnan(bad):
            assert all(value[..., 1, :].isnan().all() for value in found)
        else:
            # An infinite input saturates the gates: with the signs of its weights, and so not to NaN everywhere.
            exact = exact_step(rounded(stack) if kind else stack, dirty, zeros_with(bad, place, sizes), clean[1] * 0)
            torch.testing.assert_close(found[1].double(), exact[1], rtol=0, atol=ROUNDING, equal_nan=True)


def zeros_with(bad: float, place: str, sizes: Sizes) -> Tensor:
    h = torch.zeros(sizes.layers, sizes.rows, sizes.hidden)
    if place == "h":
        h[0, 1, 19] = bad
    return h


@every_set
@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8])
def test_a_weight_that_is_nan_spoils_its_column_alone(kind: int, name: str) -> None:
    sizes = Sizes(1, 2, 5, 20, 0)
    stack, x = stack_of(sizes), torch.randn(2, 5)
    clean = Native(stack, sizes, kind, name).step(x)
    stack.layers[0].w_h[3, 2, 17] = NAN
    found = Native(stack, sizes, kind, name).step(x)
    assert found[0][:, :, 17].isnan().all()
    others = [unit for unit in range(20) if unit != 17]
    assert torch.equal(found[0][:, :, others], clean[0][:, :, others])
