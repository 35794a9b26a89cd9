import io
import re
import sys
from pathlib import Path

import pytest
import torch

from unrolled.checkpoint import load, save_model
from unrolled.generate import generate
from unrolled.generate_command import Request, write
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer, CharTokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_model(directory, LanguageModel(ModelConfig(256, 6, 1)), ByteTokenizer())
    return str(directory)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    torch.manual_seed(1)
    tokenizer = CharTokenizer("\n abcdef-€")
    model = LanguageModel(ModelConfig(tokenizer.size, 8, 1))
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    directory = tmp_path_factory.mktemp("models") / "words"
    save_model(directory, model, tokenizer)
    return str(directory)


@pytest.fixture
def call(call):
    return lambda *tokens: call("generate", *tokens)


def text(pieces, sample=0):
    return "".join(piece.text for piece in pieces if piece.sample == sample)


def test_every_flag_reaches_the_text(call, words):
    flags = {
        "temperature": 0.9,
        "top_k": 9,
        "top_p": 0.97,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "penalty_window": 20,
        "max_tokens": 40,
        "seed": 3,
    }
    tokens = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code, out, _ = call(words, "--prompt", "a", *tokens)
    assert (code, out) == (0, "a" + text(generate(load(words), "a", **flags)) + "\n")
    for name in (
        "temperature",
        "top_k",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "penalty_window",
    ):
        others = {key: value for key, value in flags.items() if key != name}
        assert text(generate(load(words), "a", **others)) != out[1:-1], f"{name} changes nothing here"


def test_stop_strings_one_flag_each(call, words):
    whole = text(generate(load(words), "a", max_tokens=80))
    ends = [re.escape(stop) for stop in ("ba", "-c", "€")]
    expected = re.split("|".join(ends), whole)[0]
    assert 3 < len(expected) < 80
    _, out, _ = call(words, "--prompt", "a", "--max-tokens", "80", "--stop", "ba", "--stop", "-c", "--stop", "€")
    assert out == f"a{expected}\n"


def test_several_samples_come_one_after_the_other(call, words):
    code, out, _ = call(words, "--prompt", "ab", "--samples", "3", "--max-tokens", "12")
    pieces = list(generate(load(words), "ab", samples=3, max_tokens=12))
    assert code == 0
    assert out == "".join(f"--- {k + 1} of 3\nab{text(pieces, k)}\n" for k in range(3))


def test_log_probabilities_stand_in_a_line_for_each_token(call, words):
    _, out, _ = call(words, "--prompt", "a", "--max-tokens", "5", "--logprobs", "2")
    pieces = list(generate(load(words), "a", max_tokens=5, logprobs=2))
    assert out.splitlines() == [
        "  ".join(
            [f"{piece.text!r} {piece.logprob:.4f}"]
            + [f"{load(words).tokenizer.decode([token])!r} {value:.4f}" for token, value in piece.top[0].items()]
        )
        for piece in pieces
    ]
    _, out, _ = call(words, "--prompt", "a", "--max-tokens", "5", "--logprobs", "0")
    assert out.splitlines() == [f"{piece.text!r} {piece.logprob:.4f}" for piece in pieces]


def test_a_part_of_a_character_is_shown_as_its_id(call, directory):
    _, out, _ = call(directory, "--max-tokens", "40", "--logprobs", "0")
    pieces = list(generate(load(directory), max_tokens=40))
    tokens = [token for piece in pieces for token in piece.ids]
    shown = [line.split(" ")[0] for line in out.splitlines()]
    assert len(shown) == 40
    assert [f"#{token}" for token in tokens if token >= 128] == [word for word in shown if word.startswith("#")]


def test_a_prompt_from_a_file_or_from_standard_input(call, words, tmp_path, monkeypatch):
    (tmp_path / "prompt").write_text("abc€", encoding="utf-8")
    expected = text(generate(load(words), "abc€", max_tokens=20)) + "\n"
    assert call(words, "--prompt-file", str(tmp_path / "prompt"), "--max-tokens", "20")[1] == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("abc€".encode())))
    assert call(words, "--prompt-file", "-", "--max-tokens", "20")[1] == expected


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_two_commands_write_the_text_of_one(call, directory, tmp_path, temperature):
    state = str(tmp_path / "state")
    same = ["--temperature", temperature, "--frequency-penalty", "0.2"]
    _, whole, _ = call(directory, "--prompt", "né", "--max-tokens", "60", "--seed", "2", *same)
    _, first, _ = call(directory, "--prompt", "né", "--max-tokens", "23", "--seed", "2", "--save-state", state, *same)
    _, second, _ = call(directory, "--max-tokens", "17", "--from-state", state, "--save-state", state, *same)
    _, third, _ = call(directory, "--max-tokens", "20", "--from-state", state, *same)
    assert first[:-1] + second[:-1] + third == whole


def test_a_prompt_behind_a_saved_state_and_another_seed(call, words, tmp_path):
    state = str(tmp_path / "state")
    call(words, "--prompt", "ab", "--max-tokens", "9", "--save-state", state)
    code, out, _ = call(words, "--from-state", state, "--prompt", "cd", "--max-tokens", "5")
    assert (code, out[:2]) == (0, "cd")
    once, again, other = (
        call(words, "--from-state", state, "--max-tokens", "30", "--seed", seed)[1] for seed in ("1", "1", "2")
    )
    assert once == again != other


def test_ctrl_c_saves_the_state_behind_what_was_printed(words, tmp_path):
    state, said = tmp_path / "state", []

    def say(piece, end):
        said.append(piece)
        if len(said) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(Path(words), Request(max_tokens=10_000, prompt="a", save_state=state), say)
    rest = []
    write(Path(words), Request(max_tokens=12, from_state=state), lambda piece, end: rest.append(piece))
    assert "".join(said + rest) == "a" + text(generate(load(words), "a", max_tokens=20))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file both say what to continue; give one"),
        (["--save-state", "s", "--samples", "2"], "--save-state keeps the place in one text, and --samples is 2"),
        (["--from-state", "gone"], "gone: there is no such file"),
        (["--prompt-file", "gone"], "gone"),
        (["--stop", ""], "a stop string can't be empty"),
        (["--min-p", "2"], "min_p=2.0 must be from 0"),
        (["--samples", "0"], "samples=0 must be 1 or more"),
        (["--logprobs", "-1"], "logprobs=-1 must be 0 or more"),
        (["--repetition-penalty", "0"], "repetition_penalty=0.0 must be a positive number"),
    ],
)
def test_what_does_not_go_together_exits_with_1_and_one_sentence(call, words, tmp_path, monkeypatch, tokens, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(words, *tokens)
    assert (code, out) == (1, "")
    assert err.startswith("unrolled: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_state_of_another_model_is_refused(call, words, directory, tmp_path):
    state = str(tmp_path / "state")
    call(directory, "--max-tokens", "3", "--save-state", state)
    code, out, err = call(words, "--from-state", state)
    assert (code, out) == (1, "")
    assert "belongs to another model" in err
