# %% [markdown]
# # 1. The LSTM, one equation at a time
#
# An LSTM layer reads a sequence step by step and keeps two vectors as it goes: c, what it remembers, and h, what it
# shows. This tutorial takes one step apart, equation by equation, with the shapes of every product; puts the steps in
# a row; and ends with `LSTMLayer`'s own numbers.
#
# The reference is [the equations](../equations.md): there they stand together, with the way backward and other
# people's letters. It needs Unrolled with matplotlib (the extra `plots`).
#
# Cells under **Exercise** are yours to fill in. The cell behind each checks what you wrote and says what is wrong
# with it.

# %%
import matplotlib.pyplot as plt
import torch

from unrolled import LSTMLayer

torch.manual_seed(0)
torch.set_grad_enabled(False)  # numbers alone, here
B, T, I, H = 2, 5, 3, 4  # rows of the batch, steps, numbers in an input, units

x = torch.randn(B, T, I, dtype=torch.float64)
layer = LSTMLayer(I, H, dtype=torch.float64)
for name, parameter in layer.named_parameters():
    print(f"{name:5} {list(parameter.shape)}")

# %% [markdown]
# Four groups of three: each gate has a matrix for the input, `[I, H]`, a matrix for the hidden state, `[H, H]`, and a
# bias, `[H]`. The letters f, i, o and g are the gates that follow. Float64 is for this page alone, so that "the same
# number" can mean the same to 14 digits.
#
# We stand somewhere in the middle of a sequence. Two vectors came from the step before, and one input has arrived,
# for each of the B rows:

# %%
x_t = x[:, 0]  # [B, I]: step 0 of every row
h_before = torch.tanh(torch.randn(B, H, dtype=torch.float64))  # [B, H]
c_before = torch.randn(B, H, dtype=torch.float64)  # [B, H]


def product(name, a, b):
    result = a @ b
    print(f"{name:13} {list(a.shape)} @ {list(b.shape)} -> {list(result.shape)}")
    return result


# %% [markdown]
# ## The forget gate: what stays
#
#     f = sigmoid(x_t @ W_xf + h_before @ W_hf + b_f)
#
# Two products, one for each thing the step can look at. The inner sizes have to agree and vanish: `[B, I] @ [I, H]`,
# and `[B, H] @ [H, H]`. What remains is `[B, H]` both times, so that they can be added: a number for each row and
# each unit.

# %%
from_x = product("x_t @ W_xf", x_t, layer.W_xf)
from_h = product("h @ W_hf", h_before, layer.W_hf)
sum_f = from_x + from_h + layer.b_f  # [B, H] + [B, H] + [H]: the bias goes to every row
assert torch.equal(sum_f[1], from_x[1] + from_h[1] + layer.b_f)

f = torch.sigmoid(sum_f)
assert f.shape == (B, H)
assert ((f > 0) & (f < 1)).all()

# %% [markdown]
# The sigmoid squeezes any sum into 0 to 1. That makes it a share: at f = 1 a unit keeps all that it has, at f = 0
# nothing.
#
# ## The input gate and the candidate: what is added
#
#     i = sigmoid(x_t @ W_xi + h_before @ W_hi + b_i)
#     g = tanh(x_t @ W_xg + h_before @ W_hg + b_g)
#
# The same two products, with matrices of their own. g is *what* could be written into the cell, from -1 to 1; i is
# *how much* of it is.

# %%
i = torch.sigmoid(product("x_t @ W_xi", x_t, layer.W_xi) + product("h @ W_hi", h_before, layer.W_hi) + layer.b_i)
sum_g = product("x_t @ W_xg", x_t, layer.W_xg) + product("h @ W_hg", h_before, layer.W_hg) + layer.b_g
g = torch.tanh(sum_g)
assert i.shape == g.shape == (B, H)

# %% alt="The sigmoid and the tanh as curves, with the eight numbers of f on the first and of g on the second"
wide = torch.linspace(-4, 4, 200)
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for axis, function, sums, values, name in [
    (axes[0], torch.sigmoid, sum_f, f, "f"),
    (axes[1], torch.tanh, sum_g, g, "g"),
]:
    axis.plot(wide, function(wide), color="0.6")
    axis.plot(sums.flatten(), values.flatten(), "o", label=f"{name}, {B} rows x {H} units")
    axis.set(xlabel="the sum of the two products and the bias", ylabel=name, title=function.__name__)
    axis.legend()
plt.show()

