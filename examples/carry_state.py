"""A long sequence in chunks: the state makes the cuts invisible, and what happens without it.

The input is a signal that is almost always 0 and now and then 1 or -1; the target is the last one that was not 0. Where
that lies in an earlier chunk, only the state can tell it. Takes a few seconds; needs no files.
"""

import torch
from torch import Tensor

from unrolled import LSTMState, MultiLayerLSTM

ROWS, TIME, CHUNK = 32, 200, 25


def signals() -> tuple[Tensor, Tensor]:
    """Signals [ROWS, TIME, 1], not 0 at step 0 and at one in 25 later ones, and the last of them at each step."""
    signal = torch.randint(2, (ROWS, TIME, 1)) * 2.0 - 1
    signal[:, 1:][torch.rand(ROWS, TIME - 1) > 1 / 25] = 0
    position = torch.arange(TIME).view(1, TIME, 1) * (signal != 0)
    return signal, signal.gather(1, position.cummax(1).values)


def train(carry: bool, passes: int = 30) -> MultiLayerLSTM:
    torch.manual_seed(0)
    model = MultiLayerLSTM(input_dim=1, hidden_dim=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(passes):
        signal, last = signals()
        state: LSTMState | None = None  # other signals: from zeros
        for x, target in zip(signal.split(CHUNK, dim=1), last.split(CHUNK, dim=1), strict=True):
            output, state = model(x, state)
            loss = (output - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = state.detach() if carry else None  # the numbers go on, the gradient stops here
    return model


@torch.no_grad()
def error_by_chunk(model: MultiLayerLSTM, carry: bool) -> list[float]:
    """The share of steps, chunk by chunk, at which the answer to new signals is off by more than a half."""
    signal, last = signals()
    state, errors = None, []
    for x, target in zip(signal.split(CHUNK, dim=1), last.split(CHUNK, dim=1), strict=True):
        output, state = model(x, state if carry else None)
        errors.append(((output - target).abs() > 0.5).float().mean().item())
    return errors


@torch.no_grad()
def largest_difference(model: MultiLayerLSTM, chunk: int) -> float:
    """Between a signal read at once and the same one read in chunks with the state carried."""
    signal, _ = signals()
    state, outputs = None, []
    for x in signal.split(chunk, dim=1):
        output, state = model(x, state)
        outputs.append(output)
    return float((torch.cat(outputs, dim=1) - model(signal)[0]).abs().max())


def main() -> None:
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    print(f"What was the last signal? Wrong answers in each of {TIME // CHUNK} chunks of {CHUNK} steps:\n")
    stateful = train(carry=True)
    for name, model, carry in (
        ("trained and run with the state carried", stateful, True),
        ("the same model, run without it", stateful, False),
        ("trained and run without it", train(carry=False), False),
    ):
        print(f"{name:40}" + "".join(f"{error:7.1%}" for error in error_by_chunk(model, carry)))

    print("\nWhere a sequence is cut makes no difference, as long as the state is carried:\n")
    for chunk in (1, 7, 100):
        print(f"chunks of {chunk:3}: largest difference to one call {largest_difference(stateful, chunk):.0e}")


if __name__ == "__main__":
    main()
