import sys

import numpy as np
import pytest
import torch

from unrolled import LanguageModel, ModelConfig, Split
from unrolled.convergence import Convergence, convergence
from unrolled.excerpts import spread
from unrolled.loss import token_nats


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(5, hidden=3, layers=2, embedding=2, dropout=0.4), dtype=torch.float64)


def text(length=120, starts=(0, 8, 31)):
    return Split(np.random.default_rng(1).integers(0, 5, length), np.array(starts))


def pair_by_pair(model, split, prefix, length, pairs):
    begins = spread(split, pairs, prefix + length + 1)
    others = np.roll(begins, len(begins) // 2)
    model.eval()
    ids = torch.tensor(split.ids)
    found = {name: [] for name in ("c", "h", "nats", "divergence")}
    for begin, other in zip(begins, others, strict=True):
        states = [model(ids[None, place : place + prefix])[1] for place in (begin, other)]
        distances = {name: [] for name in "ch"}
        costs, divergences = [], []
        for step in range(length + 1):
            for name in "ch":
                a, b = (getattr(state, name)[:, 0] for state in states)
                size = ((a.square().sum(-1) + b.square().sum(-1)) / 2).sqrt()
                distances[name].append((a - b).square().sum(-1).sqrt() / size)
            if step < length:
                token = begin + prefix + step
                logits, states = zip(*(model(ids[None, token : token + 1], state) for state in states), strict=True)
                own, wrong = (token_nats(each[0], ids[token + 1 : token + 2]) for each in logits)
                costs.append(wrong - own)
                p, q = (each[0, 0].softmax(-1) for each in logits)
                divergences.append((p * (p / q).log()).sum())
        found["c"].append(torch.stack(distances["c"], 1))
        found["h"].append(torch.stack(distances["h"], 1))
        found["nats"].append(torch.cat(costs))
        found["divergence"].append(torch.stack(divergences))
    model.train()
    return {name: torch.stack(each).mean(0) for name, each in found.items()}


@pytest.mark.parametrize("at_once", [1, 2**27])
def test_numbers_are_those_of_two_states_stepped_side_by_side(model, monkeypatch, at_once):
    monkeypatch.setattr(sys.modules["unrolled.convergence"], "_BYTES", at_once)
    with torch.no_grad():
        expected = pair_by_pair(model, text(), 4, 6, 5)
    found = convergence(model, text(), prefix=4, length=6, pairs=5)
    assert found.pairs == 5
    for name, values in expected.items():
        torch.testing.assert_close(getattr(found, name), values)
    assert model.training


def test_a_model_that_forgets_at_once_has_converged_after_a_token():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(5, hidden=3, layers=1, embedding=0), dtype=torch.float64)
    with torch.no_grad():
        for gate in "ifgo":
            getattr(model.lstm.layers[0], f"W_h{gate}").zero_()
        model.lstm.layers[0].b_f.fill_(-100)
    found = convergence(model, text(), prefix=4, length=5, pairs=4)
    assert found.c[0, 0] > 0.1
    assert found.c[0, 1:].abs().max() < 1e-12
    assert found.below(0.01) == [1]
    assert found.nats.abs().max() < 1e-12


def test_when_a_distance_is_below_for_good():
    distances = torch.tensor([[1.0, 0.05, 0.3, 0.09, 0.0], [1.0, 1.0, 1.0, 1.0, 0.2], [0.0, 0, 0, 0, 0]])
    found = Convergence(distances, distances / 2, torch.zeros(4), torch.zeros(4), 1)
    assert found.below(0.1) == [3, None, None]
    assert found.below(0.5, "h") == [1, 4, None]


def test_what_cannot_converge(model):
    with pytest.raises(ValueError, match="prefix=0 must be at least 1"):
        convergence(model, text(), prefix=0)
    with pytest.raises(ValueError, match=r"got 1 place with 4 tokens before it and 6 behind it.* at least two"):
        convergence(model, text(), prefix=4, length=6, pairs=1)
    with pytest.raises(ValueError, match="no document is as long as 513 tokens"):
        convergence(model, text())
