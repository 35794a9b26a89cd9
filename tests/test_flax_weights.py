"""Trees of Flax to a stack and back, without Flax; tests/with_flax.py compares with its cells, outputs and all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ports import drawn, run_apart
from torch import nn

from unrolled import LSTMLayer, MultiLayerLSTM, from_flax, to_flax

I, H = 5, 7
Tree = dict[str, dict[str, Any]]


def by_gate(features: int = I, units: int = H, *, seed: int = 0, dtype: str = "float64") -> Tree:
    """The tree of a linen LSTMCell or OptimizedLSTMCell."""
    tree: Tree = {}
    for k, gate in enumerate("ifgo"):
        tree[f"i{gate}"] = {"kernel": drawn(features, units, seed=seed + 3 * k, dtype=dtype)}
        tree[f"h{gate}"] = {
            "kernel": drawn(units, units, seed=seed + 3 * k + 1, dtype=dtype),
            "bias": drawn(units, seed=seed + 3 * k + 2, dtype=dtype),
        }
    return tree


def side_by_side(features: int = I, units: int = H, *, seed: int = 0) -> Tree:
    """The tree of an nnx.OptimizedLSTMCell."""
    return {
        "dense_i": {"kernel": drawn(features, 4 * units, seed=seed)},
        "dense_h": {"kernel": drawn(units, 4 * units, seed=seed + 1), "bias": drawn(4 * units, seed=seed + 2)},
    }


@pytest.mark.slow
def test_with_flax_itself():
    run_apart("with_flax.py", "flax")


@pytest.mark.parametrize("forget", ["if", "if_"], ids=["linen", "nnx"])
def test_every_gate_is_known_by_its_name(forget: str):
    trees = [by_gate(), by_gate(H, seed=20)]
    model = from_flax([{forget if key == "if" else key: part for key, part in tree.items()} for tree in trees])
    assert (model.input_dim, model.hidden_dim, model.num_layers, model.proj, model.dropout.p) == (I, H, 2, None, 0)
    for tree, layer in zip(trees, model.layers, strict=True):
        for gate in "ifgo":
            assert np.array_equal(getattr(layer, f"W_x{gate}").detach(), tree[f"i{gate}"]["kernel"])
            assert np.array_equal(getattr(layer, f"W_h{gate}").detach(), tree[f"h{gate}"]["kernel"])
            assert np.array_equal(getattr(layer, f"b_{gate}").detach(), tree[f"h{gate}"]["bias"])


def test_gates_side_by_side_are_i_f_g_o():
    """As jnp.split cuts them in nnx.OptimizedLSTMCell."""
    tree = side_by_side()
    [layer] = from_flax(tree).layers
    for number, gate in enumerate("ifgo"):
        columns = slice(number * H, (number + 1) * H)
        assert np.array_equal(getattr(layer, f"W_x{gate}").detach(), tree["dense_i"]["kernel"][:, columns])
        assert np.array_equal(getattr(layer, f"W_h{gate}").detach(), tree["dense_h"]["kernel"][:, columns])
        assert np.array_equal(getattr(layer, f"b_{gate}").detach(), tree["dense_h"]["bias"][columns])


def assert_same_tree(got: Tree, expected: Tree, dtype: str) -> None:
    assert got.keys() == expected.keys()
    for key, part in expected.items():
        assert got[key].keys() == part.keys()
        for leaf, value in part.items():
            assert got[key][leaf].dtype == dtype
            assert np.array_equal(got[key][leaf], value.astype(dtype)), (key, leaf)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_there_and_back_has_the_same_bits(dtype: str):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="NumPy alone has no bfloat16")
    trees = [by_gate(dtype=dtype), by_gate(H, seed=20, dtype=dtype)]
    model = from_flax(trees)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert all(parameter.requires_grad for parameter in model.parameters())
    for got, expected in zip(to_flax(model), trees, strict=True):
        assert_same_tree(got, expected, "float32" if dtype == "bfloat16" else dtype)
    assert_same_tree(to_flax(from_flax(side_by_side()), kind="nnx")[0], side_by_side(), "float64")


def test_a_layer_is_one_tree_and_nothing_is_shared():
    layer = LSTMLayer(I, H)
    tree = to_flax(layer)
    before = layer.W_xf.detach().clone()
    tree["if"]["kernel"] += 1
    assert torch.equal(layer.W_xf, before)
    given = by_gate()
    model = from_flax(given)
    expected = given["hg"]["bias"].copy()
    given["hg"]["bias"] += 1
    assert np.array_equal(model.layers[0].b_g.detach(), expected)
    assert len(to_flax(MultiLayerLSTM(I, H, 3, output_dim=2))) == 3


def both(features: int = I, *, seed: int = 0) -> dict[str, Any]:
    """The tree of a Bidirectional."""
    return {
        "backward_rnn": {"cell": by_gate(features, seed=seed + 50)},
        "forward_rnn": {"cell": by_gate(features, seed=seed)},
    }


def test_both_directions_are_one_tree():
    trees = [both(), both(2 * H, seed=20)]
    model = from_flax(trees)
    assert (model.bidirectional, model.num_layers) == (True, 2)
    assert np.array_equal(model.layers[1].W_xf.detach(), trees[1]["forward_rnn"]["cell"]["if"]["kernel"])
    assert np.array_equal(model.reverse_layers[1].W_xf.detach(), trees[1]["backward_rnn"]["cell"]["if"]["kernel"])
    for got, expected in zip(to_flax(model), trees, strict=True):
        assert got.keys() == expected.keys()
        for direction in expected:
            assert_same_tree(got[direction]["cell"], expected[direction]["cell"], "float64")


def without(tree: Tree, *keys: str) -> Tree:
    return {key: part for key, part in tree.items() if key not in keys}


CELL = (
    "expected the parameters of an LSTM cell of Flax (of linen the dict with ii, if, ig, io, hi, hf, hg, ho; of nnx "
    "nnx.state(cell, nnx.Param)), or a list of such, bottom first"
)
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "nothing": (lambda: from_flax([]), ValueError, f"params is empty, {CELL}"),
    "a module": (lambda: from_flax(nn.LSTM(I, H)), TypeError, f"params is of type LSTM, {CELL}"),
    "a list of arrays": (
        lambda: from_flax([drawn(3, seed=0)]),
        TypeError,
        f"params[0] is of type ndarray, {CELL}",
    ),
    "variables": (
        lambda: from_flax({"params": {"cell": by_gate()}, "cache": {}}),
        ValueError,
        f"params has the keys params, cache, {CELL}; it holds one: from_flax(params['params']['cell'])",
    ),
    "a tree of two": (
        lambda: from_flax({"layers_0": {"cell": by_gate()}, "layers_2": {"cell": by_gate(H)}, "head": {"kernel": 1}}),
        ValueError,
        f"params has the keys layers_0, layers_2, head, {CELL}; it holds some: from_flax([params['layers_0']['cell'], "
        "params['layers_2']['cell']])",
    ),
    "variables with both directions": (
        lambda: from_flax({"Bidirectional_0": both()}),
        ValueError,
        f"params has the keys Bidirectional_0, {CELL}; it holds one: from_flax(params['Bidirectional_0'])",
    ),
    "one direction on two": (
        lambda: from_flax([both(), by_gate(2 * H)]),
        ValueError,
        "params[1] has 1 direction(s) and params[0] has 2; from_flax(params[1]) is this one alone",
    ),
    "a GRU": (
        lambda: from_flax([without(by_gate(), "ig", "hg")]),
        ValueError,
        f"params[0] has the keys ii, hi, if, hf, io, ho, {CELL}",
    ),
    "a bias too many": (
        lambda: from_flax(by_gate() | {"if": {"kernel": drawn(I, H, seed=0), "bias": drawn(H, seed=0)}}),
        ValueError,
        "params['if'] has the keys kernel, bias, expected kernel",
    ),
    "no bias": (
        lambda: from_flax(by_gate() | {"hf": {"kernel": drawn(H, H, seed=0)}}),
        ValueError,
        "params['hf'] has the keys kernel, expected kernel and bias",
    ),
    "flat": (
        lambda: from_flax(by_gate() | {"hf": drawn(H, H, seed=0)}),
        ValueError,
        "params['hf'] has a ndarray, expected kernel and bias",
    ),
    "a gate of another width": (
        lambda: from_flax(by_gate() | {"hf": {"kernel": drawn(H, H, seed=0), "bias": drawn(3, seed=0)}}),
        ValueError,
        "params['hf']['bias'] is [3], expected [7]",
    ),
    "four gates of another width": (
        lambda: from_flax(side_by_side() | {"dense_i": {"kernel": drawn(I, 12, seed=0)}}),
        ValueError,
        "params['dense_i']['kernel'] is [5, 12], expected [5, 28]",
    ),
    "no numbers": (
        lambda: from_flax(by_gate() | {"ii": {"kernel": None}}),
        TypeError,
        "params['ii']['kernel'] is of type NoneType, expected an array of float16, bfloat16, float32 or float64",
    ),
    "two widths": (
        lambda: from_flax([by_gate(), by_gate(H, 9)]),
        ValueError,
        "params[1] has 7 inputs and 9 units, expected 7 and 7: the layers of a MultiLayerLSTM have one hidden width; "
        "from_flax(params[1]) is this one alone",
    ),
    "to_flax of torch's": (
        lambda: to_flax(nn.LSTM(I, H)),
        TypeError,
        "model is of type LSTM, expected a MultiLayerLSTM or an LSTMLayer; to_flax(from_torch(model)) converts this "
        "one",
    ),
    "another kind": (
        lambda: to_flax(LSTMLayer(I, H), kind="haiku"),
        ValueError,
        'kind=\'haiku\', expected "linen" or "nnx"',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_what_to_type(case: str):
    call, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
