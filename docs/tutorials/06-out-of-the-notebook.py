# %% [markdown]
# # 6. Out of the notebook
#
# Many LSTMs begin as two classes in a notebook: a layer that loops over time, a stack that loops over layers, trained
# for an afternoon and saved with `torch.save`. This tutorial takes such a checkpoint out: into `MultiLayerLSTM`, into
# a directory that the command line reads, into more training, and into one ONNX file that needs no PyTorch. At each
# station the model writes the same text.
#
# The reference pages: [coming from nn.LSTM](../from-torch.md), [training](../training.md), [ONNX](../onnx.md). Needs
# the extras `plots` and `onnx`, and ONNX Runtime.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
from torch import nn

import unrolled
from unrolled import CharTokenizer, LanguageModel, ModelConfig, MultiLayerLSTM

torch.set_num_threads(1)
torch.manual_seed(0)
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## The notebook
#
# Two plain classes. Nothing of Unrolled is in them, but the names of the parameters are the equations' own: `W_xf`,
# `W_hf`, `b_f` and so on, in `layers`, and a projection called `proj`.


# %%
class Layer(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        for gate in "fiog":
            self.register_parameter(f"W_x{gate}", nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, hidden))))
            self.register_parameter(f"W_h{gate}", nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, hidden))))
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.zeros(hidden)))

    def forward(self, x, h, c):
        every_h = []
        for x_t in x.unbind(1):
            f = torch.sigmoid(x_t @ self.W_xf + h @ self.W_hf + self.b_f)
            i = torch.sigmoid(x_t @ self.W_xi + h @ self.W_hi + self.b_i)
            o = torch.sigmoid(x_t @ self.W_xo + h @ self.W_ho + self.b_o)
            c = f * c + i * torch.tanh(x_t @ self.W_xg + h @ self.W_hg + self.b_g)
            h = o * torch.tanh(c)
            every_h.append(h)
        return torch.stack(every_h, dim=1), h, c


class Stack(nn.Module):
    def __init__(self, inputs, hidden, depth):
        super().__init__()
        self.layers = nn.ModuleList(Layer(inputs if k == 0 else hidden, hidden) for k in range(depth))
        self.proj = nn.Linear(hidden, inputs)

    def forward(self, x, state):
        last_h, last_c = [], []
        for layer, h0, c0 in zip(self.layers, *state, strict=True):
            x, h, c = layer(x, h0, c0)
            last_h.append(h)
            last_c.append(c)
        return self.proj(x), (torch.stack(last_h), torch.stack(last_c))


# %% [markdown]
# The text is a counting rhyme. Characters go in as one-hot rows, numbered by their place in the alphabet of the text.

# %%
text = "".join(f"{n} little ducks went out one day, over the hills and far away.\n" for n in range(9, 0, -1)) * 6
alphabet = sorted(set(text))
number_of = {character: number for number, character in enumerate(alphabet)}
ids = torch.tensor([number_of[character] for character in text])
HIDDEN, DEPTH, LANES, WINDOW = 48, 2, 8, 32

