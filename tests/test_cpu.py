"""The native backend: instruction sets, threads, regions inside regions, forks; what it stores, and what it flushes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from cases import OUTPUTS, SHAPES, Shape, make, run
from tolerance import assert_close
from torch import Tensor
from worlds import needs_library

from unrolled import LSTMLayer
from unrolled.recurrence import cpu, kernels, native, reference, scan, states

pytestmark = needs_library

F32, F64 = torch.float32, torch.float64
SETS = native.instruction_sets()
BOTH_WIDE = pytest.mark.skipif("avx512" not in SETS, reason="this processor has no AVX-512 to compare AVX2 with")
# One row, fewer rows than threads, units that share no multiple of lanes, and weights that threads divide.
SHARED = [
    Shape(1, 9, 3, 70, ("resets",)),
    Shape(3, 7, 5, 300, ("resets", "lengths")),
    Shape(29, 11, 6, 33, ("resets", "lengths")),
    Shape(40, 5, 4, 8),
    Shape(2, 4, 3, 1),
    Shape(9, 4, 8, 513),
]


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor], what: str = "") -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), f"{name} {what}"


# Instruction sets


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", [*SHAPES, Shape(5, 3, 300, 130)], ids=lambda s: s.name)
@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set_is_within_the_bound(name: str, shape: Shape) -> None:
    case = make(shape)
    exact, plain = run("reference", case, F64), run("reference", case, F32)
    with kernels.instruction_set(name):
        ours = run("cpu", case, F32)
    for field, value in ours.items():
        assert_close(value, plain[field], exact[field], field)


@BOTH_WIDE
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, *SHARED], ids=lambda s: s.name)
def test_both_wide_sets_give_the_same_bits(shape: Shape, strict: bool) -> None:
    """Each output is one sum in one order, whatever the number of lanes beside it."""
    case = make(shape, seed=3)
    results = []
    for name in ("avx2", "avx512"):
        with kernels.instruction_set(name):
            results.append(run("cpu", case, F32, strict=strict))
    assert_same_bits(*results)


def test_the_best_set_is_taken_where_none_is_asked_for() -> None:
    case = make(SHAPES[5])
    with kernels.instruction_set(native.instruction_set()):
        forced = run("cpu", case, F32)
    assert_same_bits(run("cpu", case, F32), forced)


# Threads


def of_every_kernel(shape: Shape) -> dict[str, Tensor]:
    case = make(shape, seed=4)
    pre, w_h, h0, c0, grad_h = (
        value.float().contiguous()
        for value in (
            case.cotangents["gates"].transpose(0, 1),
            *(case.floats[name] for name in ("w_h", "h0", "c0")),
            case.cotangents["h"].transpose(0, 1),
        )
    )
    masks = (None if case.resets is None else case.resets.t(), case.lengths)
    h, c, gates = cpu.forward(pre, w_h, h0, c0, *masks)
    *grads, of_cell, of_projected = cpu.backward(grad_h, None, gates, w_h, c, gates, c0, *masks)
    assert not of_cell.numel()
    assert not of_projected.numel()
    flat, flat_grad = h.flatten(0, 1), grads[0].flatten(0, 1).flatten(1)
    product, _ = kernels.product(flat_grad, w_h.flatten(1).mT, None)
    results = (h, c, gates, *grads, product, *kernels.weight_gradient(flat, flat_grad))
    names = ("h", "c", "gates", "grad_pre", "grad_h0", "grad_c0", "product", "grad_w", "grad_bias")
    return dict(zip(names, results, strict=True))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", SHARED, ids=lambda s: s.name)
def test_any_number_of_threads_gives_the_same_bits(shape: Shape, name: str) -> None:
    """More threads than rows, units or processors too."""
    torch.set_num_threads(1)
    with kernels.instruction_set(name):
        alone = of_every_kernel(shape)
        for threads in (2, 3, 7, 70):
            torch.set_num_threads(threads)
            assert_same_bits(of_every_kernel(shape), alone, f"on {threads} threads")


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("shape", SHARED, ids=lambda s: s.name)
def test_without_gradients_the_bits_are_those_of_training(shape: Shape, threads: int) -> None:
    case = make(shape, seed=4)
    layer = LSTMLayer(shape.width, shape.hidden, backend="cpu", strict=True)
    given = {name: case.floats[name].float() for name in ("x", "h0", "c0")}
    torch.set_num_threads(1)
    expected = layer(**given, resets=case.resets, lengths=case.lengths)
    torch.set_num_threads(threads)
    with torch.no_grad():
        ours = layer(**given, resets=case.resets, lengths=case.lengths)
    assert all(torch.equal(value, other) for value, other in zip(ours, expected, strict=True))


def isolated(program: str, seconds: float = 60) -> None:
    """Run it in an interpreter of its own, where a hang ends in every thread's traceback and a failure."""
    start = f"import faulthandler; faulthandler.dump_traceback_later({seconds}, exit=True)\n"
    run = subprocess.run(
        [sys.executable, "-c", start + WORK + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * seconds,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n", run.stdout + run.stderr


# Forward, backward and the products, in both divisions of the work: by rows, and by units with a barrier each step.
WORK = """
import ctypes, os, sys, threading, time
import torch
from pathlib import Path
from unrolled.recurrence import kernels

def arguments(rows, steps, hidden):
    torch.manual_seed(rows)
    pre, w_h = torch.randn(steps, rows, 4, hidden), torch.randn(hidden, 4, hidden) / hidden**0.5
    return pre, w_h, torch.randn(rows, hidden), torch.randn(rows, hidden), torch.rand(steps, rows) < 0.2

GIVEN = [arguments(16, 12, 20), arguments(2, 12, 300)]

def work():
    results = []
    for pre, w_h, h0, c0, resets in GIVEN:
        h, c, gates = torch.empty_like(pre[:, :, 0]), torch.empty_like(pre[:, :, 0]), torch.empty_like(pre)
        kernels.forward(pre, w_h, (h0, c0), (resets, None), (h, c, gates))
        grads = kernels.backward((h, c, gates), w_h, c, gates, c0, (resets, None))
        flat = grads[0].flatten(0, 1).flatten(1)
        results += [h, c, gates, *grads, kernels.product(h.flatten(0, 1), w_h.flatten(1), None)[0]]
        results += kernels.weight_gradient(h.flatten(0, 1), flat)
    return results

torch.set_num_threads(1)
EXPECTED = [value.numpy() for value in work()]

def right():
    # With numpy: torch's own operators hang in a forked child wherever they take threads.
    return all((value.numpy() == expected).all() for value, expected in zip(work(), EXPECTED, strict=True))
"""


def test_several_python_threads_at_once() -> None:
    isolated("""
        def loop(results):
            torch.set_num_threads(3)
            results.append(all(right() for _ in range(20)))

        results = []
        threads = [threading.Thread(target=loop, args=(results,)) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert results == [True] * 3, results
        print("done")
    """)


def test_inside_a_parallel_region_of_torch() -> None:
    """Whoever calls from there has one of the pool's threads, and waits for no other."""
    isolated("""
        torch.set_num_threads(3)
        assert right()
        folder = Path(torch.__file__).parent / "lib"
        names = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
        path = next(folder / name for name in names if (folder / name).exists())
        parallel_for = ctypes.CDLL(str(path)).torch_parallel_for
        results, workers = [], set()

        @ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        def body(begin, end, context):
            workers.add(threading.get_native_id())
            results.extend(right() for _ in range(begin, end))

        one = ctypes.c_int64(1)
        parallel_for(ctypes.c_int64(0), ctypes.c_int64(6), one, body, None)
        assert results == [True] * 6, results
        assert len(workers) > 1, "the region had one thread, and shows nothing"
        print("done")
    """)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system cannot fork")
def test_a_forked_child_computes_the_same_and_ends() -> None:
    """It has the parent's pool without the pool's threads."""
    isolated("""
        torch.set_num_threads(3)
        assert right()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if right() and torch.get_num_threads() == 3 else 2
            finally:
                os._exit(code)
        for _ in range(1000):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid: break
            time.sleep(0.05)
        else:
            os.kill(child, 9)
            raise AssertionError("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert right()
        print("done")
    """)


def test_a_fork_before_the_first_call_has_threads_of_its_own() -> None:
    isolated("""
        from multiprocessing import get_context

        def child():
            torch.set_num_threads(2)
            sys.exit(0 if right() else 1)

        process = get_context("fork").Process(target=child) if hasattr(os, "fork") else None
        if process is not None:
            process.start()
            process.join(50)
            assert process.exitcode == 0, process.exitcode
        print("done")
    """)


# Numbers at the edges


@pytest.mark.parametrize("name", SETS)
def test_denormals_are_flushed_and_the_callers_rounding_stays(name: str) -> None:
    tiny = torch.finfo(F32).smallest_normal / 64
    pre = torch.zeros(40, 3, 4, 20)
    pre[:, :, 2] = tiny
    w_h, state = torch.full((20, 4, 20), tiny), torch.full((3, 20), tiny)
    h, c, gates = torch.empty(40, 3, 20), torch.empty(40, 3, 20), torch.empty(40, 3, 4, 20)
    with kernels.instruction_set(name):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            kernels.forward(pre, w_h, (state, state), (None, None), (h, c, gates))
            grads = kernels.backward((h, c, None), w_h, c, gates, state, (None, None))
            product, _ = kernels.product(state, w_h.flatten(1), None)
            # What the equations give is below the smallest normal number, and so is the error.
            exact = reference.scan(pre.double(), w_h.double(), state.double(), state.double(), None, None)
            for value, true in zip((h, c, gates), exact, strict=True):
                assert (value - true).abs().max() <= 4 * torch.finfo(F32).eps * true.abs().max().clamp(min=1e-30)
            assert not any(value.any() for value in (*grads, product))
            assert (torch.full((2,), tiny) * torch.ones(2)).all(), "the caller now flushes, too"


@pytest.mark.parametrize("wild", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["pre", "w_h", "h0", "c0", "grad_h", "grad_c", "grad_gates", "c", "gates"])
@pytest.mark.parametrize("name", SETS)
def test_what_is_not_finite_goes_where_the_equations_send_it(name: str, where: str, wild: float) -> None:
    torch.manual_seed(5)
    steps, rows, hidden = 6, 3, 20
    sizes: dict[str, tuple[int, ...]] = {
        "pre": (steps, rows, 4, hidden),
        "w_h": (hidden, 4, hidden),
        "h0": (rows, hidden),
        "c0": (rows, hidden),
    }
    sizes |= {"grad_h": (steps, rows, hidden), "grad_c": (steps, rows, hidden), "grad_gates": (steps, rows, 4, hidden)}
    given = {field: 0.3 * torch.randn(size) for field, size in sizes.items()}
    resets, lengths = torch.zeros(steps, rows, dtype=torch.bool), torch.tensor([6, 6, 3])
    resets[4, 1] = True
    _, given["c"], given["gates"] = reference.scan(
        given["pre"], given["w_h"], given["h0"], given["c0"], resets, lengths
    )
    given[where].select(0, 1)[1 if where in ("pre", "grad_h", "grad_c", "grad_gates", "c", "gates") else ..., 2] = wild
    masks = (resets, lengths)
    floats = [given[field] for field in ("pre", "w_h", "h0", "c0")]
    backward = [given[field] for field in ("grad_h", "grad_c", "grad_gates", "w_h", "c", "gates", "c0")]
    h, c, gates = torch.empty_like(given["c"]), torch.empty_like(given["c"]), torch.empty_like(given["gates"])
    with kernels.instruction_set(name):
        kernels.forward(*floats[:2], (floats[2], floats[3]), masks, (h, c, gates))
        grads = kernels.backward(tuple(backward[:3]), *backward[3:], masks)
    expected = (*reference.scan(*floats, *masks), *reference.scan_backward(*backward, *masks))
    fields = (*OUTPUTS, "pre", "h0", "c0", "cell", "projected")
    for value, true, field in zip((h, c, gates, *grads), expected, fields, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-5, atol=1e-5, equal_nan=True, msg=field)


# What is stored


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all memory that kernels ask for, results as well as scratch."""
    shapes: list[tuple[int, ...]] = []
    empty, kept = kernels.empty, kernels.kept

    def counted_empty(shape: tuple[int, ...]) -> Tensor:
        shapes.append(shape)
        return empty(shape)

    def counted_kept(name: str, floats: int) -> Tensor:
        shapes.append((floats,))
        return kept(name, floats)

    monkeypatch.setattr(kernels, "empty", counted_empty)
    monkeypatch.setattr(kernels, "kept", counted_kept)
    return shapes


@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_no_gates_are_stored(made: list[tuple[int, ...]], mode: Any, kind: str) -> None:
    rows, steps, width, hidden = 4, 12000, 24, 32
    layer = LSTMLayer(width, hidden, backend="cpu")
    x = torch.randn(rows, steps, width) if kind == "floats" else torch.randint(width, (rows, steps))
    expected = layer(x)
    assert (steps, rows, 4, hidden) in made
    del made[:]
    with mode():
        h, c = layer(x)
    assert made.count((steps, rows, hidden)) == 2
    others = sum(torch.Size(shape).numel() for shape in made if shape != (steps, rows, hidden))
    # Packed weights, and pre-activations for some steps at a time: 2 or 16 MiB, where those of all steps are 23.
    packed = kernels._library().unrolled_forward_scratch(hidden, 0)
    packed += kernels._library().unrolled_product_scratch(width, 4 * hidden) if kind == "floats" else 0
    assert packed < others <= packed + 16 * 2**20 // 4
    for value, other in zip((h, c), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["floats", "ids"])
@pytest.mark.parametrize("steps_at_a_time", [1, 3, 22, 23, 40])
def test_the_steps_at_a_time_change_no_bit(monkeypatch: pytest.MonkeyPatch, kind: str, steps_at_a_time: int) -> None:
    rows, steps, width, hidden = 6, 23, 11, 9
    monkeypatch.setattr(cpu, "_CHUNK_BYTES", 16 * rows * hidden * steps_at_a_time)
    case = make(Shape(rows, steps, width, hidden, ("resets", "lengths", *([kind] if kind == "ids" else []))), seed=6)
    floats = {name: value.float() for name, value in case.floats.items()}
    x = floats.pop("x", case.ids)
    assert x is not None
    options = {"resets": case.resets, "lengths": case.lengths, "backend": "cpu", "strict": True}
    whole = scan(x, **floats, **options)
    with torch.no_grad():
        h, c = states(x, **floats, **options)
    assert torch.equal(h, whole.h)
    assert torch.equal(c, whole.c)
