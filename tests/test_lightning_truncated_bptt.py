"""examples/lightning_truncated_bptt.py: the losses of a plain loop, and a resumed run that is the undisturbed one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from unrolled import CarriedState

pytorch_lightning = pytest.importorskip("pytorch_lightning", reason="the extra `examples` is not installed")
pytestmark = [
    pytest.mark.slow,
    # Lightning's own use of torch's pytrees
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # the checkpoint's callback is not needed to go on
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "lightning_truncated_bptt.py"
    spec = importlib.util.spec_from_file_location("lightning_truncated_bptt", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["lightning_truncated_bptt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fresh(example: ModuleType):
    torch.manual_seed(0)
    return example.Carrying(), example.windows(6, 100), example.windows(3, 60)


def test_the_losses_are_those_of_a_loop(example: ModuleType):
    module, train, validation = fresh(example)
    example.trainer(3).fit(module, train, validation)
    plain, train, _ = fresh(example)
    adam, losses = torch.optim.Adam(plain.model.parameters(), lr=0.01), []
    for _ in range(3):
        carried = CarriedState()
        for x, y in train:
            output, carried.state = plain.model(x, carried.state)
            loss = (output - y).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
    assert len(losses) == 12
    assert module.losses == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("steps", [4, 6], ids=["at an epoch's end", "inside an epoch"])
def test_a_resumed_run_is_the_undisturbed_one(example: ModuleType, tmp_path: Path, steps: int):
    undisturbed, train, validation = fresh(example)
    example.trainer(3).fit(undisturbed, train, validation)
    first, train, validation = fresh(example)
    saving = pytorch_lightning.callbacks.ModelCheckpoint(tmp_path, "run", every_n_train_steps=steps)
    begun = example.trainer(3, max_steps=steps, callbacks=[saving], enable_checkpointing=True)
    begun.fit(first, train, validation)
    second, train, validation = fresh(example)
    example.trainer(3).fit(second, train, validation, ckpt_path=tmp_path / "run.ckpt")
    assert first.losses + second.losses == undisturbed.losses
    for expected, found in zip(undisturbed.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, found)
