"""What the C interface of the step takes, ids and empty sizes too, and what it refuses, in words, writing nothing."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_char_p, c_int32, c_int64, c_void_p

import pytest
import torch
from step_calls import (
    BFLOAT16,
    FLOAT32,
    INT8,
    NAN,
    SETS,
    Native,
    Sizes,
    Stack,
    address,
    function,
    layer_bytes,
    needs_library,
    stack_of,
)

pytestmark = needs_library

SIZES = Sizes(2, 3, 0, 20, 6)
every_kind = pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, INT8])


def with_table(kind: int, vocabulary: int) -> tuple[Native, torch.Tensor]:
    step = Native(stack_of(SIZES), SIZES, kind)
    table = torch.randn(vocabulary, 4, SIZES.hidden)
    step.call.table, step.call.vocabulary = address(table), vocabulary
    return step, table


@every_kind
@pytest.mark.parametrize("name", SETS)
def test_ids_start_the_first_layer_from_rows_of_the_table(kind: int, name: str) -> None:
    """As a bias would that is that row."""
    stack, table = stack_of(SIZES), torch.randn(9, 4, SIZES.hidden)
    ids = torch.tensor([8, 0, 3])
    step = Native(stack, SIZES, kind, name, threads=2)
    step.call.ids, step.call.table, step.call.vocabulary = address(ids), address(table), 9
    found = step.step()
    for row, token in enumerate(ids):
        layers = [stack.layers[0]._replace(bias=table[token]), stack.layers[1]]
        expected = Native(Stack(layers, stack.projection), SIZES._replace(rows=1), kind, name).step()
        for value, other in zip(found, expected, strict=True):
            assert value is not None
            assert other is not None
            assert torch.equal(value[..., row, :], other[..., 0, :])


@pytest.mark.parametrize("bad", [-1, 9, 2**62])
def test_an_id_outside_the_table_is_refused_and_nothing_is_written(bad: int) -> None:
    step, table = with_table(FLOAT32, 9)
    ids = torch.tensor([8, bad, 3])
    step.call.ids = address(ids)
    assert step.refusal() == "an id is outside the table"
    assert step.after.isnan().all()
    assert not step.c.any()
    assert step.out is not None
    assert step.out.isnan().all()
    del table


@every_kind
def test_no_rows_are_no_work(kind: int) -> None:
    sizes = Sizes(2, 0, 5, 20, 6)
    step = Native(stack_of(sizes), sizes, kind)
    step.call.c = step.call.x = step.call.scratch = None
    assert step.refusal() is None


@every_kind
@pytest.mark.parametrize("threads", [1, 2])
def test_out_may_be_x(kind: int, threads: int) -> None:
    sizes = Sizes(2, 40, 6, 20, 6)
    stack, x = stack_of(sizes), torch.randn(40, 6)
    expected = Native(stack, sizes, kind).step(x)[2]
    step = Native(stack, sizes, kind, threads=threads)
    step.call.out = address(x)
    step.step(x)
    assert expected is not None
    assert torch.equal(x, expected)


@every_kind
def test_a_projection_of_no_columns_writes_nothing(kind: int) -> None:
    sizes = Sizes(1, 2, 5, 20, 0)
    stack = Stack(stack_of(sizes).layers, (torch.zeros(0, 20), torch.zeros(0)))
    step = Native(stack, sizes, kind)
    step.call.out = None
    x = torch.randn(2, 5)
    assert torch.equal(step.step(x)[0], Native(Stack(stack.layers, None), sizes, kind).step(x)[0])


@every_kind
def test_a_missing_bias_is_zeros(kind: int) -> None:
    sizes = Sizes(1, 2, 5, 20, 0)
    layer = stack_of(sizes).layers[0]
    layer.bias.zero_()
    expected, step = Native(Stack([layer], None), sizes, kind), Native(Stack([layer], None), sizes, kind)
    step.packed[0].fill_(255)
    pack = function("unrolled_step_pack_layer", c_char_p, c_void_p, c_int32, *[c_int64] * 2, *[c_void_p] * 4)
    pointers = (address(layer.w_x), address(layer.w_h), None, address(step.packed[0]))
    assert pack(byref(step.run), kind, 5, 20, *pointers) is None
    x = torch.randn(2, 5)
    assert torch.equal(step.step(x)[0], expected.step(x)[0])


def call_with(**fields: object) -> Callable[[Native], None]:
    def change(step: Native) -> None:
        for name, value in fields.items():
            setattr(step.call, name, value)

    change.__name__ = "_".join(fields)
    return change


def same_states(step: Native) -> None:
    step.after = step.h


def other_set(step: Native) -> None:
    step.run.instruction_set = b"baseline"


def no_such_set(step: Native) -> None:
    step.run.instruction_set = b"sse9"


def no_threads(step: Native) -> None:
    step.run.threads = 0


def more_threads(step: Native) -> None:
    step.run.threads = 2


def spoilt(step: Native) -> None:
    step.packed[1].zero_()


OTHER = "packed weights are of other sizes, of another kind or for another instruction set"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (call_with(weights=3), "weights must be 0 (float32), 1 (bfloat16) or 2 (int8)"),
        (call_with(weights=FLOAT32), OTHER),
        (call_with(hidden=19), OTHER),
        (call_with(output=7), OTHER),
        (call_with(input=4), OTHER),
        (spoilt, OTHER),
        (call_with(rows=-1), "layers, rows and vocabulary must not be negative"),
        (call_with(layers=0), "layers and hidden must be at least 1"),
        (call_with(hidden=-5), "a size is negative or beyond 2^24"),
        (call_with(output=2**25), "a size is negative or beyond 2^24"),
        (call_with(input=2**17 + 1), "int8 takes sizes up to 2^17"),
        (call_with(layers=2**60), "layers x rows x hidden is beyond 2^40"),
        (call_with(x=None), "x must not be NULL where input is above 0"),
        (call_with(c=None), "h_before, h_after and c must not be NULL"),
        (call_with(packed=None), "packed must not be NULL"),
        (call_with(out=None), "out must not be NULL beside a projection"),
        (call_with(ids=8), "with ids, input must be 0"),
        (call_with(scratch=None), "scratch is NULL or too small"),
        (call_with(scratch_bytes=63), "scratch is NULL or too small"),
        (more_threads, "scratch is NULL or too small"),
        (same_states, "h_after must be apart from h_before"),
        (no_such_set, "this processor, or this library, has no such instruction set"),
        (no_threads, "threads must be at least 1"),
        pytest.param(other_set, OTHER, marks=pytest.mark.skipif(len(SETS) < 2, reason="one instruction set")),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_step_that_cannot_be_is_refused_in_words(change: Callable[[Native], None], message: str) -> None:
    sizes, x = Sizes(2, 3, 5, 20, 6), torch.randn(3, 5)
    step = Native(stack_of(sizes), sizes, INT8)
    step.call.x = address(x)
    change(step)
    assert step.refusal() == message
    assert not step.c.any()
    assert step.out is not None
    assert step.out.isnan().all()


def test_ids_without_a_table_are_refused() -> None:
    step, ids = Native(stack_of(SIZES), SIZES, FLOAT32), torch.tensor([0, 0, 0])
    step.call.ids = address(ids)
    assert step.refusal() == "table must not be NULL beside ids"


def test_weights_that_cannot_be_packed_are_refused_in_words() -> None:
    assert layer_bytes()(3, 4, 5) == layer_bytes()(FLOAT32, -1, 5) == layer_bytes()(INT8, 2**18, 5) == -1
    pack = function("unrolled_step_pack_layer", c_char_p, c_void_p, c_int32, *[c_int64] * 2, *[c_void_p] * 4)
    project = function("unrolled_step_pack_projection", c_char_p, c_void_p, c_int32, *[c_int64] * 2, *[c_void_p] * 3)
    step, memory = Native(stack_of(SIZES), SIZES, FLOAT32), torch.full((64,), NAN)
    run, at = byref(step.run), address(memory)
    for message, expected in [
        (pack(None, FLOAT32, 1, 1, at, at, at, at), b"run is NULL"),
        (pack(run, 7, 1, 1, at, at, at, at), b"weights must be 0 (float32), 1 (bfloat16) or 2 (int8)"),
        (pack(run, FLOAT32, 1, 0, at, at, at, at), b"hidden must be at least 1"),
        (pack(run, FLOAT32, 1, 1, None, at, at, at), b"w_x, w_h and packed must not be NULL"),
        (pack(run, FLOAT32, 1, 1, at, at, at, None), b"w_x, w_h and packed must not be NULL"),
        (project(run, FLOAT32, 1, 1, None, at, at), b"weight and packed must not be NULL"),
        (project(run, INT8, 2**17 + 1, 1, at, at, at), b"int8 takes sizes up to 2^17"),
    ]:
        assert message == expected
    assert memory.isnan().all()
