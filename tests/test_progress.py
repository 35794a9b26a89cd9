import io
import math
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unrolled import progress
from unrolled.config import TrainConfig
from unrolled.corpus import read_corpus
from unrolled.evaluate import Score
from unrolled.progress import invocation, look_inside, run
from unrolled.train import Finished, StepDone, Trainer

TEXT = 'It said "no". Then, after a while and with some hesitation, the other one said “yes, why not”. ' * 30


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # on models this small two threads mostly wait for each other


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def trainer(text=TEXT, **fields):
        Path("text.txt").write_text(text, encoding="utf-8")
        sizes = {"hidden": 8, "layers": 2, "lanes": 2, "window": 16, "steps": 4, "threads": 1, "out": "run"}
        return Trainer(TrainConfig(files=("text.txt",), **{**sizes, **fields}))

    return trainer


def console(**options):
    return Console(file=io.StringIO(), highlight=False, **{"width": 80, "_environ": {}, **options})


def screen(trainer, to):
    return progress._Screen(to, trainer, lambda: None)


def step(number, steps=100, loss=1.0, bits=1.7):
    return StepDone(number, steps, 0.5, loss, bits, 0.1, 0.01, 12345.6, 83.2)


# Lines


def test_elsewhere_than_on_a_terminal_lines_come_seconds_apart(trainer, monkeypatch):
    to, clock = console(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = screen(trainer(), to)
    for number in range(1, 101):
        shown.show(step(number))
        clock[0] += 0.5
    lines = to.file.getvalue().splitlines()
    assert [int(re.match(r"step (\d+)/100", line)[1]) for line in lines] == [*range(1, 101, 10), 100]
    assert lines[0] == "step 1/100  loss 1.000  1.700 bits/byte  12,346 tokens/s  1:23 left"


def test_characters_have_bits_of_their_own(trainer):
    to = console()
    screen(trainer(tokens="char"), to).show(step(1, loss=2.0))
    assert f"loss 2.000  {2 / math.log(2):.3f} bits/char" in to.file.getvalue()


def test_a_run_without_a_terminal_tells_its_story_in_plain_lines(trainer):
    to = console()
    run(trainer(eval_every=2), to)
    text = to.file.getvalue()
    assert "\x1b" not in text
    order = ["run: ", "4 steps of 2 x 16 tokens", "step 1/4", "step 2, validation ", "step 4/4", "step 4, validation "]
    order += [
        "layers[1], unit ",
        "4 steps, the model is in run",
        "stateful ",
        "blocks ",
        "Next:",
        "generate run --prompt",
    ]
    found = [text.find(part) for part in order]
    assert min(found) >= 0
    assert found == sorted(found)


def test_on_a_terminal_one_line_changes_and_samples_go_above_it(trainer, monkeypatch):
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.0)
    to = console(force_terminal=True, color_system="truecolor", width=120)
    run(trainer(eval_every=2), to)
    text = to.file.getvalue()
    for number in range(1, 5):
        assert re.search(rf"\r\x1b\[2K.*step {number}/4  loss ", text)
    assert "━" in text
    assert text.index("a sample:") < text.index("step 3/4")
    assert "\x1b[48;2;" in text or ";48;2;" in text  # the gates in colours
    narrow = console(force_terminal=True, color_system="truecolor", width=60)
    run(trainer(out="other"), narrow)
    assert "━" not in narrow.file.getvalue()


def test_a_live_line_never_wraps(trainer):
    to = console(force_terminal=True, width=30)
    with screen(trainer(), to) as shown:
        shown.show(step(99999, steps=1000000))
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", to.file.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 30


def test_quiet_says_the_result_alone(trainer):
    to = console(force_terminal=True)
    run(trainer(quiet=True), to)
    assert "sample" not in to.file.getvalue()
    assert "Next" not in to.file.getvalue()
    assert to.file.getvalue().splitlines()[0] == "4 steps, the model is in run"


def test_samples_cannot_steer_the_terminal():
    assert progress._harmless("a\x1b[2Jb\tc\r\n\x9bd") == "a·[2Jb\tc·\n·d"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (83, "1:23"), (3723, "1:02:03")])
def test_the_clock(seconds, shown):
    assert progress._clock(seconds) == shown


# The look inside


