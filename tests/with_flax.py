"""Flax' own LSTM cells beside stacks made of them, in float64; test_flax_weights.py runs this file apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from numpy.typing import NDArray
from plain import redraw
from ports import SIZES, assert_near, drawn, results

from unrolled import LSTMLayer, MultiLayerLSTM, from_flax, to_flax

jax.config.update("jax_enable_x64", True)  # JAX rounds float64 to float32 otherwise

I, H = 5, 7
F64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
Sizes = tuple[int, int, int, int]

LINEN = pytest.mark.parametrize("kind", [linen.OptimizedLSTMCell, linen.LSTMCell], ids=lambda kind: kind.__name__)
NNX = pytest.mark.parametrize("kind", [nnx.OptimizedLSTMCell, nnx.LSTMCell], ids=lambda kind: kind.__name__)


def redrawn(tree: Any, seed: int) -> Any:
    """Every array drawn, biases included."""
    leaves, form = jax.tree.flatten(tree)
    return jax.tree.unflatten(form, [jnp.asarray(drawn(*each.shape, seed=seed + k)) for k, each in enumerate(leaves)])


def inputs(sizes: Sizes, depth: int) -> list[NDArray]:
    rows, steps, features, units = sizes
    return [drawn(rows, steps, features, seed=50), *(drawn(depth, rows, units, seed=51 + k) for k in range(2))]


def of_linen(
    kind: Any, units: int, trees: list[Any], x: NDArray, h: NDArray, c: NDArray, *, lengths: NDArray | None = None
) -> list[NDArray]:
    """A carry of Flax is (c, h)."""
    last = []
    for tree, h0, c0 in zip(trees, h, c, strict=True):
        rnn = linen.RNN(kind(units, **F64), return_carry=True)
        carry, x = rnn.apply({"params": {"cell": tree}}, x, initial_carry=(c0, h0), seq_lengths=lengths)
        last.append(carry)
    return [np.asarray(x), *(np.stack([carry[place] for carry in last]) for place in (1, 0))]


def of_nnx(cells: list[Any], x: NDArray, h: NDArray, c: NDArray) -> list[NDArray]:
    last = []
    for cell, h0, c0 in zip(cells, h, c, strict=True):
        rnn = nnx.RNN(cell, return_carry=True, rngs=nnx.Rngs(0))
        carry, x = rnn(jnp.asarray(x), initial_carry=(jnp.asarray(c0), jnp.asarray(h0)))
        last.append(carry)
    return [np.asarray(x), *(np.stack([carry[place] for carry in last]) for place in (1, 0))]


def trees_of_linen(kind: Any, sizes: Sizes, depth: int) -> list[Any]:
    rows, steps, features, units = sizes
    trees = []
    for k in range(depth):
        x = jnp.zeros((rows, steps, units if k else features))
        made = linen.RNN(kind(units, **F64)).init(jax.random.key(k), x)
        trees.append(redrawn(made["params"]["cell"], 100 * k))
    return trees


def cells_of_nnx(kind: Any, sizes: Sizes, depth: int) -> list[Any]:
    cells = [kind(sizes[3] if k else sizes[2], sizes[3], rngs=nnx.Rngs(k), **F64) for k in range(depth)]
    for k, cell in enumerate(cells):
        nnx.update(cell, redrawn(nnx.state(cell, nnx.Param), 100 * k))
    return cells


@SIZES
@LINEN
def test_outputs_and_states_of_linen_agree(sizes: Sizes, depth: int, kind: Any):
    trees, given = trees_of_linen(kind, sizes, depth), inputs(sizes, depth)
    assert_near(results(from_flax(trees), *given), of_linen(kind, sizes[3], trees, *given))


@SIZES
@NNX
def test_outputs_and_states_of_nnx_agree(sizes: Sizes, depth: int, kind: Any):
    cells, given = cells_of_nnx(kind, sizes, depth), inputs(sizes, depth)
    model = from_flax([nnx.state(cell, nnx.Param) for cell in cells])
    assert_near(results(model, *given), of_nnx(cells, *given))


@SIZES
@LINEN
def test_what_to_flax_gives_computes_what_the_stack_does(sizes: Sizes, depth: int, kind: Any):
    model = redraw(MultiLayerLSTM(*sizes[2:], depth, output_dim=None, dtype=torch.float64))
    given = inputs(sizes, depth)
    assert_near(of_linen(kind, sizes[3], to_flax(model), *given), results(model, *given))


@SIZES
def test_what_to_flax_gives_nnx_computes_what_the_stack_does(sizes: Sizes, depth: int):
    model = redraw(MultiLayerLSTM(*sizes[2:], depth, output_dim=None, dtype=torch.float64))
    cells, given = cells_of_nnx(nnx.OptimizedLSTMCell, sizes, depth), inputs(sizes, depth)
    for cell, tree in zip(cells, to_flax(model, kind="nnx"), strict=True):
        nnx.update(cell, tree)
    assert_near(of_nnx(cells, *given), results(model, *given))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_both_directions_agree_there_and_back(kind: str):
    x = drawn(4, 6, I, seed=50)
    zeros = [np.zeros((2, 4, H))] * 2
    if kind == "linen":
        module = linen.Bidirectional(*(linen.RNN(linen.OptimizedLSTMCell(H, **F64)) for _ in range(2)))
        params = redrawn(module.init(jax.random.key(0), x)["params"], 0)

        def run(tree: Any) -> Any:
            return module.apply({"params": tree}, x)

    else:
        cells = [nnx.OptimizedLSTMCell(I, H, rngs=nnx.Rngs(k), **F64) for k in range(2)]
        module = nnx.Bidirectional(*(nnx.RNN(cell, rngs=nnx.Rngs(0)) for cell in cells), rngs=nnx.Rngs(0))
        params = redrawn(nnx.to_pure_dict(nnx.state(module, nnx.Param)), 0)

        def run(tree: Any) -> Any:
            nnx.update(module, tree)
            return module(jnp.asarray(x))

    model = from_flax(params)
    expected = np.asarray(run(params))
    assert_near(results(model, x, *zeros)[:1], [expected])
    [back] = to_flax(model, kind=kind)
    assert_near([np.asarray(run(jax.tree.map(jnp.asarray, back)))], [expected])


def test_float32_agrees_to_its_rounding():
    trees = trees_of_linen(linen.OptimizedLSTMCell, (4, 6, I, H), 2)
    narrow = jax.tree.map(lambda value: (0.3 * value).astype(jnp.float32), trees)
    given = [array.astype("float32") for array in inputs((4, 6, I, H), 2)]
    last, x = [], given[0]
    for tree, h0, c0 in zip(narrow, *given[1:], strict=True):
        rnn = linen.RNN(linen.OptimizedLSTMCell(H), return_carry=True)
        carry, x = rnn.apply({"params": {"cell": tree}}, x, initial_carry=(c0, h0))
        last.append(carry)
    expected = [np.asarray(x), *(np.stack([carry[place] for carry in last]) for place in (1, 0))]
    assert_near(results(from_flax(narrow), *given), expected)


def test_lengths_are_seq_lengths():
    """linen.RNN computes on behind a row's end, and its carry is that of the last valid step."""
    trees, given = trees_of_linen(linen.OptimizedLSTMCell, (4, 6, I, H), 2), inputs((4, 6, I, H), 2)
    lengths = np.array([6, 2, 5, 1])
    expected = of_linen(linen.OptimizedLSTMCell, H, trees, *given, lengths=lengths)
    expected[0] = np.where((np.arange(6) < lengths[:, None])[..., None], expected[0], 0)
    assert_near(results(from_flax(trees), *given, lengths=torch.from_numpy(lengths)), expected)


