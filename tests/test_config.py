"""TrainConfig: what it accepts, what it says to the rest, and the way to a TOML file and back."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unrolled.cli import _GROUPS, main
from unrolled.config import FIELDS, ConfigError, TrainConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_a_default_is_a_configuration() -> None:
    assert TrainConfig() == TrainConfig.from_dict(TrainConfig().as_dict())
    assert TrainConfig().resolved(100).steps == 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropout": 1.5}, r"dropout must be at least 0 and below 1, got 1\.5"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1, got 1"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, got nan"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"lr": -0.1}, r"lr must be above 0, got -0\.1"),
        ({"lr": math.inf}, "lr must be above 0, got inf"),
        ({"lr": "fast"}, "lr must be above 0, got 'fast'"),
        ({"lr": True}, "lr must be above 0, got True"),
        ({"lr": None}, "lr must be above 0, got None"),
        ({"ema": 1}, "ema must be at least 0 and below 1, got 1"),
        ({"clip": -1}, r"clip must be 0 \(no clipping\) or more, got -1"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more, got -1"),
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 10.0}, r"steps must be a whole number, got 10\.0"),
        ({"steps": 10, "epochs": 2}, "steps=10 and epochs=2 both say how long to train; give one"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"hidden": "256"}, "hidden must be a whole number, got '256'"),
        ({"lanes": None}, "lanes must be a whole number, got None"),
        ({"lanes": True}, "lanes must be a whole number, got True"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**63}, r"seed must be below 2\*\*63, got 9223372036854775808"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"tokens": "word"}, "tokens must be one of byte, char, bpe, ids, got 'word'"),
        ({"state": "keep"}, "state must be one of carry, reset, got 'keep'"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, bfloat16, got 'float16'"),
        ({"device": ""}, "device must be a name, got ''"),
        ({"out": ""}, "out must be a name, got ''"),
        ({"out": 3}, "out must be a name, got 3"),
        ({"files": 3}, "files must be a list of file names, got 3"),
        ({"files": ["a", 3]}, "files must be a name, got 3"),
        ({"split": "0.9;0.1"}, r"split must be shares such as 0\.9,0\.05,0\.05, got '0\.9;0\.1'"),
        ({"split": 0.9}, "split must be shares"),
        ({"quiet": 1}, "quiet must be true or false, got 1"),
    ],
)
def test_what_it_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**fields)


def test_what_it_makes_of_what_it_accepts() -> None:
    config = TrainConfig(files=[Path("a.txt"), "b.txt"], out=Path("x") / "y", lr=1, split="0.9,0.1")
    assert config.files == ("a.txt", "b.txt")
    assert config.out == str(Path("x") / "y")
    assert isinstance(config.lr, float)
    assert config.split == (0.9, 0.1)
    assert TrainConfig(files="a.txt").files == ("a.txt",)


@pytest.mark.parametrize(
    ("fields", "windows", "steps"),
    [
        ({"steps": 7}, 100, 7),
        ({"epochs": 3}, 100, 300),
        ({"epochs": 0.251}, 100, 26),
        ({"files": "a.txt"}, 100, 2000),
        ({"files": "a.txt"}, 1000, 10_000),
        ({}, 1000, 500),
    ],
)
def test_the_length_of_a_run(fields: dict[str, object], windows: int, steps: int) -> None:
    resolved = TrainConfig(**fields).resolved(windows)
    assert (resolved.steps, resolved.epochs) == (steps, None)
    assert resolved.resolved(windows) == resolved


def test_cadence_and_place_are_worked_out() -> None:
    resolved = TrainConfig(files=("texts/tale.of.txt", "b.txt"), steps=2000).resolved(10)
    assert (resolved.eval_every, resolved.save_every, resolved.out) == (200, 200, str(Path("runs/tale.of")))
    resolved = TrainConfig(steps=3, save_every=2, out="x").resolved(10)
    assert (resolved.eval_every, resolved.save_every, resolved.out) == (1, 2, "x")
    assert TrainConfig(steps=9999).resolved(10).eval_every == 500
    assert TrainConfig().resolved(10).out == str(Path("runs/python-docs"))


def test_what_a_run_can_and_cannot_become() -> None:
    before = TrainConfig(files="a", steps=10, hidden=32, split=(0.9, 0.1)).resolved(5)
    after = dataclasses.replace(before, steps=20, eval_every=3, save_every=4, quiet=True, resume=True, out="elsewhere")
    assert after.changed_from(before) == []
    assert dataclasses.replace(before, hidden=64, split=(0.5, 0.25), threads=2).changed_from(before) == [
        "hidden: 64, the run has 32",
        "threads: 2, the run has None",
        "split: 0.5,0.25, the run has 0.9,0.1",
    ]


CONFIGS = st.builds(
    TrainConfig,
    files=st.lists(TEXT, max_size=3),
    out=st.none() | TEXT,
    device=TEXT,
    val=st.none() | TEXT,
    lr=st.floats(1e-300, 1e300),
    dropout=st.floats(0, 1, exclude_max=True),
    epochs=st.none() | st.floats(1e-9, 1e9),
    seed=st.integers(0, 2**62),
    split=st.lists(st.floats(0, 1), max_size=3),
    quiet=st.booleans(),
    tokens=st.sampled_from(["byte", "char"]),
)


@given(CONFIGS)
def test_to_toml_and_back(tmp_path_factory: pytest.TempPathFactory, config: TrainConfig) -> None:
    path = tmp_path_factory.getbasetemp() / "config.toml"
    config.save(path)
    assert TrainConfig.load(path) == config


def test_odd_strings_to_toml_and_back(tmp_path: Path) -> None:
    odd = 'a "b" \\ c\n\t\r\x00\x1f\x7f\x80 # [é] 𝄞\u2028\ufeff\'\'\'"""'
    config = TrainConfig(files=(odd, "\\", '"'), out=odd)
    config.save(tmp_path / "config.toml")
    assert TrainConfig.load(tmp_path / "config.toml") == config


