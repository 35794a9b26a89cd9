# %% [markdown]
# # 5. Episodes and packed documents
#
# A batch has rows of one length. What one has is pieces of many lengths: episodes of a game, documents of a text. Put
# them one behind the other, and a row holds several, begins in the middle of one and ends in the middle of another.
# `resets` says where a row starts afresh, before which step, and no memory and no gradient crosses.
#
# Two uses of it: packed documents, and reinforcement learning. The reference pages are [which step gets the
# reset](../reinforcement-learning.md) and [truncated backpropagation](../truncated-bptt.md).

# %%
import matplotlib.pyplot as plt
import torch

from unrolled import MultiLayerLSTM

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Packed documents
#
# Sixty documents of 3 to 60 steps. One way is a batch of 60 rows, padded to the longest, with `lengths`. Another lays
# them into 8 rows.

# %%
generator = torch.Generator().manual_seed(4)
document_lengths = torch.randint(3, 61, (60,), generator=generator).tolist()
documents = [torch.randn(length, 6, generator=generator, dtype=torch.float64) for length in document_lengths]
model = MultiLayerLSTM(input_dim=6, hidden_dim=16, num_layers=2, dtype=torch.float64)

padded = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)  # [60, longest, 6]
lengths = torch.tensor(document_lengths)
padded_logits, _ = model(padded, lengths=lengths)


def packed_rows(lengths, rows):
    """For each row the documents in it: always into the row that is shortest so far, long ones first."""
    filled, contents = [0] * rows, [[] for _ in range(rows)]
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = filled.index(min(filled))
        contents[row].append(number)
        filled[row] += lengths[number]
    return contents


contents = packed_rows(document_lengths, 8)
steps = max(sum(document_lengths[number] for number in row) for row in contents)
packed = torch.full((8, steps, 6), float("nan"), dtype=torch.float64)  # what is not filled in must not be read
resets = torch.zeros(8, steps, dtype=torch.bool)
begins = {}
for row, numbers in enumerate(contents):
    at = 0
    for number in numbers:
        packed[row, at : at + document_lengths[number]] = documents[number]
        resets[row, at] = True
        begins[number] = (row, at)
        at += document_lengths[number]
filled = torch.tensor([sum(document_lengths[number] for number in row) for row in contents])
packed_logits, _ = model(packed, resets=resets, lengths=filled)

print(
    f"padded: {padded.shape[0]} x {padded.shape[1]} steps, {lengths.sum() / padded[..., 0].numel():.0%} of them of a document"
)
print(f"packed: {packed.shape[0]} x {packed.shape[1]} steps, {filled.sum() / packed[..., 0].numel():.0%}")
assert filled.sum() == lengths.sum()

# %% alt="Two pictures of a batch: 60 rows of which many end early, and 8 full rows with a mark where each document begins"
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=[1, 3])
axes[0].imshow(
    (torch.arange(padded.shape[1]) < lengths[:, None]).numpy(),
    aspect="auto",
    cmap="Blues",
    vmax=1.5,
    interpolation="nearest",
)
axes[0].set(title="padded", xlabel="step", ylabel="row")
axes[1].imshow(
    (torch.arange(steps) < filled[:, None]).numpy(), aspect="auto", cmap="Blues", vmax=1.5, interpolation="nearest"
)
axes[1].plot(*resets.nonzero().flip(1).unbind(1), "k|", markersize=18)
axes[1].set(title="packed; a mark is a reset", xlabel="step")
plt.show()

# %% [markdown]
# Each document gets the numbers that it gets alone, whatever lies before it in its row, and so do the gradients:

# %%
for number, (row, at) in begins.items():
    alone, _ = model(documents[number][None])
    part = packed_logits[row, at : at + document_lengths[number]]
    assert torch.allclose(part, alone[0], rtol=0, atol=1e-13)
    assert torch.allclose(padded_logits[number, : document_lengths[number]], alone[0], rtol=0, atol=1e-13)


def gradients(loss):
    return torch.autograd.grad(loss, list(model.parameters()))


valid = torch.arange(steps) < filled[:, None]
from_packed = gradients(packed_logits[valid].square().sum())
from_each = [torch.zeros_like(parameter) for parameter in model.parameters()]
for document in documents:
    for total, gradient in zip(from_each, gradients(model(document[None])[0].square().sum()), strict=True):
        total += gradient
assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(from_packed, from_each, strict=True))

# %% [markdown]
# Without the resets, a document's first steps are read with the memory of its neighbour:

# %%
leaking, _ = model(packed, lengths=filled)
row, at = max(begins.values(), key=lambda place: place[1])
off = (leaking - packed_logits)[row, at : at + 20].abs().amax(-1).detach()
print("off by", [f"{value:.4f}" for value in off[:5].tolist()], "in the first steps of the last document")
assert off[0] > 1e-3

