"""Training and inference time of the open layer next to torch's closed one and to the loop that people write today.

All run in this process, alternating, on the same weights and inputs; figures are medians, and only the ratios mean
anything. Before anything is timed, outputs and gradients of every contender are compared. Needs the tests' folder.

    python benchmarks/recurrence.py [--rounds N] [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import unrolled

# batch, steps, input, hidden; the first two carry the promises that the last column names.
SHAPES = [
    (32, 128, 512, 512),
    (16, 128, 64, 64),
    (32, 64, 256, 256),
    (8, 128, 64, 256),
    (32, 50, 128, 128),
    (4, 1024, 128, 128),
]
PROMISES = {(32, 128, 512, 512): ("nn.LSTM", 1.35), (16, 128, 64, 64): ("LSTMCell loop", 0.5)}
Run = Callable[[], tuple[Tensor, ...]]


def contenders(shape: tuple[int, int, int, int]) -> dict[str, tuple[Run, Run]]:
    """Name to (forward and backward, forward alone); both return what is to be equal."""
    rows, steps, width, hidden = shape
    torch.manual_seed(0)
    layer = unrolled.LSTMLayer(width, hidden)
    closed, cell = torch.nn.LSTM(width, hidden, batch_first=True), torch.nn.LSTMCell(width, hidden)
    with torch.no_grad():
        for target in (closed, cell):
            suffix = "_l0" if target is closed else ""
            for kind, name in (("W_x", "weight_ih"), ("W_h", "weight_hh")):
                packed = torch.cat([getattr(layer, f"{kind}{gate}") for gate in "ifgo"], 1).t()
                getattr(target, name + suffix).copy_(packed)
            getattr(target, "bias_ih" + suffix).zero_()
            getattr(target, "bias_hh" + suffix).zero_()
    x = torch.randn(rows, steps, width, requires_grad=True)
    cotangent = torch.randn(rows, steps, hidden)

    def loop() -> Tensor:
        h = c = torch.zeros(rows, hidden)
        outputs = []
        for t in range(steps):
            h, c = cell(x[:, t], (h, c))
            outputs.append(h)
        return torch.stack(outputs, 1)

    forwards: dict[str, Callable[[], Tensor]] = {
        "unrolled": lambda: layer(x)[0],
        "nn.LSTM": lambda: closed(x)[0],
        "LSTMCell loop": loop,
    }

    def training(forward: Callable[[], Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            x.grad = None
            h = forward()
            h.backward(cotangent)
            assert x.grad is not None
            return h.detach(), x.grad

        return run

    def inference(forward: Callable[[], Tensor]) -> Run:
        def run() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (forward(),)

        return run

    return {name: (training(forward), inference(forward)) for name, forward in forwards.items()}


def check(runs: dict[str, Run]) -> None:
    """Exit unless all contenders compute the same, to within float32 rounding over a sequence."""
    expected = runs["nn.LSTM"]()
    for name, run in runs.items():
        for ours, theirs in zip(run(), expected, strict=True):
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
                sys.exit(f"{name} does not compute what nn.LSTM does; nothing was timed")


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def table(rounds: int) -> tuple[list[str], list[str]]:
    lines = [
        "| batch x steps x input x hidden | | unrolled | nn.LSTM | LSTMCell loop | of nn.LSTM | of the loop |",
        "|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for shape in SHAPES:
        contending = contenders(shape)
        for position, kind in enumerate(("training", "inference")):
            runs = {name: pair[position] for name, pair in contending.items()}
            check(runs)
            times = medians(runs, rounds)
            ours, closed, loop = (times[name] for name in ("unrolled", "nn.LSTM", "LSTMCell loop"))
            lines.append(
                f"| {'x'.join(map(str, shape))} | {kind} | {ours:.2f} ms | {closed:.2f} ms | {loop:.2f} ms "
                f"| {ours / closed:.2f} | {ours / loop:.2f} |"
            )
            print(lines[-1], flush=True)
            if kind == "training" and shape in PROMISES:
                peer, bound = PROMISES[shape]
                ratio = ours / times[peer]
                verdict = "holds" if ratio <= bound else "MISSED"
                verdicts.append(f"{'x'.join(map(str, shape))}: {ratio:.2f} of {peer}, at most {bound}: {verdict}")
    return lines, verdicts


def machine() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    revision = f", revision {commit.stdout.strip()}" if commit.returncode == 0 else ""
    threads = torch.get_num_threads()
    return f"{name}, {threads} threads, torch {torch.__version__}{revision}, {datetime.date.today()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--write", type=Path, help="put the table between this page's markers")
    arguments = parser.parse_args()
    print(machine())
    lines, verdicts = table(arguments.rounds)
    print(*verdicts, sep="\n")
    if arguments.write:
        page = arguments.write.read_text()
        before, rest = page.split("<!-- table: benchmarks/recurrence.py -->\n", 1)
        _, after = rest.split("<!-- end -->", 1)
        body = "\n".join([machine() + ".", "", *lines, "", *verdicts])
        arguments.write.write_text(f"{before}<!-- table: benchmarks/recurrence.py -->\n{body}\n<!-- end -->{after}")
    if any(verdict.endswith("MISSED") for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
