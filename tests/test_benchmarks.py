"""The benchmarks' own promises, at sizes that take moments: whole tables, wrong contenders caught, pages kept."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unrolled import CharTokenizer, Corpus, Split

FOLDER = Path(__file__).parents[1] / "benchmarks"
PAGE = FOLDER.parent / "docs/performance.md"
NAMES = (
    "measure",
    "page",
    "stacks",
    "training_table",
    "peers",
    "inference_table",
    "recurrence",
    "trainer",
    "generation",
    "text_memory",
    "inspection",
    "packed",
    "compiled",
    "per_sample",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmarks' modules, which know each other by bare name, as they do when one of them is run."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture
def quick(bench, monkeypatch):
    monkeypatch.setattr(bench.measure, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(bench.measure, "PAUSE_SECONDS", 0.0)
    return bench


@pytest.fixture
def without_peers(bench, monkeypatch):
    for module in (bench.peers, bench.generation):
        monkeypatch.setattr(module, "installed", lambda *packages: False)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def perturbed(contender, parameter: torch.Tensor):
    """The same contender after one of its weights has moved by what no rounding explains."""
    with torch.no_grad():
        parameter.view(-1)[0] += 0.1
    return contender


class TestMeasure:
    def test_contenders_take_turns_and_none_is_always_first(self, quick):
        calls: list[str] = []
        runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
        times = quick.measure.alternate(runs, seconds=0, rounds=8)
        warm, turns = "".join(calls[:4]), "".join(calls[4:])
        assert warm == "aabb"
        assert {turns[at : at + 2] for at in range(0, 16, 2)} == {"ab", "ba"}
        assert len(turns) == 16
        assert all(each.p20 <= each.median <= each.p80 for each in times.values())

    def test_short_calls_are_repeated_and_timed_singly(self, bench, monkeypatch):
        monkeypatch.setattr(bench.measure, "PAUSE_SECONDS", 0.0)
        monkeypatch.setattr(bench.measure, "TURN_SECONDS", 0.005)
        calls: list[None] = []
        times = bench.measure.alternate({"a": lambda: calls.append(None)}, seconds=0, rounds=2)
        assert len(calls) > 100
        assert times["a"].median < 0.5 * 5.0

    def test_quantiles_are_in_milliseconds(self, bench):
        assert bench.measure.summary([0.001, 0.002, 0.003, 0.004, 0.005, 0.006])[:3] == pytest.approx((3.5, 2.0, 5.0))
        found = bench.measure.summary([0.004])
        assert (*found[:3], *found.turns) == pytest.approx((4.0, 4.0, 4.0, 4.0))

    def test_a_ratio_is_taken_turn_by_turn(self, bench):
        load = [1.0, 9.0, 2.0, 5.0, 1.0, 3.0, 8.0]
        peer, ours = (bench.measure.summary([factor * each for each in load]) for factor in (1.2, 1.0))
        assert bench.measure.speed(peer, ours) == pytest.approx((1.2, 1.2, 1.2))
        # Slowed in a few of the turns, ours has another median, and not another ratio.
        slowed = bench.measure.summary([*load[:5], 30.0, 80.0])
        assert bench.measure.speed(peer, slowed).median == pytest.approx(1.2)

    @pytest.mark.parametrize(("turns", "cut"), [(1, 0), (5, 0), (6, 0), (9, 1), (15, 3), (99, 39)])
    def test_the_interval_is_that_of_the_sign_test(self, bench, turns, cut):
        ratios = [1.0 + k for k in range(turns)]
        peer = bench.measure.summary(ratios)
        found = bench.measure.speed(peer, bench.measure.summary([1.0] * turns))
        assert found == pytest.approx((1 + (turns - 1) / 2, ratios[cut], ratios[-1 - cut]))

    def test_the_peak_is_a_rate(self, bench, monkeypatch):
        monkeypatch.setattr(bench.measure, "PEAK_SHAPES", ((64, 64, 64),))
        assert 1e6 < bench.measure.sgemm_peak(seconds=0.001) < 1e14


class TestStacks:
    def test_operations_are_those_of_the_products(self, bench):
        shape = bench.stacks.Shape(2, 3, 5, 7, 2)
        weights = 4 * 7 * (5 + 7) + 4 * 7 * (7 + 7)
        assert shape.forward_flops == 2 * (2 * 3) * weights
        assert shape.training_flops == 3 * shape.forward_flops - 2 * (2 * 3) * 4 * 7 * 5
        assert str(shape) == "2x3x5x7x2"

    def test_equal_is_within_rounding_and_nan_is_not(self, bench):
        one = torch.tensor([1.0, 100.0])
        bench.stacks.demand_equal("here", "it", [one + 1e-3], [one])
        for other in (one + 0.1, one * torch.nan):
            with pytest.raises(SystemExit, match=r"here: it is off by .* nothing was timed"):
                bench.stacks.demand_equal("here", "it", [other], [one])


class TestTraining:
    def test_the_table_is_whole(self, quick, capsys):
        shapes = [quick.stacks.Shape(2, 5, 3, 4, 2), quick.stacks.Shape(3, 4, 4, 4, 1)]
        lines, missed = quick.recurrence.training(shapes, 1e12, rounds=1, seconds=0)
        assert len(lines) == 4
        assert len({len(cells(line)) for line in lines}) == 1
        assert cells(lines[2])[0] == "2x5x3x4x2"
        assert all(cell.endswith("x") and " ms, " in cell for cell in cells(lines[2])[2:7])
        assert "p20" in capsys.readouterr().out
        assert all(" of nn.LSTM" in line for line in missed)

    def test_a_goal_is_read_against_both_open_contenders(self, quick):
        shape = quick.stacks.Shape(2, 5, 3, 4, 1)
        verdicts = [quick.training_table.row(shape, 1e12, goal=g, seconds=0, rounds=1)[0][-1] for g in (1e-9, 1e9)]
        assert verdicts == ["1e-09x: reached", "1e+09x: missed"]

    @pytest.mark.parametrize("name", ["LSTMCell loop", "LSTMCell loop + resets", "unrolled", "portable"])
    def test_a_wrong_contender_is_caught(self, bench, name):
        task = bench.training_table.Task(bench.stacks.Shape(2, 60, 3, 4, 2))
        contending = bench.training_table.contenders(task)
        bench.training_table.check(task, contending)
        perturbed(contending[name], next(iter(contending[name].model.parameters())))
        with pytest.raises(SystemExit, match="nothing was timed"):
            bench.training_table.check(task, contending)

    @pytest.mark.parametrize("wrong", ["loop without resets", "trace without resets", "trace without loss on c"])
    def test_resets_and_every_c_are_checked(self, bench, wrong):
        task = bench.training_table.Task(bench.stacks.Shape(2, 60, 3, 4, 2))
        assert task.resets[:, 1:].any()
        contending = bench.training_table.contenders(task)
        if wrong == "loop without resets":
            contending[bench.training_table.LOOP_RESETS] = task.loop(resets=False)
        else:
            other = bench.training_table.Task(task.shape)
            if wrong == "trace without resets":
                other.resets = torch.zeros_like(task.resets)
            else:
                other.into_c = [torch.zeros_like(into) for into in task.into_c]
            contending[bench.training_table.OPENED] = other.opened("auto")
        with pytest.raises(SystemExit, match="resets is off by"):
            bench.training_table.check(task, contending)


class TestInference:
    SHAPES = ((1, 1, 6, 8, 2), (3, 1, 8, 8, 1), (1, 5, 6, 8, 2), (2, 4, 8, 8, 1))

    def test_the_table_is_whole(self, quick):
        shapes = [quick.stacks.Shape(*shape) for shape in self.SHAPES]
        lines, _ = quick.recurrence.inference(shapes, 1e12, rounds=1, seconds=0)
        assert len(lines) == 2 + len(shapes)
        assert {len(cells(line)) for line in lines} == {len(quick.inference_table.HEADER)}
        assert all(" ms, " in cells(line)[5] for line in lines[2:])

    @pytest.mark.usefixtures("without_peers")
    def test_a_peer_that_is_missing_is_named_and_the_rest_goes_on(self, quick):
        shape = quick.stacks.Shape(1, 1, 6, 8, 1)
        found, times = quick.inference_table.row(shape, 1e12, seconds=0, rounds=1)
        row = dict(zip(quick.inference_table.HEADER, found, strict=True))
        assert (row["ONNX Runtime"], row["JAX scan"]) == ("not installed", "not installed")
        assert {"nn.LSTM", "float32"} <= set(times)

    def test_a_goal_for_either_precision_takes_the_faster(self, bench):
        verdict = bench.inference_table._verdict
        assert verdict("bfloat16 or int8", 2.0, {"int8": 2.5}) == "bfloat16 or int8 2.0x: reached"
        assert verdict("bfloat16 or int8", 2.0, {"int8": 1.5, "float32": 9.0}) == "bfloat16 or int8 2.0x: missed"
        assert verdict("int8", 2.0, {}) == "int8 2.0x: missed"

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_wrong_contender_is_caught(self, bench, shape):
        shape = bench.stacks.Shape(*shape)
        model, other = bench.stacks.open_stack(shape), bench.stacks.open_stack(shape)
        perturbed(None, other.layers[0].W_hf)
        perturbed(None, other.layers[0].b_g)
        with torch.no_grad():
            kinds = bench.inference_table.contenders(other, shape)
        for name, wrong in kinds.items():
            if isinstance(wrong, str) or wrong.tolerance > bench.stacks.FLOAT32_TOLERANCE or name == "nn.LSTM":
                continue
            contending = {"nn.LSTM": bench.peers.closed(model, shape), name: wrong}
            with torch.no_grad(), pytest.raises(SystemExit, match=f"{name} is off by"):
                bench.inference_table.check(shape, contending)

    def test_a_stepper_that_forgets_its_state_is_caught(self, bench):
        shape = bench.stacks.Shape(2, 1, 4, 4, 1)
        model = bench.stacks.open_stack(shape)
        contending = {"nn.LSTM": bench.peers.closed(model, shape), "forgetful": bench.peers.whole(model)}
        with torch.no_grad(), pytest.raises(SystemExit, match="call 1: forgetful is off by"):
            bench.inference_table.check(shape, contending)

    def test_low_precision_has_its_own_bound(self, bench):
        shape = bench.stacks.Shape(2, 1, 4, 4, 1)
        model = bench.stacks.open_stack(shape)
        rough = bench.peers.closed(model, shape)
        tilted = rough._replace(read=lambda h: 1.05 * h, tolerance=bench.peers.INT8_TOLERANCE)
        with torch.no_grad():
            bench.inference_table.check(shape, {"nn.LSTM": bench.peers.closed(model, shape), "rough": tilted})
            with pytest.raises(SystemExit, match="rough is off by"):
                bench.inference_table.check(
                    shape,
                    {
                        "nn.LSTM": bench.peers.closed(model, shape),
                        "rough": bench.peers.closed(model, shape)._replace(read=lambda h: 1.05 * h),
                    },
                )


class TestPromise:
    def test_slower_than_closed_is_said_beyond_noise(self, bench):
        def ms(value: float):
            return bench.measure.summary([1e-3 * value])

        shape = bench.stacks.Shape(1, 1, 1, 1, 1)
        times = {"nn.LSTM": ms(1.0), "unrolled": ms(1.02), "float32": ms(1.25), "portable": ms(9.0)}
        assert bench.recurrence.slower(shape, times) == [
            "1x1x1x1x1: float32 runs at 0.80x (0.80 to 0.80) the speed of nn.LSTM"
        ]


@pytest.fixture
def corpus() -> Corpus:
    text = "the quick brown fox jumps over the lazy dog. " * 60
    tokenizer = CharTokenizer.from_text(text)
    return Corpus(Split(tokenizer.encode(text), np.zeros(1, np.int64)), None, None, tokenizer, "0" * 64)


@pytest.fixture
def small(bench) -> Iterator:
    with tempfile.TemporaryDirectory() as out:
        yield dataclasses.replace(
            bench.trainer.recorded((), out), hidden=8, embedding=4, lanes=4, window=8, warmup=2, threads=1
        )


class TestTrainer:
    def test_both_train_the_same_and_the_report_is_whole(self, quick, small, corpus):
        lines, ratio = quick.trainer.compare(small, corpus, steps=23, seconds=0)
        assert ratio > 0
        rows = [cells(line) for line in lines if line.startswith("|")]
        assert [row[0] for row in rows] == ["stack", "---", "unrolled", "nn.LSTM"]
        assert "23 steps of each" in lines[0]
        assert "Loss curves at most" in lines[-1]

    def test_weights_that_move_otherwise_part_the_curves(self, bench, small, corpus, monkeypatch):
        def thawed(self, opened):
            closed(self, opened)
            self.lstm.requires_grad_()

        closed = bench.trainer.ClosedStack.__init__
        monkeypatch.setattr(bench.trainer.ClosedStack, "__init__", thawed)
        with pytest.raises(SystemExit, match="the two do not train the same"):
            bench.trainer.compare(small, corpus, steps=40, seconds=0)

    def test_more_steps_than_the_run_has_are_refused(self, bench, small, corpus):
        with pytest.raises(SystemExit, match="--steps"):
            bench.trainer.compare(small, corpus, steps=10**6, seconds=0)

    def test_the_closed_stack_refuses_what_it_cannot_do(self, bench):
        shape = bench.stacks.Shape(2, 3, 4, 5, 1)
        stack = bench.trainer.ClosedStack(bench.stacks.open_stack(shape))
        x, first = torch.randn(2, 3, 4), torch.tensor([[True, False, False]] * 2)
        stack(x, resets=first)
        with pytest.raises(SystemExit, match="one document"):
            stack(x, resets=first.roll(1, 1))
        with pytest.raises(SystemExit, match="one document"):
            stack(x, lengths=torch.tensor([1, 2]))


class TestGeneration:
    def test_all_write_and_the_table_is_whole(self, quick):
        run = quick.generation.fresh_run(8, 2, 4)
        lines, times = quick.generation.compare(run, tokens=5, seconds=0, rounds=1)
        rows = [cells(line) for line in lines if line.startswith("|")][2:]
        assert [row[0] for row in rows][:2] == ["unrolled.generate", "nn.LSTM"]
        assert {"ONNX Runtime", "the sampler alone"} <= {row[0] for row in rows}
        assert rows[1][2] == "1.00x"
        assert times["nn.LSTM"].median > times["the sampler alone"].median

    @pytest.mark.usefixtures("without_peers")
    def test_a_missing_runtime_is_named(self, quick):
        lines, _ = quick.generation.compare(quick.generation.fresh_run(8, 1, 4), tokens=3, seconds=0, rounds=1)
        assert "| ONNX Runtime | not installed |  |" in lines

    def test_another_model_is_caught(self, bench):
        run = bench.generation.fresh_run(8, 2, 4)
        writing = bench.generation.writers(run)
        other = bench.generation.fresh_run(8, 2, 4)
        torch.nn.init.normal_(other.model.lstm.proj.weight)
        writing["other"] = bench.generation.writers(other)["unrolled.generate"]
        with pytest.raises(SystemExit, match=r"other writes .* not the same model"):
            bench.generation.demand_one_text(writing)

    def test_the_same_seed_draws_the_same_text(self, bench):
        texts = {write(30, 1.0) for write in bench.generation.writers(bench.generation.fresh_run(8, 2, 4)).values()}
        assert len(texts) == 1


class TestPage:
    TEXT = "# A\n\n<!-- made by: one -->\nold\n<!-- end -->\nbetween\n<!-- made by: two -->\n<!-- end -->\nlast\n"

    def test_only_the_section_changes_and_can_change_again(self, bench):
        once = bench.page.with_section(self.TEXT, "one", ["new", "", "| a |"])
        assert once == self.TEXT.replace("old", "new\n\n| a |")
        assert bench.page.with_section(once, "one", ["old"]) == self.TEXT
        filled = bench.page.with_section(self.TEXT, "two", ["x"])
        assert filled == self.TEXT.replace("two -->\n", "two -->\nx\n")

    @pytest.mark.parametrize(
        "text", ["", "<!-- made by: one -->\n", "<!-- end -->", "<!-- made by: ones -->\n<!-- end -->"]
    )
    def test_a_page_without_the_section_is_refused(self, bench, text):
        with pytest.raises(SystemExit, match="no section for one: put <!-- made by: one --> and <!-- end -->"):
            bench.page.with_section(text, "one", ["new"])

    def test_a_written_section_says_where_it_was_made(self, bench, tmp_path):
        path = tmp_path / "page.md"
        path.write_text(self.TEXT, encoding="utf-8")
        bench.page.write_section(path, "one", ["| a |"])
        written = path.read_text(encoding="utf-8")
        assert f"torch {torch.__version__}" in written
        assert "backend" in written
        assert written.endswith("| a |\n<!-- end -->\nbetween\n<!-- made by: two -->\n<!-- end -->\nlast\n")

    def test_the_page_has_the_section_of_every_benchmark(self, bench):
        text = PAGE.read_text(encoding="utf-8")
        tables = ("recurrence, training", "recurrence, inference", "trainer", "generation")
        cells, others = ("variants", "own_cell"), ("import_time", "text_memory", "packed", "compiled", "per_sample")
        for name in (*tables, *cells, *others, "inspection", "live_page"):
            bench.page.with_section(text, name, [])
        assert text.count("<!-- made by: ") == 14


class TestRun:
    def test_the_list_is_of_the_programs_that_there_are(self):
        listed = subprocess.run(
            [sys.executable, FOLDER / "run.py", "nothing"], capture_output=True, text=True, check=False
        )
        assert listed.returncode == 2
        named = listed.stderr.rpartition("there are ")[2].strip().split(", ")
        programs = {path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
        assert set(named) == programs - {"run"}

    def test_a_row_that_is_not_there_is_refused(self, bench, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["recurrence.py", "--rows", "1x2x3x4x5"])
        with pytest.raises(SystemExit, match="2"):
            bench.recurrence.main()
        assert "16x128x64x64x1" in capsys.readouterr().err

    def test_part_of_a_table_is_not_written_to_a_page(self, bench, monkeypatch, capsys, tmp_path):
        page = tmp_path / "page.md"
        monkeypatch.setattr(sys, "argv", ["recurrence.py", "--rows", "1x1x256x256x2", "--write", str(page)])
        with pytest.raises(SystemExit, match="2"):
            bench.recurrence.main()
        assert "leave --rows out" in capsys.readouterr().err
