import dataclasses
import json
import math
import sys

import pytest
import torch
from steppers import BACKENDS, NATIVE, use

from unrolled import Stepper, bench, builtin_text
from unrolled.bench import Loss, Question, Report, Timing, answer, notes, report_of, table
from unrolled.checkpoint import load, save_model
from unrolled.cli import main
from unrolled.model import LanguageModel, ModelConfig
from unrolled.quota import Held, Throttling
from unrolled.tokens import ByteTokenizer, CharTokenizer

TEXT = "Größe und Länge, und so weiter. " * 30
native_only = pytest.mark.skipif(not NATIVE, reason="there is no native library here")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    use(request.param, monkeypatch)
    return request.param


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(directory, LanguageModel(ModelConfig(256, 6, 1)), ByteTokenizer())
    return directory


@pytest.fixture
def call(capsys):
    def call(*tokens):
        code = 0
        try:
            main(["bench", *map(str, tokens)])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# What is measured


@pytest.mark.parametrize("threads", [None, 1])
def test_a_shape_is_timed_with_each_kind_of_weights(threads, backend):
    torch.set_num_threads(2)
    report = answer(Question(shape="2x3x8X1", steps=7, threads=threads))
    assert report.model == "1 layers of 8, input 3, batch 2"
    assert report.losses == ()
    counts = [1, 2] if threads is None else [1]
    rows = [(row.weights, row.threads) for row in report.timings]
    assert rows == [(kind, count) for count in counts for kind in ("float32", "bfloat16", "int8")]
    for row in report.timings:
        if backend == "portable" and row.weights != "float32":
            assert "needs the native kernel, and there is none: no C++ compiler was found" in row.refusal
            assert (row.backend, row.p50) == (None, None)
        else:
            assert (row.backend, row.steps) == (backend, 7)
            assert 0 < row.p50 <= row.p99 <= row.maximum


def test_each_step_is_on_another_input_and_counted_once(monkeypatch):
    seen = []
    monkeypatch.setattr(Stepper, "step", lambda self, x, out=None: seen.append(x) or torch.zeros(1, 4))
    ticks = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(bench.time, "perf_counter_ns", lambda: next(ticks))
    (row,) = answer(Question(shape="1x2x4x1", weights="float32", steps=70, threads=1)).timings
    assert (row.p50, row.p99, row.maximum, row.steps) == (1.0, 1.0, 1.0, 70)
    assert len(seen) == 1 + bench._WARM_UP + 70
    assert len({x.data_ptr() for x in seen}) == 64


def test_without_a_number_a_row_takes_a_second(monkeypatch):
    monkeypatch.setattr(Stepper, "step", lambda self, x, out=None: torch.zeros(1, 4))
    ticks = iter(range(0, 10**12, 2_000_000))
    monkeypatch.setattr(bench.time, "perf_counter_ns", lambda: next(ticks))
    (row,) = answer(Question(shape="1x2x4x1", weights="float32", threads=1)).timings
    assert row.steps == 500


def test_pauses_of_the_control_group_meanwhile_are_counted(monkeypatch):
    counters = iter([Throttling(10, 4, 1.0), Throttling(15, 6, 1.25)])
    monkeypatch.setattr(bench, "throttling", lambda: next(counters))
    assert answer(Question(shape="1x1x1x1", steps=1)).throttling == Throttling(5, 2, 0.25)


