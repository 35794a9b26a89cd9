import ctypes

import pytest
import torch
from steppers import MODELS, NATIVE, inputs, made, walk
from torch import Tensor

from unrolled import LanguageModel, ModelConfig, MultiLayerLSTM, Stepper
from unrolled.parts import take_apart
from unrolled.recurrence import kernels, native, native_step

pytestmark = pytest.mark.skipif(not NATIVE, reason="there is no native library here")
KINDS = native_step.KINDS
SETS = native.instruction_sets()


def stack(width=19, hidden=37, layers=2, output=11):
    model = MultiLayerLSTM(width, hidden, layers, output_dim=output)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(2).add_(0.1 * torch.randn_like(weights))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["language model", "language model without embedding", "stack", "layer"])
def test_a_row_has_the_same_bits_in_any_batch_at_any_place_with_any_threads(name, kind, seed):
    model = made(name)
    x = inputs(model, 33, 5)
    torch.set_num_threads(4)
    whole = walk(Stepper(model, 33, kind, threads=1), x)
    for threads in (1, 2, 3, 4, 50):
        assert torch.equal(walk(Stepper(model, 33, kind, threads=threads), x), whole)
    order = torch.randperm(33)[:7]
    for rows in ([0], [32], [5, 4], order.tolist()):
        assert torch.equal(walk(Stepper(model, len(rows), kind, threads=2), x[rows]), whole[rows])


@pytest.mark.parametrize("name", ["language model", "language model without embedding", "stack"])
def test_float32_has_the_bits_of_a_whole_sequence_that_is_strict(name, seed):
    model = made(name).eval()
    (model.lstm if isinstance(model, LanguageModel) else model).strict = True
    x = inputs(model, 5, 12)
    with torch.no_grad():
        output, state = model(x)
    for strict in (True, False):
        stepper = Stepper(model, 5, strict=strict)
        assert torch.equal(walk(stepper, x), output)
        assert torch.equal(stepper.state.h, state.h)
        assert torch.equal(stepper.state.c, state.c)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_share_a_layer_give_the_bits_of_one(kind, threads, seed):
    """Large enough that a second thread is woken, and not so many rows that each has its own."""
    model = stack(width=64, hidden=200, output=130)
    x = torch.randn(2, 6, 64)
    torch.set_num_threads(threads)
    assert torch.equal(walk(Stepper(model, 2, kind, threads=threads), x), walk(Stepper(model, 2, kind, threads=1), x))


