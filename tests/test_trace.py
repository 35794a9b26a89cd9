import io
import re

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style

from unrolled import MultiLayerLSTM
from unrolled.tokens import ByteTokenizer
from unrolled.trace import _style, picture, telling_unit


@pytest.fixture(autouse=True)
def _no_remembered_colours():
    """Rich keeps a style's escape codes as first written, also for a console with more colours, or fewer."""
    _style.cache_clear()
    Style._add.cache_clear()


def opened(text, layers=2, rows=1):
    torch.manual_seed(0)
    model = MultiLayerLSTM(256, 6, layers)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(6)
    ids = ByteTokenizer().encode(text)
    decoder = ByteTokenizer().decoder()
    symbols = [decoder.push(token) for token in ids]
    trace = model.trace(torch.tensor(ids, dtype=torch.int64)[None].repeat(rows, 1))
    return trace, symbols


def drawn(renderable, width=80, **options):
    file = io.StringIO()
    Console(file=file, width=width, **{"color_system": None, "_environ": {}, **options}).print(renderable)
    return file.getvalue()


def rows_of(text, name):
    return [line[len("candidate") + 2 :] for line in text.splitlines() if line.startswith(name.ljust(11))]


# Numbers


def test_columns_carry_the_units_own_numbers():
    trace, symbols = opened("a pipe")
    shown = picture(trace, symbols, unit=3)
    assert (shown.layer, shown.unit) == (1, 3)
    assert "".join(column.text for column in shown.columns) == "a pipe"
    layer = trace.layers[1]
    for step, column in enumerate(shown.columns):
        assert column.c == pytest.approx(layer.c[0, step, 3].tanh().item(), rel=1e-6)
        for gate in "ifgo":
            assert getattr(column, gate) == getattr(layer, gate)[0, step, 3].item()


def test_another_layer_and_row():
    trace, symbols = opened("ab", rows=2)
    shown = picture(trace, symbols, layer=0, unit=2, row=1)
    assert shown.layer == 0
    assert shown.columns[1].f == trace.layers[0].f[1, 1, 2].item()


def test_a_character_of_several_bytes_shows_the_unit_after_its_last_one():
    trace, symbols = opened("é€x")
    shown = picture(trace, symbols, unit=0)
    assert [column.text for column in shown.columns] == ["é", "€", "x"]
    assert [column.f for column in shown.columns] == [trace.layers[1].f[0, step, 0].item() for step in (1, 4, 5)]


def test_a_combining_mark_shares_the_column_of_its_letter_and_an_open_character_has_none():
    trace, symbols = opened("e\u0301x".encode() + b"\xe2\x82")
    shown = picture(trace, symbols, unit=0)
    assert [column.text for column in shown.columns] == ["e\u0301", "x"]
    assert [column.i for column in shown.columns] == [trace.layers[1].i[0, step, 0].item() for step in (2, 3)]


def test_the_telling_unit_swings_far_and_holds():
    steps = torch.arange(40.0)
    c = torch.stack(
        [
            torch.full((40,), 3.0),  # far from zero, and never moves
            2 * (-1.0) ** steps,  # flickers
            0.1 * (steps > 20),  # holds, and hardly moves
            2 * ((steps > 20).float() - 0.5),  # the memory
            10 * steps,  # a counter, at once at its end
        ],
        dim=1,
    )
    assert telling_unit(c) == 3
    assert telling_unit(c[:1]) == 0
    assert telling_unit(torch.zeros(5, 3)) == 0
    trace, symbols = opened("some text to look at")
    assert picture(trace, symbols).unit == telling_unit(trace.layers[-1].c[0])


# Drawing


def test_without_colours_the_values_are_digits():
    trace, symbols = opened("look, here")
    shown = picture(trace, symbols, unit=1)
    text = drawn(shown)
    assert text.splitlines()[0] == "layers[1], unit 1"
    assert text.splitlines()[1].strip() == "look, here"
    layer = trace.layers[1]
    for name, values in (("cell", (layer.c.tanh() + 1) / 2), ("candidate", (layer.g + 1) / 2), ("forget", layer.f)):
        (digits,) = rows_of(text, name)
        assert digits == "".join(str(min(9, int(10 * value))) for value in values[0, :, 1].tolist())
    assert "\x1b" not in text
    assert "cell, candidate: 0 is -1, 9 is +1; input, forget, output: 0 shut, 9 open" in " ".join(text.split())


