"""The benchmarks that measure a process of its own, at small sizes, and what they promise."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("page", "text_memory", "inspection")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded = {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    return SimpleNamespace(**loaded)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
@pytest.mark.parametrize("tokens", ["byte", "char"])
def test_a_large_text_takes_no_more_memory_than_a_small_one(bench, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.text_memory, "STEPS", 20)
    small, large = bench.text_memory.measure(tokens, [4, 64], tmp_path)
    assert max(large.megabytes) - max(small.megabytes) < 8


class TestInspection:
    @pytest.mark.slow
    def test_a_length_is_measured_in_a_process_of_its_own(self, bench):
        found = bench.inspection.measured(3000, 8, 1)
        assert found["threads"] == 1
        assert found["whole"] > 0
        assert found["alone"] > 0
        assert found["peak"] > 10

    def test_what_it_promises(self, bench):
        def lines(seconds, peak, hidden=512):
            short = {"whole": seconds, "alone": 4.0, "threads": 2, "peak": 300.0}
            return bench.inspection.report({100_000: short, 10**6: {**short, "peak": peak}}, hidden)

        found, kept = lines(9.9, 315.0)
        assert kept
        assert found[-2:] == [
            "At most 16 MB more for a longer text: holds (15.0 MB).",
            "100,000 characters in under 10 s: holds.",
        ]
        assert not lines(10.1, 300.0)[1]
        assert not lines(9.0, 317.0)[1]
        assert lines(99.0, 300.0, hidden=256)[1]
