"""Backward layers and projections of h in a stack: numbers and gradients, states, masks, what is opened and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import F64, GATES, assert_same, gradients, normal, redraw, run_layer
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from worlds import needs_library

from unrolled import (
    LSTM,
    CarriedState,
    LanguageModel,
    LSTMLayer,
    LSTMState,
    ModelConfig,
    MultiLayerLSTM,
    Stepper,
    to_torch,
)
from unrolled.reader import Reader
from unrolled.state_layout import StateLayout

B, T, I, H, P = 4, 6, 5, 7, 3
LENGTHS = torch.tensor([3, 6, 1, 4])
BOTH = {"bidirectional": True}
STRUCTURES = [BOTH, {"proj_dim": P}, {"proj_dim": P, **BOTH}]

structures = pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: " ".join(structure))
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def new(layers: int = 2, **options: Any) -> MultiLayerLSTM:
    model = redraw(MultiLayerLSTM(I, H, layers, **{"output_dim": 4, "dtype": F64} | options))
    assert isinstance(model, MultiLayerLSTM)
    return model


def given_to(model: MultiLayerLSTM, rows: int = B, steps: int = T) -> dict[str, Tensor]:
    count = model.num_layers * (2 if model.bidirectional else 1)
    h0, c0 = normal(count, rows, model.proj_dim or H, seed=2).tanh(), normal(count, rows, H, seed=3)
    given = {"x": normal(rows, steps, I, seed=1), "h0": h0, "c0": c0}
    return {name: value.to(model.proj.weight.dtype).requires_grad_() for name, value in given.items()}


def called(model: MultiLayerLSTM, given: dict[str, Tensor], **masks: Tensor) -> dict[str, Tensor]:
    output, (h, c) = model(given["x"], (given["h0"], given["c0"]), **masks)
    return {"output": output, "h": h, "c": c}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@structures
def test_values_states_and_gradients_are_torchs(structure: dict[str, Any], layers: int, packed: bool) -> None:
    model = new(layers, **structure)
    theirs, given = to_torch(model), given_to(model)
    masks = {"lengths": LENGTHS} if packed else {}
    x: Any = given["x"]
    if packed:
        x = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    top, (h, c) = theirs(x, (given["h0"], given["c0"]))
    top = pad_packed_sequence(top, batch_first=True, total_length=T)[0] if packed else top
    expected = {"output": model.proj(top), "h": h, "c": c}
    got = called(model, given, **masks)
    for name, value in expected.items():
        assert_same(got[name], value, name)
    ours = gradients(got, given | dict(model.named_parameters()))
    torchs = {name: value for name, value in theirs.named_parameters() if value.requires_grad}
    exact = gradients(expected, given | torchs | dict(model.proj.named_parameters(prefix="proj")))
    for name in (*given, "proj.weight"):
        assert_same(ours[name], exact[name], name)
    for k in range(layers):
        for kind, suffix in (("layers", ""), ("reverse_layers", "_reverse"))[: 2 if model.bidirectional else 1]:
            own, at = f"{kind}.{k}", f"_l{k}{suffix}"
            for name, packed_name in (("W_x", "weight_ih"), ("W_h", "weight_hh"), ("b_", "bias_ih")):
                together = torch.cat([ours[f"{own}.{name}{gate}"].t() for gate in GATES])
                assert_same(together, exact[packed_name + at], own + name)
            if model.proj_dim:
                assert_same(ours[f"{own}.W_hr"].t(), exact[f"weight_hr{at}"], own)


@structures
@pytest.mark.parametrize("steps", [0, 1])
def test_no_steps_and_one(structure: dict[str, Any], steps: int) -> None:
    model = new(**structure)
    given = given_to(model, steps=steps)
    got = called(model, given)
    assert got["output"].shape == (B, steps, 4)
    if steps == 0:
        assert torch.equal(got["h"], given["h0"])
        assert torch.equal(got["c"], given["c0"])
        return
    top, (h, c) = to_torch(model)(given["x"], (given["h0"], given["c0"]))
    for name, value in (("output", model.proj(top)), ("h", h), ("c", c)):
        assert_same(got[name], value, name)


@structures
def test_a_row_without_steps_keeps_its_state_and_its_logits_are_the_bias(structure: dict[str, Any]) -> None:
    model = new(**structure)
    given, lengths = given_to(model), torch.tensor([0, T, 2, 0])
    got = called(model, given, lengths=lengths)
    assert torch.equal(got["h"][:, [0, 3]], given["h0"][:, [0, 3]])
    assert torch.equal(got["c"][:, [0, 3]], given["c0"][:, [0, 3]])
    assert_same(got["output"][0], model.proj.bias.expand(T, -1))
    given["x"].data[2, 2:] = float("nan")
    again = called(model, given, lengths=lengths)
    assert all(torch.equal(again[name], value) for name, value in got.items())


@pytest.mark.parametrize("length", [T, 5])
@pytest.mark.parametrize("structure", [BOTH, {"proj_dim": P, **BOTH}], ids=["plain", "projected"])
def test_what_a_reset_separates_is_computed_apart_in_both_directions(structure: dict[str, Any], length: int) -> None:
    """Row by row and part by part with torch: 0 to 2, 2 to 3 and 3 to the row's end."""
    model = new(1, **structure)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[1, [2, 3]] = True
    given = given_to(model)
    got = called(model, given, resets=resets, lengths=torch.full((B,), length))
    theirs, x = to_torch(model), given["x"][1:2]
    h0, c0 = given["h0"][:, 1:2], given["c0"][:, 1:2]
    zeros = torch.zeros_like(h0), torch.zeros_like(c0)
    parts, lasts = [], []
    for begin, end in ((0, 2), (2, 3), (3, length)):
        # The given state is that of the row's ends: forward in the first part, backward in the last.
        starts = [
            torch.stack([(first if begin == 0 else zero)[0], (first if end == length else zero)[1]])
            for first, zero in zip((h0, c0), zeros, strict=True)
        ]
        output, last = theirs(x[:, begin:end], tuple(starts))
        parts.append(output)
        lasts.append(last)
    assert_same(got["output"][1, :length], model.proj(torch.cat(parts, 1))[0])
    for name, n in (("h", 0), ("c", 1)):
        assert_same(got[name][0, 1], lasts[-1][n][0, 0], f"{name} forward")
        assert_same(got[name][1, 1], lasts[0][n][1, 0], f"{name} backward")


