"""The reference against torch.nn.LSTM, autograd and finite differences, all in float64."""

from __future__ import annotations

import pytest
import torch
from cases import OUTPUTS, PROJECTED, SHAPES, Shape, make, run

from unrolled.recurrence import reference, scan

F64 = torch.float64


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    # torch's own has no projection as wide as c or wider.
    "shape",
    [s for s in (*SHAPES, *PROJECTED) if not s.masks and s.rows and s.steps and not s.proj >= s.hidden],
    ids=lambda s: s.name,
)
def test_agrees_with_torchs_lstm_forward_and_backward(shape: Shape) -> None:
    case = make(shape)
    theirs = torch.nn.LSTM(shape.width, shape.hidden, batch_first=True, dtype=F64, proj_size=shape.proj)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(case.floats["w_x"].flatten(1).t())
        theirs.weight_hh_l0.copy_(case.floats["w_h"].flatten(1).t())
        theirs.bias_ih_l0.copy_(case.floats["bias"].flatten())
        theirs.bias_hh_l0.zero_()
        if shape.proj:
            theirs.weight_hr_l0.copy_(case.floats["w_hr"].t())
    x, h0, c0 = (case.floats[name].clone().requires_grad_() for name in ("x", "h0", "c0"))
    h, (_, last_c) = theirs(x, (h0.unsqueeze(0), c0.unsqueeze(0)))
    ours = run("reference", case, F64, outputs=("h",))
    (h * case.cotangents["h"]).sum().backward()
    expected = {
        "h": h.detach(),
        "grad x": x.grad,
        "grad h0": h0.grad,
        "grad c0": c0.grad,
        "grad w_x": theirs.weight_ih_l0.grad.t().unflatten(1, (4, -1)),
        "grad w_h": theirs.weight_hh_l0.grad.t().unflatten(1, (4, -1)),
        "grad bias": theirs.bias_ih_l0.grad.unflatten(0, (4, -1)),
    }
    if shape.proj:
        expected["grad w_hr"] = theirs.weight_hr_l0.grad.t()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-12, msg=name)
    torch.testing.assert_close(ours["c"][:, -1], last_c[0].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, *PROJECTED], ids=lambda s: s.name)
def test_hand_written_backward_equals_autograd(shape: Shape) -> None:
    case = make(shape)
    steps = shape.steps
    generator = torch.Generator().manual_seed(1)
    pre = torch.randn(steps, shape.rows, 4, shape.hidden, dtype=F64, generator=generator).requires_grad_()
    h0, c0 = (case.floats[name].clone().requires_grad_() for name in ("h0", "c0"))
    w_h, w_hr = case.floats["w_h"], case.floats.get("w_hr")
    w_hr = None if w_hr is None else w_hr.clone().requires_grad_()
    masks = (None if case.resets is None else case.resets.t(), case.lengths)
    h, c, gates = reference.scan(pre, w_h, h0, c0, *masks, w_hr)
    cotangents = [case.cotangents[name].transpose(0, 1) for name in OUTPUTS]
    loss = sum((out * cot).sum() for out, cot in zip((h, c, gates), cotangents, strict=True))
    expected = torch.autograd.grad(loss, (pre, h0, c0), allow_unused=True, retain_graph=True)
    got = reference.scan_backward(*cotangents, w_h, c.detach(), gates.detach(), c0.detach(), *masks, w_hr)
    assert got[3].shape == (shape.rows, 0, shape.hidden)
    assert got[4].shape == (steps, shape.rows, shape.proj)
    if w_hr is not None:
        (of_w_hr,) = torch.autograd.grad(loss, w_hr, allow_unused=True)
        of_w_hr = torch.zeros_like(w_hr) if of_w_hr is None else of_w_hr
        unprojected = gates[:, :, 3] * c.tanh()
        torch.testing.assert_close(torch.einsum("tbh,tbp->hp", unprojected, got[4]), of_w_hr, rtol=1e-12, atol=1e-13)
    for name, ours, theirs, like in zip(("pre", "h0", "c0"), got[:3], expected, (pre, h0, c0), strict=True):
        theirs = torch.zeros_like(like) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, msg=name)


def test_missing_cotangents_are_zeros() -> None:
    case = make(Shape(3, 6, 2, 4))
    forward = reference.scan(
        torch.randn(6, 3, 4, 4, dtype=F64), case.floats["w_h"], case.floats["h0"], case.floats["c0"], None, None
    )
    _, c, gates = forward
    arguments = (case.floats["w_h"], c, gates, case.floats["c0"], None, None)
    grad_h = case.cotangents["h"].transpose(0, 1)
    zeros = (torch.zeros_like(c), torch.zeros_like(gates))
    for ours, theirs in zip(
        reference.scan_backward(grad_h, None, None, *arguments),
        reference.scan_backward(grad_h, *zeros, *arguments),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("backend", "proj"),
    [
        pytest.param("reference", 0, marks=pytest.mark.slow),
        ("reference", 2),
        pytest.param("portable", 2, marks=pytest.mark.slow),
    ],
)
def test_gradients_by_finite_differences(backend: str, proj: int) -> None:
    case = make(Shape(2, 4, 3, 3, ("resets", "lengths"), proj))
    names = list(case.floats)

    def function(*floats: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arguments = dict(zip(names, floats, strict=True))
        scanned = scan(arguments.pop("x"), **arguments, resets=case.resets, lengths=case.lengths, backend=backend)
        return scanned.h, scanned.c, scanned.gates

    inputs = [case.floats[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=backend == "reference")
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    case = make(Shape(3, 5, 4, 6, ("resets", "lengths")))
    exact, plain = run("reference", case, F64), run("reference", case, dtype)
    for name, value in plain.items():
        assert value.dtype == dtype
        # Five steps of sums over six terms: some 40 roundings, each relative to values of order 1 to 10.
        assert (value.double() - exact[name]).abs().max() <= 100 * torch.finfo(dtype).eps * (
            1 + exact[name].abs().max()
        )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("ids", [False, True])
def test_splitting_anywhere_gives_the_same_bits(dtype: torch.dtype, ids: bool) -> None:
    shape = Shape(5, 13, 7, 24, ("resets", "ids") if ids else ("resets",))
    case = make(shape)
    floats = {name: value.to(dtype) for name, value in case.floats.items()}
    x = floats.pop("x", case.ids)
    assert x is not None
    assert case.resets is not None
    whole = scan(x, **floats, resets=case.resets, backend="reference")
    for cut in range(1, shape.steps):
        first = scan(x[:, :cut], **floats, resets=case.resets[:, :cut], backend="reference")
        carried = {**floats, "h0": first.h[:, -1], "c0": first.c[:, -1]}
        second = scan(x[:, cut:], **carried, resets=case.resets[:, cut:], backend="reference")
        for name in OUTPUTS:
            joined = torch.cat([getattr(first, name), getattr(second, name)], 1)
            assert torch.equal(joined, getattr(whole, name)), f"{name}, split at {cut}"


def test_one_step_by_hand() -> None:
    # One unit, pre-activations 0: every sigmoid is 1/2 and g is 0, so c halves and h = tanh(c / 2) / 2.
    h, c, gates = reference.step(torch.zeros(1, 4, 1, dtype=F64), torch.full((1, 1), 3.0, dtype=F64))
    assert c.item() == 1.5
    assert h.item() == pytest.approx(0.4525741268224334, abs=1e-15)
    assert gates.flatten().tolist() == [0.5, 0.5, 0.0, 0.5]
