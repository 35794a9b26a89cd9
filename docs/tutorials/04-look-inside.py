# %% [markdown]
# # 4. Train on your own text and look inside
#
# A network that writes text with quotation marks has to know whether a quotation is open. Is there one unit that
# holds it? Karpathy, Johnson and Fei-Fei showed such a unit in 2015, picked by eye out of thousands. Among thousands,
# some unit always looks the part. So here it is searched with a bar that chance has to pass, on text that the model
# was not trained on, and then it is switched off, to see whether it is for anything.
#
# The reference is [look inside](../look-inside.md); training is described in [training a model on
# text](../training.md). The model here is tiny, and trains in less than a minute.

# %%
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import unrolled
from unrolled import Clamp, LanguageModel, Split, TrainConfig, Trainer

torch.set_num_threads(1)  # small products: a second thread would only wait

# %% [markdown]
# ## A text
#
# To take your own, put `text = Path("mybook.txt").read_text(encoding="utf-8")` here; everything below works for it, but
# for the assertions about what is found. This one is made up: sentences in and out of quotation marks, of the same words.
# Whoever speaks here shouts: inside, a sentence ends with an exclamation mark, outside with a full stop. So at the end of
# each sentence it matters whether a quotation is open, and nothing but a mark some way back says so.

# %%
WORDS = [
    "the",
    "fox",
    "old",
    "miller",
    "went",
    "home",
    "saw",
    "a",
    "bird",
    "and",
    "river",
    "under",
    "stone",
    "sang",
    "two",
]


def sentence(draw, mark):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 4))) + mark


def story(paragraphs, seed):
    draw, lines = random.Random(seed), []
    for _ in range(paragraphs):
        parts = []
        for _ in range(draw.randint(3, 6)):
            aloud = draw.random() < 0.5
            said = " ".join(sentence(draw, "!" if aloud else ".") for _ in range(draw.randint(1, 3)))
            parts.append(f'"{said}"' if aloud else said)
        lines.append(" ".join(parts) + "\n")
    return "\n".join(lines)


text = story(1500, seed=1)
print(text[:400])
print(f"{len(text):,} characters")

# %% [markdown]
# ## Training
#
# The same as `unrolled train mybook.txt --tokens char --layers 1 --hidden 64 ...` at the command line.

# %%
folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "text.txt"
file.write_text(text, encoding="utf-8")
config = TrainConfig(
    files=(str(file),),
    out=str(Path(folder.name) / "run"),
    tokens="char",
    layers=1,
    hidden=64,
    embedding=0,
    dropout=0.0,
    lanes=32,
    window=64,
    steps=500,
    lr=0.01,
    ema=0.95,
    eval_every=250,
    save_every=500,
    threads=1,
)
trainer = Trainer(config)
steps, losses = [], []
for event in trainer.run():
    if isinstance(event, unrolled.StepDone):
        steps.append(event.step)
        losses.append(event.bits_per_byte)
    elif isinstance(event, unrolled.Evaluated) and event.score is not None:
        print(f"step {event.step}: {event.score.bits_per_byte:.3f} bits per character on text that was held back")

run = unrolled.load(trainer.directory)
model, tokenizer = run.model, run.tokenizer
assert losses[-1] < losses[0] / 2

# %% alt="The training loss in bits per character, falling over 500 steps"
fig, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
axis.plot(steps, losses)
axis.set(xlabel="step", ylabel="bits per character", ylim=(0, None))
plt.show()

# %% [markdown]
# ## Statistics first
#
# Everything from here on is about other text: another story, with another seed. `inspect` reads it once.

# %%
other = story(300, seed=2)
split = Split(tokenizer.encode(other), np.array([0]))
found = unrolled.inspect(model, split, tokenizer, lanes=1)
layer = found.layers[0]
print(f"{found.tokens:,} characters, {found.nats / np.log(2):.3f} bits each")
print("memory of the longest units, in steps:", sorted(round(m) for m in layer.memory.tolist())[-5:])
print("dead units:", int(layer.dead.sum()))
assert layer.memory.shape == (64,)
assert (layer.memory >= 1).all()

# %% alt="How many of the 64 units remember for how many steps: most for a few, some for tens"
fig, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
axis.hist(layer.memory.clamp(max=200).numpy(), bins=np.geomspace(1, 200, 25))
axis.set(xscale="log", xlabel="steps that a unit remembers for: 1 / (1 - mean f)", ylabel="units")
plt.show()

