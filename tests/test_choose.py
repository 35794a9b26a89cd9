"""Which backend runs: the printed table, the order of preference, and refusals that name every reason."""

from __future__ import annotations

import pytest
import torch
from plain import layer_inputs, new_layer
from torch.autograd import forward_ad
from worlds import KERNELS, MISSING, needs_library, remove_library

from unrolled.layer import LSTMLayer
from unrolled.recurrence import BackendUnavailable, Choice, backends
from unrolled.recurrence.choose import NAMES, Call, check_name, choose, consider, forward_mode_active
from unrolled.stack import MultiLayerLSTM

DEVICE = torch.device("cpu")
PLAIN, FORWARD = Call(DEVICE, torch.float32, False), Call(DEVICE, torch.float64, True)
STRICT, WIDE = PLAIN._replace(strict=True), PLAIN._replace(dtype=torch.float64)
INTEGERS = Call(DEVICE, torch.int64, False)
KNOWN = "auto, cpu, portable, reference"

# What is said of each backend, in every table.
CPU = "the native kernel, fused and threaded"
PORTABLE = "fused in plain torch, needs no compiler"
REFERENCE = "the equations step by step; slow, open to a debugger and to forward mode"
NOT_HERE = "it takes float32 on the CPU"
NO_TANGENTS = "it has no forward-mode derivative; the reference has"
ROUNDS = "its products round differently for other row counts"


