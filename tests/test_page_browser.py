"""The page in Chromium: clicked, hovered, searched, read by keys, in both themes and at the width of a phone."""

import math
import re

import numpy as np
import pytest
import torch
from browser import Visit, launched
from planted import NASTY, known

from unrolled import ByteTokenizer, LanguageModel, ModelConfig, Split, inspect, new_tokenizer, page_data
from unrolled.bpe import train_bpe
from unrolled.page import page_html

pytestmark = pytest.mark.browser
TOKENS = 500


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def data():
    model, split, tokenizer = known()
    return page_data(model, split, tokenizer, inspection=inspect(model, split, tokenizer), tokens=TOKENS)


@pytest.fixture(scope="module")
def url(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page_html(data, "A planted model"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, url):
    open_ = []

    def visit(address=None, **how):
        open_.append(Visit(browser, address or url, **how))
        return open_[-1]

    yield visit
    for each in open_:
        each.close()


def value(data, layer, quantity, unit, token):
    shown = data.layers[layer]
    return shown.values[quantity].values()[shown.units.index(unit), token]


def reading(page):
    """The numbers of the status line, by quantity."""
    text = page.locator("#reading").inner_text().replace("\u2212", "-")
    return {name: float(number) for name, number in re.findall(r"([chifgo])\s*(-?\d+\.\d+)(?=\s|$)", text)}


def expected(data, layer, unit, token):
    return {name: pytest.approx(value(data, layer, name, unit, token), abs=0.0051) for name in "chifgo"}


def cell(page, number):
    return page.locator(f"#cell-{number}")


def colour(page, number):
    return cell(page, number).evaluate("(cell) => getComputedStyle(cell).backgroundColor.match(/\\d+/g).map(Number)")


def names(page):
    return page.locator("#units .name").all_inner_texts()


def test_it_opens_with_the_whole_text_and_the_most_telling_unit(visit, data):
    page = visit().page
    assert page.title() == "A planted model"
    texts = page.evaluate("page.texts.join('')")
    assert texts == "".join(data.texts)
    shown = page.locator("#text").evaluate("(box) => box.textContent")
    assert shown == "".join(data.texts).replace("\n", "\u21b5\n")
    assert page.locator("#lines-heading").inner_text() == "Layer 0, unit 2"
    assert "follows \u201ccolumn\u201d" in page.locator("#facts").inner_text()


def test_a_click_on_a_character_shows_the_unit_there(visit, data):
    seen = visit()
    before = seen.page.locator("#lines canvas").screenshot()
    cell(seen.page, 123).click()
    seen.settle()
    assert cell(seen.page, 123).get_attribute("aria-selected") == "true"
    assert seen.page.locator("[aria-selected=true]").count() == 1
    assert reading(seen.page) == expected(data, 0, 2, 123)
    assert seen.page.locator("#lines canvas").screenshot() != before


def test_hovering_shows_what_comes_next_and_leaving_what_was_chosen(visit, data):
    seen = visit()

    def shown():
        shares = seen.page.locator("#next .share").all_inner_texts()
        return seen.page.locator("#next .token").all_inner_texts()[:5], [float(each[:-1]) / 100 for each in shares[:5]]

    def told(token):
        signs = {" ": "\u2423", "\n": "\u21b5"}
        texts = [data.labels[int(each)] for each in data.next_ids[token]]
        return [signs.get(text, text) for text in texts], [
            pytest.approx(each, abs=0.0051) for each in data.next_shares[token]
        ]

    cell(seen.page, 60).click()
    cell(seen.page, 90).hover()
    assert shown() == told(90)
    came = seen.page.locator("#next .came .token").inner_text()
    assert came == {" ": "\u2423", "\n": "\u21b5"}.get(data.texts[91], data.texts[91])
    seen.page.locator("h1").hover()
    assert shown() == told(60)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_are_those_of_the_values(visit, url, data, dark):
    page = visit(f"{url}#layer=0&unit=5", dark=dark).page
    quoted = next(each for each in data.features if each.name == "quoted").kinds
    inside, outside = (int(np.flatnonzero(quoted == kind)[20]) for kind in (1, 0))
    # Unit 5 is +1 inside quotes, and 0 before the first: red, and the card's own colour.
    red, _, blue = colour(page, inside)
    assert red > blue + 60
    page.locator("#quantities").get_by_label("forget gate").check()
    ramp = page.evaluate("rampOf(state.theme, 'f')")
    for number in (inside, outside, 3, 77):
        assert colour(page, number) == ramp[round(255 * value(data, 0, "f", 5, number))]
    page.locator("#layers").get_by_label("layer 1").check()
    unit = data.layers[1].units[0]
    assert colour(page, 77) == ramp[round(255 * value(data, 1, "f", unit, 77))]


def test_black_or_white_is_read_on_every_colour(visit):
    ratios = visit().page.evaluate(
        """() => {
          const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
          return ["light", "dark"].flatMap((theme) => ["c", "f"].flatMap((name) => rampOf(theme, name).map((colour) => {
            const ink = inkOn(colour) === "#ffffff" ? 1 : 0;
            const [low, high] = [light(colour), ink].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05);
          })));
        }"""
    )
    assert len(ratios) == 4 * 256
    assert min(ratios) >= 4.5


def test_the_heat_map_has_a_row_for_each_unit_and_its_colours(visit, data):
    seen = visit()
    seen.page.locator("#whole").click()
    seen.settle()
    found = seen.page.evaluate(
        """() => {
          const canvas = document.querySelector("#heat canvas");
          const scale = scaleOf(document.getElementById("heat").clientWidth, 0, page.tokens, narrow());
          const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
          pen.drawImage(canvas, 0, 0);
          const y = (row) => BAND + 6 + (row + 0.5) * rowHeight(8);
          const at = (token, row) => Array.from(pen.getImageData(Math.round(scale.x(token)), y(row), 1, 1).data);
          const colours = [10, 200, 480].flatMap((token) => [2, 6].map((row) => at(token, row).slice(0, 3)));
          return { rows: rowsOfLayer(), colours, ramp: rampOf("light", "c") };
        }"""
    )
    at = iter(found["colours"])
    for token in (10, 200, 480):
        for row in (2, 6):
            unit = data.layers[0].units[found["rows"][row]]
            share = (math.tanh(value(data, 0, "c", unit, token)) + 1) / 2
            assert next(at) == pytest.approx(found["ramp"][round(255 * share)], abs=3)
    # A click on a row takes its unit, one on a column its token.
    where = seen.page.evaluate("scaleOf(document.getElementById('heat').clientWidth, 0, page.tokens, narrow()).x(321)")
    height = seen.page.evaluate("BAND + 6 + 3.5 * rowHeight(8)")
    seen.page.locator("#heat canvas").click(position={"x": where, "y": height})
    seen.settle()
    unit = data.layers[0].units[found["rows"][3]]
    assert seen.page.locator("#lines-heading").inner_text() == f"Layer 0, unit {unit}"
    assert abs(int(re.search(r"token (\d+)", seen.page.locator("#reading").inner_text())[1]) - 321) <= 1


def test_units_are_sorted_by_memory_saturation_and_what_they_follow(visit, data):
    page = visit().page
    layer = data.layers[0].statistics

    def order(numbers):
        units = data.layers[0].units
        rows = sorted(range(len(units)), key=lambda row: (-float(f"{float(numbers[units[row]]):.4g}"), row))
        return [f"0.{units[row]}" for row in rows]

    page.locator("#sort").select_option("memory")
    assert names(page) == order(layer.memory)
    page.locator("#sort").select_option("right")
    assert names(page) == order(layer.right["f"])
    page.locator("#quantities").get_by_label("input gate").check()
    assert names(page) == order(layer.right["i"])
    page.locator("#sort").select_option("left")
    assert names(page) == order(layer.left["i"])
    page.locator("#sort").select_option("number")
    assert names(page) == [f"0.{unit}" for unit in range(8)]
    page.locator("#feature").select_option(label="column")
    column = next(each for each in data.inspection.relations if each.feature == "column")
    assert names(page) == order(column.bits[:, 0].amax(0))
    assert names(page)[0] == "0.2"


def test_search_by_unit_layer_feature_and_number(visit, data):
    page = visit().page
    quoted = next(each for each in data.inspection.relations if each.feature == "quoted")
    best = quoted.bits.amax(0)

    def found(words):
        page.locator("#search").fill(words)
        return set(names(page))

    def units(test):
        return {f"{layer}.{unit}" for layer in range(2) for unit in range(8) if test(layer, unit)}

    assert found("5") == {"0.5", "1.5"}
    assert found("1.3") == {"1.3"}
    assert found("layer 1") == units(lambda layer, _: layer == 1)
    assert found("quoted") == units(lambda layer, unit: bool(best[layer, unit] > quoted.bar))
    assert found("quoted > 0.1") == units(lambda layer, unit: float(best[layer, unit]) > 0.1)
    assert found("memory > 20, layer 0") == units(
        lambda layer, unit: layer == 0 and float(data.layers[0].statistics.memory[unit]) > 20
    )
    assert found("latching") == units(lambda layer, unit: bool(data.layers[layer].statistics.latching[unit]))
    assert found("wibble") == set()
    assert "\u201cwibble\u201d is not understood: write 12, 1.12, layer 0" in page.locator("#found").inner_text()
    assert found("1.3") == {"1.3"}
    page.locator("#units button").click()
    assert page.locator("#lines-heading").inner_text() == "Layer 1, unit 3"
    assert page.locator("#layers").get_by_label("layer 1").is_checked()


def test_all_of_it_is_reached_by_keys_and_seen_to_be(visit):
    page = visit().page
    keys = page.keyboard
    stops = []
    for _ in range(30):
        keys.press("Tab")
        here = page.evaluate(
            "document.activeElement.id || document.activeElement.name || document.activeElement.textContent"
        )
        if here in stops or page.evaluate("document.activeElement === document.body"):
            break
        assert (
            page.evaluate(
                """() => {
                  const here = document.activeElement;
                  return getComputedStyle(here.type === "radio" ? here.nextElementSibling : here).outlineStyle;
                }"""
            )
            == "solid"
        )
        stops.append(here)
    for stop in (
        "theme",
        "layers",
        "quantities",
        "text",
        "feature",
        "sort",
        "search",
        "lines",
        "heat",
        "earlier",
        "whole",
    ):
        assert stop in stops, stops


def test_the_text_is_read_by_arrow_keys(visit, data):
    seen = visit()
    page, keys = seen.page, seen.page.keyboard
    page.locator("#text").focus()
    keys.press("Home")
    for _ in range(3):
        keys.press("ArrowRight")
    seen.settle()
    assert reading(page) == expected(data, 0, 2, 3)
    assert page.locator("#text").get_attribute("aria-activedescendant") == "cell-3"
    assert "after" in page.locator("#after").inner_text()
    keys.press("ArrowDown")
    assert int(page.locator("[aria-selected=true]").get_attribute("id")[5:]) > 3
    keys.press("End")
    assert cell(page, TOKENS - 1).get_attribute("aria-selected") == "true"


def test_plots_units_and_switches_by_keys(visit, data):
    seen = visit()
    page, keys = seen.page, seen.page.keyboard
    page.locator("#heat").focus()
    keys.press("Home")
    keys.press("ArrowDown")
    seen.settle()
    second = data.layers[0].units[page.evaluate("rowsOfLayer()[1]")]
    assert page.locator("#lines-heading").inner_text() == f"Layer 0, unit {second}"
    for key, tokens in (("-", 180), ("+", 120)):
        keys.press(key)
        seen.settle()
        assert page.locator("#window").inner_text() == f"tokens 0 to {tokens - 1} of {TOKENS}"
    keys.press("PageDown")
    seen.settle()
    assert reading(page) == expected(data, 0, second, 120)
    page.locator("#quantities input:checked").focus()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    assert page.evaluate("[state.quantity, document.activeElement.value]") == ["i", "i"]
    page.locator("#units button[aria-pressed=true]").focus()
    keys.press("ArrowDown")
    third = page.evaluate("document.activeElement.textContent")
    assert page.locator("#units button[aria-pressed=true]").evaluate("(button) => button.textContent") == third


def test_the_theme_is_the_systems_until_another_is_chosen(visit):
    for dark in (False, True):
        page = visit(dark=dark).page
        names = ("light", "dark")
        assert page.evaluate("document.documentElement.dataset.theme") == names[dark]
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        assert page.evaluate("document.documentElement.dataset.theme") == names[not dark]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != back


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(visit, dark, width):
    assert visit(dark=dark, width=width).violations() == []


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit, data):
    seen = visit(width=390, height=844)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("#text", "#next", "#lines canvas", "#units", "#heat canvas", "#search"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= 390, name
    cell(page, 41).tap()
    seen.settle()
    assert reading(page) == expected(data, 0, 2, 41)


def test_an_address_leads_back_to_what_was_shown(visit, url, data):
    seen = visit(f"{url}#layer=1&unit=6&quantity=o&token=222")
    page = seen.page
    assert page.locator("#lines-heading").inner_text() == "Layer 1, unit 6"
    assert reading(page) == expected(data, 1, 6, 222)
    assert page.locator("#quantities").get_by_label("output gate").is_checked()
    page.locator("#text").focus()
    page.keyboard.press("ArrowRight")
    seen.wait("location.hash.includes('token=223')")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_any_text_is_shown_as_itself(browser, tmp_path, kind):
    tokenizer = {
        "char": lambda: new_tokenizer("char", NASTY),
        "byte": ByteTokenizer,
        "bpe": lambda: train_bpe([NASTY * 9], 300),
    }[kind]()
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(tokenizer.size, hidden=3, layers=1, embedding=0))
    data = page_data(model, Split(tokenizer.encode(NASTY * 2), np.array([0])), tokenizer)
    path = tmp_path / "page.html"
    path.write_text(page_html(data, NASTY), encoding="utf-8")
    seen = Visit(browser, path.as_uri())
    assert seen.page.evaluate("page.texts.join('')") == NASTY * 2
    signs = {"\n": "\u21b5\n", "\t": "\u21e5\t", "\r": "\u240d", "\0": "\u2400"}
    shown = seen.page.locator("#text").evaluate("(box) => box.textContent")
    assert shown == "".join(signs.get(sign, sign) for sign in NASTY * 2)
    # Every cell can be chosen, the last token's too.
    seen.page.locator("#text").focus()
    seen.page.keyboard.press("End")
    seen.settle()
    assert reading(seen.page)["c"] == pytest.approx(data.layers[0].values["c"].values()[0, -1], abs=0.0051)
    assert seen.violations() == []
    seen.close()