# %% [markdown]
# ## Which units follow what?
#
# For six simple features of the text, `inspect` has the mutual information between each unit and the feature, in
# bits. The **bar** is what chance reaches: the feature is moved along the text in a circle, 19 times, and the largest
# number of any unit counts.

# %%
print(f"{'feature':9} {'unit':>4}  bits of entropy    bar")
for relation in found.relations:
    best = relation.ranked(1)[0]
    verdict = "above the bar" if best.above else "not above the bar"
    print(
        f"{relation.feature:9} {best.unit:4}  {best.bits:.3f} of {relation.entropy:.3f}"
        f"     {relation.bar:.4f}  {best.quantity}, {verdict}"
    )
    assert 0 <= best.bits <= relation.entropy + 1e-9
    assert best.above == (best.bits > relation.bar)

quoted = next(relation for relation in found.relations if relation.feature == "quoted")
best = quoted.ranked(1)[0]

# %% alt="Mutual information of each unit with being inside quotes, in order, with the bar that chance reaches"
fig, axis = plt.subplots(figsize=(9, 3), layout="constrained")
ranked = [each.bits for each in quoted.ranked()]
axis.bar(range(len(ranked)), ranked, color=["tab:orange" if bits > quoted.bar else "0.7" for bits in ranked])
axis.axhline(quoted.bar, color="k", linewidth=1, label=f"the bar, {quoted.bar:.3f} bits")
axis.axhline(quoted.entropy, color="0.6", linestyle=":", label=f"all there is to know, {quoted.entropy:.3f} bits")
axis.set(xlabel="units, best first", ylabel="bits", title="Inside quotes, or not")
axis.legend()
plt.show()

# %% [markdown]
# So here is the finding, whichever it is:

# %%
words = "follows" if best.above else "is the best, and does not follow"
print(
    f"unit {best.unit} ({best.quantity}) {words} the quotes: {best.bits:.3f} of {quoted.entropy:.3f} bits, "
    f"bar {quoted.bar:.3f}, chance {quoted.chance(best.bits):.2f}"
)
assert best.above, "with the text above there is a unit; with yours a negative result is a result"

# %% [markdown]
# Is that much? Ask a model that has learned nothing. Any LSTM carries *something* of the past around; what training
# added is the difference.

# %%
torch.manual_seed(0)
untrained = LanguageModel(run.config)
before = unrolled.inspect(untrained, split, tokenizer, lanes=1)
quoted_before = next(relation for relation in before.relations if relation.feature == "quoted")
print(f"untrained: {quoted_before.ranked(1)[0].bits:.3f} bits at best, bar {quoted_before.bar:.3f}")
assert quoted_before.ranked(1)[0].bits < best.bits / 2

# %% [markdown]
# ## Look at it
#
# Some lines of the story that the model has not seen, each character coloured by the unit:

# %% alt="Four lines of text, every character coloured by the unit's value: one colour inside quotation marks, another outside"
COLUMNS, ROWS = 72, 4
begin = other.index('"', 2000) - 20
shown = other[begin : begin + COLUMNS * ROWS]
with torch.no_grad():
    opened = model.trace(torch.from_numpy(split.ids[: begin + len(shown)].astype(np.int64))[None])
values = getattr(opened.layers[best.layer], best.quantity)[0, begin:, best.unit]
fig, axis = plt.subplots(figsize=(9, 1.9), layout="constrained")
axis.imshow(values.tanh().view(ROWS, COLUMNS).numpy(), cmap="coolwarm", vmin=-1, vmax=1, aspect="auto")
for position, character in enumerate(shown):
    row, column = divmod(position, COLUMNS)
    axis.text(column, row, character.replace("\n", "/"), ha="center", va="center", family="monospace", fontsize=8)
axis.set_axis_off()
axis.set_title(f"unit {best.unit}, {best.quantity}")
plt.show()

# %% [markdown]
# ## Is it for anything?
#
# That a unit goes along with the quotes doesn't mean that the model uses it. `ablate` holds each unit in turn at its
# mean and counts what the text costs more.

# %%
costs = unrolled.ablate(model, split, excerpts=8, length=128)
order = [cost.unit for cost in costs.ranked()]
place = order.index(best.unit) + 1
print(
    f"holding unit {best.unit} still costs {costs.costs[0, best.unit]:.4f} nats a character: place {place} of {len(order)}"
)
assert costs.costs.shape == (1, 64)

# %% [markdown]
# And what does it do? In a sentence inside a quotation, put the unit where it is outside, and ask for the probability of an
# exclamation mark against a full stop.

# %%
inside = np.array(next(f for f in unrolled.text_features(split, tokenizer) if f.name == "quoted").kinds, bool)
with torch.no_grad():
    long = model.trace(torch.from_numpy(split.ids[:6000].astype(np.int64))[None])
