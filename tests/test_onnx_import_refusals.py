"""What of an ONNX file is not taken over: each with a sentence that says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from numpy.typing import NDArray
from torch import nn

from unrolled import from_onnx

onnx = pytest.importorskip("onnx", reason="onnx is an extra: pip install 'unrolled[onnx]'")
from onnx import helper  # noqa: E402
from test_onnx_import import H, I, edited, model_of  # noqa: E402


def between(kind: str, **attributes: Any) -> Callable[[list[Any], dict[str, NDArray]], None]:
    """Put a node behind the first layer's Squeeze."""

    def change(nodes: list[Any], stored: dict[str, NDArray]) -> None:
        nodes.insert(2, helper.make_node(kind, ["x_0"], ["more"], name="extra", **attributes))
        nodes[3].input[0] = "more"

    return change


def test_dropout_between_layers_plays_no_part():
    assert from_onnx(model_of(2, change=between("Dropout")))[0].num_layers == 2


def renamed(nodes: list[Any], stored: dict[str, NDArray]) -> None:
    nodes[2].input[0] = "h_n_0"


ALONE = "; convert them one by one: from_onnx(model, nodes=['lstm_1'])"
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "peepholes of another shape": (
        lambda: from_onnx(model_of(change=edited(at7="h"))),
        ValueError,
        "P of lstm_0 is h, which the graph computes or is given as it runs: the file does not hold these weights",
    ),
    "clip": (
        lambda: from_onnx(model_of(clip=3.0)),
        ValueError,
        "lstm_0 has clip=3, bounds of what goes into the gates, which no layer here has",
    ),
    "activations": (
        lambda: from_onnx(model_of(activations=["Sigmoid", "Tanh", "Relu"])),
        ValueError,
        "lstm_0 has the activations sigmoid, tanh, relu, which from_onnx does not take over: expected sigmoid or "
        "hardsigmoid, and twice tanh or twice relu, in both directions the same",
    ),
    "another hard sigmoid": (
        lambda: from_onnx(model_of(activations=["HardSigmoid", "Tanh", "Tanh"])),
        ValueError,
        "lstm_0 has hardsigmoid with alpha 0.2 and beta 0.5, and a layer here has x / 6 + 1/2: expected "
        "activation_alpha=1/6, activation_beta=1/2",
    ),
    "backwards": (
        lambda: from_onnx(model_of(direction="reverse")),
        ValueError,
        "lstm_0 has direction='reverse', and a stack has the forward direction alone or both: expected 'forward' or "
        "'bidirectional'",
    ),
    "weights that are given": (
        lambda: from_onnx(model_of(change=edited(at2="x"))),
        ValueError,
        "R of lstm_0 is x, which the graph computes or is given as it runs: the file does not hold these weights",
    ),
    "weights of another shape": (
        lambda: from_onnx(model_of(change=edited(at1="P"))),
        ValueError,
        "W of lstm_0 is [1, 21], expected [1, 28, 21]",
    ),
    "something in between": (
        lambda: from_onnx(model_of(2, change=between("Relu"))),
        ValueError,
        f"lstm_1 is no layer on top of lstm_0: it reads the output more of extra (Relu){ALONE}",
    ),
    "time and batch exchanged": (
        lambda: from_onnx(model_of(2, change=between("Transpose", perm=[1, 0, 2]))),
        ValueError,
        f"lstm_1 is no layer on top of lstm_0: it reads [batch, time, h] as [time, batch, input]{ALONE}",
    ),
    "the last state alone": (
        lambda: from_onnx(model_of(2, change=renamed)),
        ValueError,
        f"lstm_1 is no layer on top of lstm_0: it reads the output h_n_0 of lstm_0 (LSTM){ALONE}",
    ),
    "side by side": (
        lambda: from_onnx(model_of(2, change=lambda nodes, _: nodes[2].input.__setitem__(0, "x"))),
        ValueError,
        f"lstm_1 is no layer on top of lstm_0: it reads x{ALONE}",
    ),
    "no node": (
        lambda: from_onnx(model_of(change=lambda nodes, _: setattr(nodes[0], "op_type", "GRU"))),
        ValueError,
        "the model has no LSTM node at its top level; its nodes are GRU, Squeeze",
    ),
    "an unknown name": (
        lambda: from_onnx(model_of(2), nodes=["lstm_2"]),
        ValueError,
        "nodes=['lstm_2'], expected a list of the model's LSTM nodes, bottom first: 'lstm_0', 'lstm_1'",
    ),
    "one string": (
        lambda: from_onnx(model_of(2), nodes="Y_0"),
        ValueError,
        "nodes='Y_0', expected a list of the model's LSTM nodes, bottom first: 'lstm_0', 'lstm_1'",
    ),
    "a module": (
        lambda: from_onnx(nn.LSTM(I, H)),
        TypeError,
        "model is of type LSTM, expected a file's name or an onnx.ModelProto",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_type(case: str):
    call, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"^onnx is not installed: pip install 'unrolled\[onnx\]'$"):
        from_onnx("m.onnx")
