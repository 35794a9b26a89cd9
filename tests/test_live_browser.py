"""The live page in Chromium: typed into, generated, held, zeroed, exchanged."""

import threading

import pytest
import torch
from browser import PATIENCE, Visit, launched

from unrolled import CharTokenizer, LanguageModel, ModelConfig
from unrolled.live_server import LiveApp, LiveServer
from unrolled.live_session import LiveSession

pytestmark = pytest.mark.browser
TOKENIZER = CharTokenizer("abcdefgh <>\n")


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def session():
    torch.manual_seed(4)
    model = LanguageModel(ModelConfig(12, hidden=7, layers=2, embedding=0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return LiveSession(model, TOKENIZER)


@pytest.fixture
def visit(browser, session):
    server = LiveServer(LiveApp(session, TOKENIZER), "A live model", {"layers": 2, "hidden": 7, "h_dim": 7})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    open_ = []

    def visit(**how):
        open_.append(Visit(browser, server.url, **how))
        open_[-1].wait("turn !== null")
        return open_[-1]

    yield visit
    try:
        for each in open_:
            each.close(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settled(seen):
    seen.wait("!busy && !waiting")
    seen.settle()


def shares(page):
    return [float(each[:-1]) for each in page.locator("#next .share").all_inner_texts()]


def told(session, at=0):
    return sorted(
        (pytest.approx(100 * each, abs=0.051) for each in session.probabilities(at)), key=lambda x: -x.expected
    )[:8]


def typed(seen, text, at=0):
    seen.page.locator(f"#text-{at}").press_sequentially(text)
    settled(seen)


def test_keys_are_read_as_they_are_typed(visit, session):
    seen = visit()
    typed(seen, "ab <cd>")
    assert session.text() == "ab <cd>"
    assert seen.page.locator("#mirror-0").evaluate("(box) => box.textContent") == "ab <cd>"
    assert shares(seen.page) == told(session)
    number = float(seen.page.locator("#reading").inner_text().replace("\u2212", "-").split()[1])
    assert number == pytest.approx(float(session.steps()[-1].values["c"][0, 0]), abs=0.0051)
    seen.page.locator("#text-0").press("Backspace")
    settled(seen)
    assert session.text() == "ab <cd"
    # Of keys that come while the session reads, the last one alone is asked for.
    seen.wait("delays.length >= 2")
    assert all(0 < each < 1000 * PATIENCE for each in seen.page.evaluate("delays"))


def test_a_colour_is_that_of_the_unit(visit, session):
    seen = visit()
    typed(seen, "abcd")
    seen.page.locator("#quantities").get_by_label("forget gate").check()
    seen.page.locator("#layers").get_by_label("layer 1").check()
    seen.page.locator("#unit").fill("3")
    seen.settle()
    ramp = seen.page.evaluate("rampOf('light', 'f')")
    for number, step in enumerate(session.steps()):
        colour = (
            seen.page.locator("#mirror-0 span")
            .nth(number)
            .evaluate("(cell) => getComputedStyle(cell).backgroundColor.match(/\\d+/g).map(Number)")
        )
        assert colour == ramp[round(255 * float(step.values["f"][1, 3]))]


def test_it_writes_a_token_and_goes_on(visit, session):
    seen = visit()
    typed(seen, "ab")
    seen.page.locator("#write").click()
    settled(seen)
    assert len(session.text()) == 3
    assert seen.page.locator("#text-0").input_value() == session.text()
    seen.page.locator("#go-on").click()
    seen.wait("steps[0].length > 6")
    seen.page.locator("#go-on").click()
    settled(seen)
    assert seen.page.locator("#go-on").get_attribute("aria-pressed") == "false"
    assert seen.page.locator("#text-0").input_value() == session.text()


def test_a_held_unit_a_zeroed_layer_and_exchanged_states_change_the_prediction(visit, session):
    seen = visit()
    typed(seen, "abc")
    typed(seen, "gg", at=1)
    seen.page.locator("#texts").get_by_label("text A").check()
    seen.settle()
    plain = shares(seen.page)
    seen.page.locator("#unit").fill("5")
    seen.page.locator("#held-name").select_option("c")
    seen.page.locator("#held-value").fill("2.5")
    seen.page.locator("#hold").click()
    settled(seen)
    assert dict(session.clamps) == {(0, "c", 5): 2.5}
    assert shares(seen.page) == told(session) != plain
    seen.page.locator("#clamps button").click()
    settled(seen)
    assert not session.clamps
    assert shares(seen.page) == plain
    seen.page.locator("#zeros button").nth(1).click()
    settled(seen)
    assert not session.state().c[1].any()
    assert shares(seen.page) == told(session) != plain
    seen.page.locator("#swap").click()
    settled(seen)
    assert session.state(1).c[1].any().item() is False
    assert shares(seen.page) == told(session)


def test_what_cannot_be_read_is_said_and_typing_goes_on(visit, session):
    seen = visit()
    typed(seen, "ab!")
    assert "'!'" in seen.page.locator("#trouble").inner_text()
    seen.page.locator("#text-0").press("Backspace")
    typed(seen, "c")
    assert seen.page.locator("#trouble").inner_text() == ""
    assert session.text() == "abc"
    seen.errors.clear()  # a browser notes every answer that is no success


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_a_phone_shows_all(visit, dark, width):
    seen = visit(dark=dark, width=width)
    typed(seen, "abc abc")
    assert seen.violations() == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_by_keys(visit, session):
    seen = visit()
    typed(seen, "abc")
    seen.page.locator("#write").focus()
    seen.page.keyboard.press("Enter")
    settled(seen)
    assert len(session.text()) == 4
    seen.page.locator("#layers input:checked").focus()
    seen.page.keyboard.press("ArrowRight")
    assert seen.page.evaluate("state.layer") == 1
    seen.page.locator("#rank").focus()
    seen.page.keyboard.press("Enter")
    seen.settle()
    unit = seen.page.evaluate("rows[0]")
    assert seen.page.locator("#lines-heading").inner_text() == f"Layer 1, unit {unit}"
