"""Children that save without end, each killed at a random moment; then every model directory has to verify.

`python tests/kill_while_saving.py DIRECTORY RUNS` prints how many were killed, how many model directories were verified
and how many kills left half a model or half a removal behind; it fails at the first directory that can't be loaded.

The children are forked from one parent that has imported torch and has run nothing in parallel.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from unrolled.checkpoint import Training, latest, load, load_training, save_step
from unrolled.model import LanguageModel, ModelConfig
from unrolled.tokens import ByteTokenizer

# Long enough that a save takes some milliseconds more than the wait for the disk.
MODEL = ModelConfig(256, hidden=96, layers=2, embedding=32)
LONGEST = 0.15
TO_VERIFY = 8


def save_for_ever(run: Path) -> None:
    newest = latest(run)
    step = int(newest.name[5:]) if newest else 0
    model = LanguageModel(MODEL)
    while True:
        step += 1
        with torch.no_grad():
            model.lstm.proj.bias.fill_(step)
        training = Training({"step": step}, {"step": torch.tensor(step)})
        save_step(run, step, model, ByteTokenizer(), training, keep=2, best=step % 3 == 0)


def killed_child(run: Path, delay: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(run)
        finally:
            os._exit(3)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit(f"a child ended by itself: {os.waitstatus_to_exitcode(status)}")


def verified(run: Path) -> int:
    """How many model directories there are; a CheckpointError or a DiskWarning if one can't be loaded."""
    steps = [path for path in run.iterdir() if path.name.startswith("step-") and ".tmp-" not in path.name]
    for path in steps:
        loaded, training = load(path), load_training(path)
        step = int(path.name[5:])
        bias = loaded.model.lstm.proj.bias
        assert bias is not None
        assert loaded.training == {"step": step}
        assert training.tensors["step"] == step == bias[0]
    if (run / "latest").exists():
        newest = load(run).directory
        assert newest == latest(run)
        assert max(int(path.name[5:]) for path in steps) - int(newest.name[5:]) <= 1
    if (run / "best").exists():
        assert int(load(run, "best").directory.name[5:]) % 3 == 0
    return len(steps)


def main(directory: Path, runs: int) -> None:
    torch.set_num_threads(1)
    moments = random.Random(4)
    models = leftovers = 0
    for number in range(runs):
        run = directory / f"run-{number // TO_VERIFY}"  # the next children go on from what this one leaves
        run.mkdir(exist_ok=True)
        killed_child(run, moments.uniform(0, LONGEST))
        leftovers += any(".tmp-" in path.name for path in run.iterdir())
        models += verified(run)
    sys.stdout.write(f"{runs} {models} {leftovers}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
