"""The modules' oracle: the LSTM as plain loops that keep every intermediate tensor, and the inputs it is run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worlds import dtype_of

from unrolled.layer import LSTMLayer
from unrolled.stack import MultiLayerLSTM

F64 = torch.float64
GATES = ("i", "f", "g", "o")


@dataclass
class PlainLayer:
    """One layer's steps. `pre`, `c_raw` and `h_raw` lie before the masking of ended rows and retain their gradients."""

    pre: dict[str, list[Tensor]] = field(default_factory=lambda: {gate: [] for gate in GATES})
    gates: dict[str, list[Tensor]] = field(default_factory=lambda: {gate: [] for gate in GATES})
    c_raw: list[Tensor] = field(default_factory=list)
    h_raw: list[Tensor] = field(default_factory=list)
    c: list[Tensor] = field(default_factory=list)
    h: list[Tensor] = field(default_factory=list)
    state: tuple[Tensor, Tensor] | None = None

    def sequence(self, name: str) -> Tensor:
        """h, c or a gate, [batch, time, hidden], in memory time first as the package's: dropout draws in that order."""
        steps = self.gates[name] if name in GATES else getattr(self, name)
        return torch.stack(steps).transpose(0, 1)

    def totals(self) -> dict[str, Tensor]:
        """The retained gradients after a backward pass, under the names of `LayerGradients`."""
        steps = {"h": self.h_raw, "c": self.c_raw, **self.pre}
        return {
            name: torch.stack([torch.zeros_like(s) if s.grad is None else s.grad for s in kept], 1)
            for name, kept in steps.items()
        }


def run_layer(
    weights: Mapping[str, Tensor],
    x: Tensor,
    h: Tensor,
    c: Tensor,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
) -> PlainLayer:
    """`weights` by the names of the layer's parameters; x [batch, time, input] floats; h, c [batch, hidden]."""
    kept = PlainLayer()
    zero = torch.zeros((), dtype=x.dtype)
    last_h, last_c = h, c
    for t in range(x.shape[1]):
        live = torch.ones(len(x), 1, dtype=torch.bool) if lengths is None else (t < lengths)[:, None]
        fresh = torch.zeros_like(live) if resets is None else resets[:, t, None]
        h, c = torch.where(fresh, zero, h), torch.where(fresh, zero, c)
        x_t = torch.where(live, x[:, t], zero)
        gate = {}
        for name in GATES:
            pre = x_t @ weights[f"W_x{name}"] + h @ weights[f"W_h{name}"] + weights[f"b_{name}"]
            kept.pre[name].append(_retained(pre))
            gate[name] = pre.tanh() if name == "g" else pre.sigmoid()
            kept.gates[name].append(torch.where(live, gate[name], zero))
        c_raw = _retained(gate["f"] * c + gate["i"] * gate["g"])
        h_raw = gate["o"] * c_raw.tanh()
        h_raw = _retained(h_raw @ weights["W_hr"] if "W_hr" in weights else h_raw)
        h, c = torch.where(live, h_raw, zero), torch.where(live, c_raw, zero)
        last_h, last_c = torch.where(live, h_raw, last_h), torch.where(live, c_raw, last_c)
        for steps, value in ((kept.c_raw, c_raw), (kept.h_raw, h_raw), (kept.c, c), (kept.h, h)):
            steps.append(value)
    kept.state = (last_h, last_c)
    return kept


def run_stack(
    weights: Mapping[str, Tensor],
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, list[PlainLayer]]:
    """The logits and every layer, bottom first; `weights` is a state_dict's content; h0, c0 [layers, batch, hidden]."""
    layers = []
    for k in range(h0.shape[0]):
        own = {name.removeprefix(f"layers.{k}."): w for name, w in weights.items() if name.startswith(f"layers.{k}.")}
        layers.append(run_layer(own, x, h0[k], c0[k], resets, lengths))
        x = F.dropout(layers[-1].sequence("h"), dropout, training=dropout > 0)
    if "proj.weight" in weights:
        x = x @ weights["proj.weight"].t() + weights["proj.bias"]
    return x, layers


def redraw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter, biases included, drawn anew, so that a forgotten bias or a swapped gate shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[0] ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return module


