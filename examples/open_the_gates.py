"""Watch a cell remember: train a tiny model to close the bracket that was opened, then see which unit knows it.

The text is "(....)[..](.......)": between an opening bracket and its closing one there are only dots, so that which one
was opened has to be kept in a cell. Takes a few seconds; needs no files.
"""

import random

import numpy as np
import rich
import torch

from unrolled import CharTokenizer, Lanes, LanguageModel, ModelConfig, Split, nats
from unrolled.trace import picture

PAIRS = (("(", ")"), ("[", "]"))


def brackets(pairs: int) -> str:
    """Pairs of brackets, each of a random kind, around 1 to 12 dots."""
    draw = random.Random(0)
    chosen = (draw.choice(PAIRS) for _ in range(pairs))
    return "".join(opening + "." * draw.randint(1, 12) + closing for opening, closing in chosen)


def train(model: LanguageModel, lanes: Lanes, epochs: int) -> None:
    """Truncated backpropagation: the state goes on from window to window, the gradient does not."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for epoch in range(epochs):
        state, total = None, 0.0
        for index in range(lanes.windows_per_epoch):
            window = lanes.window(epoch, index)
            logits, state = model(window.inputs, state, resets=window.resets)
            loss = nats(logits, window.targets, window.scored) / window.targets.numel()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = state.detach()
            total += loss.item()
        if epoch % 4 == 3:
            print(f"epoch {epoch + 1:2}  loss {total / lanes.windows_per_epoch:.3f} nats per character")
    print("best    loss 0.374: all known but which bracket opens, and how many dots follow")


def main() -> None:
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    torch.manual_seed(0)
    tokenizer = CharTokenizer.from_text("([.])")
    text = brackets(3000)
    model = LanguageModel(ModelConfig(vocabulary=tokenizer.size, hidden=8, layers=1, embedding=0))
    train(model, Lanes(Split(tokenizer.encode(text), np.array([0])), lanes=32, window=32, seed=0), epochs=16)

    shown = "(........)[........](...)[...](.....)[..........]"
    ids = torch.from_numpy(tokenizer.encode(shown)).unsqueeze(0)
    trace = model.trace(ids)  # h, c and the gates i, f, g, o of every step, [batch, time, hidden] each

    print("\nThe unit that holds what it has best: its cell, and the gates that write to it, keep it and show it.\n")
    rich.print(picture(trace, list(shown)))

    # Before the last bracket: how much surer is the model of "]" than of ")", and which cells is that owed to? The
    # gradients are total ones: they count what reached the guess through later steps.
    round_one, square_one = tokenizer.encode(")]").tolist()
    surer = trace.output[0, -2, square_one] - trace.output[0, -2, round_one]
    by_step = trace.gradients(surer)[0].c[0, :-1].norm(dim=-1)  # [time]
    print(f'\nBefore the last bracket, "]" is {surer.exp().item():.0f} times as likely as ")". What that depends on:')
    for step in range(shown.rindex("[") - 3, len(shown) - 1):
        print(f"  {shown[step]}  {'#' * round(60 * (by_step[step] / by_step.max()).item())}")
    print("It is owed to the cells since the last pair was closed; what came before has been forgotten.")


if __name__ == "__main__":
    main()
