import sys

import numpy as np
import pytest
import torch

from unrolled import LanguageModel, ModelConfig, MultiLayerLSTM, Split
from unrolled.excerpts import spread
from unrolled.loss import nats
from unrolled.reach import Reach, reach


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(5, hidden=3, layers=2, embedding=2, dropout=0.4), dtype=torch.float64)


def text(length=60, starts=(0, 8, 31)):
    return Split(np.random.default_rng(1).integers(0, 5, length), np.array(starts))


def by_autograd(model, split, place, window):
    """|dL/dc| and |dL/dh| of the steps before `place`, from a loop in which each step's c and h is a tensor."""
    begin = split.starts[split.starts <= place].max()
    ids = torch.tensor(split.ids[begin : place + 1])[None]
    kept = {}

    def keep(values, at):
        if at.name in "ch":
            kept[at] = values * 1.0
        return kept.get(at)

    loss = nats(model.trace(ids[:, :-1], edit=keep).output[:, -1:], ids[:, -1:])
    steps = range(ids.shape[1] - 2, ids.shape[1] - 2 - window, -1)
    of_each = {at: grad.norm() for at, grad in zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True)}
    return [torch.stack([torch.stack([of_each[k, name, t] for t in steps]) for k in (0, 1)]) for name in "ch"]


def test_norms_are_those_of_a_loop_over_steps(model):
    split = text()
    found = reach(model, split, window=5, tokens=4, warm_up=40)
    model.eval()
    for k, place in enumerate(found.places):
        c, h = by_autograd(model, split, place, 5)
        torch.testing.assert_close(found.c[:, k], c)
        torch.testing.assert_close(found.h[:, k], h)


def test_in_several_calls_as_in_one(model, monkeypatch):
    whole = reach(model, text(), window=5, tokens=6)
    monkeypatch.setattr(sys.modules["unrolled.reach"], "_BYTES", 1)
    heard = []
    single = reach(model, text(), window=5, tokens=6, progress=lambda *far: heard.append(far))
    torch.testing.assert_close(single.c, whole.c)
    assert heard[-1] == ("gradients", 6, 6)


def test_the_model_stays_as_it_was(model):
    with torch.inference_mode():
        reach(model, text(), window=3, tokens=2)
    assert model.training
    assert all(weights.grad is None for weights in model.parameters())


def test_what_is_read_off_it():
    norms = torch.tensor([[[8.0, 4, 2, 1, 1], [0, 4, 2, 1, 1]], [[1.0, 1, 1, 1, 1]] * 2], dtype=torch.float64)
    found = Reach(norms, 2 * norms, np.array([5, 6]))
    assert found.mean().tolist() == [[4, 4, 2, 1, 1], [1, 1, 1, 1, 1]]
    assert found.mean("h")[0, 0] == 8
    assert found.steps(0.5) == [2, 3]
    assert found.steps(1.0) == [5, 5]
    assert found.factor() == pytest.approx([0.25**0.25, 1.0])


def test_what_cannot_be_reached(model):
    with pytest.raises(ValueError, match="no document is as long as 61 tokens, the longest has 29"):
        reach(model, text(), window=60)
    with pytest.raises(ValueError, match="window=0 and tokens=64 must be at least 1"):
        reach(model, text(), window=0)
    with pytest.raises(TypeError, match="reach traces a LanguageModel, and got MultiLayerLSTM"):
        reach(MultiLayerLSTM(3, 4), text())


def test_excerpts_are_spread_over_all_documents_and_inside_each():
    split = text()
    assert spread(split, 1000, 8).tolist() == [0, *range(8, 24), *range(31, 53)]
    assert spread(split, 3, 29).tolist() == [31]
    chosen = spread(split, 5, 4)
    assert len(set(chosen.tolist())) == 5
    assert chosen.max() > 45
