"""The command that serves the live page: what it prints, what it refuses, how it ends."""

import contextlib
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import torch

from unrolled import CharTokenizer, LanguageModel, ModelConfig, save_model
from unrolled.cli import main

# A shell starts what runs in the background with SIGINT ignored, and that is inherited.
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from unrolled.cli import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("live") / "model"
    save_model(directory, LanguageModel(ModelConfig(4, hidden=3, layers=1, embedding=0)), CharTokenizer("ab c"))
    return directory


def test_it_serves_until_it_is_interrupted(model):
    command = [sys.executable, "-c", HEARD, "inspect", str(model), "--live", "--text", "ab c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline() + process.stdout.readline()
            address = re.fullmatch(r"live at (http://127\.0\.0\.1:\d+/)(\?secret=\S+)\nCtrl-C ends it\.\n", said)
            with urllib.request.urlopen(address[1] + address[2], timeout=60) as answer:
                assert "<title>model, live</title>" in answer.read().decode()
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(address[1], timeout=60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "\nended\n", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--live", "--page", "p.html"), "--live takes --text, --seed, --threads and --port alone; leave --page out"),
        (("--live", "--json"), "--live takes --text, --seed, --threads and --port alone; leave --json out"),
        (("--port", "8000"), "--port is that of the live page; ask for one, too: --live"),
        (("--live", "--port", "65536"), "--port 65536 must be from 0 (a free one) to 65535"),
    ],
)
def test_what_is_not_live_is_refused(model, capsys, flags, message):
    with pytest.raises(SystemExit, match="1"):
        main(["inspect", str(model), *flags])
    assert capsys.readouterr() == ("", f"unrolled: {message}\n")


def test_a_text_that_cannot_be_read_is_one_sentence(model, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["inspect", str(model), "--live", "--text", "xyz"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unrolled: ")
    assert "'x'" in err


@pytest.mark.parametrize(("flags", "expected"), [((), 1), (("--threads", "2"), 2)])
def test_it_runs_on_one_thread_unless_others_are_asked_for(model, monkeypatch, flags, expected):
    seen = []
    monkeypatch.setattr("unrolled.live_command.serve", lambda *_, **__: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    with contextlib.suppress(SystemExit):
        main(["inspect", str(model), "--live", *flags])
    assert (seen, torch.get_num_threads()) == ([expected], before)