@pytest.mark.parametrize("proj_dim", [None, P])
def test_totals_of_backward_layers_stand_at_the_steps_of_their_input(proj_dim: int | None) -> None:
    """Row by row, from loops over the turned row, in which every h_t, c_t and pre-activation keeps its gradient."""
    model, masks = new(1, proj_dim=proj_dim, **BOTH), {"lengths": LENGTHS}
    given = given_to(model)
    weights = {name: normal(B, T, H if name != "h" else proj_dim or H, seed=30 + k) for k, name in enumerate("hcf")}
    trace = model.trace(given["x"], (given["h0"], given["c0"]), **masks)
    assert len(trace.layers) == 2
    # The output, the backward layer's last state, and its fields: every way out of it.
    loss = trace.output.square().sum() + trace.state.h[1].square().sum() + trace.layers[1].state[1].square().sum()
    loss = loss + sum((getattr(trace.layers[1], name) * weight).sum() for name, weight in weights.items())
    _, got = trace.gradients(loss)
    assert model.reverse_layers is not None
    for row, length in enumerate(LENGTHS.tolist()):
        parameters = dict(model.reverse_layers[0].named_parameters())
        x, h0, c0 = (
            given["x"][row : row + 1, :length].flip(1),
            given["h0"][1, row : row + 1],
            given["c0"][1, row : row + 1],
        )
        plain = run_layer(parameters, x, h0, c0)
        for name in ("h", "c", *GATES):
            found = getattr(trace.layers[1], name)
            assert_same(found[row, :length], plain.sequence(name)[0].flip(0), name)
            assert not found[row, length:].any()
        forward = trace.layers[0].h[row, :length].detach()
        output = model.proj(torch.cat([forward, plain.sequence("h")[0].flip(0)], -1))
        assert plain.state is not None
        theirs = output.square().sum() + sum(part.square().sum() for part in plain.state)
        for name, weight in weights.items():
            theirs = theirs + (plain.sequence(name)[0].flip(0) * weight[row, :length]).sum()
        theirs.backward()
        for name, value in plain.totals().items():
            assert_same(getattr(got, name)[row, :length], value[0].flip(0), name)
            assert not getattr(got, name)[row, length:].any()


