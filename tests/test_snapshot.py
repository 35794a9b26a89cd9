import pytest
import torch
from steppers import BACKENDS, inputs, made, use, walk
from torch import nn

from unrolled import LSTMLayer, Stepper


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request, monkeypatch):
    use(request.param, monkeypatch)


def replaced(model):
    model.layers[0].W_hf = nn.Parameter(model.layers[0].W_hf.detach() * 2)


def another_layer(model):
    model.layers[1] = LSTMLayer(16, 16)


def optimised(model):
    output, _ = model(torch.randn(2, 3, 5))
    output.sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def loaded(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def assigned(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def data_replaced(model):
    model.proj.bias.data = model.proj.bias.data + 1


def in_place(model):
    with torch.no_grad():
        model.layers[2].b_g.add_(1)


CHANGES = {
    "an optimiser's step": (optimised, r"layers.0.W_xf and \d+ more changed"),
    "load_state_dict": (loaded, "layers.0.W_xf and 37 more changed"),
    "load_state_dict(assign=True)": (assigned, "layers.0.W_xf and 37 more changed"),
    "another parameter": (replaced, "layers.0.W_hf changed"),
    "another module": (another_layer, r"layers.1.W_xf and \d+ more changed"),
    "other memory": (data_replaced, "proj.bias changed"),
    "in place": (in_place, "layers.2.b_g changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_parameter_is_noticed_until_the_refresh(change, seed):
    model = made("stack")
    x = inputs(model, 2, 6)
    stepper = Stepper(model, 2)
    walk(stepper, x[:, :3])
    state = stepper.state
    assert not stepper.stale
    act, message = CHANGES[change]
    act(model)
    assert stepper.stale
    with pytest.raises(RuntimeError, match=f"^{message} since this stepper packed.*stepper.refresh"):
        stepper.step(x[:, 3])
    for act in (stepper.steps, stepper.compare):
        with pytest.raises(RuntimeError, match=r"stepper\.refresh"):
            act(x)
    stepper.refresh()
    assert torch.equal(stepper.state.h, state.h)
    fresh = Stepper(model, 2)
    fresh.state = state
    assert torch.equal(walk(stepper, x[:, 3:]), walk(fresh, x[:, 3:]))


def test_a_change_of_an_nn_lstm_is_noticed_too(seed):
    model = made("nn.LSTM")
    stepper = Stepper(model, 1)
    with torch.no_grad():
        model.bias_hh_l1.add_(1)
    with pytest.raises(RuntimeError, match=r"^bias_hh_l1 changed"):
        stepper.step(torch.zeros(1, 4))
    stepper.refresh()
    assert torch.equal(stepper.step(torch.zeros(1, 4)), Stepper(model, 1).step(torch.zeros(1, 4)))


def test_a_parametrised_weight_is_noticed_and_followed(seed):
    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = made("stack")
    stepper = Stepper(model, 1)
    torch.nn.utils.parametrize.register_parametrization(model.layers[0], "W_hi", Twice())
    assert stepper.stale
    stepper.refresh()
    x = torch.randn(1, 5)
    stepper.step(x)
    with torch.no_grad():
        assert torch.allclose(stepper.step(x), model.eval()(x[:, None].expand(1, 2, 5))[0][:, 1], atol=1e-5)
        model.layers[0].parametrizations.W_hi.original.add_(1)
    assert stepper.stale


def test_removed_parameters_are_noticed():
    model = made("stack")
    stepper = Stepper(model, 1)
    del model.proj.bias
    with pytest.raises(RuntimeError, match="parameters were removed since this stepper"):
        stepper.step(torch.zeros(1, 5))


def test_a_model_of_other_sizes_needs_a_new_stepper(seed):
    model = made("stack")
    stepper = Stepper(model, 1)
    model.proj = nn.Linear(16, 9)
    with pytest.raises(ValueError, match=r"sizes are not what they were: Stepper\(model, batch_size\)"):
        stepper.refresh()
    assert stepper.stale
