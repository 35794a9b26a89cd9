import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawing():
    spec = importlib.util.spec_from_file_location("draw_flow", DOCS / "draw_flow.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed():
    return (DOCS / "flow.svg").read_text(encoding="utf-8")


def shown(committed):
    """The numbers of each vector in the picture, by its name."""
    root = ElementTree.fromstring(committed)
    groups = [each for each in root.iter(f"{SVG}g") if "id" in each.attrib]
    return {each.attrib["id"]: [text.text for text in each.iter(f"{SVG}text")] for each in groups}


def written(values, kept=None):
    kept = torch.ones_like(values, dtype=torch.bool) if kept is None else kept
    return [f"{value:.2f}" if here else "0" for value, here in zip(values.tolist(), kept.tolist(), strict=True)]


def test_the_picture_is_what_the_script_draws(drawing, committed):
    assert drawing.picture() == committed


def test_its_numbers_are_those_of_the_model(drawing, committed):
    """Layer by layer, with the masks that were drawn and the state of the call before, as the page has it."""
    found, model, made = shown(committed), drawing.model(), drawing.calls()
    h, c = torch.zeros(2, 1, 3).double(), torch.zeros(2, 1, 3).double()
    for k in range(2):
        assert found[f"before-layer{k}-h"] == found[f"before-layer{k}-c"] == ["0.00"] * 3
    for number, x in enumerate(drawing.inputs()):
        sequence, lasts = x[None], []
        for k, layer in enumerate(model.layers):
            hs, cs = layer(sequence, h[k], c[k])
            kept = made[number].kept[k]
            sequence = torch.where(kept, hs / (1 - drawing.RATE), 0.0)
            lasts.append((hs[:, -1], cs[:, -1]))
            for t in range(3):
                place = f"call{number}-step{t}"
                assert found[f"{place}-layer{k}-h"] == written(hs[0, t])
                assert found[f"{place}-layer{k}-c"] == written(cs[0, t])
                assert found[f"{place}-dropped{k}"] == written(sequence[0, t], kept[t])
        h, c = (torch.stack(each) for each in zip(*lasts, strict=True))
        logits = sequence @ model.proj.weight.T + model.proj.bias
        for t in range(3):
            assert found[f"call{number}-step{t}-x"] == written(x[t])
            assert found[f"call{number}-step{t}-logits"] == written(logits[0, t])
        for k in range(2):
            assert found[f"after{number}-layer{k}-h"] == written(h[k, 0])
            assert found[f"after{number}-layer{k}-c"] == written(c[k, 0])
    assert len(found) == 4 + 2 * (4 + 3 * 8)


def test_some_numbers_are_dropped_and_some_are_not(drawing):
    kept = torch.stack([each for called in drawing.calls() for each in called.kept])
    assert 0.4 < kept.double().mean() < 0.8


def test_it_moves_by_style_alone_and_stands_still_where_that_is_asked_for(committed):
    root = ElementTree.fromstring(committed)
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
        *("svg", "title", "style", "defs", "marker", "path", "rect", "g", "text"),
    }
    style = root.find(f"{SVG}style").text
    assert "@media (prefers-reduced-motion: reduce) { * { animation: none !important } }" in style
    assert "@media (prefers-color-scheme: dark)" in style
    # Without motion nothing is hidden: opacity is the keyframes' alone.
    assert "opacity" not in style[: style.index("@keyframes")]
    assert "http" not in committed.replace("http://www.w3.org/2000/svg", "")
