"""What every test starts from: torch's global settings, a generator state that its order does not decide, and memory
that betrays a missing write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest
import torch

from unrolled.recurrence import kernels
from unrolled.recurrence.memory import Pool

# The tensors of tests are small: a second thread gains nothing, and where the machine has other work, threads that wait
# for each other take a hundred times as long. The variable tells the interpreters that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline would make a slow machine fail a correct program; the printed blob replays a failure anywhere.
hypothesis.settings.register_profile("unrolled", deadline=None, print_blob=True)
hypothesis.settings.load_profile("unrolled")


@contextmanager
def settings_kept() -> Iterator[None]:
    """Leave torch's process-wide settings as they were, whatever happens inside."""
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


@pytest.fixture(autouse=True)
def _own_world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draw what a test leaves unseeded from the seed that pytest prints first; `--randomly-seed=N` repeats a run.

    pytest-randomly does so for `random` and numpy, not for torch.
    """
    with settings_kept():
        torch.manual_seed(request.config.getoption("randomly_seed", 0))
        yield


@pytest.fixture
def seed() -> int:
    """The seed of a test whose numbers must be the same in every run: torch's generator starts from it."""
    torch.manual_seed(1997)
    return 1997


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN (integers: their largest value), so that whatever reads before it writes shows."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fresh(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.dtype == torch.bool:
                return tensor.fill_(True)
            if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
                return tensor.fill_(float("nan"))
            return tensor.fill_(torch.iinfo(tensor.dtype).max)

        return fresh

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))
    # Memory that is taken again is not fresh, but as unknown.
    monkeypatch.setattr(Pool, "empty", poisoned(Pool.empty))
    monkeypatch.setattr(kernels, "kept", poisoned(kernels.kept))


@pytest.fixture
def call(capsys):
    """The command line in this process: exit code, standard output, standard error."""
    from unrolled.cli import main

    def call(*tokens):
        try:
            main(list(tokens))
            code = 0
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