def test_it_looks_at_a_whole_sentence_with_what_precedes_it_read(trainer):
    one = trainer(split=(1.0,))
    inside = look_inside(one)
    sentence = "Then, after a while and with some hesitation, the other one said “yes, why not”."
    assert "".join(column.text for column in inside.columns) == sentence
    begin = len('It said "no". ')
    ids = torch.tensor(one.corpus.train.ids[: begin + len(sentence.encode())].astype("int64"))[None]
    with torch.no_grad():
        whole = one.averaged.trace(ids)
    assert inside.columns[0].f == pytest.approx(whole.layers[1].f[0, begin, inside.unit].item(), rel=1e-5)
    assert inside.columns[-1].f == pytest.approx(whole.layers[1].f[0, -1, inside.unit].item(), rel=1e-5)


@pytest.mark.parametrize("text", ["no sentence here " * 100, "é" * 1000])
def test_without_a_sentence_it_looks_at_the_beginning(trainer, text):
    inside = look_inside(trainer(text, split=(1.0,)))
    assert "".join(column.text for column in inside.columns) == text[:120]


def test_it_leaves_the_model_as_it_was(trainer):
    one = trainer(ema=0.0, split=(1.0,))
    assert one.averaged is one.model
    look_inside(one)
    assert all(module.training for module in one.model.modules())


def test_a_text_of_a_few_tokens_is_shown_whole(trainer):
    corpus = read_corpus(Path(__file__), split=(0.999, 0.0005, 0.0005))
    one = Trainer(TrainConfig(hidden=4, layers=1, lanes=2, window=16, steps=1, threads=1), corpus)
    shown = "".join(column.text for column in look_inside(one).columns)
    assert shown == one.corpus.tokenizer.decode(one.corpus.val.ids)


# The end


def test_an_interrupted_run_says_how_to_go_on(trainer, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["not the program"])
    one, to = trainer(), console()
    shown = progress._Screen(to, one, lambda: 2)
    shown.show(step(2))
    shown.show(step(3))
    shown.show(Finished(3, 100, 0, Path("a run"), True, None))
    first, *_, stopped, command = to.file.getvalue().splitlines()
    assert first.startswith("stopping: ")
    assert to.file.getvalue().count("stopping: ") == 1
    assert stopped == "Stopped at step 3 of 100, saved. To go on:"
    assert command.endswith(f"-m unrolled train --config '{Path('a run/config.toml')}'")


def test_an_early_end_says_so_and_which_step_was_best(trainer):
    one, to = trainer(patience=2), console(width=200)
    best = Score(1.5, 2.25, 4.48, 1000)
    screen(one, to).show(Finished(30, 100, 0, Path("run"), False, None, best=best, best_step=10, early=True))
    text = to.file.getvalue()
    assert "ended early, at step 30 of 100: 2 scores in a row were no better; go on with a larger --patience\n" in text
    assert f"the best score was that of step 10, 2.250 bits/byte; its model is {Path('run/best')}\n" in text
    last = console(width=200)
    screen(one, last).show(Finished(30, 30, 0, Path("run"), False, None, best=best, best_step=30))
    assert "early" not in last.file.getvalue()
    assert "best" not in last.file.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_its_own_code(trainer, number):
    one, to = trainer(steps=1000), console()
    steps = one._learner.step

    def step(count):
        if count == 3:
            signal.raise_signal(number)
        return steps(count)

    one._learner.step = step
    assert run(one, to) == 128 + number
    assert "stopping: this step is saved first" in to.file.getvalue()
    assert "Stopped at step 4 of 1000, saved." in to.file.getvalue()


# The command that starts it again


def started_as(monkeypatch, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(path)])


def test_the_plain_name_where_it_is_found(tmp_path, monkeypatch):
    started_as(monkeypatch, tmp_path / "bin/unrolled")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert invocation() == ["unrolled"]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_path_where_the_name_finds_nothing_or_another(tmp_path, monkeypatch, elsewhere):
    if elsewhere:
        started_as(monkeypatch, tmp_path / "other/unrolled")
    started_as(monkeypatch, tmp_path / ".venv/bin/unrolled")
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    assert invocation() == [str(Path(".venv/bin/unrolled"))]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert invocation() == [str(tmp_path / ".venv/bin/unrolled")]


def test_the_module_where_there_is_no_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/unrolled/__main__.py"])
    assert invocation()[1:] == ["-m", "unrolled"]
    assert Path(invocation()[0]).resolve() == Path(sys.executable).resolve()
