"""torch.compile: one graph of a few operators whatever the number of steps, eager's values and gradients, any size."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves
from worlds import KERNELS, dtype_of, needs_library

from unrolled import LSTMLayer, LSTMState, MultiLayerLSTM

F32, F64 = torch.float32, torch.float64
# A graph takes seconds to compile: what one kernel, or one of several ways, shows, the others show in the slow suite.
slow = pytest.mark.slow
kernels = pytest.mark.parametrize("kernel", KERNELS)
one_kernel = pytest.mark.parametrize("kernel", [KERNELS[0], pytest.param(KERNELS[1], marks=slow)])
modes = pytest.mark.parametrize("mode", [torch.no_grad, pytest.param(torch.inference_mode, marks=slow)])
# No batch or time below equals one of these: torch takes sizes that are equal in the first call for the same size.
WIDTH, HIDDEN, LAYERS = 11, 13, 2
SIZES = ((3, 5), (4, 7), (2, 300), (6, 3))
SMALLEST = [(1, 1), (0, 5), (3, 0), *(pytest.param(*size, marks=slow) for size in ((1, 6), (4, 1), (3, 2)))]

inductor = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++"))
    or not (Path(sysconfig.get_path("include")) / "Python.h").exists()
    or " " in torch.__file__,
    reason="torch's inductor compiles C++ on the CPU: it needs g++ or clang++, Python.h, and a path without spaces",
)


@pytest.fixture(autouse=True)
def _fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    # Of its own: the shared one keeps headers that were compiled against another environment's torch.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


class Recorder:
    """A compiler backend that runs graphs as they are and keeps the operators of each, forward and backward apart."""

    def __init__(self) -> None:
        self.forwards: list[list[str]] = []
        self.backwards: list[list[str]] = []

    def __call__(self, module: Any, inputs: Any) -> Any:
        return aot_autograd(fw_compiler=self._keep(self.forwards), bw_compiler=self._keep(self.backwards))(
            module, inputs
        )

    def _keep(self, graphs: list[list[str]]) -> Callable[..., Any]:
        def compiler(module: Any, inputs: Any) -> Any:
            graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
            return make_boxed_func(module.forward)

        return compiler


def new_stack(kernel: str, **options: Any) -> MultiLayerLSTM:
    """That "auto" runs on the kernel."""
    torch.manual_seed(7)
    return MultiLayerLSTM(WIDTH, HIDDEN, **{"num_layers": LAYERS, "dtype": dtype_of(kernel), **options})


def batch(kernel: str, kind: str, rows: int, steps: int, layers: int = LAYERS) -> dict[str, Any]:
    """x, a state that requires gradients, resets and lengths (0 and full among them)."""
    generator = torch.Generator().manual_seed(100 * rows + steps)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=F64).to(dtype_of(kernel)).requires_grad_()

    ids = torch.randint(WIDTH, (rows, steps), generator=generator)
    lengths = torch.randint(steps + 1, (rows,), generator=generator)
    lengths[:2] = torch.tensor([0, steps])[: lengths[:2].numel()]
    return {
        "x": normal(rows, steps, WIDTH) if kind == "floats" else ids,
        "state": LSTMState(normal(layers, rows, HIDDEN), normal(layers, rows, HIDDEN)),
        "resets": torch.rand(rows, steps, generator=generator) < 0.2,
        "lengths": lengths,
    }


def train(model: MultiLayerLSTM, call: Callable[..., Any], inputs: dict[str, Any]) -> list[Tensor]:
    """Output, state, and the gradients of every parameter and float input."""
    output, state = call(**inputs)
    loss = output.pow(3).sum() + state.h.pow(2).sum() + state.c.pow(3).sum()
    wanted = [*model.parameters(), *(leaf for leaf in tree_leaves(inputs) if leaf.requires_grad)]
    return [output.detach(), *(part.detach() for part in state), *torch.autograd.grad(loss, wanted, allow_unused=True)]


def assert_same(ours: list[Tensor | None], eager: list[Tensor | None], rtol: float = 1e-12) -> None:
    """Equal to some hundred roundings: compilers may reorder sums, and eager calls take native products."""
    assert len(ours) == len(eager)
    for value, exact in zip(ours, eager, strict=True):
        if exact is None:
            assert value is None
        else:
            scale = float(exact.detach().abs().max()) if exact.numel() else 0.0
            rtol = 2e-5 if exact.dtype == F32 else rtol
            torch.testing.assert_close(value, exact, rtol=rtol, atol=rtol * scale)


# Training


@pytest.mark.parametrize(
    ("kind", "layers", "dynamic", "sizes", "graphs"),
    [
        pytest.param("floats", 2, True, SIZES, 1, id="floats-dynamic", marks=slow),
        pytest.param("ids", 1, True, SIZES, 1, id="ids-dynamic"),
        pytest.param("floats", 1, None, SIZES, 2, id="floats-automatic"),
        pytest.param("ids", 2, False, ((3, 5), (2, 300), (3, 5)), 2, id="ids-static", marks=slow),
    ],
)
@one_kernel
def test_training_equals_eager_at_every_size_without_compiling_at_every_size(
    kernel: str, kind: str, layers: int, dynamic: bool | None, sizes: tuple[tuple[int, int], ...], graphs: int
) -> None:
    model, recorder = new_stack(kernel, num_layers=layers), Recorder()
    compiled = torch.compile(model, backend=recorder, fullgraph=True, dynamic=dynamic)
    for rows, steps in sizes:
        inputs = batch(kernel, kind, rows, steps, layers=layers)
        assert_same(train(model, compiled, inputs), train(model, model, inputs))
    assert len(recorder.forwards) == len(recorder.backwards) == graphs
    for forward, backward in zip(recorder.forwards, recorder.backwards, strict=True):
        assert forward.count(f"unrolled.{kernel}.default") == layers
        assert backward.count(f"unrolled.{kernel}_backward.default") == layers
        assert forward.count("unrolled.checked_range.default") == layers + (kind == "ids")


@one_kernel
def test_calls_without_masks_and_state_share_one_graph_too(kernel: str) -> None:
    model, recorder = new_stack(kernel, num_layers=1), Recorder()
    compiled = torch.compile(model, backend=recorder, fullgraph=True, dynamic=True)
    for rows, steps in ((3, 4), (5, 6), (4, 9), (2, 33)):
        inputs = {"x": batch(kernel, "floats", rows, steps)["x"]}
        assert_same(train(model, compiled, inputs), train(model, model, inputs))
    assert len(recorder.forwards) == len(recorder.backwards) == 1


@pytest.mark.parametrize(("rows", "steps"), SMALLEST)
@one_kernel
def test_smallest_sizes_equal_eager(kernel: str, rows: int, steps: int) -> None:
    model, inputs = new_stack(kernel, num_layers=1), batch(kernel, "floats", rows, steps, layers=1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(train(model, compiled, inputs), train(model, model, inputs))


@one_kernel
def test_the_graph_does_not_grow_with_the_steps(kernel: str) -> None:
    def operators(backend: str, steps: int) -> tuple[list[str], list[str]]:
        torch._dynamo.reset()
        model, recorder = new_stack(kernel, num_layers=1, backend=backend), Recorder()
        train(
            model, torch.compile(model, backend=recorder, fullgraph=True), batch(kernel, "floats", 3, steps, layers=1)
        )
        return recorder.forwards[0], recorder.backwards[0]

    assert operators("auto", 8) == operators("auto", 512)
    # The reference is unrolled into its graph, which is what this test would notice.
    assert len(operators("reference", 4)[0]) > 1.5 * len(operators("reference", 2)[0])


@pytest.mark.slow
@inductor
@pytest.mark.parametrize(
    ("kind", "layers", "dynamic"), [("floats", 1, True), ("ids", 2, True), ("floats", 2, None), ("ids", 1, False)]
)
@kernels
def test_inductors_code_equals_eager(kernel: str, kind: str, layers: int, dynamic: bool | None) -> None:
    model = new_stack(kernel, num_layers=layers)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for rows, steps in SIZES[:2]:
        inputs = batch(kernel, kind, rows, steps, layers=layers)
        assert_same(train(model, compiled, inputs), train(model, model, inputs), rtol=1e-11)


# What a compiled call can be, besides training


@one_kernel
def test_a_changed_backend_is_noticed(kernel: str) -> None:
    model, recorder, inputs = new_stack(kernel, num_layers=1), Recorder(), batch(kernel, "floats", 3, 2, layers=1)
    compiled = torch.compile(model, backend=recorder, fullgraph=True)
    fused = train(model, compiled, inputs)
    model.backend = "reference"
    assert_same(train(model, compiled, inputs), fused)
    assert [graph.count(f"unrolled.{kernel}.default") for graph in recorder.forwards] == [1, 0]


@modes
@one_kernel
def test_evaluation(kernel: str, mode: Any) -> None:
    model, inputs = new_stack(kernel, dropout=0.5).eval(), batch(kernel, "ids", 3, 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with mode():
        (output, state), (exact, exact_state) = compiled(**inputs), model(**inputs)
    assert_same([output, *state], [exact, *exact_state])
    assert not output.requires_grad


@one_kernel
def test_autocast(kernel: str) -> None:
    model = new_stack(kernel, dtype=F32, backend=kernel)
    inputs = {"x": batch(kernel, "floats", 3, 6)["x"].detach().float()}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (output, state), (exact, exact_state) = compiled(**inputs), model(**inputs)
    output.float().sum().backward()
    assert (output.dtype, state.h.dtype, state.c.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(output, exact)
    assert torch.equal(state.c, exact_state.c)


@one_kernel
def test_a_trace_opens_the_same_gates_and_refuses_total_gradients(kernel: str) -> None:
    model, inputs = new_stack(kernel), batch(kernel, "floats", 3, 6)
    compiled = torch.compile(model.trace, backend="aot_eager", fullgraph=True)
    ours, exact = compiled(**inputs), model.trace(**inputs)
    fields = [(k, name) for k in range(LAYERS) for name in "hcifgo"]

    def loss(trace: Any) -> Tensor:
        return sum(getattr(trace.layers[k], name).pow(3).sum() for k, name in fields)

    assert_same(*([getattr(trace.layers[k], name) for k, name in fields] for trace in (ours, exact)))
    assert_same(*(list(torch.autograd.grad(loss(trace), list(model.parameters())[:-2])) for trace in (ours, exact)))
    for opened in (ours, ours.layers[0]):
        with pytest.raises(RuntimeError, match=r"taken by a compiled call.*model\.trace\(\.\.\.\), outside torch"):
            opened.gradients(loss(ours))


@one_kernel
def test_ranges_are_checked_inside_the_graph(kernel: str) -> None:
    model, inputs = new_stack(kernel), batch(kernel, "ids", 3, 5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(**inputs)
    with pytest.raises(IndexError, match="ids must be from 0 to 10, got 11"):
        compiled(**{**inputs, "x": torch.full((3, 5), WIDTH), "lengths": torch.full((3,), 5)})
    with pytest.raises(ValueError, match="lengths must be from 0 to 5, got 6"):
        compiled(**{**inputs, "lengths": torch.tensor([1, 6, 2])})


@needs_library
@pytest.mark.parametrize("strict", [pytest.param(False, marks=slow), True])
def test_only_strict_graphs_hold_the_native_product(strict: bool) -> None:
    model, recorder = new_stack("cpu", strict=strict), Recorder()
    compiled = torch.compile(model, backend=recorder, fullgraph=True, dynamic=True)
    for rows, steps in SIZES[:2]:
        inputs = batch("cpu", "floats", rows, steps)
        ours, eager = train(model, compiled, inputs), train(model, model, inputs)
        assert_same(ours, eager)
        assert all(torch.equal(value, exact) for value, exact in zip(ours[:3], eager[:3], strict=True)) or not strict
    # The projection's is one of them.
    assert [graph.count("unrolled.product.default") for graph in recorder.forwards] == [(LAYERS + 1) * strict]
    native = {name for name in recorder.backwards[0] if name.startswith("unrolled.")}
    assert native == {"unrolled.cpu_backward.default"}


@needs_library
@modes
def test_graphs_without_gradients_hold_the_operator_that_stores_no_gates(mode: Any) -> None:
    model, recorder = new_stack("cpu").requires_grad_(False), Recorder()
    compiled = torch.compile(model, backend=recorder, fullgraph=True, dynamic=True)
    for rows, steps in SIZES[:2]:
        inputs = batch("cpu", "floats", rows, steps)
        with mode():
            (output, state), (exact, exact_state) = compiled(**inputs), model(**inputs)
        assert_same([output, *state], [exact, *exact_state])
    for graph in recorder.forwards:
        assert graph.count("unrolled.states.default") == LAYERS
        assert graph.count("unrolled.cpu.default") == 0


@pytest.mark.parametrize("strict", [pytest.param(False, marks=slow), True])
@one_kernel
def test_recomputed_gates(kernel: str, strict: bool) -> None:
    if strict and kernel != "cpu":
        pytest.skip("only the native kernel is strict")
    model, recorder = new_stack(kernel, recompute=True, strict=strict), Recorder()
    compiled = torch.compile(model, backend=recorder, fullgraph=True)
    for rows, steps in ((3, 5), (4, 7)):
        inputs = batch(kernel, "floats", rows, steps)
        ours = train(model, compiled, inputs)
        model.recompute = False
        assert_same(ours, train(model, model, inputs))
        model.recompute = True
    for forward, backward in zip(recorder.forwards, recorder.backwards, strict=True):
        assert forward.count(f"unrolled.{kernel}.default") == LAYERS
        assert backward.count(f"unrolled.{kernel}.default") == LAYERS
        assert backward.count(f"unrolled.{kernel}_backward.default") == LAYERS


# Transforms and compilation


@one_kernel
def test_compiled_vmap_folds_the_rows_into_one_call(kernel: str) -> None:
    layer, recorder = LSTMLayer(WIDTH, HIDDEN, dtype=dtype_of(kernel)), Recorder()
    x = torch.randn(4, 3, 5, WIDTH, dtype=dtype_of(kernel), requires_grad=True)
    resets = torch.rand(4, 3, 5) < 0.3
    mapped = vmap(lambda x, resets: layer(x, resets=resets)[0])
    compiled = torch.compile(mapped, backend=recorder, fullgraph=True)
    ours, exact = compiled(x, resets), mapped(x, resets)
    assert_same([ours.detach()], [exact.detach()])
    assert_same(*([*torch.autograd.grad(h.pow(3).sum(), [x, layer.W_hf])] for h in (ours, exact)))
    assert recorder.forwards[0].count(f"unrolled.{kernel}.default") == 1


@one_kernel
def test_compiled_jvp_equals_eager_and_is_not_zero(kernel: str) -> None:
    layer, x = (
        LSTMLayer(WIDTH, HIDDEN, dtype=dtype_of(kernel)).requires_grad_(False),
        torch.randn(3, 4, WIDTH, dtype=dtype_of(kernel)),
    )

    def tangent(x: Tensor) -> Tensor:
        return jvp(lambda u: layer(u)[0], (x,), (x.cos(),))[1]

    exact = tangent(x)
    assert exact.abs().min() > 0
    assert_same([torch.compile(tangent, backend="aot_eager", fullgraph=True)(x)], [exact])


@pytest.mark.slow
@kernels
def test_what_torch_cannot_compile_raises(kernel: str) -> None:
    layer, x = LSTMLayer(WIDTH, HIDDEN, dtype=dtype_of(kernel)), torch.randn(3, 4, WIDTH, dtype=dtype_of(kernel))

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].pow(2).sum()

    with pytest.raises(RuntimeError):
        torch.compile(grad(loss), backend="aot_eager", fullgraph=True)(x)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    compiled(x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        compiled(forward_ad.make_dual(x, x.cos()))
    for transform in (grad, vmap):
        with pytest.raises(RuntimeError, match="from eager mode is not supported"):
            transform(compiled)(x)


@one_kernel
def test_a_traced_gradient_holds_one_operator_each_way(kernel: str) -> None:
    layer, x = LSTMLayer(WIDTH, HIDDEN, dtype=dtype_of(kernel)), torch.randn(3, 40, WIDTH, dtype=dtype_of(kernel))
    gradient = grad(lambda x: layer(x)[0].pow(3).sum())
    traced = make_fx(gradient)(x)
    names = [str(node.target) for node in traced.graph.nodes]
    assert names.count(f"unrolled.{kernel}.default") == names.count(f"unrolled.{kernel}_backward.default") == 1
    assert_same([traced(2 * x)], [gradient(2 * x)])
