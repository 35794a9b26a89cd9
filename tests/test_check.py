"""Right layers of many styles are found right, as what they are; what cannot be compared says what to pass."""

import numpy as np
import pytest
import torch
from homework import CELLS, COLUMNS, JOINED, KERAS, LINEARS, SEED, made
from torch import nn

from unrolled import LSTM, CheckError, LSTMLayer, MultiLayerLSTM, check
from unrolled.check_equations import RIGHT, run
from unrolled.check_mistakes import of_gradients, of_values
from unrolled.layer import GATES

STYLES = {
    "torch": lambda: nn.LSTM(4, 6),
    "torch, batch first": lambda: nn.LSTM(4, 6, batch_first=True),
    "torch without biases": lambda: nn.LSTM(4, 6, bias=False),
    "torch's cell": lambda: nn.LSTMCell(4, 6),
    "ours": lambda: LSTMLayer(4, 6),
    "ours in torch's place": lambda: LSTM(4, 6, batch_first=True),
    "the seed's": lambda: made(SEED),
    "a Linear for x and one for h": lambda: made(LINEARS),
    "a Linear for each gate": lambda: made(JOINED),
    "Keras": lambda: made(KERAS),
    "a loop over torch's cell": lambda: made(CELLS),
    "columns": lambda: made(COLUMNS),
}
GRADIENTS = {f"gradient of W_{source}{gate}" for source in "xh" for gate in GATES}


@pytest.mark.parametrize("style", STYLES)
def test_a_right_layer_is_right(style):
    found = check(STYLES[style]())
    assert found.ok, str(found)
    assert found.require() is found
    assert set(found.compared) >= GRADIENTS
    assert max(found.compared.values()) < 1e-12
    assert found.tolerance == 1e-9


@pytest.mark.parametrize("sizes", [(5, 5), (1, 6), (6, 1), (1, 1), (3, 5), (24, 6), (5, 7)])
@pytest.mark.parametrize("source", [SEED, LINEARS, KERAS, CELLS, COLUMNS, JOINED])
def test_of_any_size(source, sizes):
    found = check(made(source, sizes=sizes))
    assert found.ok, str(found)


def test_how_it_was_understood():
    found = check(nn.LSTM(4, 6))
    assert found.layer == "LSTM of 4 inputs and 6 units"
    assert found.weights == (
        "W_x = weight_ih_l0, W_h = weight_hh_l0, b_x = bias_ih_l0, b_h = bias_hh_l0; matrices [out, in], gates in the "
        "order i, f, g, o"
    )
    assert found.call == (
        "layer(x, (h, c)), states [1, batch, hidden] -> h of every step, the last h and c; x [time, batch, input]"
    )
    assert found.notes == ()
    found = check(made(JOINED))
    assert "h before x" in found.weights
    assert found.notes == (
        "it takes no initial state: zeros were compared alone",
        "it does not show c, which was compared through h alone",
    )
    assert "matrices [out, in]" in check(made(COLUMNS)).weights
    assert check(nn.LSTMCell(4, 6)).call.startswith("layer(x_t, (h, c)) for each step")


@pytest.mark.parametrize("order", ["ifgo", "iofg", "fiog", "gofi"])
def test_the_order_of_a_stack_is_found_or_asked_for(order):
    source = LINEARS.replace("i, f, g, o = (self", f"{', '.join(order)} = (self")
    found = check(made(source))
    assert found.ok
    assert ", ".join(order) in found.weights
    assert check(made(source), order=order).ok
    asked = check(made(source), order="ofig")
    assert not asked.ok
    assert "swapped" in asked.diagnosis or "mixed up" in asked.diagnosis


def test_the_order_of_torchs_names_is_known():
    source = KERAS.replace("z_i, z_f, z_c, z_o", "z_i, z_c, z_f, z_o")
    assert check(made(source)).diagnosis == "gates f and g look swapped"


