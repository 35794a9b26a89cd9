"""The optimiser against the plain one of torch, the schedule on its numbers, the average by its definition."""

import copy
import math

import pytest
import torch
from torch import Tensor

from unrolled.config import TrainConfig
from unrolled.model import LanguageModel, ModelConfig
from unrolled.optimize import Optimizer, learning_rate

CONFIG = TrainConfig(lr=0.01, warmup=2, clip=0.5, weight_decay=0.1, ema=0.9)
IDS = torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def model(dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(7, hidden=5, layers=2, embedding=4), dtype=dtype)


def loss(subject: LanguageModel, scale: float = 1.0) -> Tensor:
    return scale * subject(IDS)[0].float().square().mean()


def move(optimizer: Optimizer, steps: int, first: int = 0, scale: float = 1.0) -> None:
    for step in range(first, first + steps):
        optimizer.clear()
        loss(optimizer.model, scale).backward()
        optimizer.step(step, optimizer.norm())


def test_the_schedule() -> None:
    config = TrainConfig(lr=0.5, warmup=4)
    rates = [learning_rate(step, 12, config) for step in range(12)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4] == 0.5
    assert rates[8] == pytest.approx(0.5 * (1 + 0.02) / 2), "half-way down"
    assert learning_rate(12, 12, config) == pytest.approx(0.5 * 0.02)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_the_schedule_of_short_runs() -> None:
    config = TrainConfig(lr=0.5, warmup=100)
    assert max(learning_rate(step, 10, config) for step in range(10)) == 0.5
    assert learning_rate(0, 1, config) == 0.5
    assert learning_rate(0, 10, TrainConfig(lr=0.5, warmup=0)) == 0.5


@pytest.mark.parametrize("scale", [100.0, 1e-3])
def test_a_step_is_adamw_with_a_clipped_gradient_and_no_decay_on_biases(scale: float) -> None:
    subject = model()
    plain = copy.deepcopy(subject)
    optimizer = Optimizer(subject, CONFIG, 10)
    move(optimizer, 3, scale=scale)
    matrices = [p for p in plain.parameters() if p.dim() == 2]
    vectors = [p for p in plain.parameters() if p.dim() == 1]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}],
        betas=(0.9, 0.99),
        foreach=False,
        fused=False,
    )
    clipped = []
    for step in range(3):
        reference.zero_grad()
        loss(plain, scale).backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in plain.parameters() if p.grad is not None))
        clipped.append(norm > 0.5)
        for p in plain.parameters():
            assert p.grad is not None
            p.grad *= min(1.0, 0.5 / (norm + 1e-6))
        for group in reference.param_groups:
            group["lr"] = learning_rate(step, 10, CONFIG)
        reference.step()
    assert clipped == [scale == 100.0] * 3, "both sides of the threshold are tried"
    for (name, mine), theirs in zip(subject.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_add_up_until_they_are_cleared() -> None:
    optimizer, norms = Optimizer(model(), CONFIG, 10), []
    for clear in (True, False, True):
        if clear:
            optimizer.clear()
        loss(optimizer.model).backward()
        norms.append(optimizer.norm().item())
    expected = math.sqrt(sum(p.grad.square().sum().item() for p in optimizer.model.parameters() if p.grad is not None))
    assert norms == pytest.approx([expected, 2 * expected, expected], rel=1e-12)


def test_the_average_by_its_definition() -> None:
    optimizer = Optimizer(model(), CONFIG, 30)
    mean = {name: value.clone() for name, value in optimizer.model.state_dict().items()}
    for step in range(12):
        move(optimizer, 1, first=step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in optimizer.model.state_dict().items():
            mean[name] = decay * mean[name] + (1 - decay) * value
    for name, value in optimizer.averaged.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-12, atol=1e-14, msg=name)
    assert not torch.equal(optimizer.averaged.state_dict()["lstm.proj.weight"], optimizer.model.lstm.proj.weight)


def test_without_an_average_the_model_itself_stands_for_it() -> None:
    optimizer = Optimizer(model(), TrainConfig(ema=0), 10)
    assert optimizer.averaged is optimizer.model
    assert not [name for name in optimizer.tensors() if name.startswith("weights.")]


def test_the_average_of_bfloat16_weights_is_kept_in_float32() -> None:
    optimizer = Optimizer(model(torch.bfloat16), TrainConfig(lr=0.01, ema=0.999), 10)
    move(optimizer, 3)
    assert {p.dtype for p in optimizer.averaged.parameters()} == {torch.float32}
    assert {p.dtype for p in optimizer.model.parameters()} == {torch.bfloat16}
    off = optimizer.averaged.lstm.proj.weight
    assert not torch.equal(off, off.bfloat16().float()), "finer than bfloat16"


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_to_the_bit(ema: float, dtype: torch.dtype) -> None:
    config = TrainConfig(lr=0.01, warmup=2, ema=ema)
    whole = Optimizer(model(dtype), config, 8)
    move(whole, 3)
    averaged = copy.deepcopy(whole.averaged)
    tensors = {name: value.clone() for name, value in whole.tensors().items()}
    other = model(dtype)
    with torch.no_grad():
        other.lstm.proj.bias.fill_(5)
    restored = Optimizer(other, config, 8)
    restored.restore(averaged.state_dict(), tensors)
    for optimizer in (whole, restored):
        move(optimizer, 3, first=3)
    for mine, theirs in ((restored.model, whole.model), (restored.averaged, whole.averaged)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
    assert all(torch.equal(value, restored.tensors()[name]) for name, value in whole.tensors().items())
