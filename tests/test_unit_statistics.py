from itertools import pairwise

import pytest
import torch

from unrolled.unit_statistics import GATES, NAMES, UnitStatistics


def drawn(tokens=1000, units=4, dtype=torch.float64):
    torch.manual_seed(0)
    values = {name: torch.rand(tokens, units, dtype=dtype) for name in NAMES}
    values |= {name: values[name] * 2 - 1 for name in "hg"}
    values["c"] = 5 * torch.randn(tokens, units, dtype=dtype) + 100
    return values


def statistics(values, cuts=(0, 1, 400, 700, 1000)):
    found = UnitStatistics()
    for begin, end in pairwise(cuts):
        found.add({name: each[begin:end] for name, each in values.items()})
    return found.result()


def test_streamed_numbers_are_those_of_all_steps_at_once():
    values = drawn()
    found = statistics(values)
    assert found.tokens == 1000
    for name in NAMES:
        torch.testing.assert_close(found.mean[name], values[name].mean(0))
    for name in "hc":
        torch.testing.assert_close(found.std[name], values[name].std(0, correction=0))
        assert torch.equal(found.low[name], values[name].min(0)[0])
        assert torch.equal(found.high[name], values[name].max(0)[0])
    for gate in GATES:
        within = (values[gate] + 1) / 2 if gate == "g" else values[gate]
        torch.testing.assert_close(found.left[gate], (within < 0.1).double().mean(0))
        torch.testing.assert_close(found.right[gate], (within > 0.9).double().mean(0))
    torch.testing.assert_close(found.memory, 1 / (1 - values["f"].mean(0)))
    torch.testing.assert_close(found.holding, ((values["f"] > 0.9) & (values["i"] < 0.1)).double().mean(0))


def test_the_spread_of_a_unit_that_hardly_moves_survives_float32():
    values = drawn(dtype=torch.float32)
    values["c"] = 1000 + 0.01 * torch.randn(1000, 4)
    found = statistics(values)
    torch.testing.assert_close(found.std["c"], values["c"].double().std(0, correction=0), rtol=1e-4, atol=0)


def test_a_memory_that_is_all_but_endless_survives_float32():
    values = drawn(dtype=torch.float32)
    values["f"] = torch.full((1000, 4), 1 - 2**-20)
    values["f"][:, 0] = 1
    assert statistics(values).memory.tolist() == [float("inf"), 2.0**20, 2.0**20, 2.0**20]


def test_latching_and_dead_units():
    values = drawn(100)
    values["f"], values["i"] = torch.full((100, 4), 0.95), torch.full((100, 4), 0.05)
    values["i"][::2, 0] = 0.5  # holds in half of all steps
    values["i"][:51, 1] = 0.5  # in fewer
    values["i"][3, 2] = 0.5  # in all but one; unit 3 is never written to
    values["h"] = torch.zeros(100, 4)
    values["h"][5] = torch.tensor([0.02, 0.0201, -0.5, 0.0])
    found = statistics(values, (0, 50, 100))
    assert found.latching.tolist() == [True, False, True, False]
    assert found.dead.tolist() == [True, False, False, True]


def test_of_nothing_there_are_no_statistics():
    with pytest.raises(ValueError, match="no steps were added"):
        UnitStatistics().result()


def test_gates_that_lie_side_by_side_in_memory_give_what_scattered_ones_do():
    values = drawn(300, dtype=torch.float32)
    gates = torch.stack([values[gate] for gate in GATES], 1)
    found = statistics(values, (0, 100, 300))
    together = statistics(values | dict(zip(GATES, gates.unbind(1), strict=True)), (0, 100, 300))
    for name in ("mean", "left", "right"):
        assert all(torch.equal(getattr(found, name)[gate], getattr(together, name)[gate]) for gate in GATES)
    assert torch.equal(found.memory, together.memory)
    assert torch.equal(found.holding, together.holding)


@pytest.mark.parametrize("order", ["ifog", "figo"])
def test_gates_in_one_memory_in_another_order_are_told_apart(order):
    values = drawn(50, dtype=torch.float32)
    gates = torch.stack([values[gate] for gate in order], 1).unbind(1)
    given = values | dict(zip(order, gates, strict=True))
    found, expected = (statistics(each, (0, 50)).mean for each in (given, values))
    assert all(torch.equal(found[gate], expected[gate]) for gate in GATES)
