"""The static figures hold the numbers that they say they hold."""

import sys

import numpy as np
import pytest
from planted import known

from unrolled import FiguresError, inspect, page_data, reach, write_figures
from unrolled.figures import gates, gradient_flow, memory, saturation


@pytest.fixture(scope="module")
def world():
    model, split, tokenizer = known()
    inspection = inspect(model, split, tokenizer)
    data = page_data(model, split, tokenizer, inspection=inspection, tokens=400)
    return data, reach(model, split, window=12, tokens=9)


def test_gates_of_a_unit_over_a_sentence(world):
    data, _ = world
    figure = gates(data, layer=0, unit=5, begin=20)
    row = data.layers[0].units.index(5)
    assert len(figure.axes) == 6
    for axes, name in zip(figure.axes, "chifgo", strict=True):
        drawn = next(line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 72)
        np.testing.assert_array_equal(drawn, data.layers[0].values[name].values()[row, 20:92])
    signs = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert signs == [{" ": "\u2423", "\n": "\u21b5"}.get(text, text) for text in data.texts[20:92]]


def test_without_a_unit_it_is_the_most_telling_one_where_it_moves(world):
    data, _ = world
    figure = gates(data)
    assert figure.axes[0].get_title(loc="left").startswith("layer 0, unit 2, tokens ")
    c = next(line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 72)
    row = data.layers[0].units.index(2)
    whole = np.tanh(data.layers[0].values["c"].values()[row])
    assert np.tanh(c).var() == pytest.approx(max(whole[k : k + 72].var() for k in range(400 - 71)))


def test_saturation_has_a_point_for_each_unit_and_gate(world):
    data, _ = world
    figure = saturation(data.inspection)
    for axes, gate in zip(figure.axes, "ifgo", strict=True):
        for points, layer in zip(axes.collections, data.inspection.layers, strict=True):
            expected = np.stack([layer.left[gate].numpy(), layer.right[gate].numpy()], 1)
            np.testing.assert_array_equal(np.asarray(points.get_offsets()), expected)


def test_memory_counts_every_unit(world):
    data, _ = world
    axes = memory(data.inspection).axes[0]
    drawn = sum(bar.get_height() for bar in axes.patches)
    assert drawn == sum(int(layer.memory.isfinite().sum()) for layer in data.inspection.layers)


def test_gradient_flow_is_that_of_reach(world):
    _, found = world
    axes = gradient_flow(found).axes[0]
    means = found.mean("c").numpy()
    for line, mean in zip(axes.lines, means, strict=True):
        np.testing.assert_allclose(line.get_ydata(), mean / mean[0])


def test_four_pictures_are_written(world, tmp_path):
    data, found = world
    paths = write_figures(tmp_path / "new" / "figures", data, found)
    assert [path.name for path in paths] == ["gates.png", "saturation.png", "memory.png", "gradient-flow.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "new" / "figures").iterdir()) == sorted(path.name for path in paths)


def test_what_there_is_not_is_an_error(world):
    data, _ = world
    with pytest.raises(IndexError, match="layer 2 of 2; layers are 0 to 1"):
        gates(data, layer=2)
    with pytest.raises(ValueError, match="unit 9 of layer 0 is not among the 8 that were kept; units=None keeps all"):
        gates(data, layer=0, unit=9)
    with pytest.raises(IndexError, match="token 400 of 400; tokens are 0 to 399"):
        gates(data, begin=400)


def test_without_matplotlib_a_sentence_says_what_to_install(world, tmp_path, monkeypatch):
    data, found = world
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FiguresError, match=r"matplotlib is not installed: pip install 'unrolled\[plots\]'"):
        write_figures(tmp_path / "figures", data, found)
    assert not (tmp_path / "figures").exists()
