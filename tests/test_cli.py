import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import unrolled
from unrolled import progress
from unrolled.checkpoint import load, save_model
from unrolled.cli import BROKEN_PIPE, main
from unrolled.config import TrainConfig
from unrolled.corpus import read_corpus
from unrolled.evaluate import Counts, evaluate
from unrolled.generate import generate
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer, CharTokenizer

TEXT = 'It said "no". Then, after a while and with some hesitation, the other one said "yes, why not, go on". ' * 30
TINY = ["--hidden", "8", "--layers", "1", "--lanes", "2", "--window", "16", "--threads", "1", "--tokens", "char"]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(directory, LanguageModel(ModelConfig(256, 6, 1)), ByteTokenizer())
    return str(directory)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # on models this small two threads mostly wait for each other


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("some text.txt").write_text(TEXT)
    return "some text.txt"


@pytest.fixture
def configured(monkeypatch, call):
    """What `train` would run, without running it."""

    def configured(*tokens):
        seen = []
        monkeypatch.setattr(progress, "run", lambda trainer, console: seen.append(trainer))
        code, _, err = call("train", *tokens)
        assert (code, err) == (0, "")
        return seen[0].config

    return configured


def program(*tokens, **options):
    """The command line in a process of its own."""
    here = str(Path(unrolled.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": here, "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
    command = [sys.executable, "-m", "unrolled", *tokens]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


# The front


def test_help_names_every_command(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in ("train", "eval", "generate", "info", "--version"))
    assert call()[1] == out


def test_version(call):
    assert call("--version") == (0, f"{unrolled.__version__}\n", "")


def test_help_does_without_torch():
    script = (
        "import sys\n"
        "from unrolled.cli import main\n"
        "for tokens in (['--help'], ['train', '--help'], ['eval', '--help'], ['generate', '--help']):\n"
        "    main(tokens)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["trian"], r'Unknown command "trian"\. Did you mean "train"\?'),
        (["train", "--layres", "2"], r"Unknown option: --layres\. Did you mean --layers\?"),
        (["generate", "RUN", "--promt", "a"], r"Unknown option: --promt\. Did you mean --prompt\?"),
        (["train", "--layers", "two"], r'Invalid value for --layers: unable to convert "two" into int'),
        (["train", "--split", "0.9,x"], r"Invalid value for --split: write shares with commas between them.*0\.9,x"),
        (["train", "--tokens", "word"], r'Invalid value "word" for --tokens\. Choose from: "byte", "char", "bpe"'),
        (["eval"], r'Command "eval" parameter RUN requires an argument'),
    ],
)
def test_usage_errors_exit_with_2_and_a_suggestion(call, tokens, said):
    code, out, err = call(*tokens)
    assert (code, out) == (2, "")
    assert re.match("unrolled: .*" + said, " ".join(err.split()))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["info", "nowhere"], "nowhere: there is no such directory; unrolled train makes one"),
        (["generate", "nowhere"], "nowhere: there is no such directory"),
        (["eval", "RUN", "nothing.txt"], "nothing.txt: there is no such file"),
        (["eval", "RUN", "empty.txt"], "empty.txt is empty"),
        (["eval", "RUN"], "tiny does not say what it was trained on; name a text to score: unrolled eval "),
        (
            ["eval", "RUN", "--dynamic-lr", "1"],
            "settings of dynamic evaluation, which was not asked for: add --dynamic",
        ),
        (["generate", "RUN", "--temperature", "-1"], "temperature=-1.0 must be 0"),
        (["generate", "RUN", "--top-p", "0"], "top_p=0.0 must be above 0"),
        (["train", "nothing.txt"], "nothing.txt: there is no such file"),
        (["train", "--lr", "0"], "lr must be above 0, got 0.0"),
        (["train", "--steps", "2", "--minutes", "1"], "--steps and --minutes both say how long to train; give one"),
        (["train", "--steps", "2", "--epochs", "1"], "steps=2 and epochs=1 both say how long"),
        (["train", "some text.txt", "--lanes", "9999"], "9999"),
        (["train", "--config", "nothing.toml"], "nothing.toml can't be read: No such file"),
        (["train", "--config", "bad.toml"], "bad.toml: layrs is no field of a training configuration; did you mean"),
        (
            ["train", "some text.txt", "--lanes", "4", "--out", "some text.txt"],
            "is a file; name a directory with --out",
        ),
    ],
)
def test_what_cannot_be_used_exits_with_1_and_one_sentence(call, text_file, model_directory, tokens, said):
    Path("empty.txt").touch()
    Path("bad.toml").write_text("layrs = 3\n")
    code, out, err = call(*(model_directory if token == "RUN" else token for token in tokens))
    assert (code, out) == (1, "")
    assert err.startswith("unrolled: ")
    assert said in err
    assert err.count("\n") == 1