stack = Stack(len(alphabet), HIDDEN, DEPTH)
optimizer = torch.optim.Adam(stack.parameters(), lr=0.01)
usable = (len(ids) - 1) // LANES * LANES
inputs = ids[:usable].view(LANES, -1)
targets = ids[1 : usable + 1].view(LANES, -1)
losses = []
for _ in range(6):
    state = (torch.zeros(DEPTH, LANES, HIDDEN), torch.zeros(DEPTH, LANES, HIDDEN))
    for x, y in zip(inputs.split(WINDOW, 1), targets.split(WINDOW, 1), strict=True):
        logits, state = stack(nn.functional.one_hot(x, len(alphabet)).float(), state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = tuple(part.detach() for part in state)
        losses.append(loss.item())
print(f"{len(losses)} steps, {losses[0]:.2f} nats a character at first, {losses[-1]:.2f} at the end")
assert losses[-1] < losses[0] / 2

# %% [markdown]
# It writes by taking the most probable character, over and over. This text is what every station below has to give:

# %%
PROMPT, LENGTH = "9 little", 60


@torch.no_grad()
def written_by_the_notebook():
    state = (torch.zeros(DEPTH, 1, HIDDEN), torch.zeros(DEPTH, 1, HIDDEN))
    read, found = [number_of[character] for character in PROMPT], ""
    for _ in range(LENGTH):
        logits, state = stack(nn.functional.one_hot(torch.tensor([read]), len(alphabet)).float(), state)
        read = [int(logits[0, -1].argmax())]
        found += alphabet[read[0]]
    return found


expected = written_by_the_notebook()
print(PROMPT + expected)
torch.save(stack.state_dict(), folder / "notebook.pt")

# %% [markdown]
# ## Station 1: into `MultiLayerLSTM`
#
# A `.pt` file is a pickle, and a pickle can run code when it is loaded. `weights_only=True` lets it hold tensors and
# nothing else; Unrolled itself never writes one. The names agree, so `load_state_dict` takes everything, and would
# say so if anything were missing or left over:

# %%
weights = torch.load(folder / "notebook.pt", weights_only=True)
lstm = MultiLayerLSTM(len(alphabet), HIDDEN, DEPTH)
print(lstm.load_state_dict(weights, strict=True))

one_hot = nn.functional.one_hot(ids[None, :100], len(alphabet)).float()
with torch.no_grad():
    plain, _ = stack(one_hot, (torch.zeros(DEPTH, 1, HIDDEN), torch.zeros(DEPTH, 1, HIDDEN)))
    same, _ = lstm(one_hot)
    from_ids, _ = lstm(ids[None, :100])  # ids in place of one-hot rows
print("logits differ by at most", (same - plain).abs().max().item())
assert torch.allclose(same, plain, atol=1e-4)
assert torch.allclose(from_ids, plain, atol=1e-4)

# %% [markdown]
# ## Station 2: a directory that the command line reads
#
# A language model is such a stack with a tokenizer beside it. `embedding=0` means one-hot rows. One thing can go
# wrong here without an error: the tokenizer has to number the characters as the notebook did.

# %%
tokenizer = CharTokenizer("".join(alphabet))
assert tokenizer.encode(text[:200]).tolist() == ids[:200].tolist()

model = LanguageModel(ModelConfig(len(alphabet), hidden=HIDDEN, layers=DEPTH, embedding=0))
model.lstm.load_state_dict(weights, strict=True)
unrolled.save_model(folder / "ducks", model, tokenizer)
print(sorted(path.name for path in (folder / "ducks").iterdir()))


# %%
def command(*words):
    """`unrolled ...`, as one types it, in a process of its own."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", "COLUMNS": "90"}
    done = subprocess.run(
        [sys.executable, "-m", "unrolled", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


print(command("info", "ducks"))

# %%
from_the_command = command("generate", "ducks", "--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(LENGTH))
print(from_the_command)
assert from_the_command.rstrip("\n") == (PROMPT + expected).rstrip("\n")

from_python = "".join(
    piece.text for piece in unrolled.generate(unrolled.load(folder / "ducks"), PROMPT, max_tokens=LENGTH, temperature=0)
)
assert from_python == expected

# %% [markdown]
# ## Station 3: more training
#
# The afternoon's model is a beginning: `--init-from` starts a run from its weights and tokens, with everything that a
# run has: held-out text, checkpoints, an average of the weights, and a state that is carried.

# %%
(folder / "rhyme.txt").write_text(text, encoding="utf-8")
command(
    *(
        "train",
        "rhyme.txt",
        "--init-from",
        "ducks",
        "--out",
        "longer",
        "--steps",
        "60",
        "--lanes",
        "8",
        "--window",
        "32",
    ),
    *("--lr", "0.005", "--dropout", "0", "--split", "0.8,0.2", "--quiet", "--threads", "1"),
)


def bits(run):
    return json.loads(command("eval", run, "rhyme.txt", "--json"))["stateful"]["bits_per_byte"]


scores = {name: bits(name) for name in ("ducks", "longer")}
print(scores)
assert scores["longer"] < scores["ducks"]

# %% [markdown]
# ## Station 4: ONNX
#
# One file, for ONNX Runtime and whatever else reads ONNX. The state is an input and an output; so is the tokenizer,
# as a note in the file. (At the command line: `unrolled export ducks ducks.onnx`.)

# %%
unrolled.export_onnx(model, folder / "ducks.onnx", tokenizer=tokenizer)
session = onnxruntime.InferenceSession(folder / "ducks.onnx", providers=["CPUExecutionProvider"])
for each in (*session.get_inputs(), *session.get_outputs()):
    print(f"{each.name:7} {each.type:14} {each.shape}")

zeros = np.zeros((DEPTH, 1, HIDDEN), np.float32)
onnx_logits, h, c = session.run(None, {"x": ids[None, :100].numpy(), "h": zeros, "c": zeros})
assert np.abs(onnx_logits - plain.numpy()).max() < 1e-3

# %% alt="The probabilities of the next character after the prompt: the notebook, Unrolled and ONNX Runtime agree bar by bar"
prompt_ids = [number_of[character] for character in PROMPT]
x = torch.tensor([prompt_ids])
with torch.no_grad():
    state = (torch.zeros(DEPTH, 1, HIDDEN), torch.zeros(DEPTH, 1, HIDDEN))
    rows = {
        "the notebook's classes": stack(nn.functional.one_hot(x, len(alphabet)).float(), state)[0][0, -1],
        "LanguageModel": model.eval()(x)[0][0, -1],
        "ONNX Runtime": torch.from_numpy(session.run(["logits"], {"x": x.numpy(), "h": zeros, "c": zeros})[0][0, -1]),
    }
probabilities = {name: row.softmax(-1) for name, row in rows.items()}
top = probabilities["LanguageModel"].topk(6).indices
fig, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
for k, (name, p) in enumerate(probabilities.items()):
    axis.bar(np.arange(6) + 0.25 * (k - 1), p[top].numpy(), 0.23, label=name)
axis.set(
    xticks=range(6), xticklabels=[repr(alphabet[k]) for k in top], ylabel="probability", title=f"behind {PROMPT!r}"
)
axis.legend()
plt.show()
for p in probabilities.values():
    assert torch.allclose(p, probabilities["LanguageModel"], atol=1e-4)

# %% [markdown]
# ## Exercise 1: names from elsewhere
#
# Another notebook named things otherwise: `cells.0.Wx_forget`, `cells.0.Wh_forget`, `cells.0.bias_forget`, with
# `forget`, `input`, `output` and `candidate`, and `head.weight`, `head.bias`; and its matrices are transposed,
# `[hidden, inputs]`, for it wrote W x. Make it a state dict that `MultiLayerLSTM` takes. (`head.weight` is right as
# it is.)

# %%
LONG = {"forget": "f", "input": "i", "output": "o", "candidate": "g"}
theirs = {"head.weight": weights["proj.weight"], "head.bias": weights["proj.bias"]}
for k in range(DEPTH):
    for long, gate in LONG.items():
        theirs[f"cells.{k}.Wx_{long}"] = weights[f"layers.{k}.W_x{gate}"].T
        theirs[f"cells.{k}.Wh_{long}"] = weights[f"layers.{k}.W_h{gate}"].T
        theirs[f"cells.{k}.bias_{long}"] = weights[f"layers.{k}.b_{gate}"]
print(*list(theirs)[:5], "...")


# %% tags=["exercise"]
def ours(theirs):
    return dict(theirs)  # yours


# %% tags=["solution"]
def ours(theirs):
    found = {"proj.weight": theirs["head.weight"], "proj.bias": theirs["head.bias"]}
    for name, value in theirs.items():
        if name.startswith("cells."):
            _, k, rest = name.split(".")
            kind, long = rest.split("_")
            ours_kind = {"Wx": "W_x", "Wh": "W_h", "bias": "b_"}[kind]
            found[f"layers.{k}.{ours_kind}{LONG[long]}"] = value if kind == "bias" else value.T
    return found


# %% tags=["check"]
mine = ours(theirs)
assert set(mine) == set(weights), f"names that no layer has: {sorted(set(mine) - set(weights))[:3]}"
for name in weights:
    assert mine[name].shape == weights[name].shape, (
        f"{name} is {list(mine[name].shape)}, not {list(weights[name].shape)}"
    )
check = MultiLayerLSTM(len(alphabet), HIDDEN, DEPTH)
check.load_state_dict(mine, strict=True)
with torch.no_grad():
    assert torch.allclose(check(ids[None, :100])[0], plain, atol=1e-4), (
        "names and shapes fit, the numbers do not: transposed?"
    )
print("right")

# %% [markdown]
# Square matrices are the trap: a `W_h*` that was forgotten has the right shape. Only the numbers show it.
#
# ## Exercise 2: the loop without PyTorch
#
# Let ONNX Runtime write. `session.run(["logits", "h_n", "c_n"], {"x": ..., "h": ..., "c": ...})`; `x` is int64 `[1,
# steps]`. The first call reads the prompt, each later one the one character that was chosen; the state goes from call
# to call.


# %% tags=["exercise"]
def written_by_onnx(session, prompt_ids, length):
    """The `length` characters behind the prompt, as one string."""
    return ""  # yours


# %% tags=["solution"]
def written_by_onnx(session, prompt_ids, length):
    """The `length` characters behind the prompt, as one string."""
    read, h, c, found = prompt_ids, zeros, zeros, ""
    for _ in range(length):
        given = {"x": np.array([read], np.int64), "h": h, "c": c}
        logits, h, c = session.run(["logits", "h_n", "c_n"], given)
        read = [int(logits[0, -1].argmax())]
        found += alphabet[read[0]]
    return found


# %% tags=["check"]
mine = written_by_onnx(session, prompt_ids, LENGTH)
assert len(mine) == LENGTH, f"{LENGTH} characters, not {len(mine)}"
assert mine == expected, f"it should be {expected!r}, and is {mine!r}: does the state go on?"
print("right")
temporary.cleanup()

# %% [markdown]
# The whole loop, with the tokenizer read from the file, is [an example of some forty
# lines](../../examples/onnx_generate.py).