@native_only
def test_the_loss_on_a_text_is_in_bits_per_character(run_directory, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    report = answer(Question(run=run_directory, steps=1, threads=1, text=tmp_path / "text.txt"))
    assert [loss.weights for loss in report.losses] == ["bfloat16", "int8"]
    model = load(run_directory).model
    ids = torch.tensor(list(TEXT.encode()))
    with torch.no_grad():
        logits = model(ids[None, :-1])[0][0].double()
    bits = float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")) / math.log(2) / (len(TEXT) - 1)
    for loss in report.losses:
        assert loss.tokens == len(ids) - 1 > len(TEXT)
        assert loss.bits_per_character_float32 == pytest.approx(bits, abs=1e-5)
        assert loss.bits_per_character == pytest.approx(bits, abs=1e-2)
        assert 0 < loss.largest_difference < 0.1


@native_only
def test_the_text_that_python_brings_is_the_default_and_is_cut(run_directory, monkeypatch):
    monkeypatch.setattr(bench, "_TOKENS", 50)
    (loss,) = answer(Question(run=run_directory, steps=1, weights="int8")).losses
    assert loss.tokens == 50
    assert len(builtin_text()) > 50


def test_symbols_that_the_model_has_not_are_a_note_or_an_error(tmp_path):
    save_model(tmp_path / "ab", LanguageModel(ModelConfig(2, 4, 1)), CharTokenizer("ab"))
    report = answer(Question(run=tmp_path / "ab", steps=1))
    assert report.losses == ()
    assert report.note == "the model has not the symbols of Python's text; --text FILE says what is lost on yours"
    (tmp_path / "text.txt").write_text("abc")
    with pytest.raises(ValueError, match=r"text\.txt: character 'c'"):
        answer(Question(run=tmp_path / "ab", steps=1, text=tmp_path / "text.txt"))


# How it is shown

REPORT = Report(
    "2 layers of 4, 9 tokens, batch 1",
    8,
    0.5,
    (
        Timing("float32", 1, "cpu", 1000, 12.34, 1234.5, 50000.0),
        Timing("int8", 1, "cpu", 1000, 3.0, 4.0, 5.0),
        Timing("bfloat16", 1, refusal="no"),
    ),
    (Loss("int8", 2000, 1.51, 1.5, 0.25),),
    Throttling(20, 7, 0.35),
    quota=0.5,
    note="a note",
)


def printed(report):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(report))
    return [line.split() for line in captured.get().splitlines()]


def test_a_table():
    title, heading, *rows = printed(REPORT)
    assert " ".join(title) == "one step of 2 layers of 4, 9 tokens, batch 1"
    assert " ".join(heading) == "weights threads p50 us p99 us maximum us steps bits/character lost"
    assert rows == [
        ["float32", "1", "12.3", "1,234.5", "50,000.0", "1,000", "1.5000"],
        ["int8", "1", "3.0", "4.0", "5.0", "1,000", "1.5100", "+0.0100"],
        ["bfloat16", "1", "-", "-", "-", "-"],
    ]
    better = dataclasses.replace(REPORT.losses[0], bits_per_character=1.49999)
    assert printed(dataclasses.replace(REPORT, losses=(better,)))[3][-1] == "+0.0000"
    assert len(printed(dataclasses.replace(REPORT, losses=()))[1]) == len(heading) - 2


def test_notes():
    assert notes(REPORT) == [
        "8 processors, a quota of 0.5 of the control group",
        "kept to 0.5 processors by stopping the process when they were used up",
        "stopped in 7 of 20 periods of 100 ms, 350 ms in all; a stop in the middle of a step is part of that step",
        "no",
        "int8 on 2,000 tokens: largest difference of a logit 0.25",
        "a note",
    ]
    plain = Report("x", 2, None, (Timing("float32", 1, "portable", 1, 1.0, 1.0, 1.0),), (), None)
    assert notes(plain) == [
        "2 processors, no quota of the control group",
        "in plain torch; where there is a C++ compiler, the native kernel is several times as fast",
    ]


def test_a_report_survives_json():
    assert report_of(json.loads(json.dumps(dataclasses.asdict(REPORT)))) == REPORT
    bare = dataclasses.replace(REPORT, throttling=None)
    assert report_of(json.loads(json.dumps(dataclasses.asdict(bare)))) == bare


# The command