def test_square_matrices_the_other_way_round():
    source = COLUMNS.replace(".T", "").replace("nn.Parameter(torch.zeros(n, d))", "nn.Parameter(torch.zeros(d, n))")
    for each in (source, COLUMNS):
        found = check(made(each, sizes=(5, 5)))
        assert found.ok
    one = check(made(COLUMNS, "self.U_f.T", "self.U_f", sizes=(5, 5)))
    assert not one.ok
    assert one.diagnosis == "W_hf looks transposed"


def test_names_and_calls_that_cannot_be_guessed():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ParameterList([nn.Parameter(torch.zeros(4, 6)) for _ in GATES])
            self.u = nn.ParameterList([nn.Parameter(torch.zeros(6, 6)) for _ in GATES])
            self.v = nn.Parameter(torch.zeros(4, 6))

        def forward(self, memory, inputs):
            c, h = memory
            hs = []
            for x_t in inputs.unbind(1):
                i, f, g, o = (x_t @ a + h @ u + v for a, u, v in zip(self.a, self.u, self.v, strict=True))
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                hs.append(h)
            return {"h": torch.stack(hs, 1)}

    def put(layer, ours):
        with torch.no_grad():
            for k, gate in enumerate(GATES):
                layer.a[k].copy_(ours[f"W_x{gate}"])
                layer.u[k].copy_(ours[f"W_h{gate}"])
                layer.v[k].copy_(ours[f"b_{gate}"])

    def call(layer, x, h, c):
        return layer((c, h), x)["h"]

    with pytest.raises(CheckError, match=r"has the parameters v, a.0, .* else pass weights="):
        check(Odd(), call=call)
    with pytest.raises(CheckError, match=r"pass input_dim= and hidden_dim="):
        check(Odd(), weights=put)
    with pytest.raises(CheckError, match=r"cannot be called: .* Pass call=f"):
        check(Odd(), weights=put, input_dim=4, hidden_dim=6)
    found = check(Odd(), weights=put, call=call, input_dim=4, hidden_dim=6)
    assert found.ok
    assert found.weights == "as weights= puts them"
    assert "gradients of its weights were not compared, since weights= is a function" in found.notes


def test_names_that_are_given():
    source = LINEARS.replace("x2h", "first").replace("h2h", "second")
    names = {"W_x": "first.weight", "W_h": "second.weight", "b_x": "first.bias", "b_h": "second.bias"}
    assert check(made(source), weights=names).ok
    with pytest.raises(CheckError, match=r"weights\['W_x'\] is 'third.weight', which the layer does not have"):
        check(made(source), weights={**names, "W_x": "third.weight"})
    with pytest.raises(CheckError, match="the key 'kernel'"):
        check(made(source), weights={"kernel": "first.weight"})
    with pytest.raises(CheckError, match="nothing is said of W_hf"):
        check(made(SEED), weights={"W_xi": "W_xi", "W_hi": "W_hi"})
    with pytest.raises(CheckError, match="order='ifco', expected"):
        check(made(source), weights=names, order="ifco")


def test_a_function_of_numpy():
    """No module, and no gradients: weights are put where it looks for them."""
    held = {}

    def forward(x, h, c):
        x, h, c = (value.numpy() for value in (x, h, c))
        sigmoid, hs = (lambda a: 1 / (1 + np.exp(-a))), []
        for t in range(x.shape[1]):
            pre = {gate: x[:, t] @ held[f"W_x{gate}"] + h @ held[f"W_h{gate}"] + held[f"b_{gate}"] for gate in GATES}
            c = sigmoid(pre["f"]) * c + sigmoid(pre["i"]) * np.tanh(pre["g"])
            h = sigmoid(pre["o"]) * np.tanh(c)
            hs.append(h)
        return torch.from_numpy(np.stack(hs, 1))

    def put(layer, ours):
        held.update({name: value.numpy() for name, value in ours.items()})

    given = {"weights": put, "input_dim": 4, "hidden_dim": 6}
    assert check(forward, **given, gradients=False).ok


def test_a_layer_that_knows_float32_alone():
    source = LINEARS.replace("h, c = state\n", "h, c = state\n        h, c = h.float(), c.float()\n")
    found = check(made(source))
    assert found.ok
    assert found.tolerance == 1e-4
    assert "it cannot be called in float64: it makes tensors of float32 itself" in found.notes


