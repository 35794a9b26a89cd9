import pytest
import torch
from worlds import needs_library

from unrolled import LanguageModel, ModelConfig
from unrolled.held_weights import HeldWeights
from unrolled.layer import LSTMLayer
from unrolled.recurrence import kernels, native

IDS = torch.tensor([[0, 3, 1, 4, 2]])


@pytest.fixture(params=[{}, {"coupled": True, "peephole": True}, {"layer_norm": True}, {"proj_dim": 3, "bias": False}])
def model(request):
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(5, hidden=6, layers=2, embedding=4, **request.param)).eval()


@pytest.fixture
def made(monkeypatch):
    """The layers whose weights were put side by side, one entry for each time."""
    layers, of_gate = [], LSTMLayer._of_gate

    def noted(layer, kind, gate):
        if (kind, gate) == ("W_h", "o"):
            layers.append(layer)
        return of_gate(layer, kind, gate)

    monkeypatch.setattr(LSTMLayer, "_of_gate", noted)
    return layers


@torch.inference_mode()
def traced(model):
    trace = model.trace(IDS)
    return [trace.output, *(getattr(layer, name) for layer in trace.layers for name in "hcifgo")]


def test_a_trace_has_the_same_bits_with_weights_that_were_made_once(model, made):
    expected, weights = traced(model), HeldWeights(model)
    made.clear()
    for _ in range(3):
        with weights.at_hand():
            assert all(map(torch.equal, traced(model), expected))
    assert made == list(model.lstm.layers)


@needs_library
@pytest.mark.parametrize("name", native.instruction_sets())
def test_and_are_packed_once_for_each_instruction_set(model, monkeypatch, name):
    packed, run = [], kernels.forward

    def noted(*arguments, scratch=None, **options):
        packed.append(scratch is not None)
        return run(*arguments, scratch=scratch, **options)

    monkeypatch.setattr(kernels, "forward", noted)
    weights = HeldWeights(model)
    with weights.at_hand():
        traced(model)
        with kernels.instruction_set(name):
            expected = traced(model)
            packed.clear()
            for _ in range(2):
                assert all(map(torch.equal, traced(model), expected))
    assert packed == [True] * 4
    packed.clear()
    with kernels.instruction_set(name):
        assert all(map(torch.equal, traced(model), expected))
    assert packed == [False] * 2


def test_weights_that_have_changed_are_made_anew(model):
    weights, before = HeldWeights(model), traced(model)
    with weights.at_hand():
        pass
    with torch.no_grad():
        model.lstm.layers[1].W_hi.mul_(2)
    expected = traced(model)
    with weights.at_hand():
        assert all(map(torch.equal, traced(model), expected))
    assert not torch.equal(before[0], expected[0])


def test_afterwards_every_layer_makes_its_own_again(model, made):
    weights = HeldWeights(model)
    with pytest.raises(KeyError), weights.at_hand():
        raise KeyError
    made.clear()
    traced(model)
    assert made == list(model.lstm.layers)
