"""examples/private_sgd.py: the gradient of each row is that of the row alone, and privacy costs what it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("opacus", reason="the extra `opacus` is not installed")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "private_sgd.py"
    spec = importlib.util.spec_from_file_location("private_sgd", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["private_sgd"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_gradients_of_each_row_are_those_of_a_loop(example: ModuleType):
    torch.manual_seed(0)
    model = example.Classifier().double()
    x, y = (tensor.double() for tensor in example.rows(12))
    assert example.largest_difference(model, x, y) < 1e-12
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_it_learns_and_more_noise_is_more_private(example: ModuleType):
    """A guess is right half of the time."""
    epsilons = []
    for noise in (1.0, 2.0):
        torch.manual_seed(0)
        right, epsilon = example.train(example.Classifier(), 4, noise)
        epsilons.append(epsilon)
        assert right > 0.7
    assert 0 < epsilons[1] < epsilons[0] / 2
