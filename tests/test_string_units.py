import importlib.util
from pathlib import Path

import pytest
import torch

from unrolled import ByteTokenizer, LanguageModel, ModelConfig, inspect

SCRIPT = Path(__file__).parents[1] / "docs/string_units.py"


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("string_units", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_inside_a_string(experiment):
    text = "a = 'b' + rb\"c\\\"d\"  # 'no'\n'''e\nf'''\n"
    inside = "".join("x" if each else "." for each in experiment.inside_strings(text))
    assert [text[k] for k in range(len(text)) if inside[k] == "x"] == list("'b" + '"c\\"d' + "'''e\nf''")


def test_f_strings_are_inside_as_a_whole(experiment):
    text = 'f"a{b}c" + x'
    assert experiment.inside_strings(text).tolist() == [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]


def test_every_source_is_there_and_is_read(experiment):
    assert len(set(experiment.LEARNED)) == 65
    assert not set(experiment.LEARNED) & set(experiment.INSPECTED)
    split, features = experiment.part(*experiment.read(experiment.INSPECTED), 5000)
    assert [each.name for each in features] == ["string", "column", "indent"]
    assert all(len(each.kinds) == len(split) == 5000 for each in features)
    assert 0.1 < features[0].kinds.mean() < 0.9


def test_the_table_of_a_model(experiment):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(256, hidden=4, layers=2, embedding=3))
    split, features = experiment.part(*experiment.read(experiment.INSPECTED), 2000)
    lines = experiment.tables(inspect(model, split, ByteTokenizer(), features=features))
    assert lines[0].startswith("2,000 characters, ")
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| string", "| column", "| indent"]
