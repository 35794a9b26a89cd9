"""A text and a model two of whose units are known: what they do is written into their weights."""

import numpy as np
import torch

from unrolled import CharTokenizer, LanguageModel, ModelConfig, Split

# Rows of the weights are characters, so that a unit can be told what to do at each.
SYMBOLS = '\n "abcdefgh'


def text(lines=150, seed=0):
    """Lines of several lengths, words and quotations of several lengths in them, quotations across lines too."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(lines):
        words = ["".join(draw.choice(list("abcdefgh"), draw.integers(1, 8))) for _ in range(draw.integers(2, 9))]
        found.append(" ".join('"' + word if draw.random() < 0.15 else word for word in words))
    return "\n".join(found) + "\n"


def planted():
    """Layer 0: unit 2 counts the characters of a line, unit 5 is open inside quotes; the rest is as drawn."""
    torch.manual_seed(3)
    model = LanguageModel(ModelConfig(len(SYMBOLS), hidden=8, layers=2, embedding=0), dtype=torch.float64)
    layer = model.lstm.layers[0]
    newline, quote = SYMBOLS.index("\n"), SYMBOLS.index('"')
    with torch.no_grad():
        for unit in (2, 5):
            for gate in "ifgo":
                for kind in ("W_x", "W_h"):
                    getattr(layer, f"{kind}{gate}")[:, unit] = 0
                getattr(layer, f"b_{gate}")[unit] = 0
        # Counts: f = 1 but behind a line feed, i = 1 but at one, g small.
        layer.b_f[2], layer.b_i[2], layer.b_g[2] = 20, 20, 0.05
        layer.W_xf[newline, 2], layer.W_xi[newline, 2] = -40, -40
        # Latches: at a quote f shuts, and i opens if h is 0; everywhere else f = 1 and i = 0.
        layer.b_f[5], layer.W_xf[quote, 5] = 20, -40
        layer.b_i[5], layer.W_xi[quote, 5], layer.W_hi[5, 5] = -20, 40, -80
        layer.b_g[5], layer.b_o[5] = 3, 20
    return model


def known():
    """The model, its text, and the tokenizer of both."""
    tokenizer = CharTokenizer(SYMBOLS)
    return planted(), Split(tokenizer.encode(text()), np.array([0])), tokenizer


# All that could break out of a page, or be shown as something else.
NASTY = (
    "</script><script>alert(1)</script><!-- '\"&amp; \u2028\0\t\r\n \U0001f469\u200d\U0001f680 e\u0301 $title ${x} "
    "\\u003c"
)
