"""The wrappers of the C functions: what each refuses and in which words; the products; scratch and large pages."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerance import assert_close
from torch import Tensor
from worlds import MISSING, needs_library, remove_library

from unrolled.recurrence import kernels, native
from unrolled.recurrence.cell import Cell

pytestmark = needs_library

T, B, H = 3, 4, 5
N, K, M = 6, 7, 70
NAN = float("nan")


def test_an_unknown_instruction_set_is_refused_with_the_known_ones() -> None:
    with (
        pytest.raises(ValueError, match="instruction set 'sse9' is not one of baseline") as caught,
        kernels.instruction_set("sse9"),
    ):
        pass
    assert str(caught.value).endswith(", ".join(native.instruction_sets()))


def test_a_forced_instruction_set_ends_with_its_block_even_after_an_error() -> None:
    assert kernels._run().instruction_set is None
    with kernels.instruction_set("baseline"):
        assert kernels._run().instruction_set == b"baseline"
        with pytest.raises(ZeroDivisionError), kernels.instruction_set(native.instruction_set()):
            1 / 0
        assert kernels._run().instruction_set == b"baseline"
    assert kernels._run().instruction_set is None


def test_without_a_library_a_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    remove_library(monkeypatch)
    kernels._library.cache_clear()
    try:
        with pytest.raises(RuntimeError) as caught:
            kernels._library()
    finally:
        monkeypatch.undo()
        kernels._library.cache_clear()
    assert str(caught.value) == f"Unrolled has no native library here: {MISSING}"


# The wrappers


def forward_arguments() -> dict[str, Any]:
    floats = {"pre": (T, B, 4, H), "w_h": (H, 4, H), "h0": (B, H), "c0": (B, H)}
    outputs = {"h": (T, B, H), "c": (T, B, H), "gates": (T, B, 4, H)}
    given: dict[str, Any] = {name: torch.randn(size) for name, size in floats.items()}
    given |= {name: torch.full(size, NAN) for name, size in outputs.items()}
    return given | {"resets": None, "lengths": None, "bias": None}


def run_forward(given: dict[str, Any]) -> None:
    state, masks = (given["h0"], given["c0"]), (given["resets"], given["lengths"])
    out = given["h"], given["c"], given["gates"]
    kernels.forward(given["pre"], given["w_h"], state, masks, out, bias=given["bias"])


FORWARD_MISTAKES: dict[str, tuple[str, Tensor, str]] = {
    "w_h": ("w_h", torch.zeros(H, 4, H + 1), "a kernel got [5, 4, 6] torch.float32 on cpu"),
    "h0": ("h0", torch.zeros(B + 1, H), "a kernel got [5, 5] torch.float32 on cpu"),
    "c0": ("c0", torch.zeros(B, 1), "a kernel got [4, 1] torch.float32 on cpu"),
    "bias": ("bias", torch.zeros(4 * H), "a kernel got [20] torch.float32 on cpu, expected contiguous float32 [4, 5]"),
    "dtype": ("pre", torch.zeros(T, B, 4, H, dtype=torch.float64), "a kernel got [3, 4, 4, 5] torch.float64 on cpu"),
    "device": ("pre", torch.zeros(T, B, 4, H, device="meta"), "a kernel got [3, 4, 4, 5] torch.float32 on meta"),
    "an output's size": ("h", torch.zeros(T, B, H + 1), "expected contiguous float32 [3, 4, 5] on the CPU"),
    "an output's layout": ("c", torch.zeros(B, T, H).transpose(0, 1), "expected contiguous float32 [3, 4, 5]"),
    "the gates' layout": ("gates", torch.zeros(T, B, H, 4).mT, "expected contiguous float32 [3, 4, 4, 5] on the CPU"),
    "resets of another size": (
        "resets",
        torch.zeros(B, T, dtype=torch.bool),
        "resets is [4, 3] torch.bool, expected bool [3, 4]",
    ),
    "resets of integers": (
        "resets",
        torch.zeros(T, B, dtype=torch.uint8),
        "resets is [3, 4] torch.uint8, expected bool [3, 4]",
    ),
    "lengths of another size": (
        "lengths",
        torch.zeros(B + 1, dtype=torch.int64),
        "lengths is [5] torch.int64, expected int64 [4]",
    ),
    "short lengths": (
        "lengths",
        torch.zeros(B, dtype=torch.int32),
        "lengths is [4] torch.int32, expected int64 [4]",
    ),
}


@pytest.mark.parametrize("mistake", FORWARD_MISTAKES)
def test_the_forward_wrapper_refuses_what_does_not_fit_and_writes_nothing(mistake: str) -> None:
    name, value, message = FORWARD_MISTAKES[mistake]
    given = {**forward_arguments(), name: value}
    with pytest.raises(ValueError) as caught:
        run_forward(given)
    assert message in str(caught.value)
    assert all(given[out].isnan().all() for out in ("h", "c", "gates") if out != name)


def test_the_last_c_alone_is_that_of_the_last_step() -> None:
    given = forward_arguments()
    given["lengths"], given["resets"] = torch.tensor([3, 0, 1, 3]), torch.rand(T, B) < 0.3
    run_forward(given)
    last = {**given, "h": torch.full((T, B, H), NAN), "c": torch.full((B, H), NAN), "gates": None}
    run_forward(last)
    assert torch.equal(last["h"], given["h"])
    assert torch.equal(last["c"], given["c"][-1])


BACKWARD_MISTAKES: dict[str, tuple[int, Any, str]] = {
    "grad_h": (0, (torch.zeros(T, B, H + 1), None, None), "a cotangent is [3, 4, 6] torch.float32 on cpu, expected"),
    "grad_gates": (0, (None, None, torch.zeros(T, B, 4, H).double()), "a cotangent is [3, 4, 20] torch.float64 on cpu"),
    "w_h": (1, torch.zeros(H, 4, H).double(), "a kernel got [5, 4, 5] torch.float64 on cpu"),
    "c": (2, torch.zeros(T, B), "a kernel got [3, 4] torch.float32 on cpu"),
    "c0": (4, torch.zeros(B, H + 1), "a kernel got [4, 6] torch.float32 on cpu"),
    "masks": (5, (torch.zeros(T, T, dtype=torch.bool), None), "resets is [3, 3] torch.bool, expected bool [3, 4]"),
}


@pytest.mark.parametrize("mistake", BACKWARD_MISTAKES)
def test_the_backward_wrapper_refuses_what_does_not_fit(mistake: str) -> None:
    place, value, message = BACKWARD_MISTAKES[mistake]
    arguments: list[Any] = [(None, None, None), torch.zeros(H, 4, H), torch.zeros(T, B, H), torch.zeros(T, B, 4, H)]
    arguments += [torch.zeros(B, H), (None, None)]
    arguments[place] = value
    with pytest.raises(ValueError) as caught:
        kernels.backward(*arguments)
    assert message in str(caught.value)


def test_the_gradient_of_a_bias_has_its_place_and_none_behind_a_norm() -> None:
    arguments: list[Any] = [(None, None, None), torch.zeros(H, 4, H), torch.zeros(T, B, H), torch.zeros(T, B, 4, H)]
    arguments += [torch.zeros(B, H), (None, None)]
    with pytest.raises(ValueError, match=r"got \[20\] torch.float32 on cpu, expected contiguous float32 \[4, 5\]"):
        kernels.backward(*arguments, grad_bias=torch.zeros(4 * H))
    arguments[3] = torch.zeros(T, B, 8, H)
    with pytest.raises(RuntimeError, match="with a norm there is no grad_bias"):
        kernels.backward(*arguments, cell=Cell(norm=torch.zeros(2, 5, H)), grad_bias=torch.zeros(4, H))


def test_the_products_refuse_what_does_not_fit() -> None:
    x, w, grad = torch.zeros(N, K), torch.zeros(K, M), torch.zeros(N, M)
    for call, message in (
        (lambda: kernels.product(x, w[1:], None), r"x \[6, 7\], w \[6, 70\] and bias do not fit together"),
        (lambda: kernels.product(x, w, torch.zeros(M + 1)), "do not fit together"),
        (lambda: kernels.product(x, w.double(), None), "got torch.float64 on cpu, expected float32 on the CPU"),
        (lambda: kernels.product(x, w, None, torch.zeros(N, M + 1)), r"expected contiguous float32 \[6, 70\]"),
        (lambda: kernels.weight_gradient(x[1:], grad), r"x \[5, 7\] and grad \[6, 70\] differ in rows"),
        (lambda: kernels.weight_gradient(x, grad.double()), "got torch.float64 on cpu"),
        (lambda: kernels.weight_gradient(x, grad, x[:, 0]), r"skip is \[6\] torch.float32, expected bool \[6\]"),
        (lambda: kernels.weight_gradient(x, grad, x[1:, 0] > 0), r"skip is \[5\] torch.bool, expected bool \[6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# The products


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value,
    "transposed": lambda value: value.t().contiguous().t(),
    "strided": lambda value: torch.stack([value, value], -1)[..., 0],
    "rows apart": lambda value: torch.cat([value, value], -1)[:, : value.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1, 1), (6, 7, 70), (9, 200, 65), (130, 300, 33), (0, 3, 4), (3, 0, 4), (3, 4, 0)])
@pytest.mark.parametrize("name", native.instruction_sets())
def test_products_are_as_near_as_torchs(name: str, size: tuple[int, int, int], layout: str) -> None:
    torch.manual_seed(1)
    n, k, m = size
    lay = LAYOUTS[layout]
    x, w, grad, bias = torch.randn(n, k), torch.randn(k, m), torch.randn(n, m), torch.randn(m)
    with kernels.instruction_set(name):
        ours = (kernels.product(lay(x), lay(w), bias)[0], *kernels.weight_gradient(lay(x), lay(grad)))
        assert torch.equal(kernels.product(x, w, None)[0], kernels.product(x, w, torch.zeros(m))[0])
    plain = (torch.addmm(bias, x, w), x.t() @ grad, grad.sum(0))
    x, w, grad, bias = (value.double() for value in (x, w, grad, bias))
    exact = (torch.addmm(bias, x, w), x.t() @ grad, grad.sum(0))
    for value, torchs, true, what in zip(ours, plain, exact, ("product", "grad_w", "grad_bias"), strict=True):
        assert_close(value, torchs, true, what)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", native.instruction_sets())
def test_skipped_rows_are_not_read(name: str, share: float) -> None:
    torch.manual_seed(4)
    n, k, m = 300, 9, 70
    x, grad, skip = torch.randn(n, k), torch.randn(n, m), torch.rand(n) < share
    spoilt = torch.where(skip.unsqueeze(-1), torch.nan, x)
    with kernels.instruction_set(name):
        grad_w, grad_bias = kernels.weight_gradient(spoilt, grad, skip)
        assert torch.equal(grad_bias, kernels.weight_gradient(x, grad)[1])
    x = x.masked_fill(skip.unsqueeze(-1), 0)
    assert_close(grad_w, x.t() @ grad, x.double().t() @ grad.double(), "grad_w")


def test_long_sums_are_made_in_parts() -> None:
    """One chain of 10,000 would round away three bits more than torch's sums do."""
    torch.manual_seed(2)
    x, w = torch.randn(10_000, 3), torch.randn(10_000, 40)
    for ours, plain, exact, what in (
        (kernels.product(x.t(), w, None)[0], x.t() @ w, x.double().t() @ w.double(), "product"),
        (kernels.weight_gradient(x, w)[0], x.t() @ w, x.double().t() @ w.double(), "grad_w"),
        (kernels.weight_gradient(x, w)[1], w.sum(0), w.double().sum(0), "grad_bias"),
    ):
        assert_close(ours, plain, exact, what)


