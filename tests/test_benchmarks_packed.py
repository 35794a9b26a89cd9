"""The benchmark of packed rows: its whole table at sizes that take moments, and a wrong contender caught."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("measure", "page", "stacks", "packed")


@pytest.fixture
def packed(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded = {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    for name, value in (("TURN_SECONDS", 0.0), ("PAUSE_SECONDS", 0.0)):
        monkeypatch.setattr(loaded["measure"], name, value)
    for name, value in (("BATCH", 3), ("WIDTH", 4)):
        monkeypatch.setattr(loaded["packed"], name, value)
    return loaded["packed"]


def test_the_table_has_two_lines_for_each_length_and_a_speed_for_each_contender(packed):
    header, _, *body = packed.lines([5, 9], 0.0)
    assert all(name in header for name in packed.CONTENDERS)
    assert [line.split(" | ")[:2] for line in body] == [
        ["| 5", "forward"],
        ["| 5", "training"],
        ["| 9", "forward"],
        ["| 9", "training"],
    ]
    assert all("1.00x" in line.split(" | ")[2] for line in body)


def test_what_takes_minutes_to_train_is_run_forward_alone(packed, monkeypatch):
    monkeypatch.setattr(packed, "LONGEST_TRAINED", 6)
    assert [line.split(" | ")[1] for line in packed.lines([5, 9], 0.0)[2:]] == ["forward", "training", "forward"]


def test_a_contender_that_computes_something_else_is_not_timed(packed, monkeypatch):
    theirs, ours = packed.modules()
    with torch.no_grad():
        ours.weight_hh_l0[0, 0] += 1.0
    monkeypatch.setattr(packed, "modules", lambda: (theirs, ours))
    with pytest.raises(SystemExit, match=r"longest 5: unrolled\.LSTM, packed is off by"):
        packed.measure(5, 0.0)
