"""Which options go together: the table of docs/cell.md, each legal pair against the reference, others refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import F64, gradients, masks, normal, redraw
from torch import Tensor
from worlds import BACKENDS, dtype_of

from unrolled import LSTMLayer, ModelConfig, MultiLayerLSTM
from unrolled.cell_options import DEFAULTS

PAGE = Path(__file__).parents[1] / "docs" / "cell.md"
# Of each option a value that is not the plain LSTM's.
VALUES: dict[str, Any] = {
    "peephole": True,
    "coupled": True,
    "gate_activation": "hard_sigmoid",
    "activation": "relu",
    "cell_clip": 0.5,
    "bias": False,
    "forget_bias": 1.0,
    "recurrent_init": "orthogonal",
    "learn_initial_state": True,
    "layer_norm": True,
    "zoneout": (0.2, 0.3),
    "recurrent_dropout": 0.2,
    "variational_dropout": 0.2,
    "weight_drop": 0.2,
    "proj_dim": 3,
    "residual": True,
    "bidirectional": True,
}
# What no constructor takes; by the first column of the table, and as two options.
NO_PAIRS = {("coupled", "forget_bias"), ("bias", "forget_bias")}
PAIRS = [pair for pair in combinations(VALUES, 2) if pair not in NO_PAIRS]

THERE_IS_NO_B_F = "forget_bias=1.0 is where b_f starts, and with {} there is none: leave forget_bias out"
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "`forget_bias` and `coupled=True`": (
        lambda: LSTMLayer(3, 4, forget_bias=1.0, coupled=True),
        ValueError,
        THERE_IS_NO_B_F.format("coupled=True"),
    ),
    "`forget_bias` and `bias=False`": (
        lambda: LSTMLayer(3, 4, forget_bias=1.0, bias=False),
        ValueError,
        THERE_IS_NO_B_F.format("bias=False"),
    ),
    "`residual=True` and one layer": (
        lambda: MultiLayerLSTM(3, 4, residual=True),
        ValueError,
        "residual=True adds from the second layer on, and num_layers=1: leave residual out",
    ),
    "`tie_weights` and an embedding that is not as wide as h": (
        lambda: ModelConfig(5, 7, 2, 7, proj_dim=3, tie_weights=True),
        ValueError,
        "tie_weights makes embedding and projection one matrix, as wide as h: embedding=7 must be proj_dim=3",
    ),
    "`cell` and any other option but `learn_initial_state`": (
        lambda: LSTMLayer(3, 4, cell=step, peephole=True),
        ValueError,
        "cell=step has its own equations, in a plain loop, and takes no peephole=True: leave that out, or compute it "
        "in the cell",
    ),
}


def step(x: Tensor, state: Any) -> Any:
    return state[0], state


def test_the_tables_are_of_all_options() -> None:
    assert set(DEFAULTS) < VALUES.keys()
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("| together | what happens | why |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert {re.split(r" \| ", row.strip("| "))[0] for row in table.splitlines()} == set(REFUSED)
    for name in DEFAULTS:
        assert f"`{name}" in text


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    call, error, sentence = REFUSED[name]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == sentence


def new_model(backend: str, dtype: torch.dtype, names: tuple[str, ...]) -> MultiLayerLSTM:
    options = {name: VALUES[name] for name in names}
    model = redraw(MultiLayerLSTM(5, 7, 2, output_dim=4, backend=backend, dtype=dtype, **options))
    assert isinstance(model, MultiLayerLSTM)
    return model


def everything(model: MultiLayerLSTM, dtype: torch.dtype, state: Any) -> dict[str, Tensor]:
    """Output, state, every layer's h and c, and all gradients, with resets and lengths."""
    x = normal(4, 9, 5, seed=1).to(dtype).requires_grad_()
    torch.manual_seed(5)
    trace = model.trace(x, state, **masks("both", 4, 9))
    found = {"output": trace.output, "h": trace.state.h, "c": trace.state.c}
    found |= {f"{name} {k}": getattr(layer, name) for k, layer in enumerate(trace.layers) for name in "hc"}
    grads = gradients(found, {"x": x, **dict(model.named_parameters())})
    return found | {f"grad {name}": value for name, value in grads.items()}


def compare(backend: str, names: tuple[str, ...]) -> None:
    dtype = dtype_of(backend)
    model, exact = new_model(backend, dtype, names), new_model("reference", F64, names)
    shapes = [part.shape for part in exact.zero_state(4)]
    for state in (None, tuple(normal(*shape, seed=k) for k, shape in enumerate(shapes))):
        own = None if state is None else tuple(part.to(dtype) for part in state)
        found, expected = everything(model, dtype, own), everything(exact, F64, state)
        near = 1e-10 if dtype == F64 else 1e-3
        for name, value in expected.items():
            scale = 1 + float(value.detach().abs().max())
            torch.testing.assert_close(found[name].double(), value, rtol=near, atol=near * scale, msg=name)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_each_alone(backend: str, name: str) -> None:
    compare(backend, (name,))


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_each_pair(backend: str, pair: tuple[str, str]) -> None:
    compare(backend, pair)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_all_at_once(backend: str) -> None:
    compare(backend, tuple(name for name in VALUES if name != "forget_bias"))