@pytest.mark.parametrize(
    "options",
    [
        {"color_system": "truecolor", "force_terminal": True, "no_color": True},
        {"color_system": "standard", "force_terminal": True},
        {"_environ": {"NO_COLOR": "1", "TERM": "xterm-256color"}, "color_system": "auto", "force_terminal": True},
        {"_environ": {"TERM": "dumb"}, "color_system": "auto", "force_terminal": True},
    ],
)
def test_digits_also_where_colours_are_unwanted_or_few(options):
    trace, symbols = opened("look")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn(picture(trace, symbols, unit=1), **options))
    assert plain == drawn(picture(trace, symbols, unit=1))


def test_colours_run_from_blue_over_white_to_red_and_from_white_to_green():
    with torch.no_grad():
        trace, symbols = opened("abc")
        layer = trace.layers[1]
        layer.c[0, :, 0] = torch.tensor([-50.0, 0.0, 50.0])
        layer.f[0, :, 0] = torch.tensor([0.0, 0.5, 1.0])
    lines = drawn(picture(trace, symbols, unit=0), color_system="truecolor", force_terminal=True).splitlines()
    cell, forget = lines[1], lines[3]
    assert re.findall(r"\x1b\[38;2;(\d+);\d+;\d+;48;2;(\d+;\d+;\d+)m(.)", cell) == [
        ("255", "33;102;172", "a"),
        ("0", "247;247;247", "b"),
        ("255", "178;24;43", "c"),
    ]
    assert re.findall(r"48;2;(\d+;\d+;\d+)m( )", forget) == [
        ("247;247;247", " "),
        ("145;203;154", " "),
        ("0;90;50", " "),
    ]


def test_256_colours_are_colours():
    trace, symbols = opened("abc")
    text = drawn(picture(trace, symbols, unit=0), color_system="256", force_terminal=True)
    assert "48;5;" in text
    assert "9 open" not in text


@pytest.mark.parametrize("width", [1, 3, 12, 30, 47, 48, 80, 200])
def test_wraps_at_the_width_and_loses_nothing(width):
    words = "The quick 漢字 fox — says “hello”. " * 4
    trace, symbols = opened(words)
    shown = picture(trace, symbols, unit=0)
    text = drawn(shown, width=width, color_system="truecolor", force_terminal=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    if width >= 5:  # room for a name and a wide character
        assert max(map(cell_len, plain.splitlines())) <= width
        margin = 11 if width >= 48 else 3
        name = ("cell" if width >= 48 else "c").ljust(margin)
        cells = [line for line in plain.splitlines() if line.startswith(name) and "tanh" not in line]
        assert "".join(line[margin:] for line in cells) == words
        forget = [
            line for line in plain.splitlines() if line.startswith(("forget" if width >= 48 else "f").ljust(margin))
        ]
        assert sum(cell_len(line[margin:]) for line in forget) == cell_len(words)


def test_control_characters_have_a_sign():
    trace, symbols = opened("a\tb\n\x07c")
    assert drawn(picture(trace, symbols, unit=0)).splitlines()[1].strip() == "a→b↵·c"


def test_an_ascii_terminal_gets_ascii():
    trace, symbols = opened("é\n\tz")
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80, color_system=None).print(picture(trace, symbols, unit=0))
    file.flush()
    assert file.buffer.getvalue().decode("ascii").splitlines()[1].strip() == "?$>z"


def test_no_text_no_rows():
    trace, symbols = opened("")
    assert len(drawn(picture(trace, symbols, unit=0)).splitlines()) == 3


# Refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": 2}, "layer 2 of a trace with 2 layers; layers are 0 to 1"),
        ({"layer": -3}, "layer -3 of a trace with 2 layers; layers are 0 to 1"),
        ({"unit": 6}, "unit 6 of a trace with 6 units; units are 0 to 5"),
        ({"unit": -1}, "unit -1 of a trace with 6 units; units are 0 to 5"),
        ({"row": 1}, "row 1 of a trace with 1 rows; rows are 0 to 0"),
    ],
)
def test_what_does_not_exist_is_refused(wrong, message):
    trace, symbols = opened("ab")
    with pytest.raises(IndexError, match=message):
        picture(trace, symbols, **wrong)


def test_symbols_must_match_the_steps():
    trace, symbols = opened("ab")
    with pytest.raises(ValueError, match="3 symbols for a trace of 2 steps; pass one for each step"):
        picture(trace, [*symbols, "c"])
