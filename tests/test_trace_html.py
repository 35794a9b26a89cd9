"""How traces show themselves in a notebook."""

import base64
import re
import struct
import zlib

import pytest
import torch
from torch import nn

from unrolled import LSTM, LSTMLayer, MultiLayerLSTM
from unrolled.trace_html import STEPS, UNITS, _ramp, png


class Own(nn.LSTMCell):
    def forward(self, x, state):
        h, c = super().forward(x, state)
        return h, (h, c)


def pictures(html):
    """By its text the pixels of each picture, [height, width, 3]."""
    return {
        told: pixels(base64.b64decode(data)) for told, data in re.findall(r'<img alt="([^"]*)".*?base64,([^"]*)"', html)
    }


def pixels(raw):
    """A reader of its own: signature, chunks with their sums, palette, rows without a filter."""
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(raw):
        size, kind = struct.unpack(">I4s", raw[at : at + 8])
        data = raw[at + 8 : at + 8 + size]
        assert struct.unpack(">I", raw[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).view(height, width + 1)
    assert not rows[:, 0].any()
    palette = torch.frombuffer(bytearray(chunks[b"PLTE"]), dtype=torch.uint8).view(256, 3)
    return palette[rows[:, 1:].long()]


def test_a_picture_has_the_values_of_the_trace():
    torch.manual_seed(0)
    trace = MultiLayerLSTM(3, 5, 2, output_dim=None).trace(torch.randn(2, 7, 3) * 3)
    found = pictures(trace._repr_html_())
    assert len(found) == 12
    for name, layer in (("layer 0", trace.layers[0]), ("layer 1", trace.layers[1])):
        for quantity in "chifgo":
            told = f"{quantity} of {name}: units 0 to 4 of 5, steps 0 to 6 of 7, row 0 of 2"
            values = getattr(layer, quantity)[0].detach().t()
            share = (values.tanh() + 1) / 2 if quantity == "c" else (values + 1) / 2 if quantity in "hg" else values
            palette = torch.frombuffer(bytearray(_ramp(quantity)), dtype=torch.uint8).view(256, 3)
            assert torch.equal(found[told], palette[(share.double() * 255).round().long()])


def test_zero_is_white_and_the_ends_are_blue_and_red():
    palette = torch.frombuffer(bytearray(_ramp("c")), dtype=torch.uint8).view(256, 3).int()
    assert palette[127].tolist() >= [253, 253, 253]
    assert palette[0, 2] > palette[0, 0]
    assert palette[255, 0] > palette[255, 2]


def test_long_and_wide_traces_are_cut():
    trace = LSTMLayer(2, UNITS + 6).trace(torch.randn(1, STEPS + 9, 2))
    html = trace._repr_html_()
    told = f"c of layer 0: units 0 to {UNITS - 1} of {UNITS + 6}, steps 0 to {STEPS - 1} of {STEPS + 9}"
    assert pictures(html)[told].shape == (UNITS, STEPS, 3)
    assert len(html) < 200_000


@pytest.mark.parametrize("shape", [(0, 4, 2), (1, 0, 2)])
def test_nothing_is_shown_as_nothing(shape):
    html = LSTMLayer(2, 3).trace(torch.randn(*shape))._repr_html_()
    assert pictures(html) == {}
    assert str([*shape[:2], 3]) in html


def test_other_dtypes_and_values_that_are_no_numbers():
    trace = LSTMLayer(2, 3, dtype=torch.bfloat16).trace(torch.randn(1, 4, 2, dtype=torch.bfloat16))
    assert len(pictures(trace._repr_html_())) == 6
    trace = LSTMLayer(2, 3).trace(torch.full((1, 2, 2), torch.nan))
    middle = torch.frombuffer(bytearray(_ramp("h")), dtype=torch.uint8).view(256, 3)[128]
    assert (pictures(trace._repr_html_())["h of layer 0: units 0 to 2 of 3, steps 0 to 1 of 2"] == middle).all()


def test_the_drop_in_and_a_cell_of_ones_own_show_what_they_have():
    drop_in = LSTM(2, 3, bidirectional=True, batch_first=True).trace(torch.randn(1, 4, 2))
    assert len(pictures(drop_in._repr_html_())) == 12
    own = LSTMLayer(2, 3, cell=Own(2, 3)).trace(torch.randn(1, 4, 2))
    assert [told[0] for told in pictures(own._repr_html_())] == ["c", "h"]


def test_many_may_stand_on_one_page():
    html = LSTMLayer(2, 3).trace(torch.randn(1, 4, 2))._repr_html_()
    assert not re.search(r"<script|<style|\bid=|https?:", html)
    assert html.count("<div") == html.count("</div>")


def test_png_of_one_pixel():
    palette = bytes(range(256)) * 3
    assert pixels(png(torch.tensor([[7]], dtype=torch.uint8), palette)).tolist() == [[[21, 22, 23]]]
