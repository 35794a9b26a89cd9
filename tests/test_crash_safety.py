"""Saves that fail everywhere, one operation after the other: the old model or the new one is there, and never neither.

The normal suite strikes at every operation of a run's first save, and lets every one fail of a save that moves and
removes everything; the slow one strikes at those of all scenarios, which are also the table of docs/crash-safety.md.
"""

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_scenarios import (
    RUN,
    SCENARIOS,
    Outcome,
    Scenario,
    fresh,
    loaded,
    on_the_page,
    operations,
    outcomes,
    save,
    table,
    waiting_for_no_disk,
)
from faulty_disk import ERRORS, FaultyDisk, PowerCut

from unrolled.disk import DiskWarning

FIRST, MOST = SCENARIOS[0], SCENARIOS[2]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """In memory where there is such a place: thousands of directories are made and removed."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


def check(scenario: Scenario, outcome: Outcome) -> None:
    assert outcome.model in (scenario.old, scenario.step), outcome
    assert outcome.best in (scenario.best, scenario.step if scenario.moves else scenario.best), outcome
    assert outcome.after == scenario.step + 1, outcome


@pytest.mark.parametrize(
    "scenario",
    [s if s == FIRST else pytest.param(s, marks=pytest.mark.slow) for s in SCENARIOS],
    ids=lambda scenario: scenario.title,
)
def test_always_the_old_model_or_the_new_one(scenario: Scenario, scratch: Path) -> None:
    found = list(outcomes(scenario, scratch))
    assert {outcome.model for outcome in found} == {scenario.old, scenario.step}, "faults come before and after"
    for outcome in found:
        check(scenario, outcome)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.title)
def test_what_was_saved_survives_a_power_cut(scenario: Scenario, scratch: Path) -> None:
    with waiting_for_no_disk():
        scenario.prepare(scratch)
    done = FaultyDisk(scratch, "off")
    with done.plugged_in():
        save(scratch, scenario.step, best=scenario.moves)
    with pytest.raises(PowerCut):
        done.cut()
    assert loaded(scratch) == scenario.step
    assert loaded(scratch, "best") == (scenario.step if scenario.moves else scenario.best)


@pytest.mark.parametrize("forgotten", ["sync", "sync_directory"])
def test_a_protocol_without_its_syncs_is_found_out(scratch: Path, forgotten: str) -> None:
    """The simulation is not blind: where one kind of sync does nothing, what was saved is lost."""
    with waiting_for_no_disk():
        MOST.prepare(scratch)
    done = FaultyDisk(scratch, "off", without=forgotten)
    with done.plugged_in():
        save(scratch, MOST.step)
    with pytest.raises(PowerCut):
        done.cut()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiskWarning)
        assert loaded(scratch) == MOST.old


def test_an_error_is_told(scratch: Path) -> None:
    """A save that could not be finished raises, but for the removal of what is old, after which all is saved."""
    told = 0
    for outcome in outcomes(MOST, scratch, ERRORS):
        told += outcome.raised
        assert outcome.raised or outcome.model == MOST.step, outcome
    assert told > 0


def test_the_page_is_about_these_operations(scratch: Path) -> None:
    """How many there are, and each of the save that is shown; the outcomes are compared in the slow suite."""
    page = on_the_page()
    for scenario in SCENARIOS:
        assert f"| {scenario.title} | {len(operations(scenario, fresh(scratch)))} |" in page
    for at, (operation, file) in enumerate(operations(MOST, fresh(scratch))):
        short = file.removeprefix(RUN).removeprefix("/") or "the run directory"
        assert f"| {at + 1} | {operation} | `{short}` |" in page


@pytest.mark.slow
def test_the_table_on_the_page_is_current(scratch: Path) -> None:
    assert on_the_page() == table(scratch), "write it anew: python tests/crash_scenarios.py"


@pytest.mark.parametrize("runs", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path: Path, runs: int) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    command = [sys.executable, str(ROOT / "tests/kill_while_saving.py"), str(tmp_path), str(runs)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert child.returncode == 0, child.stderr
    killed, models, leftovers = map(int, child.stdout.split())
    assert killed == runs
    assert models > 0
    if runs >= 200:
        assert leftovers > 0, "no kill came in the middle of a save"