# %% [markdown]
# ## A game that needs a memory
#
# A corridor. In its first cell stands a sign: left or right. Some steps on the corridor forks, and only who went as
# the sign said is rewarded. In one game out of three there is no sign; then the third action, stay, is right. An
# episode takes 4 to 8 steps, and the next one begins at once, in the same row: episodes end at other steps in each of
# 64 rows.
#
# (Observation: the sign, -1, 0 or 1, in the first cell, and whether one stands at the fork.)

# %%
ENVS, ROLLOUT = 64, 48


class Corridors:
    """64 corridors side by side. `step` gives the reward of an action, and whether the next step begins an episode."""

    def __init__(self, seed):
        self.draw = torch.Generator().manual_seed(seed)
        self.sign = torch.zeros(ENVS, dtype=torch.long)
        self.at, self.fork = torch.zeros(ENVS, dtype=torch.long), torch.zeros(ENVS, dtype=torch.long)
        self.begin(torch.ones(ENVS, dtype=torch.bool))

    def begin(self, rows):
        count = int(rows.sum())
        self.sign[rows] = torch.randint(-1, 2, (count,), generator=self.draw)
        self.at[rows] = 0
        self.fork[rows] = torch.randint(3, 8, (count,), generator=self.draw)

    def observe(self):
        shown = torch.where(self.at == 0, self.sign, 0)
        return torch.stack([shown.float(), (self.at == self.fork).float()], dim=-1)  # [ENVS, 2]

    def step(self, action):
        done = self.at == self.fork
        reward = torch.where(done & (action == self.sign + 1), 1.0, 0.0)
        self.at += 1
        self.begin(done)
        return reward, done


# %% [markdown]
# ## Acting, and learning from it in one call
#
# While acting, the model sees one step at a time; `resets` marks the rows whose episode begins with it. Afterwards,
# the rollout is one call, with the same resets. The state in which it began goes in again.


# %%
def play(policy, corridors, state, begun):
    """A rollout of all rows. Returns what is learned from, and what the next rollout begins with."""
    first, seen, marks, actions, rewards, said = state, [], [], [], [], []
    with torch.no_grad():
        for _ in range(ROLLOUT):
            observation = corridors.observe()
            logits, state = policy(observation[:, None], state, resets=begun[:, None])
            action = torch.distributions.Categorical(logits=logits[:, 0]).sample()
            seen.append(observation)
            marks.append(begun)
            said.append(logits[:, 0])
            reward, begun = corridors.step(action)
            actions.append(action)
            rewards.append(reward)
    rows = [torch.stack(each, dim=1) for each in (seen, marks, actions, rewards, said)]
    return first, *rows, state, begun


torch.manual_seed(0)
policy = MultiLayerLSTM(input_dim=2, hidden_dim=24, output_dim=3)
corridors = Corridors(seed=0)
begun = torch.ones(ENVS, dtype=torch.bool)
state, seen, marks, actions, rewards, said, *_ = play(policy, corridors, policy.zero_state(ENVS), begun)
logits, _ = policy(seen, state, resets=marks)
assert logits.shape == (ENVS, ROLLOUT, 3)
assert torch.allclose(logits, said, atol=1e-5)  # the call says what was said while acting

# %% [markdown]
# That last line is the test to write first in any recurrent policy: what the learner computes for a step has to be
# what the actor computed. A reset in the wrong step breaks it, and nothing else does; the loss looks plausible either
# way:

# %% alt="How far the learner's logits are from the actor's: at rounding with the right resets, a hundred thousand times more with resets one step early, one step late, or none"
variants = {
    "right": marks,
    "one step early": torch.cat([marks[:, 1:], marks[:, :1]], dim=1),
    "one step late": torch.cat([torch.zeros_like(marks[:, :1]), marks[:, :-1]], dim=1),
    "none": torch.zeros_like(marks),
}
with torch.no_grad():
    apart = {name: (policy(seen, state, resets=each)[0] - said).abs().max().item() for name, each in variants.items()}
fig, axis = plt.subplots(figsize=(9, 2.4), layout="constrained")
axis.barh(list(apart), [max(value, 1e-9) for value in apart.values()])
axis.set(xscale="log", xlabel="largest difference of a logit, learner and actor")
axis.invert_yaxis()
plt.show()
assert apart["right"] < 1e-5
assert min(value for name, value in apart.items() if name != "right") > 1e-3

# %% [markdown]
# ## It learns
#
# REINFORCE: a step's log-probability times what came of it in its own episode. The return of a step stops at the end
# of the episode, too: another thing that must not leak.


