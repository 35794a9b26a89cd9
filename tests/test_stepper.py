import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from steppers import BACKENDS, MODELS, inputs, made, use, walk, whole
from tolerance import assert_close
from torch import nn

import unrolled
from unrolled import BackendUnavailable, LSTMLayer, LSTMState, MultiLayerLSTM, Stepper

pytestmark = pytest.mark.usefixtures("backend")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    use(request.param, monkeypatch)
    return request.param


# Numbers


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_the_whole_sequence(name, rows, seed, backend):
    model = made(name)
    x = inputs(model, rows, 9)
    stepper = Stepper(model, rows)
    assert stepper.backend == backend
    output, state = walk(stepper, x), stepper.state
    (exact, exact_state), (plain, plain_state) = whole(model, x), whole(model, x, torch.float32)
    assert_close(output, plain, exact, "output")
    for value, rounded, true, what in zip(state, plain_state, exact_state, ("h", "c"), strict=True):
        assert_close(value, rounded, true, what)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", MODELS)
def test_several_steps_at_once_are_one_after_the_other(name, rows, seed):
    model = made(name)
    x = inputs(model, rows, 9)
    one, several = Stepper(model, rows), Stepper(model, rows)
    expected = walk(one, x)
    out = torch.full(expected[:, :4].shape, 7.0)
    assert several.steps(x[:, :4], out) is out
    assert several.steps(x[:, :0]).shape == (rows, 0, expected.shape[2])
    assert torch.equal(torch.cat([out, several.step(x[:, 4])[:, None], several.steps(x[:, 5:])], 1), expected)
    assert torch.equal(several.state.h, one.state.h)
    assert torch.equal(several.state.c, one.state.c)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_stack_reads_ids_as_one_hot_rows_between_frames(rows, seed):
    model = made("stack")
    ids = torch.randint(5, (rows, 6))
    frames = torch.nn.functional.one_hot(ids, 5).float()
    by_ids, by_frames, mixed = (Stepper(model, rows) for _ in range(3))
    a, b = walk(by_ids, ids), walk(by_frames, frames)
    c = torch.stack([mixed.step(ids[:, t] if t % 2 else frames[:, t]) for t in range(6)], 1)
    exact, plain = whole(model, frames)[0], whole(model, frames, torch.float32)[0]
    for output in (a, b, c):
        assert_close(output, plain, exact, "output")


def test_a_step_behind_a_call_goes_on_from_its_state(seed):
    model = made("language model").eval()
    ids = inputs(model, 3, 10)
    with torch.no_grad():
        _, state = model(ids[:, :6])
    stepper = Stepper(model, 3)
    stepper.state = state
    exact, plain = whole(model, ids)[0], whole(model, ids, torch.float32)[0]
    assert_close(walk(stepper, ids[:, 6:]), plain[:, 6:], exact[:, 6:], "logits")


def test_it_repeats_itself_to_the_bit(seed):
    model = made("language model")
    ids = inputs(model, 4, 30)
    assert torch.equal(walk(Stepper(model, 4), ids), walk(Stepper(model, 4), ids))


def test_nothing_unwritten_is_read(seed, poison):
    model = made("stack")
    assert walk(Stepper(model, 3), inputs(model, 3, 4)).isfinite().all()


@pytest.mark.parametrize("name", ["language model", "stack", "layer"])
def test_no_rows_are_legal(name):
    model = made(name)
    stepper = Stepper(model, 0)
    x = inputs(model, 0, 1)[:, 0]
    width = 20 if name == "layer" else stepper.step(x).shape[1]
    assert stepper.step(x).shape == (0, width)
    assert stepper.steps(inputs(model, 0, 3)).shape == (0, 3, width)
    assert stepper.state.h.shape[1] == 0
    with pytest.raises(ValueError, match="has 1 rows and the stepper 0"):
        stepper.step(inputs(model, 1, 1)[:, 0])


def test_a_large_vocabulary_is_looked_up_and_multiplied(seed, monkeypatch):
    from unrolled.recurrence import native_step

    model = made("language model")
    ids = inputs(model, 3, 6)
    with_table = walk(Stepper(model, 3), ids)
    monkeypatch.setattr(native_step, "_TABLE_BYTES", 0)
    stepper = Stepper(model, 3)
    assert torch.equal(walk(stepper, ids), with_table)
    assert torch.equal(Stepper(model, 3).steps(ids), with_table)
    with pytest.raises(IndexError, match="ids must be from 0 to 10, got 11: this model's vocabulary"):
        stepper.step(torch.tensor([0, 11, 3]))


# The call


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_ids_of_any_integer_dtype_and_stride(dtype, seed):
    model = made("language model")
    ids = inputs(model, 4, 8)
    expected = walk(Stepper(model, 4), ids)
    assert torch.equal(walk(Stepper(model, 4), ids.to(dtype)), expected)
    assert torch.equal(walk(Stepper(model, 4), ids.t().contiguous().t().to(dtype)), expected)
    assert torch.equal(Stepper(model, 4).steps(ids.t().contiguous().t().to(dtype)), expected)


