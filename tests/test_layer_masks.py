"""Resets and lengths on one layer: rows that start afresh and rows that end, whatever lies in between."""

from __future__ import annotations

import pytest
import torch
from plain import (
    GATES,
    assert_all_same,
    assert_same,
    gradients,
    layer_inputs,
    masks,
    new_layer,
    normal,
    results,
)
from worlds import BACKENDS, dtype_of

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

H = 7
NAN = float("nan")


def test_resets_equal_running_the_pieces_apart(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    resets = masks("resets", 4, 9)["resets"]
    h, c = layer(**given, resets=resets)
    for row in range(4):
        starts = [t for t in range(9) if resets[row, t]]
        if 0 not in starts:
            starts = [0, *starts]
        for start, stop in zip(starts, [*starts[1:], 9], strict=True):
            state = () if resets[row, start] else (given["h0"][row, None], given["c0"][row, None])
            piece_h, piece_c = layer(given["x"][row, None, start:stop], *state)
            assert_same(h[row, start:stop], piece_h[0], f"h of row {row} from {start}")
            assert_same(c[row, start:stop], piece_c[0], f"c of row {row} from {start}")


def test_nan_does_not_leak_forward_past_a_reset(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    resets = torch.zeros(4, 9, dtype=torch.bool)
    resets[1, 5] = True
    clean_h, clean_c = layer(**given, resets=resets)
    (expected,) = torch.autograd.grad(clean_h[1, 5:].sum(), given["x"])
    dirty = given["x"].detach().clone()
    dirty[1, 2] = NAN
    dirty.requires_grad_()
    h, c = layer(dirty, given["h0"], given["c0"], resets=resets)
    assert h[1, 2:5].isnan().all()
    assert_same(h[1, 5:], clean_h[1, 5:])
    assert_same(c[1, 5:], clean_c[1, 5:])
    assert_same(h[[0, 2, 3]], clean_h[[0, 2, 3]])
    (grad,) = torch.autograd.grad(h[1, 5:].sum(), dirty)
    assert_same(grad[1, 5:], expected[1, 5:])


def test_no_gradient_crosses_a_reset(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    resets = torch.zeros(4, 9, dtype=torch.bool)
    resets[:2, 5] = True
    h, c = layer(**given, resets=resets)
    dx, dh0, dc0 = torch.autograd.grad(h[:, 5:].sum() + c[:, 5:].sum(), list(given.values()))
    assert not dx[:2, :5].any()
    assert not dh0[:2].any()
    assert not dc0[:2].any()
    assert dx[:2, 5:].ne(0).all()
    assert dx[2:].ne(0).all()
    assert dh0[2:].ne(0).all()
    assert dc0[2:].ne(0).all()


def test_a_reset_at_the_first_step_ignores_the_given_state_even_a_nan(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    resets = torch.zeros(4, 9, dtype=torch.bool)
    resets[1, 0] = True
    zeroed = {name: value.detach().clone() for name, value in given.items()}
    zeroed["h0"][1] = zeroed["c0"][1] = 0
    wild = {name: value.clone() for name, value in zeroed.items()}
    wild["h0"][1], wild["c0"][1] = NAN, float("inf")
    for values in (zeroed, wild):
        for value in values.values():
            value.requires_grad_()
    expected, got = results(layer, zeroed), results(layer, wild, resets=resets)
    for name in ("grad h0", "grad c0"):
        assert not got[name][1].any()
        assert expected[name][1].ne(0).all()
        expected[name][1] = 0
    assert_all_same(got, expected)


def test_each_row_with_a_length_equals_that_row_alone(backend: str) -> None:
    layer, given, lengths = new_layer(backend), layer_inputs(backend), masks("lengths", 4, 9)["lengths"]
    trace = layer.trace(**given, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = layer.trace(given["x"][row, None, :length], given["h0"][row, None], given["c0"][row, None])
        for name in ("h", "c", *GATES):
            value = getattr(trace, name)
            assert_same(value[row, :length], getattr(alone, name)[0], name)
            assert not value[row, length:].any(), name
        last = (
            (given["h0"][row], given["c0"][row])
            if length == 0
            else (trace.h[row, length - 1], trace.c[row, length - 1])
        )
        for got, expected in zip(trace.state, last, strict=True):
            assert torch.equal(got[row], expected)


def test_a_wild_state_stays_in_its_empty_row(backend: str) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    lengths = torch.tensor([9, 0, 4, 9])
    expected = results(layer, given, lengths=lengths)
    wild = {name: value.detach().clone() for name, value in given.items()}
    wild["h0"][1], wild["c0"][1] = NAN, float("inf")
    for value in wild.values():
        value.requires_grad_()
    assert_all_same(results(layer, wild, lengths=lengths), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_of_zero_for_the_whole_batch(backend: str, dtype: torch.dtype) -> None:
    layer, given = new_layer(backend), layer_inputs(backend)
    leaves = given | dict(layer.named_parameters())
    trace = layer.trace(**given, lengths=torch.zeros(4, dtype=dtype))
    assert not trace.h.any()
    assert not trace.c.any()
    assert torch.equal(trace.state[0], given["h0"])
    assert torch.equal(trace.state[1], given["c0"])
    got = gradients({"last h": trace.state[0], "last c": trace.state[1], "h": trace.h, "i": trace.i}, leaves)
    assert torch.equal(got.pop("h0"), normal(4, H, seed=21, dtype=dtype_of(backend)))
    assert torch.equal(got.pop("c0"), normal(4, H, seed=22, dtype=dtype_of(backend)))
    assert all(not grad.any() for grad in got.values())


def test_the_padding_is_never_read(backend: str) -> None:
    layer, given, options = new_layer(backend), layer_inputs(backend), masks("both", 4, 9)
    ended = torch.arange(9) >= options["lengths"][:, None]
    clean = results(layer, given, **options)
    wild = {**given, "x": given["x"].detach().masked_fill(ended[..., None], NAN).requires_grad_()}
    # Resets in the padding, too, change nothing.
    got = results(layer, wild, resets=options["resets"] | ended, lengths=options["lengths"])
    assert got.keys() == clean.keys()
    for name, value in clean.items():
        assert torch.equal(got[name], value), name
    assert not got["grad x"][ended].any()


def test_cotangents_in_the_padding_are_ignored_even_nan(backend: str) -> None:
    layer, given, lengths = new_layer(backend), layer_inputs(backend), masks("lengths", 4, 9)["lengths"]
    ended = torch.arange(9) >= lengths[:, None]
    leaves = given | dict(layer.named_parameters())
    grads = []
    for padding in (0.0, NAN):
        trace = layer.trace(**given, lengths=lengths)
        fields = [getattr(trace, name) for name in ("h", "c", *GATES)]
        drawn = [normal(4, 9, H, seed=30 + k, dtype=dtype_of(backend)) for k in range(6)]
        cotangents = [value.masked_fill(ended[..., None], padding) for value in drawn]
        grads.append(torch.autograd.grad(fields, list(leaves.values()), cotangents))
    for name, zero, nan in zip(leaves, *grads, strict=True):
        assert torch.equal(zero, nan), name


def test_any_id_is_legal_in_the_padding(backend: str) -> None:
    layer, lengths = new_layer(backend), torch.tensor([2, 0])
    ids = torch.tensor([[1, 4, 10**6], [-1, -(10**9), 99]])
    safe = torch.tensor([[1, 4, 0], [0, 0, 0]])
    got, expected = results(layer, {"x": ids}, lengths=lengths), results(layer, {"x": safe}, lengths=lengths)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    # The id that stands in for the padding gets no gradient from it.
    assert not expected["grad W_xf"][0].any()