# %%
def returns_of(rewards, marks, discount=0.9):
    """What follows each step within its episode; `marks` are the steps that begin one."""
    returns, after = torch.zeros_like(rewards), torch.zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        if t + 1 < rewards.shape[1]:
            after = torch.where(marks[:, t + 1], 0.0, after)
        after = rewards[:, t] + discount * after
        returns[:, t] = after
    return returns


def train(updates=80):
    torch.manual_seed(0)
    policy, corridors = MultiLayerLSTM(input_dim=2, hidden_dim=24, output_dim=3), Corridors(seed=1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    state, begun, won = policy.zero_state(ENVS), torch.ones(ENVS, dtype=torch.bool), []
    for _ in range(updates):
        first, seen, marks, actions, rewards, _, state, begun = play(policy, corridors, state, begun)
        logits, _ = policy(seen, first, resets=marks)
        chosen = torch.distributions.Categorical(logits=logits)
        at_fork = seen[..., 1] > 0
        advantage = returns_of(rewards, marks) - returns_of(rewards, marks).mean()
        loss = -(chosen.log_prob(actions) * advantage)[at_fork].mean() - 0.01 * chosen.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        won.append((rewards.sum() / at_fork.sum()).item())
    return policy, won


trained, won = train()
print(f"games won: {won[0]:.0%} at first, {sum(won[-10:]) / 10:.0%} at the end")
assert won[0] < 0.5
assert sum(won[-10:]) / 10 > 0.9

# %% alt="The share of games won over 80 updates, from one third to nearly all"
fig, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
axis.plot(won)
axis.axhline(1 / 3, color="0.6", linestyle=":", label="guessing")
axis.set(xlabel="update", ylabel="games won", ylim=(0, 1.02))
axis.legend()
plt.show()

# %% [markdown]
# ## Exercise 1: minibatches
#
# PPO learns from a rollout several times, each time from some rows. Take rows 5, 9 and 60 of the rollout above: which
# state do they begin with, and which resets go with them?


# %% tags=["exercise"]
def part_of(policy, seen, state, marks, rows):
    """The logits [len(rows), ROLLOUT, 3] of some rows."""
    logits, _ = policy(seen[rows])  # yours
    return logits


# %% tags=["solution"]
def part_of(policy, seen, state, marks, rows):
    """The logits [len(rows), ROLLOUT, 3] of some rows."""
    logits, _ = policy(seen[rows], state.rows(rows), resets=marks[rows])
    return logits


# %% tags=["check"]
continued, seen, marks, *_ = play(trained, corridors, trained.initial_state(ENVS), torch.ones(ENVS, dtype=torch.bool))
later_state = trained(seen, continued, resets=marks)[1]
start, seen, marks, actions, rewards, said, *_ = play(trained, corridors, later_state, torch.rand(ENVS) < 0.2)
some = [5, 9, 60]
with torch.no_grad():
    mine = part_of(trained, seen, start, marks, some)
assert mine.shape == (3, ROLLOUT, 3), f"[3, {ROLLOUT}, 3], not {list(mine.shape)}"
assert torch.allclose(mine, said[some], atol=1e-4), (
    "not what was said while acting: rows have a state, and resets, of their own"
)
print("right")

# %% [markdown]
# ## Exercise 2: environments that idle for a step
#
# Gymnasium's vector environments (mode `NEXT_STEP`) don't begin the next episode at once. Step t ends an episode
# (`terminated` or `truncated`); step t + 1 shows its last observation and ignores the action; step t + 2 begins. Make
# the `resets` of a rollout. `before`: whether the rollout before this one ended with an idle step, [envs]; then step
# 0 begins. (`done[:, -1]` says that the *next* rollout starts idle. In this one, step 0 is never idle.)


# %% tags=["exercise"]
def resets_of(done, before):
    """`done` bool [envs, steps], `before` bool [envs], to bool [envs, steps]."""
    return torch.zeros_like(done)  # yours


# %% tags=["solution"]
def resets_of(done, before):
    """`done` bool [envs, steps], `before` bool [envs], to bool [envs, steps]."""
    resets = torch.zeros_like(done)
    resets[:, 0] = before
    resets[:, 2:] = done[:, :-2]
    return resets


# %% tags=["check"]
done = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1, 0]]).bool()
wanted = torch.tensor([[1, 0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
mine = resets_of(done, torch.tensor([True, False]))
assert mine.dtype == torch.bool, f"resets are bool, not {mine.dtype}"
assert torch.equal(mine[:, 0], wanted[:, 0]), "step 0 begins where the rollout before ended with an idle step"
assert not (mine[:, 1:] & done[:, :-1]).any(), "the step behind the end is idle: it belongs to the old episode"
assert torch.equal(mine, wanted), f"expected\n{wanted.int()}\nand got\n{mine.int()}"
print("right")

# %% [markdown]
# Next: [out of the notebook](06-out-of-the-notebook.ipynb).