def normal(*size: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def masks(names: str, rows: int, steps: int) -> dict[str, Tensor]:
    """The named ones ("resets", "lengths", "both", "none"); four rows are enough for every kind of row."""
    resets = torch.rand(rows, steps, generator=torch.Generator().manual_seed(11)) < 0.2
    resets[0, 0] = resets[1:2, :2] = resets[-1, -1] = True
    lengths = torch.tensor(([steps // 2, 0, steps, 1] * rows)[:rows])
    chosen = {"none": (), "resets": ("resets",), "lengths": ("lengths",), "both": ("resets", "lengths")}[names]
    return {name: value for name, value in (("resets", resets), ("lengths", lengths)) if name in chosen}


def gradients(
    outputs: dict[str, Tensor], leaves: dict[str, Tensor], seed: int = 21, *, retain_graph: bool = True
) -> dict[str, Tensor]:
    """Of every leaf, for a random cotangent of every output; exact zeros where a leaf is not used."""
    cotangents = [normal(*value.shape, seed=seed + k).to(value.dtype) for k, value in enumerate(outputs.values())]
    grads = torch.autograd.grad(
        list(outputs.values()), list(leaves.values()), cotangents, allow_unused=True, retain_graph=retain_graph
    )
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def new_layer(backend: str, width: int = 5, hidden: int = 7) -> LSTMLayer:
    """In the backend's widest dtype, with every parameter drawn."""
    layer = redraw(LSTMLayer(width, hidden, backend=backend, dtype=dtype_of(backend)))
    assert isinstance(layer, LSTMLayer)
    return layer


def layer_inputs(backend: str, rows: int = 4, steps: int = 9, width: int = 5, hidden: int = 7) -> dict[str, Tensor]:
    """x, h0 and c0 of a layer, all requiring gradients, in the backend's widest dtype."""
    x, h0, c0 = normal(rows, steps, width, seed=1), normal(rows, hidden, seed=2).tanh(), normal(rows, hidden, seed=3)
    return _leaves(backend, x=x, h0=h0, c0=c0)


def new_model(backend: str, layers: int = 2, dropout: float = 0.0, output_dim: int | None = 4) -> MultiLayerLSTM:
    """5 inputs, 7 units, in the backend's widest dtype, with every parameter drawn."""
    model = redraw(
        MultiLayerLSTM(5, 7, layers, dropout, output_dim=output_dim, backend=backend, dtype=dtype_of(backend))
    )
    assert isinstance(model, MultiLayerLSTM)
    return model


def stack_inputs(backend: str, layers: int = 2, rows: int = 4, steps: int = 6) -> dict[str, Tensor]:
    """x, h0 and c0 of a stack, all requiring gradients, in the backend's widest dtype."""
    x, h0 = normal(rows, steps, 5, seed=1), normal(layers, rows, 7, seed=2).tanh()
    return _leaves(backend, x=x, h0=h0, c0=normal(layers, rows, 7, seed=3))


def results(layer: LSTMLayer, given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """h, c and all gradients of a call."""
    h, c = layer(**given, **options)
    leaves = {name: v for name, v in given.items() if v.requires_grad} | dict(layer.named_parameters())
    grads = gradients({"h": h, "c": c}, leaves)
    return {"h": h, "c": c} | {f"grad {name}": grad for name, grad in grads.items()}


def assert_all_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_same(got[name], value, name)


def assert_same(got: Tensor, expected: Tensor, name: str = "") -> None:
    """Equal but for the rounding of their dtype.

    The longest chains here are some 20 steps of sums over some 20 terms of order 1 to 100. In float64 rounding may
    reach 1e-13, and a wrong term is of order 1e-3 and more; in float32 these are 400 roundings that do not all go one
    way: 20 or so remain, and thrice that is allowed.
    """
    bound = 1e-11 if expected.dtype == F64 else 64 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(
        got.detach(), expected.detach(), rtol=bound, atol=bound, msg=lambda text: f"{name}: {text}"
    )


def _leaves(backend: str, **values: Tensor) -> dict[str, Tensor]:
    return {name: value.to(dtype_of(backend)).requires_grad_() for name, value in values.items()}


def _retained(value: Tensor) -> Tensor:
    if value.requires_grad:
        value.retain_grad()
    return value
