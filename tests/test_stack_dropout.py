"""Where dropout lies: a fresh mask for every element between layers and before the projection, never on the state."""

from __future__ import annotations

import pytest
import torch
from plain import GATES, assert_same, new_model, normal, redraw, stack_inputs
from torch import Tensor
from worlds import BACKENDS, dtype_of

from unrolled.stack import MultiLayerLSTM

I, H, OUT = 5, 7, 4

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def test_dropout_of_everything_shows_where_it_lies(backend: str) -> None:
    model, given = new_model(backend, 2, dropout=1.0), stack_inputs(backend)
    state = (given["h0"], given["c0"])
    dropped, plain = model.train().trace(given["x"], state), model.eval().trace(given["x"], state)
    # Before the projection: only its bias is left.
    assert torch.equal(dropped.output, model.proj.bias.expand(4, 6, OUT))
    # Not on the recurrence and not on what a trace or a state holds: the bottom layer is untouched.
    for name in ("h", "c", *GATES):
        assert torch.equal(getattr(dropped.layers[0], name), getattr(plain.layers[0], name))
    assert torch.equal(dropped.state.h[0], plain.state.h[0])
    # Between the layers: the upper one saw zeros in place of h, and carried its own h undropped.
    alone = model.layers[1].trace(torch.zeros(4, 6, H, dtype=dtype_of(backend)), given["h0"][1], given["c0"][1])
    for name in ("h", "c", *GATES):
        assert torch.equal(getattr(dropped.layers[1], name), getattr(alone, name))
    assert torch.equal(dropped.state.h[1], alone.h[:, -1])


@pytest.mark.parametrize("layers", [1, 2])
def test_without_a_projection_the_output_is_the_dropped_top_h(backend: str, layers: int) -> None:
    model = redraw(MultiLayerLSTM(I, 64, layers, 0.25, output_dim=None, backend=backend, dtype=dtype_of(backend)))
    x = normal(3, 8, I, seed=1, dtype=dtype_of(backend))
    torch.manual_seed(0)
    trace = model.trace(x)
    torch.manual_seed(0)
    output, state = model(x)
    assert torch.equal(output, trace.output)
    top = trace.layers[-1].h
    assert torch.equal(state.h[-1], top[:, -1])
    kept = output != 0
    assert_same(output[kept], top[kept] / 0.75)
    # A fresh mask for every element: no step and no row shares one with another (of 64 units, by chance 1e-13).
    patterns = {tuple(mask.tolist()) for mask in kept.flatten(0, 1)}
    assert len(patterns) == 24
    # 1536 draws: six standard deviations are 0.066.
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.066)
    assert torch.equal(model.eval()(x)[0], model.eval().trace(x).layers[-1].h)


def test_between_layers_too_the_mask_is_fresh_for_every_element(backend: str) -> None:
    model = redraw(MultiLayerLSTM(I, 64, 2, 0.25, backend=backend, dtype=dtype_of(backend)))
    seen: list[Tensor] = []
    model.layers[1].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model(normal(3, 8, I, seed=1, dtype=dtype_of(backend)))
    assert len({tuple(mask.tolist()) for mask in (seen[0] != 0).flatten(0, 1)}) == 24


def test_evaluation_has_no_dropout_and_training_has(backend: str) -> None:
    model, x = new_model(backend, 2, dropout=0.5), stack_inputs(backend)["x"]
    calm = new_model(backend, 2)
    assert torch.equal(model.eval()(x)[0], calm(x)[0])
    assert not torch.equal(model.train()(x)[0], model.train()(x)[0])
