"""Your own model in your own loop: PyTorch's example of a word-level language model, on the open LSTM.

    python examples/word_language_model.py --train ptb.train.txt --valid ptb.valid.txt [--tied]

The settings are those of word_language_model in github.com/pytorch/examples: two layers of 200, plain SGD whose rate is
divided by four whenever the validation text is not predicted better than before. Words are what whitespace separates,
and the end of a line is one more.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrolled import CarriedState, LSTMState, MultiLayerLSTM, TimeWindows, perplexity

END_OF_LINE, UNKNOWN = "<eos>", "<unk>"
VALIDATION_WINDOW, PROGRESS_EVERY = 512, 200


class WordModel(nn.Module):
    """Word ids [batch, time] to logits [batch, time, vocabulary]; `tied`: one matrix embeds words and scores them."""

    def __init__(self, vocabulary: int, hidden: int, layers: int, dropout: float, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.dropout = nn.Dropout(dropout)
        # Without a projection, the stack's output is h of the top layer, after dropout.
        self.lstm = MultiLayerLSTM(hidden, hidden, layers, dropout, output_dim=None)
        self.decoder = nn.Linear(hidden, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState]:
        h, state = self.lstm(self.dropout(self.embedding(ids)), state)
        return self.decoder(h), state


def words(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [word for line in lines for word in (*line.split(), END_OF_LINE)]


def encode(text: list[str], vocabulary: dict[str, int]) -> Tensor:
    """The words' ids [1, words]; a word that is not in the vocabulary counts as <unk>."""
    unknown = vocabulary.get(UNKNOWN)
    ids = [vocabulary.get(word, unknown) for word in text]
    if None in ids:
        raise SystemExit(f"{text[ids.index(None)]!r} is not in the training text, and neither is {UNKNOWN}")
    return torch.tensor([ids])


def lanes(ids: Tensor, count: int) -> Tensor:
    """The text [1, words] as `count` stretches side by side, [count, words // count]."""
    return ids[:, : ids.shape[1] // count * count].view(count, -1)


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def train_epoch(model: WordModel, windows: TimeWindows, rate: float, clip: float) -> float:
    """One pass over the text; the perplexity of what was read, with dropout and while the weights moved."""
    model.train()
    carried = CarriedState()
    total, count, began = 0.0, 0, time.perf_counter()
    for number, (inputs, targets) in enumerate(windows, start=1):
        logits, carried.state = model(inputs, carried.state)
        loss = nats(logits, targets)
        model.zero_grad()
        (loss / targets.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
        total, count = total + loss.item(), count + targets.numel()
        if number % PROGRESS_EVERY == 0 or number == len(windows):
            speed = count / (time.perf_counter() - began)
            seen = f"  {number:5}/{len(windows)} windows  {speed:6,.0f} words/s"
            print(f"{seen}  perplexity so far {perplexity(total, count):8.2f}", flush=True)
    return perplexity(total, count)


@torch.no_grad()
def score(model: WordModel, ids: Tensor) -> float:
    """Perplexity of a text read from its first word to its last, the state carried all the way."""
    model.eval()
    carried = CarriedState()
    total = 0.0
    for inputs, targets in TimeWindows(ids[:, :-1], ids[:, 1:], length=VALIDATION_WINDOW):
        logits, carried.state = model(inputs, carried.state)
        total += nats(logits, targets).item()
    return perplexity(total, ids.shape[1] - 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a word-level language model.")
    parser.add_argument("--train", type=Path, required=True, help="text to learn from")
    parser.add_argument("--valid", type=Path, required=True, help="text to score after every epoch")
    parser.add_argument("--tied", action="store_true", help="one matrix for the embedding and the decoder")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=200, help="width of the embedding and of each layer")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=20, help="stretches of the text that are read side by side")
    parser.add_argument("--window", type=int, default=35, help="words through which the gradient goes back")
    parser.add_argument("--lr", type=float, default=20.0)
    parser.add_argument("--clip", type=float, default=0.25, help="longest gradient that is let through")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be at least 1")
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    text = words(args.train)
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(text))}
    ids, valid = lanes(encode(text, vocabulary), args.batch), encode(words(args.valid), vocabulary)
    model = WordModel(len(vocabulary), args.hidden, args.layers, args.dropout, tied=args.tied)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(text):,} words to learn from, {len(vocabulary):,} different ones; {weights:,} weights")

    windows, rate, best = TimeWindows(ids[:, :-1], ids[:, 1:], length=args.window), args.lr, float("inf")
    for epoch in range(1, args.epochs + 1):
        print(f"epoch {epoch}, rate {rate:g}")
        training, validation = train_epoch(model, windows, rate, args.clip), score(model, valid)
        print(f"  validation perplexity {validation:.2f}, training {training:.2f}")
        if validation >= best:
            rate /= 4
        best = min(best, validation)
    print(f"in the end: validation perplexity {validation:.2f} (best {best:.2f}), training {training:.2f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
