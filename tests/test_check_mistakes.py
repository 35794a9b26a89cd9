"""Mistakes that people make, each planted in a layer's text: whether it is found, and said, and where."""

import pytest
import torch
from homework import JOINED, KERAS, LINEARS, SEED, made

from unrolled import check

F = "f_t = torch.sigmoid((x_t @ self.W_xf) + (h_t_1 @ self.W_hf) + self.b_f)"
I = "i_t = torch.sigmoid((x_t @ self.W_xi) + (h_t_1 @ self.W_hi) + self.b_i)"
G = "g_t = torch.tanh((x_t @ self.W_xg) + (h_t_1 @ self.W_hg) + self.b_g)"
O = "o_t = torch.sigmoid((x_t @ self.W_xo) + (h_t_1 @ self.W_ho) + self.b_o)"
C = "c_t = (f_t * c_t_1) + (i_t * g_t)"
H = "h_t = torch.tanh(c_t) * o_t"
CARRY_H, CARRY_C = "h_t_1 = h_t", "c_t_1 = c_t"
RETURN = "return torch.concat(output_h, dim=1), torch.concat(output_c, dim=1)"
X, ZEROS = "x_t = x[:, i]", "torch.zeros_like"

# What stands there, what a person wrote, the gate, the diagnosis, and the first step that differs.
OF_ONE_LINE = [
    (F, F.replace("self.W_hf", "self.W_hf.T"), "f", "W_hf looks transposed", 0),
    (O, O.replace("self.W_ho", "self.W_ho.T"), "o", "W_ho looks transposed", 0),
    (C, "c_t = (i_t * c_t_1) + (f_t * g_t)", "i", "gates i and f look swapped", 0),
    (H, "h_t = torch.tanh(c_t) * i_t; o_t, i_t = i_t, o_t", "i", None, 0),
    (G, G.replace("torch.tanh", "torch.sigmoid"), "g", "g gets a sigmoid in place of a tanh", 0),
    (G, G.replace("torch.tanh", "torch.relu"), "g", "g gets a relu in place of a tanh", 0),
    (G, G.replace("torch.tanh", ""), "g", "g gets no activation in place of a tanh", 0),
    (O, O.replace("torch.sigmoid", "torch.tanh"), "o", "o gets a tanh in place of a sigmoid", 0),
    (F, F.replace("torch.sigmoid", "nn.functional.hardsigmoid"), "f", "f gets a hard sigmoid", 0),
    (F, F.replace("self.b_f)", "self.b_f + self.b_f)"), "f", "b_f is added twice", 0),
    (F, F.replace("self.b_f)", "self.b_f + 1.0)"), "f", "1 is added to f's pre-activation on top of b_f", 0),
    (I, I.replace(" + self.b_i", ""), "i", "b_i is missing", 0),
    (I, I.replace("self.W_xi", "self.W_xf"), "i", "i is computed with W_xf in place of W_xi", 0),
    (O, O.replace("self.W_ho", "self.W_hg"), "o", "o is computed with W_hg in place of W_ho", 0),
    (I, I.replace("self.b_i", "self.b_o"), "i", "i is computed with b_o in place of b_i", 0),
    (F, F.replace("h_t_1 @", "c_t_1 @"), "f", "f reads c in place of h of the step before", 0),
    (F, F.replace("(h_t_1 @ self.W_hf) + ", ""), "f", "the product with W_hf is missing", 0),
    (C, "c_t = (f_t * c_t_1) + g_t", "i", "i is missing: c = f * c + g", 0),
    (C, "c_t = c_t_1 + (i_t * g_t)", "f", "f is missing: c = c + i * g", 0),
    (C, "c_t = i_t * g_t", "f", "the old c is missing: c = i * g", 0),
    (C, "c_t = ((1 - f_t) * c_t_1) + (i_t * g_t)", "f", "f is 1 - f", 0),
    (C, "c_t = (f_t * c_t_1) + ((1 - f_t) * g_t)", "i", "i is 1 - f", 0),
    (H, "h_t = o_t * c_t", "o", "tanh(c) is missing: h = o * c", 0),
    (H, "h_t = torch.tanh(c_t_1) * o_t", "o", "h is made of the c before the step", 0),
    (H, "h_t = torch.tanh(c_t * o_t)", "o", "o is inside the tanh", 0),
    (H, "c_t = torch.tanh(c_t); h_t = c_t * o_t", "o", "the tanh of c is what is carried on", 0),
    (X, "x_t = x[:, 0]", None, "x of step 0 is read at every step", 1),
    (X, "x_t = x[:, -1 - i]", None, "the sequence is read from its end", 0),
    (CARRY_H, "pass", None, "h is not carried from step to step", 1),
    (CARRY_C, "pass", None, "c is not carried from step to step", 1),
    (CARRY_C, "h_t_1, c_t_1 = h_0, c_0", None, "the state is not carried from step to step", 1),
    ("h_0, c_0 = h_t_1, c_t_1", "h_t_1, c_t_1 = 0 * h_t_1, 0 * c_t_1", None, "the initial state is ignored", 0),
    ("h_0, c_0 = h_t_1, c_t_1", "c_t_1, h_t_1 = h_t_1, c_t_1", None, "the initial h and c are swapped", 0),
    (RETURN, RETURN.replace("output_h", "output_c"), None, "the output is c in place of h", 0),
    (RETURN, "return torch.cat(output_c, 1), torch.cat(output_h, 1)", None, "in each other's place", 0),
    (RETURN, "return torch.cat([h_0[:, None], *output_h[:-1]], 1)", None, "the h before it", 0),
    (
        RETURN,
        "return torch.cat(output_h, 1).transpose(0, 1).reshape(x.shape[0], x.shape[1], -1)",
        None,
        "became [batch, time] by a view or reshape",
        0,
    ),
]


