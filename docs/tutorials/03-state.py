# %% [markdown]
# # 3. h and c, the next forward call, the epoch
#
# `model(x, state)` hands back a state "for the next call". Which call that is depends on what you do, and there are
# three answers. Each has its mistake, most of them silent: the loss goes down, only not as far. Here every mistake is
# made on purpose, measured, and put right.
#
# | the next x | what to pass | the mistake |
# |---|---|---|
# | other sequences | nothing | passing the old state: memories of another sequence |
# | the next piece of the same sequences | the state, detached | not detaching it; rows in another order; nothing at all |
# | the next step, which the model chose itself | the state | reading all of it again |
#
# The reference pages are [h and c](../h-and-c.md), [the next forward call](../next-call.md) and [truncated
# backpropagation](../truncated-bptt.md).

# %%
import matplotlib.pyplot as plt
import torch

from unrolled import CarriedState, MultiLayerLSTM

torch.manual_seed(0)


# %% [markdown]
# ## A task that needs a memory
#
# At step 0 of each sequence the model is shown a key, +1 or -1. Then come 31 steps of noise. At every step it is
# asked for the key. We cut the sequence into four windows of 8 steps: only the first of them contains the answer.
# Whoever gets the state wrong can't do better than guessing in the other three.
#
# (Inputs: the key, and the noise. Target: whether the key was +1.)

# %%
ROWS, STEPS, WINDOW = 32, 32, 8


def sequences(rows=ROWS, seed=None):
    draw = torch.Generator().manual_seed(seed) if seed is not None else None
    x = torch.zeros(rows, STEPS, 2)
    x[:, 0, 0] = torch.randint(2, (rows,), generator=draw) * 2.0 - 1
    x[:, :, 1] = torch.randn(rows, STEPS, generator=draw) * 0.5
    return x, (x[:, :1, 0] > 0).float().expand(rows, STEPS)


def loss_of(logits, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1), y)


def windows(*tensors):
    return zip(*(tensor.split(WINDOW, dim=1) for tensor in tensors), strict=True)


def new_model():
    torch.manual_seed(1)
    return MultiLayerLSTM(input_dim=2, hidden_dim=12, output_dim=1)


x, y = sequences()
assert x.shape == (ROWS, STEPS, 2)
print("the first steps of row 0:", x[0, :4].tolist())

# %% [markdown]
# ## Use 2 done right: one sequence in windows
#
# The window is the forward call. The state goes from one window to the next, detached: its numbers go on, its graph
# does not.


# %%
def train(begin_window, steps=80):
    """`begin_window(state, window)` is what a window is given as its state."""
    model = new_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(steps):
        state = None
        for k, (x_part, y_part) in enumerate(windows(*sequences(seed=step))):
            logits, state = model(x_part, begin_window(state, k))
            optimizer.zero_grad()
            loss_of(logits, y_part).backward()
            optimizer.step()
    return model


def carried(state, window):
    return state.detach() if state is not None else None


@torch.no_grad()
def certainty(model, begin_window=carried):
    """The probability given to the right answer, mean by window, on sequences that were not trained on."""
    found, state = [], None
    for k, (x_part, y_part) in enumerate(windows(*sequences(512, seed=10_000))):
        logits, state = model(x_part, begin_window(state, k))
        p = logits.squeeze(-1).sigmoid()
        found.append(torch.where(y_part > 0.5, p, 1 - p).mean().item())
    return found


def shown(name, values):
    print(f"{name:32}", *(f"{value:.0%}" for value in values))


good = train(carried)
shown("state carried", certainty(good))
assert min(certainty(good)) > 0.95

# %% [markdown]
# The gradient never saw more than 8 steps, and the model holds the key for 32. What is learned within a window (put
# the key into c, leave f open) also works across windows, if the state crosses them. That is what truncated
# backpropagation lives on.
#
# ## Mistake 1: the state is not detached
#
# Then the second window's backward pass runs into the graph of the first one, which is used up:

# %%
model = new_model()
first, second, *_ = windows(x, y)
logits, state = model(first[0])
loss_of(logits, first[1]).backward()
logits, state = model(second[0], state)  # no detach()
try:
    loss_of(logits, second[1]).backward()
    message = ""
except RuntimeError as error:
    message = str(error)
print(message)
assert "state = state.detach()" in message

# %% [markdown]
# This one at least says so. The advice that comes first in a search, `retain_graph=True`, silences it and makes it
# worse: each window then drags all earlier ones along. Count what hangs on the loss:


# %%
def graph_size(loss):
    """Nodes of the graph that a backward pass would walk."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
    return len(seen)


def sizes(detach, count=8):
    model, state, found = new_model(), None, []
    for _ in range(count):
        logits, state = model(first[0], state.detach() if detach and state is not None else state)
        found.append(graph_size(logits.sum()))
    return found


attached, detached = sizes(detach=False), sizes(detach=True)
assert len(set(detached)) == 1
assert attached[-1] > 3 * attached[0]

# %% alt="Nodes in the graph by window: a flat line with detach, a straight line upwards without"
fig, axis = plt.subplots(figsize=(9, 3), layout="constrained")
axis.plot(range(1, 9), attached, "o-", label="not detached")
axis.plot(range(1, 9), detached, "o-", label="detached")
axis.set(xlabel="window", ylabel="nodes in the graph", ylim=(0, None))
axis.legend()
plt.show()

# %% [markdown]
# Memory and time of a window grow with the number of windows before it, until something gives. `CarriedState`
# detaches what it is given, so there is nothing to forget:

# %%
state = CarriedState()
for x_part, y_part in windows(x, y):
    logits, state.state = model(x_part, state.state)
    loss_of(logits, y_part).backward()
assert state.state.h.grad_fn is None

# %% [markdown]
# ## Mistake 2: shuffled windows
#
# A data loader with `shuffle=True` hands out windows in any order. Row 3 then goes on from the memory of another
# sequence. No error, and the state has the right shape. A model that is trained so:


# %%
def shuffled(state, window):
    """Row b goes on with the memory of some other row."""
    return state.detach().rows(torch.randperm(ROWS)) if state is not None else None


bad = train(shuffled)
shown("trained on shuffled rows", certainty(bad))
assert certainty(bad)[0] > 0.7  # the window with the key in it
assert max(certainty(bad)[1:]) < 0.8  # and behind it the memory was never worth anything

# %% [markdown]
# It was *evaluated* with the right states. It learned that a state says nothing, because in training it did.
#
# ## Mistake 3: no state at all
#
# The opposite: each window from zeros. That is use 1, and right for sequences that fit into a window. For pieces of a
# longer one it cuts the memory at each seam. Even the model that was trained well can do nothing then:


# %%
def from_zeros(state, window):
    return None


cut = certainty(good, from_zeros)
shown("good model, windows from zeros", cut)
assert cut[0] > 0.95
assert max(cut[1:]) < 0.75

# %% alt="The probability of the right answer in each of four windows: near 100 percent with the state carried; near one half from the second window on with shuffled rows or from zeros"
fig, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
for name, shares in [
    ("carried, in training and now", certainty(good)),
    ("trained on shuffled rows", certainty(bad)),
    ("good model, each window from zeros", cut),
]:
    axis.plot(range(1, 5), shares, "o-", label=name)
axis.axhline(0.5, color="0.6", linestyle=":", label="guessing")
axis.set(
    xlabel="window (the key is in the first)",
    ylabel="probability of the right answer",
    xticks=range(1, 5),
    ylim=(0.4, 1.02),
)
axis.legend()
plt.show()

# %% [markdown]
# ## Mistake 4: the batch size changed
#
# The last batch of an epoch is often a smaller one. The state is of the old one, and has a row for each of *its*
# sequences:

# %%
with torch.no_grad():
    _, state = good(first[0])
    try:
        good(second[0][:20], state)
        message = ""
    except ValueError as error:
        message = str(error)
print(message)
assert "state.rows(...)" in message

# %% [markdown]
# Two ways out, for two meanings. If the 20 rows are the same sequences as 20 of the old rows, take their share of the
# state. If they are other sequences, the state is nothing to them: leave it out.

# %%
with torch.no_grad():
    kept, _ = good(second[0][:20], state.rows(slice(0, 20)))
    everything, _ = good(second[0], state)
assert torch.allclose(kept, everything[:20], atol=1e-6)

# %% [markdown]
# ## Mistake 5: the state of another document
#
# Two documents lie in one row, one behind the other: tokens of a text, episodes of a game. The model has to start
# afresh where the second begins. If it doesn't, it answers for the second document with what it remembers of the
# first. In the second document below no key is shown, so that there is nothing to know, and the honest answer is
# "50%".

# %%
x1, _ = sequences(256, seed=1)
x2, _ = sequences(256, seed=2)
x2[:, 0, 0] = 0  # the second document shows no key
both = torch.cat([x1, x2], dim=1)  # [256, 64, 2]
resets = torch.zeros(both.shape[:2], dtype=torch.bool)
resets[:, STEPS] = True  # row b starts from zeros before step 32

with torch.no_grad():
    stale, _ = good(both)
    fresh, _ = good(both, resets=resets)
    alone, _ = good(x2)
assert torch.allclose(fresh[:, STEPS:], alone, atol=1e-6)  # with the reset: as if nothing had been before

old_key = x1[:, :1, 0] > 0
follows_stale = ((stale[:, STEPS:, 0] > 0) == old_key).float().mean(0)
follows_fresh = ((fresh[:, STEPS:, 0] > 0) == old_key).float().mean(0)
print(
    f"answers that repeat the first document's key: {follows_stale.mean():.0%}; with the reset {follows_fresh.mean():.0%}"
)
assert follows_stale.mean() > 0.85
assert 0.35 < follows_fresh.mean() < 0.65

# %% alt="The share of answers in the second document that repeat the key of the first, by step: near one without a reset, about one half with it"
fig, axis = plt.subplots(figsize=(9, 3), layout="constrained")
axis.plot(follows_stale, label="no reset: the state of another document")
axis.plot(follows_fresh, label="resets[:, 32] = True")
axis.axhline(0.5, color="0.6", linestyle=":", label="nothing is known")
axis.set(xlabel="step of the second document", ylabel="repeats the old key", ylim=(0.3, 1.05))
axis.legend()
plt.show()

# %% [markdown]
# ## The epoch
#
# A forward call is a window. An epoch is all windows once. When it is over, the lanes jump back to where they began,
# and the state of the end belongs to no beginning: `state = None` at the start of each epoch, as in `train` above,
# where each step of the outer loop draws new sequences. Carried on, it is mistake 5, once an epoch. The same holds
# for validation, which needs a state of its own:

# %%
training, validation = CarriedState(), CarriedState()
held_out, _ = sequences(seed=77)
with torch.no_grad():
    _, training.state = good(first[0], training.state)
    before = training.state
    _, validation.state = good(held_out, validation.state)
assert torch.equal(training.state.h, before.h)  # validation left the training state alone
training.reset()  # a new epoch
assert training.state is None

# %% [markdown]
# ## Use 3: the model writes
#
# In generation, the next input is what the model chose. There are as many calls as steps, each with a sequence of
# one. The state is all that has to be kept; without it, each step would read everything again. Count the steps that
# are run for 100 tokens:

# %%
written = 100
with_state = written
again_and_again = sum(range(1, written + 1))
print(f"{with_state} steps with the state, {again_and_again} without")
assert again_and_again == 5050

# %% [markdown]
# ## Exercise 1: repair the loop
#
# This loop makes two of the mistakes above. Repair it: it should return the loss of each window, and train.


# %% tags=["exercise"]
def one_epoch(model, optimizer, batches):
    """`batches`: of unrelated sequences, each (x, y) to be cut into windows."""
    losses, state = [], None
    for x, y in batches:
        for x_part, y_part in windows(x, y):
            logits, state = model(x_part, state)
            loss = loss_of(logits, y_part)
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            optimizer.step()
            losses.append(loss.item())
        break  # yours: it raises an error without this line
    return losses


# %% tags=["solution"]
def one_epoch(model, optimizer, batches):
    """`batches`: of unrelated sequences, each (x, y) to be cut into windows."""
    losses = []
    for x, y in batches:
        state = None  # other sequences
        for x_part, y_part in windows(x, y):
            logits, state = model(x_part, state)
            loss = loss_of(logits, y_part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            state = state.detach()  # the same sequences, the next piece
    return losses


# %% tags=["check"]
class Watched(torch.nn.Module):
    """A model that notes what state it is given."""

    def __init__(self):
        super().__init__()
        self.model, self.given = new_model(), []

    def forward(self, x, state=None):
        self.given.append(state)
        return self.model(x, state)


watched = Watched()
optimizer = torch.optim.Adam(watched.parameters(), lr=0.02)
try:
    losses = one_epoch(watched, optimizer, [sequences(seed=1), sequences(seed=2)])
except RuntimeError as error:
    raise AssertionError(f"the backward pass failed: {error}") from None
assert len(losses) == 8, f"two batches of four windows are 8 losses, not {len(losses)}"
assert [state is None for state in watched.given] == [True, False, False, False] * 2, "a new batch is other sequences"
assert all(state.h.grad_fn is None for state in watched.given if state is not None), "the state still has its graph"
print("right")

# %% [markdown]
# ## Exercise 2: resets from document lengths
#
# Documents lie one behind the other in each row. Given their lengths, row by row, make `resets`, `[rows, steps]`:
# True at the first step of every document, the first one too.


# %% tags=["exercise"]
def resets_of(lengths, steps):
    """`lengths`: for each row a list of document lengths that add up to `steps`."""
    return torch.zeros(len(lengths), steps, dtype=torch.bool)  # yours


# %% tags=["solution"]
def resets_of(lengths, steps):
    """`lengths`: for each row a list of document lengths that add up to `steps`."""
    resets = torch.zeros(len(lengths), steps, dtype=torch.bool)
    for row, documents in enumerate(lengths):
        begin = 0
        for length in documents:
            resets[row, begin] = True
            begin += length
    return resets


# %% tags=["check"]
lengths = [[5, 20, 7], [32], [1, 1, 30]]
x, _ = sequences(3, seed=5)
marks = resets_of(lengths, STEPS)
assert marks.dtype == torch.bool, f"resets are bool, not {marks.dtype}"
assert marks.shape == (3, STEPS), f"resets are [rows, steps] = [3, {STEPS}], not {list(marks.shape)}"
with torch.no_grad():
    packed, _ = good(x, resets=marks)
    for row, documents in enumerate(lengths):
        pieces = [good(piece[None])[0] for piece in x[row].split(documents)]
        same = torch.allclose(packed[row], torch.cat(pieces, dim=1)[0], atol=1e-6)
        assert same, f"row {row}, documents of {documents}: not what each document gives alone"
assert marks[:, 0].all(), "each row's first step begins a document: a state that is carried in must not reach it"
print("right")

# %% [markdown]
# Next: [train on your own text and look inside](04-look-inside.ipynb).