# %% [markdown]
# ## The cell: the memory itself
#
#     c = f * c_before + i * g
#
# No matrix here. `*` multiplies number by number: unit 2 of row 1 is made of f, c, i and g of unit 2 in row 1, and of
# nothing else. What the cell had passes through one product with f, and something is added. That short way is why an
# LSTM can hold on to a number for a long time.

# %%
kept, written = f * c_before, i * g  # [B, H] * [B, H] -> [B, H]
c = kept + written
assert c.shape == (B, H)

# %% alt="For each unit of row 0 three bars: what the cell had, what of it is kept, what is written, and a mark at the sum"
fig, axis = plt.subplots(figsize=(9, 3), layout="constrained")
units = range(H)
for k, (name, values) in enumerate([("c before", c_before), ("f * c before", kept), ("i * g", written)]):
    places = [unit + 0.22 * (k - 1) for unit in units]
    axis.bar(places, values[0].tolist(), 0.2, label=name, color=["0.75", "tab:blue", "tab:orange"][k])
axis.plot(units, c[0].tolist(), "k_", markersize=40, label="c: blue and orange together")
axis.axhline(0, color="0.5", linewidth=0.8)
axis.set(xticks=units, xticklabels=[f"unit {u}" for u in units], title="One step of the cell, row 0")
axis.legend()
plt.show()

# %% [markdown]
# Units don't look at each other's memory within a step. Change what unit 2 of row 0 had, and one number of c is
# another:

# %%
other_c = c_before.clone()
other_c[0, 2] += 1.0
changed = (f * other_c + i * g) != c
print(changed)
assert changed.sum() == 1
assert changed[0, 2]

# %% [markdown]
# They do in the next one: then h, which is made from c, goes through `W_h*`, and these matrices mix all units. Rows
# are never mixed, by anything.
#
# ## The output gate and h: what is shown
#
#     o = sigmoid(x_t @ W_xo + h_before @ W_ho + b_o)
#     h = o * tanh(c)
#
# c has no bounds; tanh brings it back to -1 to 1, and o says how much of it leaves the layer. A unit can know
# something and keep it to itself.

# %%
o = torch.sigmoid(product("x_t @ W_xo", x_t, layer.W_xo) + product("h @ W_ho", h_before, layer.W_ho) + layer.b_o)
h = o * torch.tanh(c)
assert h.shape == (B, H)
assert (h.abs() < 1).all()

# %% [markdown]
# ## The layer says the same
#
# That was one whole step: eight products, four gates, c and h. `LSTMLayer` takes a sequence, `[B, T, I]`, so one step
# goes in as a sequence of one, `x[:, :1]`:

# %%
layer_h, layer_c = layer(x[:, :1], h_before, c_before)
print("h differs by at most", (layer_h[:, 0] - h).abs().max().item())
print("c differs by at most", (layer_c[:, 0] - c).abs().max().item())
assert torch.allclose(layer_h[:, 0], h, rtol=0, atol=1e-14)
assert torch.allclose(layer_c[:, 0], c, rtol=0, atol=1e-14)

# %% [markdown]
# ## Exercise 1: the step
#
# Put the six equations into a function. `p` is the layer, so its matrices are `p.W_xf` and so on.


# %% tags=["exercise"]
def step(p, x_t, h, c):
    """[B, I], [B, H], [B, H] to the next h and c, [B, H] each."""
    return h, c  # yours


# %% tags=["solution"]
def step(p, x_t, h, c):
    """[B, I], [B, H], [B, H] to the next h and c, [B, H] each."""
    f = torch.sigmoid(x_t @ p.W_xf + h @ p.W_hf + p.b_f)
    i = torch.sigmoid(x_t @ p.W_xi + h @ p.W_hi + p.b_i)
    g = torch.tanh(x_t @ p.W_xg + h @ p.W_hg + p.b_g)
    o = torch.sigmoid(x_t @ p.W_xo + h @ p.W_ho + p.b_o)
    c = f * c + i * g
    return o * torch.tanh(c), c


# %% tags=["check"]
with torch.no_grad():
    layer.b_f.uniform_(-1, 1)  # biases that are not zero, so that a forgotten one shows
    layer.b_i.uniform_(-1, 1)
    layer.b_g.uniform_(-1, 1)
    layer.b_o.uniform_(-1, 1)
layer_h, layer_c = layer(x[:, :1], h_before, c_before)
mine = step(layer, x_t, h_before, c_before)
assert torch.allclose(mine[1], layer_c[:, 0], rtol=0, atol=1e-14), "c is not yet the layer's: c = f * c + i * g"
assert torch.allclose(mine[0], layer_h[:, 0], rtol=0, atol=1e-14), "c is right, h is not: it takes the new c"
print("right")