@pytest.mark.parametrize(("right", "wrong", "gate", "diagnosis", "step"), [case for case in OF_ONE_LINE if case[3]])
def test_a_planted_mistake_is_named(right, wrong, gate, diagnosis, step):
    found = check(made(SEED, right, wrong))
    assert not found.ok
    assert diagnosis in found.diagnosis
    assert found.gate == gate
    assert found.difference.step == step
    with pytest.raises(AssertionError, match="NOT right"):
        found.require()


@pytest.mark.parametrize(
    ("right", "wrong", "diagnosis"),
    [
        (CARRY_C, "c_t_1 = c_t.detach()", "c is detached in every step: no gradient goes back along the cell"),
        (CARRY_H, "h_t_1 = h_t.detach()", "h is detached in every step: no gradient goes back through W_h"),
        (CARRY_C, "h_t_1, c_t_1 = h_t.detach(), c_t.detach()", "no gradient reaches an earlier one"),
        (CARRY_C, "c_t_1 = c_t\n            if i == 1: h_t_1, c_t_1 = h_t.detach(), c_t.detach()", None),
        ("h_0, c_0 = h_t_1, c_t_1", "h_t_1, c_t_1 = h_t_1.detach(), c_t_1.detach()", "the initial state is detached"),
        (F, F.replace("self.W_hf", "self.W_hf.data"), "no gradient reaches W_hf"),
        (G, G.replace("self.b_g", "self.b_g.detach()"), "no gradient reaches b_g"),
        (
            O,
            O.replace("torch.sigmoid(", "torch.sigmoid((").replace("self.b_o)", "self.b_o).detach())"),
            "o is detached",
        ),
        (X, "x_t = x[:, i].detach()", "x is detached"),
        (
            "output_h, output_c = [], []",
            "output_h, output_c = [], []; torch.set_grad_enabled(False)",
            "hangs on nothing",
        ),
    ],
)
def test_a_gradient_that_is_cut_is_named(right, wrong, diagnosis):
    try:
        found = check(made(SEED, right, wrong))
    finally:
        torch.set_grad_enabled(True)
    assert not found.ok
    assert found.compared["output"] < found.tolerance
    if diagnosis is None:
        # None of those that are known: the tensor is named, and the last step that is wrong.
        assert found.diagnosis is None
        assert (found.difference.name, found.difference.step) == ("gradient of x", 1)
    else:
        assert diagnosis in found.diagnosis


def test_without_gradients_a_detached_cell_is_right():
    layer = made(SEED, CARRY_C, "c_t_1 = c_t.detach()")
    assert check(layer, gradients=False).ok
    assert not check(layer).ok


TWO = "(self.x2h(x[:, t]) + self.h2h(h))"