def test_ctrl_c_anywhere_else_exits_with_130(call, monkeypatch, text_file):
    def interrupted(trainer, console):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "run", interrupted)
    assert call("train", text_file, *TINY)[0] == 130


# eval


def test_eval_json_is_a_line_for_each_text(call, text_file, model_directory):
    Path("[draft].txt").write_text(TEXT[:500])
    code, out, err = call("eval", model_directory, text_file, "[draft].txt", "--train", text_file, "--json")
    assert (code, err) == (0, "")
    run = load(model_directory)
    counts = Counts.of(read_corpus(text_file, split=(1.0,)).train, run.tokenizer)
    for line, file in zip(out.splitlines(), (text_file, "[draft].txt"), strict=True):
        text = read_corpus(file, split=(1.0,)).train
        expected = asdict(evaluate(run.model, text, run.tokenizer, counts=counts))
        assert json.loads(line) == {"text": file, **expected, "notes": []}


def test_eval_prints_all_scores_and_says_why_there_are_no_bars(call, text_file, model_directory):
    code, out, _ = call("eval", model_directory, text_file)
    scores = json.loads(call("eval", model_directory, text_file, "--json")[1])
    assert code == 0
    name, heading, stateful, blocks, _, why = out.splitlines()
    assert name == text_file
    assert heading.split() == ["nats", "bits", "per", "byte", "perplexity", "tokens"]
    for line, name in ((stateful, "stateful"), (blocks, "blocks")):
        row = scores[name]
        assert line.split() == [
            "model,",
            name,
            f"{row['nats']:.4f}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['perplexity']:.4g}",
            f"{len(TEXT) - 1:,}",
        ]
    assert re.match("no n-grams to compare with: .* --train FILE names the training text", why)
    assert scores["bars"] is None


def test_eval_reads_with_the_models_own_tokenizer(call, text_file, tmp_path):
    tokenizer = CharTokenizer.from_text(TEXT)
    save_model(tmp_path / "chars", LanguageModel(ModelConfig(tokenizer.size, 4, 1)), tokenizer)
    assert json.loads(call("eval", "chars", text_file, "--json")[1])["blocks"]["tokens"] == len(TEXT) - 1
    Path("other.txt").write_text("Über")
    code, _, err = call("eval", "chars", "other.txt")
    assert code == 1
    assert err.startswith("unrolled: other.txt: character 'Ü'")


# generate


def test_generate_prints_the_prompt_the_text_and_a_newline(call, model_directory):
    code, out, err = call("generate", model_directory, "--prompt", "- a", "--max-tokens", "30", "--seed", "5")
    pieces = generate(load(model_directory), "- a", max_tokens=30, seed=5)
    assert (code, err) == (0, "")
    assert out == "- a" + "".join(piece.text for piece in pieces) + "\n"


def test_generate_hands_its_flags_on(call, model_directory):
    flags = {"temperature": 0.3, "top_k": 9, "top_p": 0.7, "max_tokens": 25, "seed": 3}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    _, out, _ = call("generate", model_directory, *words)
    assert out == "".join(piece.text for piece in generate(load(model_directory), **flags)) + "\n"