@structures
def test_a_trace_is_the_call_itself_and_in_the_states_order(structure: dict[str, Any]) -> None:
    model, masks = new(**structure), {"lengths": LENGTHS, "resets": torch.eye(B, T, dtype=torch.bool)}
    given = given_to(model)
    trace, got = model.trace(given["x"], (given["h0"], given["c0"]), **masks), called(model, given, **masks)
    assert torch.equal(trace.output, got["output"])
    assert len(trace.layers) == len(got["h"])
    for k, layer in enumerate(trace.layers):
        assert torch.equal(layer.state[0], got["h"][k])
        assert torch.equal(layer.state[1], got["c"][k])
        assert torch.equal(trace.state.h[k], got["h"][k])
    expected = gradients({"output": trace.output}, given | dict(model.named_parameters()))
    for name, value in gradients({"output": got["output"]}, given | dict(model.named_parameters())).items():
        assert_same(value, expected[name], name)


def test_dropout_lies_on_both_directions_and_recompute_changes_nothing() -> None:
    model, plain = new(dropout=0.5, recompute=True, **BOTH), new(dropout=0.5, **BOTH)
    given = given_to(model)
    assert (plain.recompute, model.recompute) == (False, True)
    torch.manual_seed(0)
    got = called(model, given)
    torch.manual_seed(0)
    expected = called(plain, given)
    ours = gradients(got, given | dict(model.named_parameters()))
    for name, value in gradients(expected, given | dict(plain.named_parameters())).items():
        assert_same(ours[name], value, name)
    dropped = new(dropout=0.5, output_dim=None, **BOTH)(given["x"])[0] == 0
    assert 0.3 < dropped[..., :H].double().mean() < 0.7
    assert 0.3 < dropped[..., H:].double().mean() < 0.7


def test_in_float32_the_kernel_runs_both_directions_to_its_rounding() -> None:
    model, wide = new(dtype=torch.float32, **BOTH), new(**BOTH)
    wide.load_state_dict(model.state_dict())
    got, exact = called(model, given_to(model)), called(wide, given_to(wide))
    for name, value in exact.items():
        assert_same(got[name], value.float(), name)


def test_keys_shapes_and_the_seeds_draw() -> None:
    torch.manual_seed(0)
    forward = MultiLayerLSTM(I, H, 2)
    torch.manual_seed(0)
    both = MultiLayerLSTM(I, H, 2, proj_dim=P, bidirectional=True)
    assert [name for name in both.state_dict() if "W_hr" in name] == [
        *("layers.0.W_hr", "layers.1.W_hr", "reverse_layers.0.W_hr", "reverse_layers.1.W_hr")
    ]
    assert torch.equal(both.layers[0].W_xf, forward.layers[0].W_xf)
    assert {name.split(".")[0] for name in forward.state_dict()} == {"layers", "proj"}
    assert both.layers[1].W_xi.shape == (2 * P, H)
    assert (both.layers[1].W_hi.shape, both.layers[1].W_hr.shape) == ((P, H), (H, P))
    assert both.proj.weight.shape == (I, 2 * P)
    assert [list(part.shape) for part in both.zero_state(3)] == [[4, 3, P], [4, 3, H]]
    before = {name: value.clone() for name, value in both.state_dict().items()}
    torch.manual_seed(0)
    both.reset_parameters()
    assert all(torch.equal(value, before[name]) for name, value in both.state_dict().items())
    assert "num_layers=2, proj_dim=3, bidirectional=True" in repr(both)
    both.backend = "portable"
    assert {layer.backend for layer in (*both.layers, *both.reverse_layers)} == {"portable"}
    moved = MultiLayerLSTM(I, H, proj_dim=P, bidirectional=True, device="meta", dtype=F64).reverse_layers[0].W_hr
    assert (moved.device.type, moved.dtype) == ("meta", F64)


