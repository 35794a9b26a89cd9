"""Nats, bits per byte and perplexity, on numbers that can be worked out by hand."""

import math

import pytest
import torch

from unrolled.loss import bits_per_byte, nats, perplexity, token_nats

LOGITS = torch.tensor([[[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], [[0.6, 0.3, 0.1], [0.5, 0.25, 0.25]]]).log()
TARGETS = torch.tensor([[1, 2], [0, 1]])


def test_the_sum_over_all_tokens() -> None:
    expected = -math.log(0.5 * 0.7 * 0.6 * 0.25)
    assert nats(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-6)
    assert nats(LOGITS + 5, TARGETS).item() == pytest.approx(expected, rel=1e-6), "logits need no normalisation"
    assert nats(LOGITS.double(), TARGETS.int()).dtype == torch.float64


def test_only_scored_tokens_count() -> None:
    scored = torch.tensor([[True, False], [False, True]])
    assert nats(LOGITS, TARGETS, scored).item() == pytest.approx(-math.log(0.5 * 0.25), rel=1e-6)
    assert token_nats(LOGITS, TARGETS, scored).tolist() == pytest.approx([math.log(2), math.log(4)], rel=1e-6)
    assert nats(LOGITS, TARGETS, torch.zeros(2, 2, dtype=torch.bool)).item() == 0


def test_unscored_tokens_are_left_out_by_selection() -> None:
    logits = LOGITS.clone()
    logits[0, 1] = torch.nan
    logits.requires_grad_()
    scored = torch.tensor([[True, False], [True, True]])
    loss = nats(logits, TARGETS, scored)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(0.5 * 0.6 * 0.25), rel=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, 1].tolist() == [0, 0, 0]
    assert logits.grad[0, 0].tolist() == pytest.approx([0.25, -0.5, 0.25], rel=1e-6)


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 4096, 8, dtype=torch.bfloat16)
    total = nats(logits, torch.zeros(1, 4096, dtype=torch.int64))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(4096 * math.log(8), rel=1e-5)


def test_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"logits is \[2, 2, 3\] and targets \[2, 3\]; .* row of logits: \[2, 2\]"):
        nats(LOGITS, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"scored is int64 \[2, 2\], expected a bool for each target: \[2, 2\]"):
        nats(LOGITS, TARGETS, TARGETS)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    assert bits_per_byte(0.0, 4) == 0
    with pytest.raises(ValueError, match="n_bytes=0: a text of no bytes has no rate"):
        bits_per_byte(1.0, 0)


def test_perplexity() -> None:
    assert perplexity(3 * math.log(5), 3) == pytest.approx(5)
    assert perplexity(1e6, 1) == math.inf
    with pytest.raises(ValueError, match="n_tokens=0"):
        perplexity(1.0, 0)