def test_the_command_prints_the_table_and_the_notes(call, run_directory):
    code, out, err = call(run_directory, "--steps", 3, "--threads", 1, "--weights", "float32")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].strip() == "one step of 1 layers of 6, 256 tokens, batch 1"
    assert lines[2].split()[:2] == ["float32", "1"]
    assert lines[3].split()[1] == "processors,"


def test_the_command_prints_json(call):
    code, out, err = call("--shape", "1x2x3x1", "--steps", 3, "--threads", 1, "--json")
    report = report_of(json.loads(out))
    assert (code, err) == (0, "")
    assert [row.weights for row in report.timings] == ["float32", "bfloat16", "int8"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a quota can be tried on Linux alone")
def test_a_quota_is_tried_in_a_process_of_its_own(call, run_directory):
    code, out, _ = call(run_directory, "--steps", 5, "--threads", 1, "--weights", "float32", "--quota", 2.5, "--json")
    report = report_of(json.loads(out))
    assert (code, report.quota) == (0, 2.5)
    assert report.throttling is not None
    (row,) = report.timings
    assert (row.steps, row.threads) == (5, 1)


def test_the_other_process_is_asked_the_same(monkeypatch):
    asked = []

    def run_held(command, cpus):
        asked.append((command, cpus))
        return Held(1, "", Throttling(0, 0, 0.0))

    monkeypatch.setattr(bench, "run_held", run_held)
    question = Question(run="-a run", weights="int8", steps=3, threads=2, text="my text.txt")
    with pytest.raises(ValueError, match="the process that was to keep to the quota failed, for the reason above"):
        answer(question, 0.5)
    [(command, share)] = asked
    assert share == 0.5
    assert command[:4] == [sys.executable, "-m", "unrolled", "bench"]
    monkeypatch.setattr(bench, "answer", lambda *given: asked.append(given) or REPORT)
    main(command[3:])
    same, quota = asked[-1]
    assert quota is None
    assert {name: str(value) for name, value in vars(same).items() if value is not None} == {
        name: str(value) for name, value in vars(question).items() if value is not None
    }


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "name a run, unrolled bench RUN, or a shape, unrolled bench --shape 1x256x512x2"),
        (["run", "--shape", "1x1x1x1"], "name a run, unrolled bench RUN, or a shape"),
        (["--shape", "1x2x3"], 'write a shape as BATCHxINPUTxHIDDENxLAYERS, as in 1x256x512x2; got "1x2x3"'),
        (["--shape", "1x0x3x1"], 'got "1x0x3x1"'),
        (["--shape", "1x1x1x1", "--text", "a.txt"], "--text needs a trained model: unrolled bench RUN --text FILE"),
        (["--shape", "1x1x1x1", "--steps", "0"], "steps=0 must be at least 1"),
        (["--shape", "1x1x1x1", "--threads", "0"], "threads=0 must be at least 1"),
        (["--shape", "1x1x1x1", "--quota", "0"], "quota=0.0 must be above 0"),
        (["nowhere"], "nowhere: there is no such directory"),
        (["RUN", "--text", "nothing.txt"], "nothing.txt: there is no such file"),
        (["RUN", "--text", "one.txt"], "the text is too short: it holds 1 token, and at least 2 are needed"),
    ],
)
def test_what_cannot_be_used_exits_with_1_and_one_sentence(call, tokens, said, tmp_path, monkeypatch, run_directory):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("a")
    code, out, err = call(*(run_directory if token == "RUN" else token for token in tokens))
    assert (code, out) == (1, "")
    assert err.startswith("unrolled: ")
    assert said in err
    assert err.count("\n") == 1


def test_weights_that_were_asked_for_and_cannot_be_run_are_an_error(call, monkeypatch):
    use("portable", monkeypatch)
    code, out, err = call("--shape", "1x1x1x1", "--weights", "int8")
    assert (code, out) == (1, "")
    assert err.startswith('unrolled: weights="int8" needs the native kernel, and there is none: no C++ compiler')