def test_frames_of_any_stride_and_with_gradients(seed):
    model = made("stack")
    x = inputs(model, 4, 8)
    expected = walk(Stepper(model, 4), x)
    by_step = x.transpose(0, 1).contiguous()
    assert torch.equal(walk(Stepper(model, 4), by_step.transpose(0, 1)), expected)
    assert torch.equal(Stepper(model, 4).steps(nn.Parameter(by_step.transpose(0, 1))), expected)
    assert torch.equal(walk(Stepper(model, 4), nn.Parameter(x)), expected)
    stepper = Stepper(model, 4)
    output = stepper.step(x[:, 0].clone().requires_grad_())
    assert not output.requires_grad
    assert not stepper.state.h.requires_grad
    imaginary = torch.complex(torch.zeros(1, 1), -torch.ones(1, 1)).conj().imag
    one = LSTMLayer(1, 3)
    assert torch.equal(Stepper(one, 1).step(imaginary), Stepper(one, 1).step(torch.ones(1, 1)))


def test_a_result_is_fresh_unless_out_is_given(seed):
    model = made("language model")
    ids = inputs(model, 2, 3)
    stepper, out = Stepper(model, 2), torch.full((2, 11), 7.0)
    first = stepper.step(ids[:, 0])
    kept = first.clone()
    assert stepper.step(ids[:, 1], out) is out
    assert torch.equal(first, kept)
    assert torch.equal(out, walk(Stepper(model, 2), ids)[:, 1])


@pytest.mark.parametrize("name", ["stack", "stack without projection"])
def test_out_may_be_the_input(name, seed):
    model = made(name) if name == "stack" else MultiLayerLSTM(5, 5, 2, output_dim=None)
    x = torch.randn(3, 5)
    stepper, out = Stepper(model, 3), torch.empty(3, 5)
    frame = x
    for _ in range(4):
        frame = stepper.step(frame)
    stepper.reset()
    out.copy_(x)
    for _ in range(4):
        stepper.step(out, out)
    assert torch.equal(out, frame)
    stepper.reset()
    many = torch.randn(3, 50, 5)
    expected = stepper.steps(many)
    stepper.reset()
    assert torch.equal(stepper.steps(many, many), expected)


