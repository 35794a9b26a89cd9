# %% [markdown]
# # 2. How a sequence flows through a stack
#
# A stack is layers on top of each other. Which numbers go where is simple, and easy to get wrong by one arrow. Here
# we look at it three ways: we rebuild the walk by hand, we poke one input and watch what it reaches, and we turn on
# dropout and see where it acts.
#
# The reference is [how a sequence flows through the layers](../stack.md). Before this: [one equation at a
# time](01-equations.ipynb).

# %%
import matplotlib.pyplot as plt
import torch

from unrolled import MultiLayerLSTM

torch.manual_seed(0)
torch.set_grad_enabled(False)
B, T, I, H, L = 2, 24, 5, 8, 3  # rows, steps, input width, units, layers

model = MultiLayerLSTM(input_dim=I, hidden_dim=H, num_layers=L, dtype=torch.float64)
x = torch.randn(B, T, I, dtype=torch.float64)
logits, state = model(x)
print("logits ", list(logits.shape), " one row for each step")
print("state.h", list(state.h.shape), "the last step of each layer")
print("state.c", list(state.c.shape))

# %% [markdown]
# ## Two walks
#
# Inside a layer, time is walked: step 0, step 1, and on. Inside the stack, layers are walked: layer 0 reads the
# *whole* sequence before layer 1 begins. What goes up is h of every step, `[B, T, H]`; what stays is c.

# %%
trace = model.trace(x)  # the same computation, opened
assert torch.equal(trace.output, logits)

sequence = x
for k, layer in enumerate(model.layers):
    h, c = layer(sequence)  # from zeros, its own
    print(f"layer {k}: {list(sequence.shape)} -> {list(h.shape)}")
    assert torch.equal(h, trace.layers[k].h)
    assert torch.equal(h[:, -1], state.h[k])
    assert torch.equal(c[:, -1], state.c[k])
    sequence = h  # h goes up; c does not
assert torch.equal(model.proj(sequence), logits)  # the projection, back to I numbers a step

# %% alt="Three heat maps over 24 steps, one for each layer: h of eight units"
fig, axes = plt.subplots(L, 1, figsize=(9, 5), sharex=True, layout="constrained")
for k, axis in enumerate(reversed(axes)):  # layer 0 at the bottom
    image = axis.imshow(trace.layers[k].h[0].T.numpy(), aspect="auto", cmap="RdBu", vmin=-0.6, vmax=0.6)
    axis.set(ylabel=f"layer {k}\nunit")
axes[-1].set(xlabel="step")
fig.suptitle("h of row 0: read it left to right, then one layer up")
fig.colorbar(image, ax=axes)
plt.show()

# %% [markdown]
# ## Poke one input
#
# To see the arrows, change one input of one row a little, at step 8, and look at which h are another number
# afterwards.

# %%
poked = x.clone()
poked[0, 8, 2] += 0.1
difference = torch.stack(
    [(after.h - before.h).abs().amax(-1) for after, before in zip(model.trace(poked).layers, trace.layers, strict=True)]
)  # [L, B, T]: the largest change of any unit

assert not difference[:, 1].any()  # row 1 never hears of row 0
assert not difference[:, 0, :8].any()  # nothing goes back in time
assert (difference[:, 0, 8:] > 0).all()  # from step 8 on, all layers know

# %% alt="The change of h in row 0, by layer and step: nothing before step 8, then a wave that fades and rises more slowly higher up"
fig, axis = plt.subplots(figsize=(9, 3), layout="constrained")
for k in range(L):
    axis.semilogy(range(8, T), difference[k, 0, 8:], "o-", label=f"layer {k}")
axis.axvspan(-0.5, 7.5, color="0.9", label="exactly zero, in all layers")
axis.set(xlabel="step", ylabel="largest change of h", xlim=(-0.5, T - 0.5))
axis.legend()
plt.show()

# %% [markdown]
# Layer 2 hears of it in the same step as layer 0, for the way up takes no time: step 8 of layer 0 is the input of
# step 8 of layer 1. And it hears less: each layer passes on what its own gates let through.
#
# What if the memory is poked? Changing c in the middle of layer 1 reaches layer 1 and whatever lies above and behind,
# and never layer 0. `edit` changes a value while the trace is made:


# %%
def poke(values, place):
    """c of layer 1 at step 8, one unit of row 0."""
    if place.layer == 1 and place.name == "c" and place.time == 8:
        values = values.clone()
        values[0, 3] += 0.1
        return values
    return None


edited = model.trace(x, edit=poke)
reached = torch.stack(
    [((after.h - before.h).abs().amax(-1) > 1e-12) for after, before in zip(edited.layers, trace.layers, strict=True)]
)
assert not reached[0].any()
assert not reached[:, :, :8].any()
assert reached[1:, 0, 8:].all()
assert not reached[:, 1].any()

# %% [markdown]
# ## Exercise 1: the walk, with a state
#
# Write the stack as a loop. It takes a state (h and c, `[L, B, H]` each) and returns the logits and the state after
# the last step. Each layer has its own rows of the state.


# %% tags=["exercise"]
def walk(model, x, state):
    h, c = state
    return x, (h, c)  # yours