def test_all_biases_of_a_new_cell_are_zero_as_ours():
    cell = nnx.OptimizedLSTMCell(I, H, rngs=nnx.Rngs(0))
    [layer] = from_flax(nnx.state(cell, nnx.Param)).layers
    linens = linen.RNN(linen.OptimizedLSTMCell(H)).init(jax.random.key(0), jnp.zeros((1, 1, I), jnp.float32))
    for each in (layer, from_flax(linens["params"]["cell"]).layers[0], LSTMLayer(I, H)):
        assert not any(getattr(each, f"b_{gate}").any() for gate in "ifgo")


def test_where_the_cells_of_a_model_lie_is_said():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.RNN(linen.OptimizedLSTMCell(H))(x)
            return linen.Dense(3)(linen.RNN(linen.LSTMCell(H))(x))

    variables = Model().init(jax.random.key(0), jnp.zeros((2, 3, I), jnp.float32))
    with pytest.raises(ValueError, match="it holds some") as caught:
        from_flax(variables)
    assert str(caught.value).endswith(
        "it holds some: from_flax([params['params']['OptimizedLSTMCell_0'], params['params']['LSTMCell_0']])"
    )
    params = variables["params"]
    assert from_flax([params["OptimizedLSTMCell_0"], params["LSTMCell_0"]]).num_layers == 2
    rnn = nnx.RNN(nnx.OptimizedLSTMCell(I, H, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"it holds one: from_flax\(params\['cell'\]\)"):
        from_flax(nnx.state(rnn, nnx.Param))
    with pytest.raises(
        TypeError, match=r"params is of type OptimizedLSTMCell, expected the parameters of an LSTM cell"
    ):
        from_flax(rnn.cell)


def test_bfloat16_of_jax_has_the_same_bits():
    tree = jax.tree.map(lambda value: value.astype(jnp.bfloat16), trees_of_linen(linen.LSTMCell, (1, 1, I, H), 1)[0])
    [layer] = from_flax(tree).layers
    assert layer.W_hf.dtype == torch.bfloat16
    assert np.array_equal(layer.W_hf.detach().float(), np.asarray(tree["hf"]["kernel"]).astype("float32"))
