"""The original two classes, written out plainly: their checkpoints, numbers, gradients and draws are a contract."""

from __future__ import annotations

import pytest
import torch
from plain import F64, normal, redraw
from tolerance import assert_close
from torch import Tensor, nn
from worlds import BACKENDS, dtype_of

from unrolled.layer import LSTMLayer
from unrolled.stack import MultiLayerLSTM

# Four layers of six steps: rounding stays below 1e-13, the contract says 1e-10.
BOUND = 1e-10


class OriginalLayer(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        for gate in "fiog":
            for name, rows in (("x", input_dim), ("h", hidden_dim)):
                weight = nn.Parameter(torch.zeros(rows, hidden_dim))
                nn.init.xavier_uniform_(weight)
                setattr(self, f"W_{name}{gate}", weight)
            setattr(self, f"b_{gate}", nn.Parameter(torch.zeros(hidden_dim)))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        hs, cs = [], []
        for t in range(x.shape[1]):
            x_t = x[:, t]
            f = torch.sigmoid(x_t @ self.W_xf + h @ self.W_hf + self.b_f)
            i = torch.sigmoid(x_t @ self.W_xi + h @ self.W_hi + self.b_i)
            o = torch.sigmoid(x_t @ self.W_xo + h @ self.W_ho + self.b_o)
            g = torch.tanh(x_t @ self.W_xg + h @ self.W_hg + self.b_g)
            c = f * c + i * g
            h = torch.tanh(c) * o
            hs.append(h.unsqueeze(1))
            cs.append(c.unsqueeze(1))
        return torch.cat(hs, 1), torch.cat(cs, 1)


class OriginalStack(nn.Module):
    def __init__(
        self, input_dim: int, hidden_dim: int, num_layers: int, dropout: float, width: int | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([OriginalLayer(input_dim, hidden_dim)])
        for _ in range(num_layers - 1):
            self.layers.append(OriginalLayer(hidden_dim, hidden_dim))
        self.dropout = nn.Dropout(dropout)
        # The original has only the projection to the input's width; `width` is for output_dim.
        self.proj = nn.Linear(hidden_dim, input_dim if width is None else width)
        nn.init.xavier_uniform_(self.proj.weight)
        self.proj.bias.data.fill_(0.0)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h_before, c_before = state
        last_h, last_c = [], []
        for k, layer in enumerate(self.layers):
            h, c = layer(x, h_before[k], c_before[k])
            last_h.append(h[:, -1])
            last_c.append(c[:, -1])
            x = self.dropout(h)
        return self.proj(x), (torch.stack(last_h), torch.stack(last_c))


def run(model: nn.Module, layers: int) -> dict[str, Tensor]:
    """Outputs, states and every gradient for one set of inputs and random cotangents, in the weights' dtype."""
    dtype = next(model.parameters()).dtype
    inputs = {
        "x": normal(3, 6, 5, seed=1),
        "h0": normal(layers, 3, 7, seed=2).tanh(),
        "c0": normal(layers, 3, 7, seed=3),
    }
    leaves = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()} | dict(model.named_parameters())
    logits, (h, c) = model(leaves["x"], (leaves["h0"], leaves["c0"]))
    cotangents = normal(3, 6, 5, seed=4), normal(layers, 3, 7, seed=5), normal(layers, 3, 7, seed=6)
    cotangents = tuple(value.to(dtype) for value in cotangents)
    grads = torch.autograd.grad((logits, h, c), list(leaves.values()), cotangents)
    return {"logits": logits, "h": h, "c": c} | {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_of_the_original_gives_the_same_numbers_and_gradients(backend: str, layers: int) -> None:
    original = redraw(OriginalStack(5, 7, layers, 0.0).double(), seed=layers)
    ours = MultiLayerLSTM(5, 7, layers, 0.0, backend=backend, dtype=dtype_of(backend))
    ours.load_state_dict(original.state_dict(), strict=True)
    expected, got = run(original, layers), run(ours, layers)
    assert list(got) == list(expected)
    assert len(got) == 3 + 3 + 12 * layers + 2
    plain = run(original.float(), layers) if backend == "cpu" else {}
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        if backend == "cpu":
            assert_close(got[name].detach(), plain[name].detach(), value.detach(), name)
        else:
            assert (got[name] - value).abs().max() <= BOUND, name


def test_our_checkpoint_loads_into_the_original() -> None:
    ours = redraw(MultiLayerLSTM(5, 7, 3, 0.25, dtype=F64))
    original = OriginalStack(5, 7, 3, 0.25).double()
    original.load_state_dict(ours.state_dict(), strict=True)
    # The order too: an optimizer's state goes by it.
    assert list(ours.state_dict()) == list(original.state_dict())
    expected, got = run(original.eval(), 3), run(ours.eval(), 3)
    for name, value in expected.items():
        assert (got[name] - value).abs().max() <= BOUND, name


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [None, 11])
def test_the_same_seed_draws_the_same_weights_bit_for_bit(layers: int, width: int | None) -> None:
    torch.manual_seed(7)
    original = OriginalStack(5, 7, layers, 0.1, width)
    after_original = torch.rand(3)
    torch.manual_seed(7)
    ours = MultiLayerLSTM(5, 7, layers, 0.1, output_dim="input" if width is None else width)
    after_ours = torch.rand(3)
    _assert_equal_weights(ours, original)
    assert torch.equal(after_ours, after_original)


@pytest.mark.parametrize("width", [None, 11])
def test_reset_parameters_draws_what_the_constructor_draws(width: int | None) -> None:
    output_dim = "input" if width is None else width
    torch.manual_seed(8)
    fresh = MultiLayerLSTM(5, 7, 2, output_dim=output_dim)
    redrawn = redraw(MultiLayerLSTM(5, 7, 2, output_dim=output_dim))
    torch.manual_seed(8)
    redrawn.reset_parameters()
    _assert_equal_weights(redrawn, fresh)


def test_one_layer_alone_draws_as_the_original_layer_does() -> None:
    torch.manual_seed(9)
    original = OriginalLayer(5, 7)
    torch.manual_seed(9)
    _assert_equal_weights(LSTMLayer(5, 7), original)
    assert all(not parameter.any() for name, parameter in original.named_parameters() if name.startswith("b_"))


def test_the_originals_attributes_exist() -> None:
    model = MultiLayerLSTM(5, 7, 3, 0.25)
    assert (model.input_dim, model.hidden_dim, model.num_layers) == (5, 7, 3)
    assert isinstance(model.layers, nn.ModuleList)
    assert [(layer.input_dim, layer.hidden_dim) for layer in model.layers] == [(5, 7), (7, 7), (7, 7)]
    assert isinstance(model.dropout, nn.Dropout)
    assert model.dropout.p == 0.25
    assert isinstance(model.proj, nn.Linear)
    for gate in "fiog":
        shapes = [tuple(getattr(model.layers[0], f"{kind}{gate}").shape) for kind in ("W_x", "W_h", "b_")]
        assert shapes == [(5, 7), (7, 7), (7,)]


def test_the_positional_signature_is_the_originals() -> None:
    model = MultiLayerLSTM(5, 7, 2, 0.0)
    logits, (h, c) = model(torch.zeros(3, 4, 5), (torch.zeros(2, 3, 7), torch.zeros(2, 3, 7)))
    assert logits.shape == (3, 4, 5)
    assert h.shape == c.shape == (2, 3, 7)


def _assert_equal_weights(ours: nn.Module, original: nn.Module) -> None:
    expected, got = original.state_dict(), ours.state_dict()
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
