"""Runs of models whose cells have options, through the command: trained, gone on with, scored, written from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unrolled import load
from unrolled.beginning import begin, fresh, settled
from unrolled.cell_options import DEFAULTS
from unrolled.checkpoint import save_model
from unrolled.cli import main
from unrolled.config import ConfigError, TrainConfig
from unrolled.model import OPTIONS, LanguageModel, ModelConfig
from unrolled.tokens import CharTokenizer

# The value of each option as flags, and as the model that was loaded has it.
FLAGS: dict[str, tuple[list[str], Any]] = {
    "proj_dim": (["--proj-dim", "5"], 5),
    "residual": (["--residual"], True),
    "peephole": (["--peephole"], True),
    "coupled": (["--coupled"], True),
    "gate_activation": (["--gate-activation", "hard_sigmoid"], "hard_sigmoid"),
    "activation": (["--activation", "relu"], "relu"),
    "cell_clip": (["--cell-clip", "0.5"], 0.5),
    "bias": (["--no-bias"], False),
    "forget_bias": (["--forget-bias", "2"], 2.0),
    "recurrent_init": (["--recurrent-init", "orthogonal"], "orthogonal"),
    "layer_norm": (["--layer-norm"], True),
    "learn_initial_state": (["--learn-initial-state"], True),
    "zoneout": (["--zoneout", "0.1,0.2"], [0.1, 0.2]),
    "recurrent_dropout": (["--recurrent-dropout", "0.1"], 0.1),
    "variational_dropout": (["--variational-dropout", "0.1"], 0.1),
    "weight_drop": (["--weight-drop", "0.1"], 0.1),
}


# All of them in few runs; each alone takes the slow suite.
TOGETHER = (
    ("proj_dim", "residual", "peephole", "coupled", "gate_activation", "cell_clip", "learn_initial_state"),
    ("activation", "bias", "recurrent_init", "residual"),
    ("forget_bias", "layer_norm", "zoneout", "recurrent_dropout", "variational_dropout", "weight_drop"),
)


def test_every_option_is_run_here() -> None:
    assert FLAGS.keys() == set(OPTIONS) == {name for names in TOGETHER for name in names}


@pytest.mark.parametrize(
    "names", [*TOGETHER, *(pytest.param((name,), marks=pytest.mark.slow) for name in FLAGS)], ids="+".join
)
def test_a_run_with_it(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    # Two documents, so that resets fall into windows.
    for k in "ab":
        Path(f"{k}.txt").write_text("".join(f"{n}{k}{n % 3} " for n in range(40)))
    flags = [word for name in names for word in FLAGS[name][0]]
    values = {name: FLAGS[name][1] for name in names}
    sizes = ["--hidden", "7", "--embedding", "6", "--lanes", "2", "--window", "8", "--tokens", "char", "--threads", "1"]
    command = ["train", "a.txt", "b.txt", *sizes, "--val", "a.txt", *flags, "--warmup", "0", "--out", "run", "--quiet"]
    main([*command, "--steps", "2"])
    main([*command, "--steps", "3", "--resume"])
    run = load("run")
    assert isinstance(run.training, dict)
    assert run.training["step"] == 3
    described = json.loads((run.directory / "config.json").read_text())
    for found in (described, run.training["config"]):
        assert {key: found[key] for key in OPTIONS if key in found} == values
    layers = [layer.options.keywords() for layer in run.model.lstm.layers]
    assert all(
        {key: layer[key] for key in DEFAULTS if key in values}
        # What is a list in JSON is a tuple in a model.
        == {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in DEFAULTS}
        for layer in layers
    )
    capsys.readouterr()
    main(["eval", "run"])
    assert "model, stateful" in capsys.readouterr().out
    main(["generate", "run", "--max-tokens", "5", "--seed", "1"])
    assert len(capsys.readouterr().out) > 1


def test_a_run_with_other_options_is_another_run(tmp_path: Path) -> None:
    given = TrainConfig(out=str(tmp_path), hidden=7, layers=2)
    plain = settled(given, LanguageModel(ModelConfig(5, 7)), torch.device("cpu"))
    assert all(getattr(plain, name) is None for name in OPTIONS)
    other = settled(given, LanguageModel(ModelConfig(5, 7, peephole=True, proj_dim=3)), torch.device("cpu"))
    assert other.changed_from(plain) == ["proj_dim: 3, the run has None", "peephole: True, the run has None"]


def test_a_model_that_is_trained_on_keeps_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a b c " * 60)
    model = LanguageModel(ModelConfig(4, 7, 2, 6, peephole=True, learn_initial_state=True))
    save_model("earlier", model, CharTokenizer.from_text("abc "))
    fields: dict[str, Any] = {"files": "a.txt", "init_from": "earlier", "split": (1.0,)}
    _, _, found = begin(TrainConfig(**fields, layers=2, peephole=True))
    assert found is not None
    assert found.config == replace(model.config, dropout=0.2)
    assert torch.equal(found.lstm.layers[0].p_i, model.lstm.layers[0].p_i)
    with pytest.raises(ConfigError, match="coupled=True is not what the model in earlier has: False"):
        begin(TrainConfig(**fields, coupled=True))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"activation": "gelu"}, "activation='gelu' is not one of 'tanh', 'relu'"),
        ({"peephole": "yes"}, "peephole must be true or false, got 'yes'"),
        ({"cell_clip": True}, "cell_clip must be a number, got True"),
        ({"cell_clip": -1.0}, "cell_clip=-1.0 must be above 0 and finite, or None: c has no bounds"),
        ({"residual": 1}, "residual must be true or false, got 1"),
        ({"proj_dim": 0}, "proj_dim must be at least 1, got 0"),
        (
            {"forget_bias": 1.0, "coupled": True},
            "forget_bias=1.0 is where b_f starts, and with coupled=True there is none: leave forget_bias out",
        ),
    ],
)
def test_what_a_configuration_refuses(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**fields)
    assert str(error.value) == sentence


def test_forget_gates_are_open_where_there_is_a_bias() -> None:
    def b_f(**options: Any) -> list[float]:
        layer = LanguageModel(ModelConfig(5, 2, 1, 2, **options)).lstm.layers[0]
        return [] if getattr(layer, "b_f", None) is None else layer.b_f.tolist()

    assert b_f() == [1.0, 1.0]
    assert b_f(forget_bias=0.0) == [0.0, 0.0]
    assert b_f(forget_bias=2.0) == [2.0, 2.0]
    assert b_f(coupled=True) == b_f(bias=False) == []
    model = LanguageModel(ModelConfig(5, 2, 1, 2))
    torch.nn.init.zeros_(model.lstm.layers[0].b_f)
    model.reset_parameters()
    assert model.lstm.layers[0].b_f.tolist() == [1.0, 1.0]


def test_a_tied_projection_of_h() -> None:
    config = ModelConfig(5, 7, 2, 3, proj_dim=3, tie_weights=True)
    model = LanguageModel(config)
    assert model.embedding is not None
    assert model.embedding.weight is model.lstm.proj.weight
    with pytest.raises(ValueError, match="embedding=7 must be proj_dim=3"):
        ModelConfig(5, 7, 2, 7, proj_dim=3, tie_weights=True)
    fresh_config = TrainConfig(hidden=7, proj_dim=3, tie_weights=True, layers=2)
    assert fresh(fresh_config, 5).config == ModelConfig(5, 7, 2, 3, dropout=0.2, proj_dim=3, tie_weights=True)