def test_a_graph_that_kept_out_knows_that_it_was_written(seed):
    stepper, out = Stepper(LSTMLayer(3, 4), 2), torch.zeros(2, 4)
    weight = torch.ones(2, 4, requires_grad=True)
    product = (out * weight).sum()
    stepper.step(torch.randn(2, 3), out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    several = torch.zeros(2, 1, 4)
    product = (several * weight[:, None]).sum()
    stepper.steps(torch.randn(2, 1, 3), several)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_it_runs_as_in_evaluation_and_leaves_the_mode(seed):
    model = made("stack")
    model.layers[1].eval()
    modes = [part.training for part in model.modules()]
    x = inputs(model, 2, 3)
    output = walk(Stepper(model, 2), x)
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(output, walk(Stepper(model.eval(), 2), x))


def test_it_works_in_and_between_inference_mode_and_under_autocast(seed):
    model = made("stack")
    x = inputs(model, 2, 4)
    expected = walk(Stepper(model, 2), x)
    with torch.inference_mode():
        stepper = Stepper(model, 2)
        first = stepper.step(x[:, 0])
    second = stepper.step(x[:, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        third = stepper.step(x[:, 2])
    assert torch.equal(torch.stack([first, second, third], 1), expected[:, :3])
    stepper.state = stepper.state
    with torch.inference_mode():
        state = stepper.state
    stepper.state = state


def test_a_model_made_in_inference_mode_can_be_stepped():
    with torch.inference_mode():
        model = MultiLayerLSTM(3, 4)
    assert Stepper(model, 2).step(torch.randn(2, 3)).shape == (2, 3)


# State


def test_the_state_is_a_copy_that_can_be_set_back(seed):
    model = made("language model")
    ids = inputs(model, 3, 6)
    stepper = Stepper(model, 3)
    walk(stepper, ids[:, :3])
    state = stepper.state
    kept = LSTMState(state.h.clone(), state.c.clone())
    after = walk(stepper, ids[:, 3:])
    assert torch.equal(state.h, kept.h)
    assert torch.equal(state.c, kept.c)
    stepper.state = (state.h, state.c)
    state.h.fill_(9)
    assert torch.equal(walk(stepper, ids[:, 3:]), after)


def test_a_new_stepper_starts_from_zeros():
    state = Stepper(made("stack"), 2).state
    assert state.h.shape == (3, 2, 16)
    assert not state.h.any()
    assert not state.c.any()


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [4]),
        (np.int64(2), [2]),
        (torch.tensor(3), [3]),
        (slice(1, 4), [1, 2, 3]),
        ([4, 0], [4, 0]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
        ([], []),
    ],
)
def test_rows_are_chosen_as_those_of_a_state_are(index, rows, seed):
    model = made("stack")
    stepper, other = Stepper(model, 5), Stepper(model, 5)
    walk(stepper, inputs(model, 5, 2))
    walk(other, inputs(model, 5, 3))
    before, source = stepper.state, other.state
    stepper.set_rows(index, source.rows(index))
    expected = before.h.clone()
    expected[:, rows] = source.h[:, rows]
    assert torch.equal(stepper.state.h, expected)
    assert torch.equal(stepper.state.c[:, rows], source.c[:, rows])
    stepper.reset(index)
    expected[:, rows] = 0
    assert torch.equal(stepper.state.h, expected)
    assert not stepper.state.c[:, rows].any()
    stepper.reset()
    assert not stepper.state.h.any()


def test_lanes_come_and_go_without_disturbing_each_other(seed):
    model = made("language model")
    ids = inputs(model, 3, 12)
    stepper = Stepper(model, 2)
    first = walk(stepper, ids[:2, :4])
    waiting = stepper.state.rows(1)
    stepper.set_rows(1, LSTMState.zeros(2, 1, 7))
    second = walk(stepper, torch.stack([ids[0, 4:8], ids[2, :4]]))
    stepper.set_rows([1], waiting)
    third = walk(stepper, ids[:2, 8:])
    exact, plain = whole(model, ids)[0], whole(model, ids, torch.float32)[0]
    assert_close(torch.cat([first[0], second[0], third[0]]), plain[0], exact[0], "the lane that stayed")
    assert_close(second[1], plain[2, :4], exact[2, :4], "the lane in between")
    gone = torch.cat([ids[1:2, :4], ids[1:2, 8:]], 1)
    exact, plain = whole(model, gone)[0], whole(model, gone, torch.float32)[0]
    assert_close(torch.cat([first[1], third[1]]), plain[0], exact[0], "the lane that waited")


def test_a_bad_row_spoils_no_other(seed):
    model = made("stack")
    x = inputs(model, 4, 5)
    expected = walk(Stepper(model, 4), x)
    x[1, 2] = torch.nan
    output = walk(Stepper(model, 4), x)
    assert output[1, 2:].isnan().all()
    good = [0, 2, 3]
    assert torch.equal(output[good], expected[good])
    assert torch.equal(output[1, :2], expected[1, :2])


STACK, FRAME = MultiLayerLSTM(5, 7, 2, output_dim=3), torch.zeros(4, 5)

# Other weights


def test_bfloat16_and_int8_and_strict_need_the_native_kernel(monkeypatch):
    use("portable", monkeypatch)
    model = made("stack")
    without = (
        'there is none: no C\\+\\+ compiler was found; without it, a stepper runs weights="float32" with strict=Fa'
    )
    for kind in ("bfloat16", "int8"):
        with pytest.raises(BackendUnavailable, match=f'^weights="{kind}" needs the native kernel, and {without}'):
            Stepper(model, 1, kind)
    with pytest.raises(BackendUnavailable, match=f"^strict=True needs the native kernel, and {without}"):
        Stepper(model, 1, strict=True)


# What it is


def test_it_says_what_it_is(backend):
    assert repr(Stepper(STACK, 4, threads=2)) == (
        f"Stepper(2 layers of 7, batch_size=4, weights='float32', threads=2, backend='{backend}')"
    )


def test_threads_are_torchs_unless_given():
    torch.set_num_threads(2)
    assert Stepper(STACK, 1).threads == 2
    assert Stepper(STACK, 1, threads=1).threads == 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_neither_copied_nor_pickled(copied):
    with pytest.raises(
        TypeError, match=r"neither copied nor pickled.*Stepper\(model, batch_size\), and set its .state"
    ):
        copied(Stepper(STACK, 1))


def test_a_second_thread_inside_is_refused():
    stepper = Stepper(STACK, 4)
    stepper._inside.acquire()
    for act in (
        lambda: stepper.step(FRAME),
        lambda: stepper.steps(FRAME[:, None]),
        lambda: stepper.state,
        stepper.reset,
        stepper.refresh,
    ):
        with pytest.raises(RuntimeError, match=r"another thread is inside this stepper; give each thread one of its"):
            act()
    stepper._inside.release()
    stepper.step(FRAME)


def test_steppers_of_one_model_run_in_several_threads(seed):
    model = made("language model")
    ids = inputs(model, 4, 60)
    expected = walk(Stepper(model, 4), ids)
    found = {}

    def run(name):
        stepper = Stepper(model, 4)
        found[name] = [walk(stepper, ids), stepper.reset(), walk(stepper, ids)]

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for first, _, second in found.values():
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)


def test_the_front_door_has_it():
    assert unrolled.Stepper is Stepper
