"""The command line on a run with several models: which is kept, which is taken, what is said of a damaged one."""

from pathlib import Path

import pytest
import torch

TINY = ["--hidden", "8", "--layers", "1", "--lanes", "2", "--window", "16", "--threads", "1", "--tokens", "char"]


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Path("tale.txt").write_text("and then the other one said yes, why not, go on. " * 60)
    return "tale.txt"


def damage(directory):
    path = Path(directory) / "weights.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 255]))


def test_keep_and_the_best_model(call, text_file):
    steps = ["--steps", "12", "--save-every", "2", "--eval-every", "4", "--keep", "2", "--out", "run", "--quiet"]
    assert call("train", text_file, *TINY, *steps)[0] == 0
    best = Path("run/best").read_text().strip()
    assert {path.name for path in Path("run").glob("step-*")} == {"step-00000010", "step-00000012", best}
    assert call("info", "run/best")[1].splitlines()[0] == str(Path("run") / best)
    assert call("generate", "run/best", "--max-tokens", "9") == call("generate", f"run/{best}", "--max-tokens", "9")
    assert call("eval", "run/best", text_file) == call("eval", f"run/{best}", text_file)


def test_a_damaged_newest_model_is_told_and_the_older_one_taken(call, text_file):
    steps = ["--steps", "4", "--save-every", "2", "--eval-every", "4", "--out", "run", "--quiet"]
    assert call("train", text_file, *TINY, *steps)[0] == 0
    damage("run/step-00000004")
    for command in (["info"], ["eval", "--json"], ["generate", "--max-tokens", "9"]):
        code, out, err = call(command[0], "run", *command[1:])
        assert code == 0
        assert err.startswith("unrolled: run: step-00000002 is taken in place of the newest model: ")
        assert str(Path("run/step-00000004/weights.safetensors")) in err
        assert err.count("\n") == 1
        assert out == call(command[0], "run/step-00000002", *command[1:])[1]


def test_threads_of_eval_and_generate(call, text_file, monkeypatch):
    assert call("train", text_file, *TINY, "--steps", "1", "--out", "run", "--quiet")[0] == 0
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    before = torch.get_num_threads()
    assert call("generate", "run", "--max-tokens", "3", "--threads", "2")[0] == 0
    assert call("eval", "run", text_file, "--threads", "3")[0] == 0
    assert seen == [2, before, 3, before]
    code, _, err = call("generate", "run", "--threads", "0")
    assert (code, err) == (1, "unrolled: threads must be at least 1, got 0\n")