# %% tags=["solution"]
def walk(model, x, state):
    sequence, last_h, last_c = x, [], []
    for k, layer in enumerate(model.layers):
        h, c = layer(sequence, state[0][k], state[1][k])
        last_h.append(h[:, -1])
        last_c.append(c[:, -1])
        sequence = model.dropout(h)
    return model.proj(sequence), (torch.stack(last_h), torch.stack(last_c))


# %% tags=["check"]
begin = (torch.tanh(torch.randn(L, B, H, dtype=torch.float64)), torch.randn(L, B, H, dtype=torch.float64))
expected, after = model(x, begin)
mine, (my_h, my_c) = walk(model, x, begin)
assert mine.shape == expected.shape, f"the logits are {list(expected.shape)}, not {list(mine.shape)}"
assert torch.allclose(mine, expected, rtol=0, atol=1e-14), "the logits differ: does each layer have its own h and c?"
assert torch.allclose(my_h, after.h, rtol=0, atol=1e-14), "state.h is the last step of h of each layer, stacked"
assert torch.allclose(my_c, after.c, rtol=0, atol=1e-14), "state.c is the last step of c of each layer, stacked"
print("right")

# %% [markdown]
# ## Where dropout sits
#
# Dropout sets some numbers to zero and scales the others up, with a fresh draw for each. In a stack it lies on the
# way *up*: between two layers, and before the projection. It does not lie on the way to the next step. A number that
# has to survive one draw for each layer mostly does; one that has to survive a draw for each step does not:

# %% alt="The chance to survive so many draws at a rate of 0.1: 73 in 100 after three layers, 3 in 100,000 after a hundred steps"
draws = torch.arange(1, 101)
fig, axis = plt.subplots(figsize=(9, 3), layout="constrained")
axis.semilogy(draws, 0.9 ** draws.double())
axis.plot([3, 100], [0.9**3, 0.9**100], "o")
axis.annotate("three layers", (3, 0.9**3), xytext=(6, 0.9))
axis.annotate("a hundred steps", (100, 0.9**100), xytext=(80, 2e-4))
axis.set(xlabel="draws that a number goes through", ylabel="chance that it survives")
plt.show()
assert 0.9**3 > 0.7
assert 0.9**100 < 3e-5

# %% [markdown]
# We can watch it. In training mode the output has zeros in it. The state has none: what is carried into the next call
# is h before dropout.

# %%
noisy = MultiLayerLSTM(I, 64, 2, dropout=0.5, output_dim=None, dtype=torch.float64)  # no projection: the output is h
output, after = noisy(x)  # a new module is in training mode
print(f"zeros: {(output == 0).double().mean():.0%} of the output, {(after.h == 0).double().mean():.0%} of the state")
assert 0.4 < (output == 0).double().mean() < 0.6
assert not (after.h == 0).any()

# %% [markdown]
# Layer 0 lies below all dropout, so it computes in training what it computes in evaluation. Layer 1 reads a sequence
# with holes.

# %%
in_evaluation = noisy.eval()(x)[1]
assert torch.equal(after.h[0], in_evaluation.h[0])
assert not torch.allclose(after.h[1], in_evaluation.h[1])

# %% [markdown]
# ## Exercise 2: which stack is right?
#
# Four people wrote the loop. Three made a mistake. Read them first, then say which one is right, and for each of the
# others what is wrong with it.


# %%
def stack_a(layers, x):
    for layer in layers:
        h, _ = layer(x)
    return h


def stack_b(layers, x):
    for layer in layers:
        x, _ = layer(x)
    return x


def stack_c(layers, x):
    for layer in layers:
        _, x = layer(x)
    return x


def stack_d(layers, x):
    h = c = None
    for layer in layers:
        x, every_c = layer(x, h, c)
        h, c = x[:, -1], every_c[:, -1]
    return x


# %% tags=["exercise"]
right = ""  # "a", "b", "c" or "d"
mistakes = {  # which of: "every layer reads the input", "c goes up", "layers share a state"
    "a": "",
    "b": "",
    "c": "",
    "d": "",
}

# %% tags=["solution"]
right = "b"
mistakes = {"a": "every layer reads the input", "b": "", "c": "c goes up", "d": "layers share a state"}

# %% tags=["check"]
square = MultiLayerLSTM(H, H, 3, output_dim=None, dtype=torch.float64)  # square: no mistake shows in the shapes
probe = torch.randn(B, T, H, dtype=torch.float64)
agrees = {
    name: torch.allclose(stack(square.layers, probe), square(probe)[0])
    for name, stack in [("a", stack_a), ("b", stack_b), ("c", stack_c), ("d", stack_d)]
}
assert agrees.get(right), f"{right!r} does not give what the stack gives"
assert mistakes["a"] == "every layer reads the input", "a: look at what the second layer is called with"
assert mistakes["c"] == "c goes up", "c: look at which of the two results goes on"
assert mistakes["d"] == "layers share a state", "d: look at what the second layer begins with"
print("right")

# %% [markdown]
# None of the four raises an error. With equal widths only a comparison shows the mistake, which is why the exercises
# here compare numbers and not shapes.
#
# Next: [three uses of the state](03-state.ipynb).
