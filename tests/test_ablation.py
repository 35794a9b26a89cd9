import sys

import numpy as np
import pytest
import torch

from unrolled import Clamp, LanguageModel, LSTMState, ModelConfig, Split
from unrolled.ablation import ablate
from unrolled.excerpts import spread
from unrolled.loss import nats


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = LanguageModel(ModelConfig(5, hidden=4, layers=3, embedding=0, dropout=0.4), dtype=torch.float64)
    with torch.no_grad():
        for weights in made.parameters():
            weights.add_(0.5 * torch.randn_like(weights))
    return made


def text(length=60, starts=(0, 8, 31)):
    return Split(np.random.default_rng(1).integers(0, 5, length), np.array(starts))


def one_by_one(model, split, quantity, value, excerpts=3, length=6):
    """Each unit in turn, each excerpt in turn, with an edited trace of the whole model: `costs`, and the loss."""
    begins = spread(split, excerpts, length + 1)
    model.eval()
    pieces, states = [], []
    for begin in begins:
        document = split.starts[split.starts <= begin].max()
        before = torch.tensor(split.ids[document:begin])[None]
        states.append(model(before)[1] if before.numel() else model.initial_state(1))
        pieces.append(torch.tensor(split.ids[begin : begin + length + 1])[None])
    traces = [model.trace(ids[:, :-1], state) for ids, state in zip(pieces, states, strict=True)]
    base = sum(nats(trace.output, ids[:, 1:]) for trace, ids in zip(traces, pieces, strict=True)) / length / excerpts
    width = model.config.hidden if quantity == "c" else model.config.h_dim
    costs = torch.zeros(3, width, dtype=torch.float64)
    for layer in range(3):
        means = torch.cat([getattr(trace.layers[layer], quantity) for trace in traces]).mean((0, 1))
        for unit in range(width):
            held = Clamp(layer, quantity, unit, float(means[unit]) if value == "mean" else 0.0)
            total = sum(
                nats(model.trace(ids[:, :-1], LSTMState(*state), edit=held).output, ids[:, 1:])
                for ids, state in zip(pieces, states, strict=True)
            )
            costs[layer, unit] = total / length / excerpts - base
    model.train()
    return costs, float(base)


@pytest.mark.parametrize("quantity", ["c", "h"])
@pytest.mark.parametrize("value", ["mean", "zero"])
@pytest.mark.parametrize("rows", [3, 7, 256])
def test_costs_are_those_of_one_unit_after_the_other(model, monkeypatch, quantity, value, rows):
    monkeypatch.setattr(sys.modules["unrolled.ablation"], "_ROWS", rows)
    split = text()
    with torch.no_grad():
        costs, base = one_by_one(model, split, quantity, value)
    heard = []
    found = ablate(
        model, split, quantity=quantity, value=value, excerpts=3, length=6, warm_up=60,
        progress=lambda *far: heard.append(far),
    )  # fmt: skip
    torch.testing.assert_close(found.costs, costs)
    assert found.nats == pytest.approx(base)
    assert (found.quantity, found.value, found.predicted) == (quantity, value, 18)
    assert heard[-1] == ("ablating", 12, 12)
    assert model.training


def test_some_units_and_layers_and_their_rank(model):
    whole = ablate(model, text(), excerpts=3, length=6)
    some = ablate(model, text(), excerpts=3, length=6, layers=[1], units=[3, 0])
    torch.testing.assert_close(some.costs[1, [0, 3]], whole.costs[1, [0, 3]])
    assert int((~some.costs.isnan()).sum()) == 2
    ranked = some.ranked()
    assert {(each.layer, each.unit) for each in ranked} == {(1, 0), (1, 3)}
    assert ranked[0].nats >= ranked[1].nats
    best = whole.ranked(1)[0]
    assert best.nats == float(whole.costs.max()) == float(whole.costs[best.layer, best.unit])


def test_a_document_that_begins_with_the_excerpt(model):
    """Of the state from before it nothing is left, with a unit held as without."""
    split = Split(text().ids[:7], np.array([0]))
    found = ablate(model, split, excerpts=1, length=6, value="zero")
    with torch.no_grad():
        costs, _ = one_by_one(model, split, "c", "zero", 1)
    torch.testing.assert_close(found.costs, costs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [3]}, IndexError, "layers are 0 to 2, and got 3"),
        ({"units": [0, -1]}, IndexError, "units are 0 to 3, and got -1"),
        ({"units": []}, ValueError, "units is empty: there is nothing to hold"),
        ({"length": 0}, ValueError, "length=0 must be at least 1"),
        ({"excerpts": 0}, ValueError, "excerpts=0 must be at least 1"),
        ({"warm_up": -1}, ValueError, "warm_up=-1 must be at least 0"),
        ({"length": 40}, ValueError, "no document is as long as 41 tokens"),
        ({"quantity": "f"}, ValueError, "quantity='f' must be c or h"),
        ({"value": "max"}, ValueError, "value='max' must be mean or zero"),
    ],
)
def test_what_cannot_be_held(model, options, error, message):
    with pytest.raises(error, match=message):
        ablate(model, text(), **options)


@pytest.mark.parametrize("quantity", ["c", "h"])
def test_cells_with_options(quantity):
    torch.manual_seed(0)
    options = {"proj_dim": 3, "residual": True, "learn_initial_state": True, "layer_norm": True}
    model = LanguageModel(ModelConfig(5, hidden=4, layers=3, embedding=2, **options), dtype=torch.float64)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.5 * torch.randn_like(weights))
        split = text()
        costs, _ = one_by_one(model, split, quantity, "zero")
    found = ablate(model, split, quantity=quantity, value="zero", excerpts=3, length=6, warm_up=60)
    torch.testing.assert_close(found.costs, costs)