def test_a_row_of_a_product_has_the_same_bits_in_any_company_and_order() -> None:
    torch.manual_seed(3)
    x, w, bias = torch.randn(37, 300), torch.randn(300, 130), torch.randn(130)
    whole = kernels.product(x, w, bias)[0]
    order = torch.randperm(37)
    assert torch.equal(kernels.product(x[order], w, bias)[0], whole[order])
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(kernels.product(x, w, bias)[0], whole)
        assert torch.equal(torch.cat([kernels.product(row[None], w, bias)[0] for row in x]), whole)


def test_a_refusal_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_run", lambda: kernels.Run(b"sse9", 1))
    with pytest.raises(
        RuntimeError, match="the native library refused a call: this processor, or this library, has no such"
    ):
        run_forward(forward_arguments())


# Memory


@pytest.mark.parametrize("size", [0, 1, 4095, 2 * 2**20 - 1, 2 * 2**20, 4 * 2**20 + 12345])
def test_advice_about_large_pages_changes_no_byte_of_any_buffer(size: int) -> None:
    memory = torch.arange(size + 64, dtype=torch.int64).to(torch.uint8)
    expected = memory.clone()
    for offset in (0, 1, 63):
        address, bytes_ = ctypes.c_void_p(memory.data_ptr() + offset), ctypes.c_int64(size)
        kernels._library().unrolled_advise_large_pages(address, bytes_)
    assert torch.equal(memory, expected)


def test_scratch_is_the_threads_own_and_is_taken_again() -> None:
    first = kernels.kept("of a test", 100)
    assert kernels.kept("of a test", 50).data_ptr() == first.data_ptr()
    assert kernels.kept("of another test", 50).data_ptr() != first.data_ptr()
    assert kernels.kept("of a test", 200).numel() >= 200
    mine, seen = kernels.kept("of a test", 10).data_ptr(), []
    thread = threading.Thread(target=lambda: seen.append(kernels.kept("of a test", 10).data_ptr()))
    thread.start()
    thread.join()
    assert seen != [mine]


def test_scratch_that_inference_mode_made_can_be_written_outside_it() -> None:
    def run() -> None:
        with torch.inference_mode():
            inside = kernels.kept("of a test", 100)
        assert not inside.is_inference()
        inside.fill_(1.0)
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=run)  # one that has no scratch yet
    thread.start()
    thread.join()
    assert done == [True]


def test_scratch_beyond_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_KEPT", 4000)
    small = kernels.kept("small", 1000)
    assert kernels.kept("small", 1000) is small
    assert kernels.kept("large", 1001) is not kernels.kept("large", 1001)