states = long.layers[0].c[0, :, best.unit]
outside_value, inside_value = states[~inside[:6000]].mean(), states[inside[:6000]].mean()
shout, stop = (int(tokenizer.encode(mark)[0]) for mark in "!.")


@torch.no_grad()
def shouts(prompt, held=None):
    """P(!) of ! and ., behind a prompt, with the unit's c held at a value since the last space."""
    ids = torch.from_numpy(tokenizer.encode(prompt).astype(np.int64))[None]
    steps = range(prompt.rindex(" "), len(prompt))
    edit = None if held is None else Clamp(0, "c", best.unit, float(held), steps=steps)
    p = model.trace(ids, edit=edit).output[0, -1].softmax(-1)
    return (p[shout] / (p[shout] + p[stop])).item()


spoken, told = 'old fox. two bird saw home. "the river sang', "old fox. two bird saw home. the river sang"
rows = [
    ("inside", shouts(spoken)),
    ("inside, the unit as if outside", shouts(spoken, outside_value)),
    ("outside", shouts(told)),
    ("outside, the unit as if inside", shouts(told, inside_value)),
]
for name, probability in rows:
    print(f"{name:32} P(!) = {probability:.3f}")
assert rows[0][1] > 0.9  # the model itself tells the two apart
assert rows[2][1] < 0.1

# %% [markdown]
# Read these four numbers as they come: if the second is near the third, the unit is where the model keeps it; if it
# is near the first, other units know it too. Both happen.
#
# ## Exercise 1: mutual information by hand
#
# From a table of counts, rows the bins of a unit and columns the kinds of a feature: p(a, b) log2(p(a, b) / (p(a)
# p(b))), summed. Cells without a count add nothing.


# %% tags=["exercise"]
def mutual_information(table):
    """`table` [bins, kinds] of counts, to bits."""
    return -1.0  # yours


# %% tags=["solution"]
def mutual_information(table):
    """`table` [bins, kinds] of counts, to bits."""
    p = table / table.sum()
    independent = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    there = p > 0
    return float((p[there] * np.log2(p[there] / independent[there])).sum())


# %% tags=["check"]
cases = {
    "knows everything": (np.array([[50.0, 0.0], [0.0, 50.0]]), 1.0),
    "knows nothing": (np.array([[30.0, 30.0], [20.0, 20.0]]), 0.0),
    "four kinds": (np.eye(4) * 10, 2.0),
    "in between": (np.array([[40.0, 10.0], [10.0, 40.0]]), 0.2780719),
}
for name, (table, bits) in cases.items():
    mine = mutual_information(table)
    assert abs(mine - bits) < 1e-6, f"{name}: {bits} bits, not {mine}"
print("right")

# %% [markdown]
# ## Exercise 2: a feature of your own
#
# Is there a unit that counts sentences within a quotation? Make a feature: 0 outside quotes, 1 in the first sentence
# of a quotation, 2 in a later one (behind the first full stop or exclamation mark in it). One number for each character of `other`. The
# marks themselves count as what the text is in *after* them: the opening one as 1, the closing one as 0.


# %% tags=["exercise"]
def sentences_in_quotes(text):
    return np.zeros(len(text), np.uint8)  # yours


# %% tags=["solution"]
def sentences_in_quotes(text):
    kinds, now = np.zeros(len(text), np.uint8), 0
    for position, character in enumerate(text):
        if character == '"':
            now = 0 if now else 1
        elif character in ".!" and now:
            now = 2
        kinds[position] = now
    return kinds


# %% tags=["check"]
kinds = sentences_in_quotes(other)
assert kinds.shape == (len(other),), "one number for each character"
small = sentences_in_quotes('a b. "c d. e." f').tolist()
wanted = [0] * 5 + [1] * 4 + [2] * 4 + [0] * 3
assert small == wanted, f"for 'a b. \"c d. e.\" f' it is {wanted}, not {small}"
assert ((kinds > 0) == inside).all(), "above 0 is inside quotes"
own = unrolled.Feature("sentence", kinds, ("outside", "first", "later"))
relation = unrolled.inspect(model, split, tokenizer, features=[own], lanes=1).relations[0]
unit = relation.ranked(1)[0]
print(f"right: unit {unit.unit} shares {unit.bits:.3f} of {relation.entropy:.3f} bits with it, bar {relation.bar:.3f}")
folder.cleanup()

# %% [markdown]
# Next: [episodes and packed documents](05-resets.ipynb).
