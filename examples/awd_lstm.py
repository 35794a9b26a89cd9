"""AWD-LSTM on layers of your own choice: weight drop, locked dropout, averaged SGD.

    python examples/awd_lstm.py --train ptb.train.txt --valid ptb.valid.txt [--epochs 500]

The settings are those of Merity, Keskar and Socher, Regularizing and Optimizing LSTM Language Models (2018), for the
words of the Penn Treebank: three layers of 1,150, 1,150 and 400, the last as wide as the embedding, which scores the
words as well. Words are what whitespace separates, and the end of a line is one more.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from word_language_model import VALIDATION_WINDOW, encode, lanes, nats, words

from unrolled import LSTMLayer, perplexity

State = list[tuple[Tensor, Tensor]]
# Of the output: how much its size, and how much its change from word to word, count beside the loss.
SIZE, CHANGE = 2.0, 1.0
PROGRESS_EVERY = 100


def locked(x: Tensor, p: float, *, training: bool) -> Tensor:
    """Dropout of [batch, time, width] with one mask for all steps."""
    return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), p) if training and p else x


class AWDModel(nn.Module):
    """Word ids [batch, time] to logits; and the top layer's h without dropout and with it."""

    def __init__(self, vocabulary: int, args: argparse.Namespace) -> None:
        super().__init__()
        self.drops = args
        self.embedding = nn.Embedding(vocabulary, args.embedding)
        widths = [args.embedding, *[args.hidden] * (args.layers - 1), args.embedding]
        self.layers = nn.ModuleList(LSTMLayer(*pair, weight_drop=args.weight_drop) for pair in pairwise(widths))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for layer in self.layers:
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(parameter.shape[-1] ** -0.5), parameter.shape[-1] ** -0.5)

    def forward(self, ids: Tensor, state: State | None) -> tuple[Tensor, Tensor, Tensor, State]:
        drops, after = self.drops, []
        kept = F.dropout(torch.ones(self.embedding.num_embeddings, 1), drops.word_dropout, self.training)
        h = locked(F.embedding(ids, self.embedding.weight * kept), drops.input_dropout, training=self.training)
        for number, layer in enumerate(self.layers):
            x = h if number == 0 else locked(h, drops.layer_dropout, training=self.training)
            h, c = layer(x, *(state[number] if state else ()))
            after.append((h[:, -1].detach(), c[:, -1].detach()))
        output = locked(h, drops.output_dropout, training=self.training)
        return F.linear(output, self.embedding.weight, self.bias), h, output, after


def spans(steps: int, window: int) -> list[tuple[int, int]]:
    """Where windows begin and end: lengths are drawn, so that a word does not always stand at the same place of one."""
    found, start = [], 0
    while start < steps:
        length = window if torch.rand(()) < 0.95 else window // 2
        stop = min(steps, start + max(5, int(length + 5 * torch.randn(()))))
        found.append((start, stop))
        start = stop
    return found


def train_epoch(model: AWDModel, optimizer: torch.optim.Optimizer, ids: Tensor, args: argparse.Namespace) -> float:
    """One pass over the text; the perplexity of what was read, with dropout and while the weights moved."""
    model.train()
    state: State | None = None
    total, count, began = 0.0, 0, time.perf_counter()
    windows = spans(ids.shape[1] - 1, args.window)
    for number, (start, stop) in enumerate(windows, start=1):
        targets = ids[:, start + 1 : stop + 1]
        logits, h, output, state = model(ids[:, start:stop], state)
        loss = nats(logits, targets)
        more = SIZE * output.pow(2).mean() + CHANGE * (h[:, 1:] - h[:, :-1]).pow(2).mean() if stop > start + 1 else 0.0
        optimizer.zero_grad()
        (loss / targets.numel() + more).backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        # A short window's gradient is that of fewer words.
        optimizer.param_groups[0]["lr"] = args.lr * (stop - start) / args.window
        optimizer.step()
        total, count = total + loss.item(), count + targets.numel()
        if number % PROGRESS_EVERY == 0 or number == len(windows):
            speed = count / (time.perf_counter() - began)
            seen = f"  {number:5}/{len(windows)} windows  {speed:6,.0f} words/s"
            print(f"{seen}  perplexity so far {perplexity(total, count):8.2f}", flush=True)
    return perplexity(total, count)


