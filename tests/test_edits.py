"""Traces with a hand in them, against the same sequences cut at the edited step, in float64."""

import pytest
import torch

from unrolled import BackendUnavailable, LanguageModel, LSTMLayer, LSTMState, ModelConfig, MultiLayerLSTM, recurrence
from unrolled.edits import Clamp, Place

NAMES = "hcifgo"
WIDE = torch.float64
CELLS = [
    {},
    {"proj_dim": 2},
    {"peephole": True, "cell_clip": 0.4},
    {"coupled": True, "activation": "relu", "gate_activation": "hard_sigmoid"},
    {"layer_norm": True, "learn_initial_state": True, "residual": True},
]


def stack(seed=0, **options):
    torch.manual_seed(seed)
    model = MultiLayerLSTM(3, 4, 2, dtype=WIDE, **options)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    return model


def inputs(model, rows=2, steps=6):
    x = torch.randn(rows, steps, 3, dtype=WIDE)
    return x, LSTMState(*(torch.randn_like(part) for part in model.zero_state(rows)))


def same(a, b):
    torch.testing.assert_close(a.output, b.output)
    torch.testing.assert_close(tuple(a.state), tuple(b.state))
    for first, second in zip(a.layers, b.layers, strict=True):
        for name in NAMES:
            torch.testing.assert_close(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", CELLS, ids=str)
def test_an_edit_that_changes_nothing_changes_nothing(options, bidirectional):
    model = stack(bidirectional=bidirectional, **options)
    x, state = inputs(model, 3)
    given = {"resets": torch.rand(3, 6) < 0.3, "lengths": torch.tensor([6, 0, 4])}
    for masks in ({}, given):
        same(model.trace(x, state, edit=lambda values, place: None, **masks), model.trace(x, state, **masks))


def test_it_sees_every_value_at_its_place_and_in_order():
    model = stack()
    x, state = inputs(model)
    seen = {}

    def look(values, place):
        assert place not in seen
        seen[place] = values

    trace = model.trace(x, state, edit=look)
    assert [place.name for place in seen][:6] == ["i", "f", "g", "c", "o", "h"]
    assert len(seen) == 2 * 6 * 6
    for (layer, name, time), values in seen.items():
        assert torch.equal(values, getattr(trace.layers[layer], name)[:, time])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["h", "c"])
def test_a_changed_state_is_as_if_the_sequence_had_been_cut_there(layer, name):
    model = stack()
    x, state = inputs(model)
    edited = model.trace(x, state, edit=Clamp(layer, name, 1, 0.7, range(2, 3)))
    plain = model.trace(x, state)
    own = edited.layers[layer]
    for each in NAMES:
        torch.testing.assert_close(getattr(own, each)[:, :2], getattr(plain.layers[layer], each)[:, :2])
    assert (getattr(own, name)[:, 2, 1] == 0.7).all()
    # What was changed is a state like any other: from it the layer runs on as it would.
    below = x if layer == 0 else edited.layers[0].h
    h, c = model.layers[layer](below[:, 3:], own.h[:, 2], own.c[:, 2])
    torch.testing.assert_close(own.h[:, 3:], h)
    torch.testing.assert_close(own.c[:, 3:], c)
    # In the step itself: h is what o lets through of the changed c.
    if name == "c":
        torch.testing.assert_close(own.h[:, 2], own.o[:, 2] * own.c[:, 2].tanh())
    torch.testing.assert_close(edited.output, model.proj(edited.layers[1].h))


@pytest.mark.parametrize("gate", ["i", "f", "g"])
def test_a_changed_gate_goes_into_c(gate):
    model = stack()
    x, state = inputs(model)
    trace = model.trace(x, state, edit=Clamp(0, gate, [0, 3], torch.tensor([0.25, 0.5]), range(1, 4)))
    layer = trace.layers[0]
    assert torch.equal(getattr(layer, gate)[:, 1:4, [0, 3]], torch.tensor([0.25, 0.5], dtype=WIDE).expand(2, 3, 2))
    before = torch.cat([state.c[0][:, None], layer.c[:, :-1]], 1)
    torch.testing.assert_close(layer.c, layer.f * before + layer.i * layer.g)
    torch.testing.assert_close(layer.h, layer.o * layer.c.tanh())


def test_a_layer_alone():
    torch.manual_seed(0)
    layer = LSTMLayer(3, 4, dtype=WIDE)
    x = torch.randn(2, 5, 3, dtype=WIDE)
    places = []
    layer.trace(x, edit=lambda values, place: places.append(place))
    assert places[0] == Place(0, "i", 0)
    trace = layer.trace(x, edit=Clamp(0, "o", 2, 0.0))
    assert not trace.h[..., 2].any()
    torch.testing.assert_close(trace.state, (trace.h[:, -1], trace.c[:, -1]))