def test_a_terminal_that_cannot_show_a_character_is_no_reason_to_stop(model_directory, monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    main(["generate", model_directory, "--prompt", "né", "--max-tokens", "0"])
    assert written.buffer.getvalue() == b"n?\n"


def test_a_reader_that_goes_away_ends_it_quietly(model_directory):
    with program("generate", model_directory, "--prompt", "0123456789", "--max-tokens", "20000") as process:
        assert process.stdout.read(10) == "0123456789"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == BROKEN_PIPE


# info


def test_info_shows_sizes_files_and_training(call, text_file):
    assert call("train", text_file, *TINY, "--steps", "3", "--out", "run", "--quiet")[0] == 0
    code, out, _ = call("info", "run")
    run = load("run")
    assert code == 0
    assert str(run.directory) in out
    words = [line.split(None, 1) for line in out.splitlines() if line]
    assert ["hidden", "8"] in words
    assert ["parameters", f"{sum(p.numel() for p in run.model.parameters()):,}"] in words
    assert ["step", "3"] in words
    assert ["window", "16"] in words
    assert ["nats", str(run.training["score"]["nats"])] in words
    manifest = json.loads((run.directory / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert [name, f"{entry['sha256']}  {entry['bytes']:,} bytes"] in words


def test_info_finds_a_damaged_file(call, model_directory, tmp_path):
    damaged = tmp_path / "damaged"
    save_model(damaged, LanguageModel(ModelConfig(256, 4, 1)), ByteTokenizer())
    with open(damaged / "weights.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    code, out, err = call("info", str(damaged))
    assert (code, out) == (1, "")
    assert re.match(r"unrolled: .*weights.safetensors is not what was saved", err)


# The flags of train


def test_every_field_of_the_configuration_is_a_flag(call):
    help_text = call("train", "--help")[1]
    flags = set(re.findall(r"--([a-z-]+)", help_text))
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)}
    # A layer has biases unless it is told otherwise; every other switch is off.
    assert flags == fields - {"files"} | {"config", "no-bias"}


def test_no_flags_are_the_defaults(configured, text_file):
    assert configured(text_file, "--lanes", "4") == dataclasses.replace(
        TrainConfig(files=(text_file,), lanes=4, layers=2, hidden=256, embedding=64, tie_weights=False).resolved(
            len(TEXT) * 9 // 10 // 4 // 64
        ),
        device=configured(text_file, "--lanes", "4").device,
        tokens="byte",
    )


def test_flags_come_before_the_file_and_the_file_before_the_defaults(configured, text_file):
    Path("mine.toml").write_text(
        'hidden = 7\nlayers = 3\nlr = 0.5\nsplit = [0.8, 0.1]\nfiles = ["some text.txt"]\nlanes = 4\ntokens = "char"\n'
    )
    config = configured("--config", "mine.toml", "--layers", "1", "--tokens", "byte")
    assert (config.layers, config.tokens) == (1, "byte")
    assert (config.hidden, config.lr, config.split, config.lanes) == (7, 0.5, (0.8, 0.1), 4)
    assert (config.dropout, config.window) == (TrainConfig().dropout, TrainConfig().window)
    assert config.files == ("some text.txt",)
    Path("other.txt").write_text(TEXT)
    assert configured("other.txt", "--config", "mine.toml").files == ("other.txt",)


def test_the_configuration_of_a_run_can_be_passed_back(configured, text_file):
    config = configured(text_file, *TINY, "--out", "a run", "--split", "0.9,0.1", "--state", "reset")
    config.save("saved.toml")
    assert configured("--config", "saved.toml") == config


def test_a_length_by_flag_takes_the_place_of_the_files(configured, text_file):
    Path("mine.toml").write_text("steps = 5\nlanes = 4\n")
    per_epoch = len(TEXT) * 9 // 10 // 4 // 64
    assert configured(text_file, "--config", "mine.toml").steps == 5
    assert configured(text_file, "--config", "mine.toml", "--epochs", "2").steps == 2 * per_epoch
    Path("mine.toml").write_text("epochs = 3\nlanes = 4\n")
    assert configured(text_file, "--config", "mine.toml", "--steps", "8").steps == 8


def test_split_is_one_list_with_commas(configured, text_file):
    assert configured(text_file, *TINY, "--split", "0.9,0.1").split == (0.9, 0.1)
    assert configured(text_file, *TINY, "--split=1").split == (1.0,)


def test_without_a_file_it_is_the_text_that_python_brings(configured):
    config = configured()
    assert config.files == ()
    assert config.out == str(Path("runs/python-docs"))


# A run of train


def commands(text):
    """The command lines that were printed, without the program's own words."""
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("  ") and "-m unrolled " in line]
    return [line[line.index("unrolled") + 1 :] for line in lines]


def test_the_commands_that_it_ends_with_work(call, text_file):
    code, out, err = call("train", text_file, *TINY, "--steps", "6", "--eval-every", "3")
    assert (code, err) == (0, "")
    printed = commands(out)
    assert [words[0] for words in printed] == ["generate", "eval", "info", "train"]
    for words in printed:
        code, said, err = call(*words)
        assert (code, err) == (0, ""), words
        assert said
    assert load("runs/some text").training["step"] == 12


def test_training_on_needs_no_more_than_the_same_command(call, text_file):
    assert call("train", text_file, *TINY, "--steps", "3")[0] == 0
    code, out, _ = call("train", text_file, *TINY, "--steps", "5")
    assert code == 0
    assert "going on from step 3" in out


def test_quiet_prints_the_result_alone(call, text_file):
    code, out, err = call("train", text_file, *TINY, "--steps", "3", "--quiet")
    assert (code, err) == (0, "")
    first, heading, *scores = out.splitlines()
    assert first == f"3 steps, the model is in {Path('runs/some text')}"
    assert heading.split()[0] == "nats"
    assert [line[:16].strip() for line in scores[:4]] == ["model, stateful", "model, blocks", "unigram", "5-gram"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process alone")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_command_that_is_printed_goes_on(text_file, call, number):
    process = program("train", text_file, *TINY, "--steps", "1000000", "--eval-every", "1000000", "--out", "a run")
    read = ""
    while not read.startswith("step 1/"):
        read = process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    stopped = int(re.search(r"Stopped at step (\d+) of 1000000, saved. To go on:", out)[1])
    assert load("a run").training["step"] == stopped
    (words,) = commands(out)
    assert words == ["train", "--config", str(Path("a run/config.toml"))]
    code, out, err = call(*words, "--steps", str(stopped + 2))
    assert (code, err) == (0, "")
    assert f"going on from step {stopped}" in out
    assert load("a run").training["step"] == stopped + 2