@pytest.mark.parametrize(
    ("right", "wrong", "diagnosis"),
    [
        (TWO, TWO.replace("+ self.h2h", "+ self.h2h.bias + self.h2h"), "the second bias is counted twice"),
        (TWO, TWO.replace("self.h2h(h)", "h @ self.h2h.weight.T"), "the second bias is missing"),
        (TWO, TWO.replace("self.h2h(h)", "h @ self.h2h.weight.view(h.shape[1], -1) + self.h2h.bias"), None),
        ("            h = o * c.tanh()", "            h = o * c.tanh(); self.h2h(h)", "right"),
        (
            "return torch.stack(outputs, dim=1), (h, c)",
            "return torch.stack(outputs), (h, c)",
            "the other way round than x",
        ),
        ("(h, c)\n", "(c, h)\n", "the last state is returned as (c, h)"),
        ("h, c = state\n", "h, c = state\n        first = h\n", "right"),
    ],
)
def test_mistakes_of_stacks(right, wrong, diagnosis):
    found = check(made(LINEARS, right, wrong))
    if diagnosis == "right":
        assert found.ok
    elif diagnosis is None:
        assert found.diagnosis is None
        assert found.difference.step == 0
        assert set(found.wrong_with) == {"W_hi", "W_hf", "W_hg", "W_ho"}
    else:
        assert diagnosis in found.diagnosis


def test_batch_and_time_are_swapped():
    swapped = made(LINEARS, "x.shape[0], self", "x.shape[1], self")
    swapped = made(
        LINEARS.replace("x.shape[0], self", "x.shape[1], self").replace("range(x.shape[1])", "range(x.shape[0])"),
        "x[:, t]",
        "x[t]",
    )
    found = check(swapped)
    assert "batch and time axes look swapped" in found.diagnosis
    assert "pass batch_first=False" in found.diagnosis
    # Its output has steps along axis 1 then, and its input along axis 0.
    assert not found.ok


def test_a_state_that_is_kept_in_the_layer():
    source = LINEARS.replace("if state is None:", "state = getattr(self, 'kept', state)\n        if state is None:")
    found = check(made(source, "return", "self.kept = h, c\n        return"))
    assert found.diagnosis == "the state is kept in the layer: a second call goes on where the first one ended"


def test_dropout_that_stays_on():
    found = check(made(LINEARS, "outputs.append(h)", "outputs.append(nn.functional.dropout(h))"))
    assert not found.ok


def test_weights_that_no_optimiser_sees():
    source = SEED.replace(
        "nn.Parameter(torch.zeros(self.hidden_dim, self.hidden_dim))", "torch.zeros(self.hidden_dim, self.hidden_dim)"
    )
    found = check(made(source))
    assert found.diagnosis == (
        "W_hf, W_hg, W_hi, W_ho: plain tensors and no nn.Parameter, so an optimiser that gets parameters() never sees "
        "them"
    )


def test_a_mistake_in_a_layer_that_shows_the_last_h_alone_has_its_first_step():
    source = KERAS.replace("return h, c", "return h")
    found = check(made(source, "h = z_o", "h = h if t == 2 else z_o"))
    assert found.diagnosis is None
    assert (found.difference.name, found.difference.step) == ("output", 2)


@pytest.mark.parametrize(("gate", "line"), [("f", F), ("i", I), ("o", O), ("g", G)])
def test_what_is_not_known_has_its_step_and_gate(gate, line):
    """A square in the sum of one gate: no such mistake is known, and the weights of that gate bring it out."""
    found = check(made(SEED, line, line.replace(f"self.b_{gate})", f"self.b_{gate} ** 3)")))
    assert found.diagnosis is None
    assert found.gate == gate
    assert found.wrong_with == (f"b_{gate}",)
    assert "no known mistake gives these numbers" in str(found)


def test_a_mistake_from_some_step_on():
    found = check(made(SEED, H, "h_t = torch.tanh(c_t) * o_t if i != 3 else o_t"))
    assert found.diagnosis is None
    assert found.difference.step == 3
    assert found.difference.name == "output"


def test_a_wrong_output_without_a_number():
    found = check(made(SEED, H, "h_t = torch.tanh(c_t) * o_t / 0"))
    assert not found.ok
    assert found.compared["output"] == float("inf")


def test_gates_of_a_joined_matrix():
    found = check(made(JOINED, "torch.tanh(self.candidate(both))", "torch.sigmoid(self.candidate(both))"))
    assert found.diagnosis == "g gets a sigmoid in place of a tanh"
    assert "h before x" in found.weights