def test_a_clamp_leaves_other_layers_on_their_backend(monkeypatch):
    model = stack()
    x, _ = inputs(model)
    scan, called = recurrence.scan, []

    def counted(*given, **more):
        called.append(given)
        return scan(*given, **more)

    monkeypatch.setattr(recurrence, "scan", counted)
    model.trace(x, edit=Clamp(1, "c", 0, 0.0))
    assert len(called) == 1
    model.trace(x, edit=lambda values, place: None)
    assert len(called) == 1


def test_no_steps_and_no_rows():
    model = stack()
    assert model.trace(torch.zeros(2, 0, 3, dtype=WIDE), edit=Clamp(0, "c", 0, 1.0)).output.shape == (2, 0, 3)
    assert model.trace(torch.zeros(0, 2, 3, dtype=WIDE), edit=Clamp(0, "c", 0, 1.0)).output.shape == (0, 2, 3)


def test_ids_and_a_language_model():
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(7, hidden=4, layers=2, embedding=3), dtype=WIDE).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    trace = model.trace(ids, edit=Clamp(0, "h", 2, 0.0))
    assert not trace.layers[0].h[..., 2].any()
    silent = LanguageModel(ModelConfig(7, hidden=4, layers=2, embedding=3), dtype=WIDE).eval()
    silent.load_state_dict(model.state_dict())
    with torch.no_grad():
        for gate in "ifgo":
            getattr(silent.lstm.layers[0], f"W_h{gate}")[2] = 0
            getattr(silent.lstm.layers[1], f"W_x{gate}")[2] = 0
    torch.testing.assert_close(trace.output, silent(ids)[0])


def test_gradients_pass_through_the_edit():
    model = stack()
    x, state = inputs(model)
    kept = {}

    def keep(values, place):
        if place.name == "c":
            kept[place] = values * 1.0
            return kept[place]
        return None

    loss = model.trace(x, state, edit=keep).output.square().sum()
    whole = model.trace(x, state)
    totals = whole.gradients(whole.output.square().sum())
    for (layer, _, time), values in kept.items():
        [total] = torch.autograd.grad(loss, values, retain_graph=True)
        torch.testing.assert_close(total, totals[layer].c[:, time])


def test_total_gradients_of_an_edited_trace_are_refused_with_how_to_get_them():
    model = stack()
    x, _ = inputs(model)
    trace = model.trace(x, edit=Clamp(0, "c", 0, 0.0))
    with pytest.raises(RuntimeError, match=r"this trace was edited.*torch\.autograd\.grad\(loss, values\)"):
        trace.gradients(trace.output.sum())


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda v, p: 0.0, ValueError, r"the edit returned float for i of step 0, expected torch.float64 \[2, 4\]"),
        (lambda v, p: v[:1], ValueError, r"returned torch.float64 \[1, 4\] for i of step 0"),
        (lambda v, p: v.float(), ValueError, r"returned torch.float32 \[2, 4\] for i"),
        (Clamp(2, "c", 0, 0.0), IndexError, "the clamp is of layer 2, and there are layers 0 to 1"),
        (Clamp(1, "c", [0, 4], 0.0), IndexError, "c of layer 1 has units 0 to 3, and got 4"),
        (Clamp(1, "c", -1, 0.0), IndexError, "c of layer 1 has units 0 to 3, and got -1"),
    ],
)
def test_wrong_edits(edit, error, message):
    model = stack()
    with pytest.raises(error, match=message):
        model.trace(inputs(model)[0], edit=edit)


def test_wrong_names_and_layers():
    with pytest.raises(ValueError, match="name='forget' is none of i, f, g, c, o, h"):
        Clamp(0, "forget", 0, 0.0)
    with pytest.raises(IndexError, match="the clamp is of layer 1, and there are layers 0 to 0"):
        LSTMLayer(3, 4).trace(torch.zeros(1, 1, 3), edit=Clamp(1, "c", 0, 0.0))


@pytest.mark.parametrize(
    ("attribute", "value", "named"), [("strict", True, "strict=True"), ("backend", "cpu", 'backend="cpu"')]
)
def test_what_asks_for_the_native_kernel_is_refused(attribute, value, named):
    model = MultiLayerLSTM(3, 4, 1)
    setattr(model, attribute, value)
    with pytest.raises(BackendUnavailable, match=f"runs step by step in plain torch, and {named} asks for the native"):
        model.trace(torch.zeros(1, 2, 3), edit=Clamp(0, "c", 0, 0.0))
