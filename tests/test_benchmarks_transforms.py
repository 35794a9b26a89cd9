"""The benchmarks of transforms, compiled calls and per-sample gradients at tiny sizes; what is wrong is not timed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_compile import inductor

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = ("measure", "page", "stacks", "compiled", "per_sample", "transforms")
needs_opacus = pytest.mark.skipif(importlib.util.find_spec("opacus") is None, reason="Opacus is an extra")
quiet_hooks = pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded = {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    for name, value in (("TURN_SECONDS", 0.0), ("PAUSE_SECONDS", 0.0), ("MOST_ROUNDS", 7)):
        monkeypatch.setattr(loaded["measure"], name, value)
    return SimpleNamespace(**loaded)


@needs_opacus
@quiet_hooks
def test_every_way_to_the_gradients_of_a_row(bench: SimpleNamespace) -> None:
    shape = bench.stacks.Shape(3, 4, 5, 6, 2)
    first, *cells = bench.per_sample.row(shape, 0.0, memory=False)
    assert first == "3x4x5x6x2"
    assert len(cells) == len(bench.per_sample.WAYS)
    assert cells[0].endswith("1.0x")


@needs_opacus
@quiet_hooks
@pytest.mark.parametrize("name", ["OURS", "MAPPED", "PLAIN"])
def test_a_way_that_has_other_gradients_is_not_timed(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    way = getattr(bench.per_sample, name)
    right = bench.per_sample.WAYS[way]

    def wrong(task: Any) -> Any:
        step = right(task)
        return lambda: [value + 1e-2 * value.abs().max() for value in step()]

    monkeypatch.setitem(bench.per_sample.WAYS, way, wrong)
    if name == "PLAIN":
        monkeypatch.setattr(bench.per_sample.Task, "plain", wrong)
    with pytest.raises(SystemExit, match=rf"{way.replace('(', '.').replace(')', '.')} is off by"):
        bench.per_sample.times(bench.stacks.Shape(3, 4, 5, 6, 1), 0.0)


@pytest.mark.slow
@needs_opacus
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_memory_of_a_larger_batch_is_larger(bench: SimpleNamespace) -> None:
    small, large = (
        bench.per_sample.peak_megabytes(bench.stacks.Shape(rows, 32, 32, 128, 1), bench.per_sample.OURS)
        for rows in (4, 64)
    )
    # 64 times 4 x 128 x (32 + 128) float32 gradients alone are 21 MB.
    assert large > small + 21


class TestTransforms:
    def test_each_costs_so_many_training_steps(
        self, bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(bench.measure, "MOST_ROUNDS", 1)
        _, _, header, _, *body = bench.transforms.lines(bench.stacks.Shape(3, 5, 4, 6, 1), 0.0)
        assert header.split(" | ") == ["| transform", "time", "in training steps |"]
        assert [line.split(" | ")[0].removeprefix("| ") for line in body] == list(bench.transforms.WAYS)
        assert body[0].endswith("1.00 |")

    @pytest.mark.parametrize("name", ["a gradient penalty", "`jvp` in every parameter"])
    def test_one_that_has_other_values_is_not_timed(
        self, bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        way, tolerance = bench.transforms.WAYS[name]

        def wrong(task: Any) -> Any:
            step, off = way(task), 1.01 if task.model.backend == "auto" else 1.0
            return lambda: [value * off for value in step()]

        monkeypatch.setattr(bench.transforms, "WAYS", {name: (wrong, tolerance)})
        with pytest.raises(SystemExit, match="is off by"):
            bench.transforms.steps(bench.stacks.Shape(3, 5, 4, 6, 1))


class TestCompiled:
    TIMES = ("eager", "compiled, static", "compiled, dynamic")

    def ways(self, bench: SimpleNamespace, task: Any) -> dict[str, Any]:
        return dict.fromkeys(self.TIMES, task.model)

    def test_another_value_is_not_timed(self, bench: SimpleNamespace) -> None:
        task = bench.compiled.Task(bench.stacks.Shape(3, 4, 5, 6, 1))
        ways = self.ways(bench, task)
        bench.compiled.check(task, ways)
        ways["compiled, dynamic"] = lambda x: (1.01 * task.model(x)[0], None)
        with pytest.raises(SystemExit, match="compiled, dynamic is off by"):
            bench.compiled.check(task, ways)

    def test_a_slower_call_misses_the_promise(self, bench: SimpleNamespace) -> None:
        def times(*medians: float) -> dict[str, Any]:
            turns = [[0.999 * each, each, 1.001 * each] * 5 for each in medians]
            return dict(
                zip(self.TIMES, (bench.measure.summary([t / 1e3 for t in each]) for each in turns), strict=True)
            )

        held = times(1.0, 1.02, 0.9)
        assert bench.compiled.met(held)
        assert bench.compiled.cells(held) == [
            "1.00 ms",
            "1.02 ms, 0.98x (0.98 to 0.98)",
            "0.90 ms, 1.11x (1.11 to 1.11)",
        ]
        assert not bench.compiled.met(times(1.0, 1.1, 1.0))
        assert not bench.compiled.met(times(1.0, 1.0, 1.1))

    def test_what_is_slower_by_chance_does_not(self, bench: SimpleNamespace) -> None:
        eager, compiled = [1.0] * 15, [0.99] * 5 + [1.05] * 10
        times = [bench.measure.summary([t / 1e3 for t in each]) for each in (eager, compiled, eager)]
        assert bench.compiled.met(dict(zip(self.TIMES, times, strict=True)))

    @pytest.mark.slow
    @inductor
    def test_a_whole_row_and_two_graphs_of_their_own(
        self, bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        torch._dynamo.utils.counters.clear()
        rows, _ = bench.compiled.row(bench.stacks.Shape(3, 4, 5, 6, 1), 0.0)
        assert [cells[0] for cells in rows] == ["3x4x5x6x1, training", "3x4x5x6x1, inference"]
        # Both forms, with and without gradients: four graphs, where a shared cache would hold two.
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
        torch._dynamo.reset()