def test_the_layer_and_the_default_dtype_stay_as_they_were():
    layer = made(SEED).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    check(layer)
    assert layer.training
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_another_seed_is_another_input():
    a, b, c = (check(made(SEED, "h_t = torch.tanh(c_t)", "h_t = c_t"), seed=seed) for seed in (0, 0, 1))
    assert a.difference == b.difference != c.difference


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.LSTM(4, 6, num_layers=2), "has weight_ih_l1, and one layer is compared"),
        (lambda: nn.LSTM(4, 6, bidirectional=True), "has weight_ih_l0_reverse, and one layer"),
        (lambda: nn.LSTM(4, 6, proj_size=3), "has weight_hr_l0, and one layer is compared"),
        (lambda: nn.GRU(4, 6), r"weight_ih_l0 is \[18, 4\], which is no W_xi of 4 inputs and 6 units"),
        (lambda: MultiLayerLSTM(4, 6), r'it holds one: check\(layer.get_submodule\("layers.0"\)\)'),
        (lambda: nn.ReLU(), "ReLU has no parameters; pass weights=put"),
        (lambda: nn.Bilinear(3, 4, 5), "pass weights="),
    ],
)
def test_what_cannot_be_compared(layer, message):
    with pytest.raises(CheckError, match=message):
        check(layer())


def test_equations_without_a_mistake_are_the_references():
    layer = LSTMLayer(4, 6, backend="reference", dtype=torch.float64)
    weights = {name: value.detach() for name, value in layer.named_parameters() if name.startswith("W_")}
    for gate in GATES:
        weights |= {f"b_x{gate}": torch.randn(6).double(), f"b_h{gate}": torch.randn(6).double()}
        with torch.no_grad():
            getattr(layer, f"b_{gate}").copy_(weights[f"b_x{gate}"] + weights[f"b_h{gate}"])
    x, h, c = torch.randn(3, 5, 4).double(), torch.randn(3, 6).double(), torch.randn(3, 6).double()
    got, right = run(weights, x, h, c, RIGHT), layer(x, h, c)
    torch.testing.assert_close((got.h, got.c), right, rtol=0, atol=1e-13)
    assert torch.equal(got.last_c, got.c[:, -1])


def test_every_mistake_has_numbers_of_its_own():
    """None is the right layer, and no two are the same: a diagnosis is one, not the first of several."""
    torch.manual_seed(0)
    weights = {f"W_{source}{gate}": torch.randn(5, 5).double() for source in "xh" for gate in GATES}
    weights |= {f"b_{source}{gate}": torch.randn(5).double() for source in "xh" for gate in GATES}
    x, h, c = torch.randn(3, 7, 5).double(), torch.randn(3, 5).double(), torch.randn(3, 5).double()
    right = torch.stack([each.sum(dim=tuple(range(each.dim()))) for each in run(weights, x, h, c)])
    seen = {"nothing": right}
    for mistake in of_values(square=True, two_biases=True, state=True):
        got = torch.stack(
            [
                (each * torch.arange(each.numel()).view(each.shape).sin()).sum()
                for each in run(weights, x, h, c, mistake.equations)
            ]
        )
        for text, other in seen.items():
            assert not torch.allclose(got, other, rtol=0, atol=1e-9), f"{mistake.text} is {text}"
        seen[mistake.text] = got
    assert len(seen) > 150


def test_every_cut_leaves_the_values():
    torch.manual_seed(0)
    weights = {f"W_{source}{gate}": torch.randn(4, 4).double() for source in "xh" for gate in GATES}
    weights |= {f"b_{source}{gate}": torch.randn(4).double() for source in "xh" for gate in GATES}
    x, h, c = torch.randn(3, 5, 4).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    right = run(weights, x, h, c)
    for mistake in of_gradients():
        torch.testing.assert_close(run(weights, x, h, c, mistake.equations), right, rtol=0, atol=0)
