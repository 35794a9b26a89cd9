"""Strict mode: a row has the same bits alone, in any batch and place, in any chunks and on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from worlds import needs_library

from unrolled import LanguageModel, LSTMLayer, ModelConfig, MultiLayerLSTM, Stepper
from unrolled.loss import token_nats
from unrolled.recurrence import BackendUnavailable

ROWS, STEPS, WIDTH = 37, 20, 50


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def build(hidden: int, *, ids: bool) -> tuple[MultiLayerLSTM, Tensor]:
    generator = torch.Generator().manual_seed(hidden)
    torch.manual_seed(1)
    model = MultiLayerLSTM(WIDTH, hidden, 2, strict=True)
    if ids:
        return model, torch.randint(WIDTH, (ROWS, STEPS), generator=generator)
    return model, torch.randn(ROWS, STEPS, WIDTH, generator=generator)


@needs_library
@pytest.mark.parametrize("hidden", [7, 64, 130, 300])
@pytest.mark.parametrize("ids", [False, True], ids=["frames", "ids"])
@torch.no_grad()
def test_the_same_bits_however_it_is_run(ids: bool, hidden: int, threads: int) -> None:
    model, x = build(hidden, ids=ids)
    torch.set_num_threads(1)
    whole, final = model(x)
    torch.set_num_threads(threads)
    assert torch.equal(model(x)[0], whole)
    for rows in ([0], [36, 3], list(range(20, 37))):
        assert torch.equal(model(x[rows])[0], whole[rows])
    for lengths in ([1] * STEPS, [7, 13], [19, 1]):
        state, parts = None, []
        for part in x.split(lengths, 1):
            logits, state = model(part, state)
            parts.append(logits)
        assert torch.equal(torch.cat(parts, 1), whole)
        assert torch.equal(state.h, final.h)
        assert torch.equal(state.c, final.c)


@needs_library
@pytest.mark.parametrize("ids", [False, True], ids=["frames", "ids"])
def test_training_inference_and_trace_agree_to_the_bit(ids: bool) -> None:
    model, x = build(130, ids=ids)
    training = model(x)[0]
    trace = model.trace(x)
    with torch.no_grad():
        inference = model(x)[0]
        opened = model.trace(x)
    for logits in (training, trace.output, opened.output):
        assert torch.equal(logits, inference)


@needs_library
@torch.no_grad()
def test_a_stepper_steps_through_a_strict_sequence(threads: int) -> None:
    model, x = build(130, ids=True)
    whole, final = model(x)
    stepper = Stepper(model, ROWS, strict=True, threads=threads)
    assert torch.equal(torch.stack([stepper.step(x[:, t]) for t in range(STEPS)], 1), whole)
    assert torch.equal(stepper.state.c, final.c)


@needs_library
def test_strict_is_the_same_mathematics() -> None:
    model, x = build(130, ids=False)
    strict = model(x)[0]
    strict.square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.strict = False
    plain = model(x)[0]
    plain.square().mean().backward()
    torch.testing.assert_close(strict, plain, rtol=1e-5, atol=1e-6)
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(
            ours, parameter.grad, rtol=1e-4, atol=1e-6 * float(parameter.grad.abs().max()) + 1e-9
        )


@pytest.mark.parametrize("width", [1, 5, 16, 17, 65, 256, 1000, 4099, 50257])
def test_log_softmax_gives_a_row_the_same_bits_anywhere(width: int, threads: int) -> None:
    """torch's own: strict mode relies on it for probabilities and scores."""
    logits = 5 * torch.randn(60, width, generator=torch.Generator().manual_seed(width))
    targets = torch.randint(width, (60,), generator=torch.Generator().manual_seed(2))
    whole = token_nats(logits, targets)
    probabilities = logits.log_softmax(-1)
    misaligned = torch.empty(logits.numel() + 1)[1:].view_as(logits).copy_(logits)
    assert torch.equal(misaligned.log_softmax(-1), probabilities)
    for first, end in ((0, 1), (3, 4), (7, 50), (59, 60)):
        assert torch.equal(logits[first:end].clone().log_softmax(-1), probabilities[first:end])
        assert torch.equal(token_nats(logits[first:end].clone(), targets[first:end]), whole[first:end])


@needs_library
@torch.no_grad()
def test_a_language_models_scores_do_not_depend_on_the_company() -> None:
    torch.manual_seed(4)
    model = LanguageModel(ModelConfig(65, hidden=48))
    model.lstm.strict = True
    ids = torch.randint(65, (9, 31))
    whole = model(ids)[0].log_softmax(-1)
    for row in range(9):
        assert torch.equal(model(ids[row : row + 1])[0].log_softmax(-1)[0], whole[row])


def test_strict_runs_or_raises() -> None:
    layer = LSTMLayer(3, 4, strict=True, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match="float64 on cpu, strict") as caught:
        layer(torch.zeros(1, 2, 3, dtype=torch.float64))
    assert "portable   cannot run this: its products round differently for other row counts" in str(caught.value)
    model = MultiLayerLSTM(3, 4, 2, strict=True, backend="portable")
    with pytest.raises(BackendUnavailable, match='backend="portable" cannot run this call'):
        model(torch.zeros(1, 2, 3))
    model.strict = False
    assert not any(layer.strict for layer in model.layers)
    model(torch.zeros(1, 2, 3))