@pytest.fixture(params=[pytest.param(True, marks=needs_library), False], ids=["library", "no library"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there is one, in each of the two worlds."""
    if not request.param:
        remove_library(monkeypatch)
    return request.param


def table(call: str, **lines: str) -> str:
    return "\n".join([call, *(f"  {backend:<10} {line}" for backend, line in lines.items())])


def test_backends_prints_who_runs_a_call_and_who_could(library: bool) -> None:
    choice = backends()
    assert isinstance(choice, Choice)
    assert choice.backend == ("cpu" if library else "portable")
    assert str(choice) == table(
        "float32 on cpu",
        cpu=f"runs this: {CPU}" if library else f"cannot run this: {MISSING}",
        portable=f'on request (backend="portable"): {PORTABLE}' if library else f"runs this: {PORTABLE}",
        reference=f'on request (backend="reference"): {REFERENCE}',
    )
    # A notebook shows it without print.
    assert repr(choice) == str(choice)


def test_backends_in_forward_mode(library: bool) -> None:
    choice = backends(forward_mode=True)
    assert choice.backend == "reference"
    assert str(choice) == table(
        "float32 on cpu, forward-mode differentiation",
        cpu=f"cannot run this: {NO_TANGENTS if library else MISSING}",
        portable=f"cannot run this: {NO_TANGENTS}",
        reference=f"runs this: {REFERENCE}",
    )


def test_backends_in_strict_mode(library: bool) -> None:
    choice = backends(strict=True)
    assert choice.backend == ("cpu" if library else None)
    assert str(choice) == table(
        "float32 on cpu, strict",
        cpu=f"runs this: {CPU}" if library else f"cannot run this: {MISSING}",
        portable=f"cannot run this: {ROUNDS}",
        reference=f"cannot run this: {ROUNDS}",
    )
    nothing = backends(forward_mode=True, strict=True)
    assert nothing.backend is None
    assert str(nothing).startswith("float32 on cpu, forward-mode differentiation, strict\n")


@pytest.mark.usefixtures("library")
def test_backends_where_nothing_runs() -> None:
    choice = backends("meta", torch.int64)
    assert choice.backend is None
    refused = "cannot run this: it takes floating-point weights, got int64"
    assert str(choice) == table("int64 on meta", cpu=refused, portable=refused, reference=refused)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps", "meta"])
def test_every_float_dtype_on_every_device_goes_to_portable_but_for_one(
    library: bool, device: str, dtype: torch.dtype
) -> None:
    native = (device, dtype) == ("cpu", torch.float32)
    choice = backends(device, dtype)
    assert choice.backend == ("cpu" if library and native else "portable")
    assert backends(torch.device(device), dtype).call == Call(torch.device(device), dtype, False)
    refusal = choice.verdicts[0].refusal
    assert choice.verdicts[0].backend == "cpu"
    assert refusal == ((None if library else MISSING) if native else NOT_HERE)


def test_a_choice_can_be_read_without_parsing_it() -> None:
    verdicts = {verdict.backend: verdict.refusal for verdict in consider(FORWARD).verdicts}
    assert verdicts == {"cpu": NOT_HERE, "portable": NO_TANGENTS, "reference": None}
    assert NAMES == ("auto", "cpu", "portable", "reference")


@pytest.mark.parametrize(
    ("requested", "call", "chosen"),
    [
        ("auto", PLAIN, "cpu"),
        ("cpu", PLAIN, "cpu"),
        ("auto", STRICT, "cpu"),
        ("cpu", STRICT, "cpu"),
        ("auto", WIDE, "portable"),
        ("portable", PLAIN, "portable"),
        ("reference", PLAIN, "reference"),
        ("auto", FORWARD, "reference"),
        ("reference", FORWARD, "reference"),
    ],
)
def test_choose(library: bool, requested: str, call: Call, chosen: str) -> None:
    if chosen == "cpu" and not library:
        if (requested, call) != ("auto", PLAIN):
            with pytest.raises(BackendUnavailable):
                choose(requested, call)
            return
        chosen = "portable"
    assert choose(requested, call) == chosen


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("requested", "call"),
    [
        *[
            ("cpu", WIDE),
            ("cpu", FORWARD),
            ("cpu", Call(torch.device("meta"), torch.float32, False)),
        ],
        *[("portable", FORWARD), ("portable", STRICT), ("reference", STRICT), ("auto", WIDE._replace(strict=True))],
        *[(name, INTEGERS) for name in NAMES],
    ],
)
def test_a_request_that_cannot_run_is_refused_with_every_reason(requested: str, call: Call) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        choose(requested, call)
    assert str(caught.value) == f'backend="{requested}" cannot run this call:\n{consider(call)}'
    for verdict in consider(call).verdicts:
        assert f"  {verdict.backend:<10} " in str(caught.value)
        assert verdict.refusal is None or verdict.refusal in str(caught.value)


def test_without_a_library_a_request_for_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    remove_library(monkeypatch)
    x = torch.zeros(1, 2, 3)
    for layer in (LSTMLayer(3, 4, backend="cpu"), LSTMLayer(3, 4, strict=True), LSTMLayer(3, 4, backend="cpu").eval()):
        for mode in (torch.enable_grad, torch.no_grad):
            with mode(), pytest.raises(BackendUnavailable, match=r"pip install -v .* builds it"):
                layer(x)
    model = MultiLayerLSTM(3, 4)
    model.strict = True
    with pytest.raises(BackendUnavailable, match="python -m pip install"):
        model(x)
    model.strict = False
    assert torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("name", ["fast", "", "Portable", "cudnn"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    words = f"backend={name!r} is not one of {KNOWN}"
    for refuse in (check_name, lambda name: choose(name, PLAIN), lambda name: LSTMLayer(3, 4, backend=name)):
        with pytest.raises(ValueError) as caught:
            refuse(name)
        assert str(caught.value) == words


def test_a_name_set_later_is_checked_by_the_call() -> None:
    layer = LSTMLayer(3, 4)
    layer.backend = "fast"
    with pytest.raises(ValueError, match=f"backend='fast' is not one of {KNOWN}"):
        layer(torch.zeros(1, 2, 3))


def test_forward_mode_is_noticed_in_each_of_its_forms() -> None:
    assert not forward_mode_active()
    with forward_ad.dual_level():
        assert forward_mode_active()
    assert not forward_mode_active()
    seen = []

    def function(x: torch.Tensor) -> torch.Tensor:
        seen.append(forward_mode_active())
        return x * 2

    x = torch.ones(3)
    torch.func.jvp(function, (x,), (x,))
    torch.func.jacfwd(function)(x)
    torch.func.grad(lambda x: function(x).sum())(x)
    torch.func.vmap(function)(x)
    assert seen == [True, True, False, False]
    assert not forward_mode_active()


def test_forward_mode_runs_the_reference_and_is_right() -> None:
    layer, given = new_layer("auto"), {name: value.detach() for name, value in layer_inputs("auto").items()}
    tangent = torch.ones_like(given["x"])
    with forward_ad.dual_level():
        h, c = layer(forward_ad.make_dual(given["x"], tangent), given["h0"], given["c0"])
        got = [forward_ad.unpack_dual(value) for value in (h, c)]
    step = 1e-6
    with torch.no_grad():
        above, below = (layer(given["x"] + sign * step * tangent, given["h0"], given["c0"]) for sign in (1, -1))
    for dual, up, down in zip(got, above, below, strict=True):
        assert dual.tangent is not None
        # The difference's own error: step^2 from the third derivative, 1e-16 / step from rounding.
        assert (dual.tangent - (up - down) / (2 * step)).abs().max() < 1e-8


@pytest.mark.parametrize("backend", KERNELS)
def test_forward_mode_through_a_requested_kernel_is_refused(backend: str) -> None:
    layer, x = new_layer(backend), layer_inputs(backend)["x"].detach()
    with forward_ad.dual_level(), pytest.raises(BackendUnavailable, match="has no forward-mode derivative") as caught:
        layer(forward_ad.make_dual(x, torch.ones_like(x)))
    assert "reference  runs this" in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
