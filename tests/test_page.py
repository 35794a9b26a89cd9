"""The page as a file: what is in it, how large it is, that nothing in a text can break out of it."""

import base64
import errno
import json
import re
from importlib.resources import files

import numpy as np
import pytest
import torch
from planted import NASTY, known

from unrolled import (
    ByteTokenizer,
    CharTokenizer,
    IdTokenizer,
    LanguageModel,
    ModelConfig,
    Split,
    disk,
    inspect,
    new_tokenizer,
    page_data,
    write_page,
)
from unrolled.bpe import train_bpe
from unrolled.page import page_html

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def embedded(html):
    """The page's data as a browser reads it: up to the first end tag."""
    return json.loads(DATA.search(html)[1])


def array(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def small(vocabulary):
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(vocabulary, hidden=3, layers=2, embedding=0))


@pytest.fixture(scope="module")
def world():
    model, split, tokenizer = known()
    return model, split, tokenizer, inspect(model, split, tokenizer)


def test_the_numbers_in_the_page_are_those_of_the_data(world):
    model, split, tokenizer, inspection = world
    data = page_data(model, split, tokenizer, inspection=inspection, units=4, tokens=400)
    found = embedded(page_html(data, "A title"))
    assert found["tokens"] == 400
    assert [found["texts"][found["places"].index(place)] for place in range(400)] == list(data.texts)
    np.testing.assert_array_equal(array(found["ids"], "<u4"), data.ids)
    np.testing.assert_array_equal(array(found["costs"], "<f4"), data.nats)
    shares = array(found["next"]["shares"], "<u2").reshape(400, 5) / 65535
    assert np.abs(shares - data.next_shares).max() <= 0.5001 / 65535
    np.testing.assert_array_equal(array(found["next"]["ids"], "<u4").reshape(400, 5), data.next_ids)
    for number, (each, layer) in enumerate(zip(found["layers"], data.layers, strict=True)):
        assert each["units"] == list(layer.units)
        for name, values in layer.values.items():
            packed = each["values"][name]
            np.testing.assert_array_equal(array(packed["codes"], "u1").reshape(4, 400), values.codes)
            np.testing.assert_array_equal(array(packed["low"], "<f4"), values.low)
            np.testing.assert_array_equal(array(packed["high"], "<f4"), values.high)
        for k, relation in enumerate(inspection.relations):
            best = relation.bits[:, number].amax(0)[list(layer.units)]
            np.testing.assert_allclose(each["bits"][k], best.numpy(), rtol=5e-4, atol=1e-12)
            assert found["features"][k]["bar"] == relation.bar
        np.testing.assert_allclose(each["memory"], layer.statistics.memory[list(layer.units)].numpy(), rtol=5e-4)
        np.testing.assert_allclose(each["left"]["i"], layer.statistics.left["i"][list(layer.units)].numpy(), rtol=5e-4)
    assert "are shown, with the 4 most telling units of each layer." in found["about"]


def test_it_begins_with_the_unit_that_follows_a_feature_most_plainly(world):
    model, split, tokenizer, inspection = world
    found = embedded(page_html(page_data(model, split, tokenizer, inspection=inspection, tokens=50), "x"))
    first = found["first"]
    assert (first["layer"], found["features"][first["feature"]]["name"]) == (0, "column")
    assert found["layers"][0]["units"][first["row"]] == 2


def test_five_thousand_characters_of_two_layers_of_512_are_below_six_megabytes(tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(65, hidden=512, layers=2, embedding=0))
    with torch.no_grad():
        for layer in model.lstm.layers:
            for weight in layer.parameters():
                weight.mul_(4)  # what moves takes no less room than what does not
    symbols = "".join(map(chr, range(32, 97)))
    ids = np.random.default_rng(0).integers(0, 65, 5000)
    path = write_page(model, Split(ids, np.array([0])), CharTokenizer(symbols), tmp_path / "page.html")
    assert path.stat().st_size < 6_000_000
    found = embedded(path.read_text(encoding="utf-8"))
    assert (found["tokens"], [len(layer["units"]) for layer in found["layers"]]) == (5000, [64, 64])
    assert len(array(found["layers"][1]["values"]["o"]["codes"], "u1")) == 64 * 5000


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_no_text_breaks_out_of_the_page(kind):
    tokenizer = {
        "char": lambda: new_tokenizer("char", NASTY),
        "byte": ByteTokenizer,
        "bpe": lambda: train_bpe([NASTY * 9], 300),
    }[kind]()
    split = Split(tokenizer.encode(NASTY * 3), np.array([0]))
    html = page_html(page_data(small(tokenizer.size), split, tokenizer), NASTY)
    assert "".join(embedded(html)["texts"]) == NASTY * 3
    # Two scripts are ours, and no other tag begins behind them.
    assert html.count("<script") == html.count("</script>") == 2
    assert DATA.search(html)[1].isascii()
    assert "<h1>&lt;/script&gt;&lt;script&gt;alert(1)" in html


def test_ids_are_shown_as_their_numbers():
    split = Split(np.array([3, 12, 0]), np.array([0]))
    html = page_html(page_data(small(13), split, IdTokenizer(13)), "ids")
    assert embedded(html)["texts"] == ["3 ", "12 ", "0 "]
    assert embedded(html)["features"] == []


def test_numbers_without_an_end_are_null(world):
    model, split, tokenizer, _ = world
    with torch.no_grad():
        model.lstm.layers[1].b_f[0] = 1e9
    try:
        found = embedded(page_html(page_data(model, split, tokenizer, tokens=50), "x"))
    finally:
        with torch.no_grad():
            model.lstm.layers[1].b_f[0] = 0
    layer = found["layers"][1]
    assert layer["memory"][layer["units"].index(0)] is None


def test_nothing_is_loaded_from_elsewhere(world):
    model, split, tokenizer, inspection = world
    html = page_html(page_data(model, split, tokenizer, inspection=inspection, tokens=50), "x")
    outside = DATA.sub("", html)
    assert not re.search(r"https?:|//[a-z]|\bsrc=|@import|url\(|fetch\(|XMLHttpRequest", outside)
    assert "default-src 'none'" in outside


def test_the_files_of_the_package_end_no_script():
    folder = files("unrolled") / "inspector"
    for name in ("paint.js", "page.js"):
        assert "</" not in (folder / name).read_text(encoding="utf-8")
    assert "<" not in (folder / "page.css").read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"\$\w+", (folder / "page.html").read_text(encoding="utf-8")))) == [
        "$data",
        "$script",
        "$style",
        "$title",
    ]


def test_a_page_is_written_whole_or_not_at_all(world, tmp_path, monkeypatch):
    model, split, tokenizer, inspection = world
    path = tmp_path / "page.html"
    path.write_text("what was here", encoding="utf-8")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", full)
        with pytest.raises(OSError, match="No space left"):
            write_page(model, split, tokenizer, path, inspection=inspection, tokens=50)
    assert path.read_text(encoding="utf-8") == "what was here"
    assert list(tmp_path.iterdir()) == [path]
    assert write_page(model, split, tokenizer, str(path), title="New", inspection=inspection, tokens=50) == path
    assert "<title>New</title>" in path.read_text(encoding="utf-8")
