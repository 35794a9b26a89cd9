"""The layout of a state: names and axes as calls show them; joined and divided again without a change."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from unrolled.model import LanguageModel, ModelConfig
from unrolled.state import LSTMState
from unrolled.state_layout import StateLayout

CPU = torch.device("cpu")


class Pair(NamedTuple):
    a: Tensor
    b: list[Tensor]


class Odd(nn.Module):
    """A state of every kind, lanes on other axes, and as wide as there are lanes in the trial."""

    def forward(self, ids: Tensor, state: Any = None, *, resets: Tensor | None = None) -> tuple[Tensor, Any]:
        lanes = ids.shape[0]
        one = torch.arange(lanes * 2.0).view(2, lanes)
        return torch.zeros(*ids.shape, 5), {"x": Pair(one, [one.T.contiguous(), torch.ones(3, 2, lanes)]), "n": None}


def test_names_and_axes() -> None:
    layout = StateLayout.of(Odd(), 5, CPU)
    assert layout.axes == {"state.x.a": 1, "state.x.b.0": 0, "state.x.b.1": 2}
    own = StateLayout.of(LanguageModel(ModelConfig(5, hidden=3, layers=2)), 5, CPU)
    assert own.axes == {"state.h": 1, "state.c": 1}
    assert isinstance(own.example, LSTMState)
    assert {name: list(value.shape) for name, value in own.zeros(7).items()} == {
        "state.h": [2, 7, 3],
        "state.c": [2, 7, 3],
    }


def test_lots_are_joined_and_chosen_again() -> None:
    layout = StateLayout.of(Odd(), 5, CPU)
    lots = [Odd()(torch.zeros(lanes, 1, dtype=torch.int64))[1] for lanes in (2, 1, 4)]
    joined = layout.joined(lots)
    assert [list(value.shape) for value in joined.values()] == [[2, 7], [7, 2], [3, 2, 7]]
    again = layout.chosen(joined, slice(2, 3))
    assert isinstance(again["x"], Pair)
    assert again["n"] is None
    assert torch.equal(again["x"].a, lots[1]["x"].a)
    assert torch.equal(again["x"].b[0], lots[1]["x"].b[0])
    assert (
        layout.joined([layout.chosen(joined, slice(0, 3)), layout.chosen(joined, slice(3, 7))]).keys() == joined.keys()
    )


class Growing(nn.Module):
    def forward(self, ids: Tensor, state: Any = None, *, resets: Tensor | None = None) -> tuple[Tensor, Any]:
        return torch.zeros(*ids.shape, 5), [ids] * ids.shape[0]


def test_a_state_that_has_other_tensors_for_other_lanes() -> None:
    with pytest.raises(ValueError, match=r"two lanes has tensors state\.0, state\.1 and that of three state\.0, state"):
        StateLayout.of(Growing(), 5, CPU)


def test_looking_leaves_mode_and_generator_alone() -> None:
    model = LanguageModel(ModelConfig(5, hidden=3, dropout=0.5)).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    StateLayout.of(model, 5, CPU)
    assert model.training
    assert torch.equal(torch.rand(2), expected)