# %% [markdown]
# To have a whole layer of your own looked over, with all its gradients: [`unrolled.check`](../check.md) names the first step
# and gate that differ.
#
# ## A sequence
#
# Steps in a row: each takes the h and c that the one before left. Collect them, and put time back in its place, axis
# 1.

# %%
h = c = torch.zeros(B, H, dtype=torch.float64)  # before the first step there is nothing to remember
all_h, all_c = [], []
for t in range(T):
    h, c = step(layer, x[:, t], h, c)
    all_h.append(h)
    all_c.append(c)
by_hand_h, by_hand_c = torch.stack(all_h, dim=1), torch.stack(all_c, dim=1)  # T times [B, H] -> [B, T, H]

layer_h, layer_c = layer(x)
assert by_hand_h.shape == layer_h.shape == (B, T, H)
assert torch.allclose(by_hand_h, layer_h, rtol=0, atol=1e-14)
assert torch.allclose(by_hand_c, layer_c, rtol=0, atol=1e-14)

# %% [markdown]
# So that is an `LSTMLayer`: this loop, run faster. With `trace` it also shows the gates, which the loop above forgot
# at once. A longer sequence, a wave that stops in the middle, and one unit of another layer:

# %% alt="Input, gates, c and h of one unit over sixty steps: a wave that stops after thirty"
torch.manual_seed(3)
wave = torch.sin(torch.arange(60, dtype=torch.float64) / 3)
wave[30:] = 0
opened = LSTMLayer(1, H, forget_bias=2.0, dtype=torch.float64).trace(wave.view(1, 60, 1))
assert torch.allclose(opened.h, opened.o * torch.tanh(opened.c))

fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True, layout="constrained")
axes[0].plot(wave, color="0.4", label="input")
for name in "ifgo":
    axes[1].plot(getattr(opened, name)[0, :, 0], label=name)
axes[2].plot(opened.c[0, :, 0], label="c", linewidth=2)
axes[2].plot(opened.h[0, :, 0], label="h")
for axis in axes:
    axis.legend(loc="upper right")
    axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
axes[2].set(xlabel="step")
plt.show()

# %% [markdown]
# f hangs near sigmoid(2), about 0.88: `forget_bias=2.0` put it there. When the wave stops, c does not drop to zero;
# it fades, at the pace that f sets.
#
# ## Exercise 2: how many weights?
#
# A layer of I inputs and H units: how many numbers does it have to learn?


# %% tags=["exercise"]
def weights(inputs, hidden):
    return 0  # yours


# %% tags=["solution"]
def weights(inputs, hidden):
    return 4 * (inputs * hidden + hidden * hidden + hidden)


# %% tags=["check"]
for inputs, hidden in [(3, 4), (1, 1), (10, 2), (64, 256)]:
    real = sum(parameter.numel() for parameter in LSTMLayer(inputs, hidden).parameters())
    assert weights(inputs, hidden) == real, f"{inputs} inputs and {hidden} units: {real}, not {weights(inputs, hidden)}"
print("right")

# %% [markdown]
# ## Exercise 3: a memory that halves in ten steps
#
# With all other weights zero, a cell that holds 1 holds f after one step, f * f after two. Which `b_f` makes it hold
# one half after ten steps? (The sum is b_f alone, and f = sigmoid(b_f). `math.log` is the natural logarithm.)

# %% tags=["exercise"]
import math

b_f = 0.0  # yours

# %% tags=["solution"]
import math

f_wanted = 0.5 ** (1 / 10)
b_f = math.log(f_wanted / (1 - f_wanted))  # the inverse of the sigmoid

# %% tags=["check"]
fading = LSTMLayer(1, 1, dtype=torch.float64)
with torch.no_grad():
    for parameter in fading.parameters():
        parameter.zero_()
    fading.b_f.fill_(b_f)
zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
_, held = fading(torch.zeros(1, 30, 1, dtype=torch.float64), zero, one)
left = held[0, 9, 0].item()
assert abs(left - 0.5) < 1e-9, f"after ten steps {left:.4f} is left, and it should be one half"
assert abs(held[0, 29, 0].item() - 0.125) < 1e-9
print(f"right: b_f = {b_f:.3f}, f = {torch.sigmoid(torch.tensor(b_f)).item():.3f}")

# %% [markdown]
# So a forget gate of 0.93 is already a short memory. Trained networks that remember a hundred steps have units with f
# above
# 0.99.
#
# Next: [a sequence through a stack](02-stack.ipynb).
