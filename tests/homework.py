"""LSTM layers as people write them, as text, so that a test can change a line of one and see whether that is found."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# One parameter for each gate, and h and c of every step: the class that this library grew from.
SEED = """
class Layer(nn.Module):
    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.input_dim, self.hidden_dim = input_dim, hidden_dim
        self.W_xf, self.W_hf, self.b_f = self.create_gate_parameters()
        self.W_xi, self.W_hi, self.b_i = self.create_gate_parameters()
        self.W_xo, self.W_ho, self.b_o = self.create_gate_parameters()
        self.W_xg, self.W_hg, self.b_g = self.create_gate_parameters()

    def create_gate_parameters(self):
        W_x = nn.Parameter(torch.zeros(self.input_dim, self.hidden_dim))
        W_h = nn.Parameter(torch.zeros(self.hidden_dim, self.hidden_dim))
        b = nn.Parameter(torch.zeros(self.hidden_dim))
        return W_x, W_h, b

    def forward(self, x, h_t_1, c_t_1):
        output_h, output_c = [], []
        h_0, c_0 = h_t_1, c_t_1
        for i in range(x.shape[1]):
            x_t = x[:, i]
            f_t = torch.sigmoid((x_t @ self.W_xf) + (h_t_1 @ self.W_hf) + self.b_f)
            i_t = torch.sigmoid((x_t @ self.W_xi) + (h_t_1 @ self.W_hi) + self.b_i)
            g_t = torch.tanh((x_t @ self.W_xg) + (h_t_1 @ self.W_hg) + self.b_g)
            c_t = (f_t * c_t_1) + (i_t * g_t)
            o_t = torch.sigmoid((x_t @ self.W_xo) + (h_t_1 @ self.W_ho) + self.b_o)
            h_t = torch.tanh(c_t) * o_t
            output_h.append(h_t.unsqueeze(1))
            output_c.append(c_t.unsqueeze(1))
            h_t_1 = h_t
            c_t_1 = c_t
        return torch.concat(output_h, dim=1), torch.concat(output_c, dim=1)
"""

# Stacks of gates in two Linear layers, each with a bias, and an optional state.
LINEARS = """
class Layer(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.x2h = nn.Linear(input_size, 4 * hidden_size)
        self.h2h = nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x, state=None):
        if state is None:
            state = torch.zeros(x.shape[0], self.hidden_size), torch.zeros(x.shape[0], self.hidden_size)
        h, c = state
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.x2h(x[:, t]) + self.h2h(h)).chunk(4, dim=-1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)
"""

# A Linear for each gate, over [h, x] joined, as in the formulas of a well-known explanation; no state in or out.
JOINED = """
class Layer(nn.Module):
    def __init__(self, n_in, n_hidden):
        super().__init__()
        self.n_hidden = n_hidden
        self.forget_gate = nn.Linear(n_hidden + n_in, n_hidden)
        self.input_gate = nn.Linear(n_hidden + n_in, n_hidden)
        self.candidate = nn.Linear(n_hidden + n_in, n_hidden)
        self.output_gate = nn.Linear(n_hidden + n_in, n_hidden)

    def forward(self, x):
        h = torch.zeros(x.size(0), self.n_hidden)
        c = torch.zeros(x.size(0), self.n_hidden)
        outputs = []
        for x_t in x.unbind(1):
            both = torch.cat([h, x_t], dim=1)
            f = torch.sigmoid(self.forget_gate(both))
            i = torch.sigmoid(self.input_gate(both))
            c = f * c + i * torch.tanh(self.candidate(both))
            h = torch.sigmoid(self.output_gate(both)) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)
"""

# Keras' kernels, and the last h and c alone.
KERAS = """
class Layer(nn.Module):
    def __init__(self, features, units):
        super().__init__()
        self.units = units
        self.kernel = nn.Parameter(torch.zeros(features, 4 * units))
        self.recurrent_kernel = nn.Parameter(torch.zeros(units, 4 * units))
        self.bias = nn.Parameter(torch.zeros(4 * units))

    def forward(self, inputs, initial_state):
        h, c = initial_state
        for t in range(inputs.shape[1]):
            z = inputs[:, t] @ self.kernel + h @ self.recurrent_kernel + self.bias
            z_i, z_f, z_c, z_o = torch.split(z, self.units, dim=1)
            c = z_f.sigmoid() * c + z_i.sigmoid() * z_c.tanh()
            h = z_o.sigmoid() * c.tanh()
        return h, c
"""

# torch's cell, run over a sequence that is time-first, as torch's own layer is.
CELLS = """
class Layer(nn.Module):
    batch_first = False

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x, state):
        h, c = state
        hs = []
        for x_t in x:
            h, c = self.cell(x_t, (h, c))
            hs.append(h)
        return torch.stack(hs), (h, c)
"""

# One step, with W and U as in many texts, and columns: W x + U h.
COLUMNS = """
class Layer(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        for gate in "ifco":
            self.register_parameter(f"W_{gate}", nn.Parameter(torch.zeros(n, d)))
            self.register_parameter(f"U_{gate}", nn.Parameter(torch.zeros(n, n)))
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.zeros(n)))

    def forward(self, x, hidden):
        h, c = hidden
        i = torch.sigmoid(x @ self.W_i.T + h @ self.U_i.T + self.b_i)
        f = torch.sigmoid(x @ self.W_f.T + h @ self.U_f.T + self.b_f)
        o = torch.sigmoid(x @ self.W_o.T + h @ self.U_o.T + self.b_o)
        c = f * c + i * torch.tanh(x @ self.W_c.T + h @ self.U_c.T + self.b_c)
        return o * torch.tanh(c), c
"""


def made(source: str, right: str = "", wrong: str = "", *, sizes: tuple[int, int] = (4, 6)) -> Any:
    """The layer of a text in which `wrong` stands in the place of `right`."""
    assert right in source
    names: dict[str, Any] = {"torch": torch, "nn": nn}
    exec(source.replace(right, wrong) if right else source, names)
    return names["Layer"](*sizes)
