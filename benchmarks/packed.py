"""Rows of different lengths: packed through nn.LSTM and unrolled.LSTM, padded with lengths, and padded through nn.LSTM.

A row's length is drawn evenly from 1 to the longest, which one row has. Packing and unpacking are not timed: the packed
contenders begin and end packed, the padded ones padded. Training is forward and backward, to x and all weights. nn.LSTM
on padded rows reads the padding too, and its last state is not that of a row's end: it is what packing costs there.

    python benchmarks/packed.py [--lengths 10 100 1000 4000] [--seconds 4] [--write PAGE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from measure import Times, alternate
from page import add_write, provenance, table, write_section
from stacks import demand_equal
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import unrolled

BATCH, WIDTH = 32, 128
# Those of pytorch/pytorch#149194.
LENGTHS = (10, 100, 1000, 4000)
CONTENDERS = ("nn.LSTM, packed", "unrolled.LSTM, packed", "unrolled.LSTM, padded, lengths", "nn.LSTM, padded")
# From here on a step of training takes nn.LSTM seconds. Its backward pass on packed rows grows with the square of the
# length: behind the longest one that is trained it takes minutes.
LONG, ROUNDS, LONG_ROUNDS = 1000, 7, 3
LONGEST_TRAINED = 1000


class Rows(NamedTuple):
    x: Tensor
    lengths: Tensor
    packed: PackedSequence


def rows(longest: int) -> Rows:
    generator = torch.Generator().manual_seed(longest)
    lengths = torch.randint(1, longest + 1, (BATCH,), generator=generator)
    lengths[0] = longest
    x = torch.randn(BATCH, longest, WIDTH, generator=generator)
    x = x * (torch.arange(longest) < lengths[:, None]).unsqueeze(-1)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed.data.requires_grad_()
    return Rows(x.requires_grad_(), lengths, packed)


def modules() -> tuple[nn.LSTM, unrolled.LSTM]:
    torch.manual_seed(0)
    theirs = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    ours = unrolled.LSTM(WIDTH, WIDTH, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def calls(given: Rows) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Each contender's module, and its call, which returns the values of its output."""
    theirs, ours = modules()
    return {
        CONTENDERS[0]: (theirs, lambda: theirs(given.packed)[0].data),
        CONTENDERS[1]: (ours, lambda: ours(given.packed)[0].data),
        CONTENDERS[2]: (ours, lambda: ours(given.x, lengths=given.lengths)[0]),
        CONTENDERS[3]: (theirs, lambda: theirs(given.x)[0]),
    }


def demand_same(given: Rows) -> None:
    """Exit unless all have nn.LSTM's outputs up to the rows' ends, and where they are trained its gradients."""
    padded, _ = pad_packed_sequence(PackedSequence(given.packed.data.detach(), *given.packed[1:]), batch_first=True)
    weight = torch.cos(torch.arange(padded.shape[1]).float()).reshape(1, -1, 1)
    inside = (torch.arange(padded.shape[1]) < given.lengths[:, None]).unsqueeze(-1)
    weight = weight.expand(BATCH, -1, WIDTH) * inside
    packed_weight = pack_padded_sequence(weight, given.lengths, batch_first=True, enforce_sorted=False).data
    expected: list[Tensor] = []
    trained = padded.shape[1] <= LONGEST_TRAINED
    for name, (module, call) in calls(given).items():
        with torch.set_grad_enabled(trained):
            output = call()
        by_rows = output
        cotangent = weight
        if "packed" in name:
            by_rows = pad_packed_sequence(PackedSequence(output, *given.packed[1:]), batch_first=True)[0]
            cotangent = packed_weight
        found = [by_rows.detach() * inside]
        if trained:
            found += torch.autograd.grad((output * cotangent).sum(), list(module.parameters()))
        expected = expected or found
        demand_equal(f"longest {padded.shape[1]}", name, found, expected)


def measure(longest: int, seconds: float) -> dict[str, dict[str, Times]]:
    given = rows(longest)
    demand_same(given)
    contenders = calls(given)
    rounds = LONG_ROUNDS if longest >= LONG else ROUNDS

    def forward(call: Callable[[], Tensor]) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            call()

        return run

    def training(module: nn.Module, call: Callable[[], Tensor], x: Tensor) -> Callable[[], None]:
        leaves = [x, *module.parameters()]

        def run() -> None:
            torch.autograd.grad(call().sum(), leaves)

        return run

    times = {
        "forward": alternate(
            {name: forward(call) for name, (_, call) in contenders.items()}, seconds=seconds, rounds=rounds
        )
    }
    if longest <= LONGEST_TRAINED:
        times["training"] = alternate(
            {
                name: training(module, call, given.packed.data if "packed" in name else given.x)
                for name, (module, call) in contenders.items()
            },
            seconds=seconds,
            rounds=rounds,
        )
    return times


def lines(lengths: Sequence[int], seconds: float) -> list[str]:
    body = []
    for longest in lengths:
        for what, times in measure(longest, seconds).items():
            base = times[CONTENDERS[0]].median
            cells = [f"{t.median:.4g} ms, {base / t.median:.2f}x" for t in (times[name] for name in CONTENDERS)]
            body.append([f"{longest}", what, *cells])
            print(*body[-1], sep="  ", flush=True)
    return table(("longest row", "", *CONTENDERS), body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="the longest row of each batch")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line of the table")
    add_write(parser)
    arguments = parser.parse_args()
    print(*provenance())
    made = [
        f"Batch {BATCH}, input and hidden {WIDTH}, one layer; speed with nn.LSTM as 1.",
        "",
        *lines(arguments.lengths, arguments.seconds),
    ]
    print(*made, sep="\n")
    if arguments.write:
        write_section(arguments.write, "packed", made)


if __name__ == "__main__":
    main()
