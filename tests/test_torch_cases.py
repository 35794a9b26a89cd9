"""What torch's test suite does with its module database's cases for `nn.LSTM`, done with `unrolled.LSTM`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch_cases import Case, ModuleErrorEnum, cases, error_cases

from unrolled import LSTM

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CASES, ERRORS = range(32), range(14)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}


def flat(case: Case, module: nn.Module, args: Any = None) -> list[Tensor]:
    leaves: list[Tensor] = tree_leaves(module(*(case.args if args is None else args)))
    return leaves


def inputs(case: Case) -> list[Tensor]:
    leaves: list[Tensor] = tree_leaves(case.args)
    return leaves


def gradients(case: Case, module: nn.Module) -> list[Tensor]:
    values, cotangents = flat(case, module), torch.Generator().manual_seed(4)
    drawn = [torch.randn(value.shape, dtype=value.dtype, generator=cotangents) for value in values]
    return list(torch.autograd.grad(values, [*inputs(case), *module.parameters()], drawn))


def assert_equal(got: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=BOUND[dtype], atol=BOUND[dtype])


def test_none_of_the_databases_cases_is_left_out():
    assert len(cases(torch.float64)) == len(CASES)
    assert len(error_cases(torch.float64)) == len(ERRORS)


@dtypes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", CASES)
def test_forward_backward_and_the_cases_own_reference(k: int, training: bool, dtype: torch.dtype):
    case = cases(dtype, training=training)[k]
    assert_equal(flat(case, case.ours), flat(case, case.theirs), dtype)
    reference = case.source.reference_fn(case.ours, *case.args)
    assert_equal(flat(case, case.ours), tree_leaves(reference), dtype)
    assert_equal(gradients(case, case.ours), gradients(case, case.theirs), dtype)


@pytest.mark.parametrize("k", CASES)
def test_inputs_that_are_not_contiguous(k: int):
    case = cases(torch.float64)[k]

    def strided(value: Tensor) -> Tensor:
        return value.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()

    args = tree_map(strided, case.args)
    assert not args[0].is_contiguous()
    assert_equal(flat(case, case.ours, args), flat(case, case.theirs), torch.float64)


def as_function(case: Case) -> tuple[Callable[..., Any], list[Tensor]]:
    names, parameters = zip(*case.ours.named_parameters(), strict=True)
    given = inputs(case)

    def run(*values: Tensor) -> list[Tensor]:
        x, *state = values[: len(given)]
        weights = dict(zip(names, values[len(given) :], strict=True))
        called: list[Tensor] = tree_leaves(
            torch.func.functional_call(case.ours, weights, (x, tuple(state)) if state else (x,))
        )
        return called

    return run, [*given, *parameters]


@pytest.mark.slow
@pytest.mark.parametrize("k", CASES)
def test_first_derivatives_are_the_numerical_ones(k: int):
    run, values = as_function(cases(torch.float64)[k])
    assert torch.autograd.gradcheck(run, values)


@pytest.mark.slow
@pytest.mark.parametrize("k", CASES)
def test_second_derivatives_are_the_numerical_ones(k: int):
    run, values = as_function(cases(torch.float64)[k])
    assert torch.autograd.gradgradcheck(run, values)


@pytest.mark.parametrize("k", CASES)
def test_device_and_dtype_are_the_constructors(k: int):
    built = cases(torch.float64)[k].source.constructor_input
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        module = LSTM(*built.args, **built.kwargs, device="meta", dtype=dtype)
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", dtype)}
        assert {p.device.type for p in module.to_empty(device="cpu").parameters()} == {"cpu"}


@dtypes
@pytest.mark.parametrize("k", ERRORS)
def test_errors(k: int, dtype: torch.dtype):
    case = error_cases(dtype)[k]
    built = case.module_error_input.constructor_input
    if case.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(case.error_type, match=case.error_regex):
            LSTM(*built.args, **built.kwargs)
        return
    module, called = LSTM(*built.args, **built.kwargs), case.module_error_input.forward_input
    with pytest.raises(case.error_type, match=case.error_regex):
        module(*called.args, **called.kwargs)


def test_torchs_test_modules_leave_the_backends_flags_alone() -> None:
    assert not torch.backends.flags_frozen()