@torch.no_grad()
def score(model: AWDModel, ids: Tensor) -> float:
    """Perplexity of a text read from its first word to its last, the state carried all the way."""
    model.eval()
    state: State | None = None
    total = 0.0
    for inputs, targets in zip(
        ids[:, :-1].split(VALIDATION_WINDOW, 1), ids[:, 1:].split(VALIDATION_WINDOW, 1), strict=True
    ):
        logits, _, _, state = model(inputs, state)
        total += nats(logits, targets).item()
    return perplexity(total, ids.shape[1] - 1)


@torch.no_grad()
def score_average(model: AWDModel, optimizer: torch.optim.Optimizer, ids: Tensor) -> float:
    """`score` with the averages of the weights in their place."""
    weights = [(parameter, parameter.clone()) for parameter in model.parameters()]
    for parameter, _ in weights:
        parameter.copy_(optimizer.state[parameter]["ax"])
    found = score(model, ids)
    for parameter, before in weights:
        parameter.copy_(before)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an AWD-LSTM on words.")
    parser.add_argument("--train", type=Path, required=True, help="text to learn from")
    parser.add_argument("--valid", type=Path, required=True, help="text to score after every epoch")
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--embedding", type=int, default=400, help="width of the embedding and of the last layer")
    parser.add_argument("--hidden", type=int, default=1150, help="width of the layers below")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--weight-drop", type=float, default=0.5, help="share of each W_h that a window goes without")
    parser.add_argument("--word-dropout", type=float, default=0.1, help="share of the words whose embedding is 0")
    parser.add_argument("--input-dropout", type=float, default=0.4)
    parser.add_argument("--layer-dropout", type=float, default=0.25, help="between layers")
    parser.add_argument("--output-dropout", type=float, default=0.4)
    parser.add_argument("--batch", type=int, default=20, help="stretches of the text that are read side by side")
    parser.add_argument("--window", type=int, default=70, help="words, on average, that the gradient goes back")
    parser.add_argument("--lr", type=float, default=30.0)
    parser.add_argument("--weight-decay", type=float, default=1.2e-6)
    parser.add_argument("--clip", type=float, default=0.25, help="longest gradient that is let through")
    parser.add_argument("--patience", type=int, default=5, help="epochs without a better score before averaging begins")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.epochs < 1 or args.patience < 0:
        parser.error("--epochs must be at least 1, --patience at least 0")
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    text = words(args.train)
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(text))}
    ids, valid = lanes(encode(text, vocabulary), args.batch), encode(words(args.valid), vocabulary)
    model = AWDModel(len(vocabulary), args)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(text):,} words to learn from, {len(vocabulary):,} different ones; {weights:,} weights")

    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), args.lr, weight_decay=args.weight_decay)
    scores: list[float] = []
    for epoch in range(1, args.epochs + 1):
        averages = isinstance(optimizer, torch.optim.ASGD)
        print(f"epoch {epoch}{', averaging' if averages else ''}", flush=True)
        training = train_epoch(model, optimizer, ids, args)
        found = score_average(model, optimizer, valid) if averages else score(model, valid)
        print(f"  validation perplexity {found:.2f}, training {training:.2f}", flush=True)
        if not averages and len(scores) > args.patience and found > min(scores[: len(scores) - args.patience]):
            options = {"lr": args.lr, "t0": 0, "lambd": 0.0, "weight_decay": args.weight_decay}
            optimizer = torch.optim.ASGD(model.parameters(), **options)
        scores.append(found)
    print(f"in the end: validation perplexity {found:.2f} (best {min(scores):.2f})")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
