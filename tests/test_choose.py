"""Which backend runs: the printed table, the order of preference, and refusals that name every reason."""

from __future__ import annotations

import pytest
import torch
from plain import layer_inputs, new_layer
from torch.autograd import forward_ad

from unrolled.layer import LSTMLayer
from unrolled.recurrence import BackendUnavailable, Choice, backends
from unrolled.recurrence.choose import NAMES, Call, check_name, choose, consider, forward_mode_active

CPU = torch.device("cpu")
PLAIN, FORWARD = Call(CPU, torch.float32, False), Call(CPU, torch.float64, True)
INTEGERS = Call(CPU, torch.int64, False)


def test_backends_prints_who_runs_a_call_and_who_could() -> None:
    choice = backends()
    assert isinstance(choice, Choice)
    assert choice.backend == "portable"
    assert str(choice) == (
        "float32 on cpu\n"
        "  portable   runs this: fused in plain torch, needs no compiler\n"
        '  reference  on request (backend="reference"): the equations step by step; slow, open to a debugger and to '
        "forward mode"
    )
    # A notebook shows it without print.
    assert repr(choice) == str(choice)


def test_backends_in_forward_mode() -> None:
    choice = backends(dtype=torch.float64, forward_mode=True)
    assert choice.backend == "reference"
    assert str(choice) == (
        "float64 on cpu, forward-mode differentiation\n"
        "  portable   cannot run this: it has no forward-mode derivative; the reference has\n"
        "  reference  runs this: the equations step by step; slow, open to a debugger and to forward mode"
    )


def test_backends_where_nothing_runs() -> None:
    choice = backends("meta", torch.int64)
    assert choice.backend is None
    assert str(choice) == (
        "int64 on meta\n"
        "  portable   cannot run this: it takes floating-point weights, got int64\n"
        "  reference  cannot run this: it takes floating-point weights, got int64"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "cuda:1", "mps", "meta"])
def test_every_float_dtype_on_every_device_goes_to_portable(device: str, dtype: torch.dtype) -> None:
    assert backends(device, dtype).backend == "portable"
    assert backends(torch.device(device), dtype).call == Call(torch.device(device), dtype, False)


def test_a_choice_can_be_read_without_parsing_it() -> None:
    verdicts = {verdict.backend: verdict.refusal for verdict in consider(FORWARD).verdicts}
    assert verdicts == {"portable": "it has no forward-mode derivative; the reference has", "reference": None}
    assert NAMES == ("auto", "portable", "reference")


@pytest.mark.parametrize(
    ("requested", "call", "chosen"),
    [
        ("auto", PLAIN, "portable"),
        ("portable", PLAIN, "portable"),
        ("reference", PLAIN, "reference"),
        ("auto", FORWARD, "reference"),
        ("reference", FORWARD, "reference"),
    ],
)
def test_choose(requested: str, call: Call, chosen: str) -> None:
    assert choose(requested, call) == chosen


@pytest.mark.parametrize(
    ("requested", "call"), [("portable", FORWARD), ("auto", INTEGERS), ("portable", INTEGERS), ("reference", INTEGERS)]
)
def test_a_request_that_cannot_run_is_refused_with_every_reason(requested: str, call: Call) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        choose(requested, call)
    assert str(caught.value) == f'backend="{requested}" cannot run this call:\n{consider(call)}'
    for verdict in consider(call).verdicts:
        assert f"  {verdict.backend:<10} " in str(caught.value)
        assert verdict.refusal is None or verdict.refusal in str(caught.value)


@pytest.mark.parametrize("name", ["fast", "", "Portable", "cudnn"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    words = f"backend={name!r} is not one of auto, portable, reference"
    for refuse in (check_name, lambda name: choose(name, PLAIN), lambda name: LSTMLayer(3, 4, backend=name)):
        with pytest.raises(ValueError) as caught:
            refuse(name)
        assert str(caught.value) == words


def test_a_name_set_later_is_checked_by_the_call() -> None:
    layer = LSTMLayer(3, 4)
    layer.backend = "fast"
    with pytest.raises(ValueError, match="backend='fast' is not one of auto, portable, reference"):
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
    layer, given = new_layer("auto"), {name: value.detach() for name, value in layer_inputs().items()}
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


def test_forward_mode_through_a_requested_portable_is_refused() -> None:
    layer, x = new_layer("portable"), layer_inputs()["x"].detach()
    with forward_ad.dual_level(), pytest.raises(BackendUnavailable, match="has no forward-mode derivative") as caught:
        layer(forward_ad.make_dual(x, torch.ones_like(x)))
    assert "reference  runs this" in str(caught.value)
    assert isinstance(caught.value, RuntimeError)