def test_a_file_name_that_toml_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="files holds a character that can't be written to a TOML file"):
        TrainConfig(files="caf\udce9.txt").save(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden = 3\n", r"c\.toml: hiden is no field of a training configuration; did you mean hidden\?"),
        ("eval-every = 3\n", r"eval-every is no field .* did you mean eval_every\?"),
        ("optimizer = 'adam'\n", r"c\.toml: optimizer must be one of adamw, sgd, got 'adam'"),
        ("accumulate = 65\n", r"accumulate=65 must be at most lanes=64: a lot has a lane"),
        ("colour = 'x'\n", "colour is no field of a training configuration; the fields are files, out, tokens"),
        ("lr = 0\n", r"c\.toml: lr must be above 0, got 0"),
        ("hidden = 2.5\n", r"hidden must be a whole number, got 2\.5"),
        ("lr = 1979-05-27\n", "lr must be above 0, got datetime"),
        ("hidden = \n", r"c\.toml is not TOML: Invalid value"),
        ("\xff", r"c\.toml is not TOML"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        TrainConfig.load(tmp_path / "c.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.toml can't be read: No such file"):
        TrainConfig.load(tmp_path / "c.toml")


def test_a_short_file_has_the_defaults_for_the_rest(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("lr = 1\nfiles = ['a.txt']\n")
    assert TrainConfig.load(tmp_path / "c.toml") == TrainConfig(files="a.txt", lr=1.0)


def test_every_field_says_what_it_is() -> None:
    """The docstring under a field is its help in the command line."""
    import ast
    import inspect

    (tree,) = ast.parse(inspect.getsource(TrainConfig)).body
    assert isinstance(tree, ast.ClassDef)
    fields = [
        (node.target.id, after.value.value)
        for node, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    ]
    assert tuple(name for name, _ in fields) == FIELDS
    assert all(text.endswith(".") and "\n" not in text for _, text in fields)


def test_each_field_is_a_flag_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    names = " ".join(_GROUPS.values()).split()
    assert sorted(names) == sorted(set(FIELDS) - {"files"})
    main(["train", "--help"])
    out = capsys.readouterr().out
    found = [out.index(f" {title} ") for title in _GROUPS]
    assert found == sorted(found)
    assert out.index("--minutes") < out.index(" Steps ") < out.index("--accumulate")