REFUSED = {
    "h too wide": (
        lambda: new(proj_dim=P)(torch.zeros(B, T, I, dtype=F64), LSTMState.zeros(2, B, H, dtype=F64)),
        f"state.h is [2, {B}, {H}], expected [layers, batch, proj] = [2, batch, {P}]; model.zero_state(batch) starts "
        "from zeros",
    ),
    "one direction's state": (
        lambda: new(**BOTH)(torch.zeros(B, T, I, dtype=F64), LSTMState.zeros(2, 5, H, dtype=F64)),
        f"state.h is [2, 5, {H}], expected [2 * layers, batch, hidden] = [4, batch, {H}]: it has 2 and the model 2 "
        "layers, each forward and backward; model.zero_state(batch) starts from zeros",
    ),
    "a layer's h": (
        lambda: LSTMLayer(I, H, proj_dim=P)(torch.zeros(B, T, I), torch.zeros(B, H), torch.zeros(B, H)),
        f"h0 is [{B}, {H}], expected [batch, proj] = [batch, {P}]",
    ),
    "no width": (lambda: LSTMLayer(I, H, proj_dim=0), "proj_dim=0 must be at least 1, or None: h is not projected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_said(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def looking_back() -> LanguageModel:
    model = LanguageModel(ModelConfig(I, H))
    model.lstm = MultiLayerLSTM(64, H, **BOTH)
    return model


CARRYING = {
    "a stepper": lambda: Stepper(MultiLayerLSTM(I, H, **BOTH), 1),
    "generate": lambda: Reader(looking_back(), None),
    "training": lambda: StateLayout.of(MultiLayerLSTM(I, H, **BOTH), I, torch.device("cpu")),
    "CarriedState": lambda: CarriedState().warm_up(LSTM(I, H, **BOTH), torch.zeros(B, T, I)),
}


@pytest.mark.parametrize("who", CARRYING)
def test_whoever_would_go_on_from_a_backward_layers_state_refuses(who: str) -> None:
    with pytest.raises(ValueError) as caught:
        CARRYING[who]()
    assert str(caught.value).partition(" ")[2] == (
        "is bidirectional: its backward layers begin at a sequence's end, so nothing can go on from the state "
        f"that they leave; {who} takes models with bidirectional=False"
    )


@needs_library
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
@pytest.mark.parametrize(("hidden", "proj"), [(7, 3), (300, 40)])
def test_strict_has_the_bits_of_single_rows_and_of_pieces(options: dict[str, Any], hidden: int, proj: int) -> None:
    """Of 300 units threads share a row's, and meet at every step, twice or three times."""
    model = MultiLayerLSTM(I, hidden, 2, proj_dim=proj, strict=True, **options)
    x = normal(6, 7, I, seed=1).float()
    with torch.no_grad():
        whole, state = model(x)
        row, _ = model(x[2:3])
        first, between = model(x[:, :4])
        rest, last = model(x[:, 4:], between)
        torch.set_num_threads(3)
        by_three, _ = model(x)
    trained, _ = model(x)
    assert torch.equal(row[0], whole[2])
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(last.h, state.h)
    assert torch.equal(by_three, whole)
    assert torch.equal(trained, whole)


def test_a_wider_projection_and_forward_mode() -> None:
    model = new(1, proj_dim=9, **BOTH)
    given = {name: value.detach() for name, value in given_to(model).items()}

    def function(x: Tensor) -> Tensor:
        return torch.cat([value.flatten() for value in called(model, given | {"x": x}).values()])

    tangent = normal(B, T, I, seed=7)
    _, slope = torch.func.jvp(function, (given["x"],), (tangent,))
    step = 1e-6
    difference = (function(given["x"] + step * tangent) - function(given["x"] - step * tangent)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)
    x = given["x"].requires_grad_()
    (dx,) = torch.autograd.grad(function(x).square().sum() / 2, x)
    assert_same((dx * tangent).sum(), (function(x) * slope).sum())


def test_it_compiles_as_one_graph() -> None:
    model, lengths = new(proj_dim=P, **BOTH), LENGTHS
    given = given_to(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output, (h, c) = compiled(given["x"], (given["h0"], given["c0"]), lengths=lengths)
    expected = called(model, given, lengths=lengths)
    for name, value in {"output": output, "h": h, "c": c}.items():
        assert_same(value, expected[name], name)
    leaves = given | dict(model.named_parameters())
    # A compiled graph may give its buffers away in its backward pass; whether it does depends on what torch finds free.
    ours = gradients({"output": output, "h": h, "c": c}, leaves, retain_graph=False)
    for name, value in gradients(expected, leaves).items():
        assert_same(ours[name], value, name)