# Rows that a chunk holds many steps of, few, and one; the last are shared by rows, and those of few rows by units.
@pytest.mark.parametrize("rows", [1, 3, 20, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_have_the_bits_of_one_after_the_other(kind, rows, seed):
    model, steps = stack(width=33, hidden=136, output=70), 290 if rows == 1 else 9
    x, ids = torch.randn(rows, steps, 33), torch.randint(33, (rows, steps))
    torch.set_num_threads(4)
    one = Stepper(model, rows, kind, threads=1)
    expected, expected_of_ids = walk(one, x), walk(one, ids)
    for threads, strict in ((1, False), (2, True), (3, False), (4, False)):
        stepper = Stepper(model, rows, kind, threads, strict)
        assert torch.equal(stepper.steps(x), expected)
        cut = steps // 3
        assert torch.equal(stepper.steps(ids[:, :cut]), expected_of_ids[:, :cut])
        assert torch.equal(stepper.step(ids[:, cut]), expected_of_ids[:, cut])
        assert torch.equal(stepper.steps(ids[:, cut + 1 :]), expected_of_ids[:, cut + 1 :])
        assert torch.equal(stepper.state.h, one.state.h)
        assert torch.equal(stepper.state.c, one.state.c)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_have_those_bits_on_every_instruction_set(kind, name, seed):
    model, x = stack(), torch.randn(3, 50, 19)
    with kernels.instruction_set(name):
        assert torch.equal(Stepper(model, 3, kind).steps(x), walk(Stepper(model, 3, kind), x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_of_several_steps(kind, bad, seed):
    model, x = stack(), torch.randn(4, 30, 19)
    x[1, 20, 7] = bad
    stepper, one = Stepper(model, 4, kind), Stepper(model, 4, kind)
    assert torch.equal(stepper.steps(x).nan_to_num(7.0), walk(one, x).nan_to_num(7.0))
    assert stepper.steps(x)[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_takes_its_own_path_to_the_same_numbers(kind, seed):
    model, x = stack(), torch.randn(3, 8, 19)
    outputs = {}
    for name in SETS:
        with kernels.instruction_set(name):
            outputs[name] = walk(Stepper(model, 3, kind), x)
    for output in outputs.values():
        # Fused or not, sums of 56 products differ by a few roundings; int8 rounds a state up or down at a tie.
        assert torch.allclose(output, outputs[SETS[-1]], rtol=0, atol=2e-2 if kind == "int8" else 3e-6)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_float32_with_rounded_weights(name, seed):
    """Biases, and what the table adds for a token, stay float32."""
    model = made(name)
    x = inputs(model, 3, 6)
    low = walk(Stepper(model, 3, "bfloat16"), x)
    parts = take_apart(model)
    if x.dtype.is_floating_point and not isinstance(model, torch.nn.RNNBase):
        rounded = [p for layer in parts.layers for n, p in layer.named_parameters() if n.startswith("W_")]
        rounded += [parts.projection.weight] if parts.projection is not None else []
        with torch.no_grad():
            for weights in rounded:
                weights.copy_(weights.bfloat16())
        assert torch.equal(low, walk(Stepper(model, 3), x))
    else:
        exact = walk(Stepper(model, 3), x)
        assert 0 < float((low - exact).abs().max()) < 0.1


def quantised(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, (x / scale).clamp(-127, 127).round(), 0.0)


def product_of_int8(x: Tensor, w: Tensor, x_scale: Tensor) -> Tensor:
    """x [rows, depth] times w [depth, columns] in whole numbers; one scale for each column of w."""
    scale = w.abs().amax(0) / 127
    return (quantised(x, x_scale).double() @ quantised(w, scale).double()) * x_scale.double() * scale.double()


def step_of_int8(model: MultiLayerLSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights = take_apart(model).weights()
    state_scale = torch.tensor(1 / 127)
    hs, cs = [], []
    for k, (w_x, w_h, bias) in enumerate(weights.layers):
        x_scale = state_scale if k else x.abs().amax(1, keepdim=True) / 127
        pre = bias.flatten().double() + product_of_int8(x, w_x.flatten(1), x_scale)
        pre = (pre + product_of_int8(h[k], w_h.flatten(1), state_scale)).unflatten(1, (4, -1)).float()
        i, f, g, o = pre.unbind(1)
        cs.append(f.sigmoid() * c[k] + i.sigmoid() * g.tanh())
        x = o.sigmoid() * cs[-1].tanh()
        hs.append(x)
    assert weights.projection is not None
    weight, bias = weights.projection
    return bias.double() + product_of_int8(x, weight.t(), state_scale), torch.stack(hs), torch.stack(cs)


@pytest.mark.parametrize("name", SETS)
def test_int8_is_what_its_definition_says(name, seed):
    model, x = stack(), 3 * torch.randn(4, 19)
    h, c = torch.rand(2, 4, 37) * 2 - 1, torch.randn(2, 4, 37)
    h[0, 0] *= 1.5  # beyond 1: counts as 1
    expected, h_after, c_after = step_of_int8(model, x, h, c)
    with kernels.instruction_set(name):
        stepper = Stepper(model, 4, "int8")
    stepper.state = (h, c)
    output = stepper.step(x)
    # A state on the boundary of two whole numbers may fall to either side: then the layer above reads 1 / 127 more.
    assert torch.allclose(stepper.state.c[0], c_after[0], rtol=0, atol=2e-6)
    assert torch.allclose(stepper.state.h[1], h_after[1], rtol=0, atol=2e-2)
    assert torch.allclose(output.double(), expected, rtol=0, atol=5e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(kind, bad, seed):
    model, x = stack(), torch.randn(4, 3, 19)
    good = [0, 2, 3]
    expected = walk(Stepper(model, 4, kind), x)
    x[1, 1, 7] = bad
    stepper = Stepper(model, 4, kind)
    output = walk(stepper, x)
    assert torch.equal(output[good], expected[good])
    assert torch.equal(output[1, 0], expected[1, 0])
    if bad != bad or kind == "int8":
        assert output[1, 1:].isnan().all()
    stepper.reset(1)
    assert stepper.step(torch.zeros(4, 19)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_fades_away_is_flushed_and_the_callers_rounding_stays(kind):
    """Denormals cost a hundred cycles each; outside they are torch's business."""
    model = MultiLayerLSTM(1, 16, output_dim=None)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
    stepper = Stepper(model, 1, kind, threads=1)
    smallest = torch.finfo(torch.float32).tiny
    stepper.state = (torch.zeros(1, 1, 16), torch.full((1, 1, 16), smallest))
    stepper.step(torch.zeros(1, 1))
    assert not stepper.state.c.any()
    assert float(torch.tensor(smallest) / 2) > 0


def test_one_thread_neither_waits_nor_wakes_anybody(monkeypatch):
    """With one slot the loop runs in the caller: torch's pool is never asked, so even a broken one is no matter."""
    model, x = stack(width=64, hidden=128), torch.randn(1, 64)
    stepper = Stepper(model, 1, threads=1)
    library = native.library()
    assert library is not None
    asked = []
    pool = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )(lambda *_: asked.append(1) or 1)
    library.unrolled_use_parallel_for(ctypes.cast(pool, ctypes.c_void_p))
    try:
        stepper.step(x)
        assert asked == []
        Stepper(model, 1, threads=2).step(x)
        assert asked != []
    finally:
        library.unrolled_use_parallel_for(kernels._parallel_for())


def test_a_step_with_out_takes_no_memory(seed):
    """No tensor, that is: torch's own profiler sees every allocation of its allocator."""
    model = stack()
    x, out, stepper = torch.randn(3, 19), torch.empty(3, 11), Stepper(model, 3, threads=1)
    stepper.step(x, out)
    xs, outs = torch.randn(3, 5, 19), torch.empty(3, 5, 11)
    stepper.steps(xs, outs)  # takes what they share
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        stepper.step(x, out)
        stepper.steps(xs, outs)
    assert [event.name for event in profile.events() if event.cpu_memory_usage] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_out_of_range_is_refused_before_anything_happens(kind):
    stepper = Stepper(LanguageModel(ModelConfig(9, 5)), 2, kind)
    with pytest.raises(IndexError, match="ids must be from 0 to 8, got 9"):
        stepper.step(torch.tensor([0, 9]))
    with pytest.raises(IndexError, match="ids must be from 0 to 8, got -1"):
        stepper.steps(torch.tensor([[0, 1, 2], [3, 4, -1]]))
    assert not stepper.state.h.any()


def test_sizes_beyond_what_can_be_packed_are_refused():
    engine = native_step.NativeStep(take_apart(MultiLayerLSTM(2, 3)).weights(), 1, "float32", 1)
    with pytest.raises(RuntimeError, match="the native library cannot pack a stack of these sizes"):
        engine._memory(engine._library.layer_bytes(0, 2**30, 2**30))


def test_a_refusal_of_the_library_is_an_error():
    engine = native_step.NativeStep(take_apart(MultiLayerLSTM(2, 3)).weights(), 1, "float32", 1)
    engine.take_frames(take_apart(MultiLayerLSTM(2, 3)).weights())
    assert engine._frames is not None
    engine._frames[0].step.hidden = 4
    with pytest.raises(RuntimeError, match="the native library refused the step: packed weights are of other sizes"):
        engine.frames(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match="the native library refused the step: packed weights are of other sizes"):
        engine.several_frames(torch.zeros(1, 1, 2), torch.zeros(1, 1, 3))
