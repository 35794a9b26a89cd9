"""The processes that train one model together: who this one is, and all that they say to each other.

The process group is the caller's, or torchrun's (`joined`). What is said beside numbers is JSON: torch's own way to
send objects would unpickle them.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .torchrun import Place, let_another_speak, place

# Rank 0 encodes, evaluates and saves alone, and the others wait for as long as that may take; a process that dies ends
# the waiting at once, since its connections close.
LONGEST_WAIT = timedelta(days=1)
_SPOKEN = "spoken"

_T = TypeVar("_T")


class RankError(ValueError):
    """Ranks that can't go on together; the message says why, and what to do."""


class RankLostError(RankError):
    """Another rank has ended, or can't be reached."""


class ElsewhereError(RankError):
    """What went wrong on another rank, which says so itself."""


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`, and number `local` on its machine; alone, everything is this process's.

    Every method but `share` is called by all ranks, in the same order. Raises RankLostError where one of them is gone.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def present(cls) -> Ranks:
        """Those of the process group that is initialised; one alone where none is."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        rank, here = dist.get_rank(), place()
        return cls(rank, dist.get_world_size(), rank if here is None else here.local)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone logs, prints, evaluates, samples and saves."""
        return self.rank == 0

    def share(self, lanes: int) -> slice:
        """Which of the lanes are this rank's. RankError where they can't be divided."""
        each, rest = divmod(lanes, self.size)
        if rest:
            fits = [str(self.size * count) for count in (each, each + 1) if count]
            raise RankError(
                f"lanes={lanes} can't be divided among {self.size} ranks, which take equally many; use --lanes "
                f"{' or --lanes '.join(fits)}"
            )
        return slice(self.rank * each, (self.rank + 1) * each)

    def told(self, work: Callable[[], _T]) -> _T:
        """What `work` returns on rank 0, which alone does it: plain values, as JSON has them (a tuple becomes a list).

        What it raises there, it raises; the others raise ElsewhereError.
        """
        if self.size == 1:
            return work()
        if not self.is_first:
            said = self._hear()
            if "error" in said:
                raise ElsewhereError(f"rank 0: {said['error']}")
            value: _T = said["value"]
            return value
        try:
            value = work()
        except Exception as error:
            self._say({"error": str(error)})
            raise
        self._say({"value": value})
        return value

    def in_turn(self, work: Callable[[], _T]) -> _T:
        """What `work` returns here; rank 0 does it first, then one rank of each machine, then the rest.

        So that what one leaves on the disk, the others find. Where it raises on one, the others raise ElsewhereError.
        """
        if self.size == 1:
            return work()
        turn = 0 if self.is_first else 1 if self.local == 0 else 2
        done: list[_T] = []
        for now in range(3):
            if now == turn:
                try:
                    done.append(work())
                except Exception:
                    self.any(True)
                    raise
            if self.any(False):
                raise ElsewhereError("another rank could not begin")
        return done[0]

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        if self.size == 1:
            return here
        flag = torch.tensor([int(here)], device=self._device)
        with _connected():
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def add(self, numbers: Tensor) -> None:
        """Put the sum of all ranks' numbers in the place of this one's; the same bits on all."""
        if self.size > 1:
            with _connected():
                dist.all_reduce(numbers)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Put rank 0's numbers in the place of this rank's."""
        if self.size == 1:
            return
        for tensor in tensors:
            moving = tensor.detach().to(self._device_for(tensor)).contiguous()
            with _connected():
                dist.broadcast(moving, 0)
            with torch.no_grad():
                tensor.copy_(moving)

    def gathered(self, tensor: Tensor, axis: int) -> Tensor:
        """Every rank's tensor, of one shape, one behind the other along an axis."""
        if self.size == 1:
            return tensor
        own = tensor.detach().to(self._device_for(tensor)).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _connected():
            dist.all_gather(parts, own)
        return torch.cat(parts, axis).to(tensor.device)

    def _say(self, value: dict[str, Any]) -> None:
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with _connected():
            dist.broadcast(torch.tensor([data.numel()], device=self._device), 0)
            dist.broadcast(data.to(self._device), 0)

    def _hear(self) -> Any:
        length = torch.zeros(1, dtype=torch.int64, device=self._device)
        with _connected():
            dist.broadcast(length, 0)
            data = torch.empty(int(length.item()), dtype=torch.uint8, device=self._device)
            dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    @property
    def _device(self) -> torch.device:
        """Where numbers have to be to be sent: in memory, unless the group can send from CUDA devices alone."""
        return torch.device("cpu" if "gloo" in dist.get_backend_config() else "cuda")

    def _device_for(self, tensor: Tensor) -> torch.device:
        return tensor.device if tensor.device.type == "cuda" else self._device


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Inside, the ranks that torchrun started, this process among them; without torchrun, this process alone.

    With torchrun an error ends the process. What several ranks come to is said by one, rank 0 if that is among them.
    """
    here = place()
    if here is None:
        yield ALONE
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.is_available():
        torch.cuda.set_device(here.local % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo"
    # Optimisers import it, and its functions take the group that there is then as their default: that would keep the
    # group's threads alive into the interpreter's end, which they can abort.
    from torch.distributed.nn import functional  # noqa: F401

    with _connected():
        store = _store(here)
        dist.init_process_group(backend, timeout=LONGEST_WAIT, store=store, rank=here.rank, world_size=here.size)
    ranks = Ranks.present()
    try:
        yield ranks
    except (ValueError, OSError) as error:
        # What torchrun ends the others with must not end the one that speaks.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not (ranks.is_first or isinstance(error, RankLostError)):
            let_another_speak()
        if not isinstance(error, ElsewhereError) and _speaks_first(store):
            raise SystemExit(f"unrolled: {error}") from None
        let_another_speak()
        raise SystemExit(1) from None
    else:
        ranks.any(False)  # so that nobody closes its connections while another one still prints
        dist.destroy_process_group()


def _store(here: Place) -> Any:
    # torchrun keeps one store through all attempts, and an earlier one's addresses lead nowhere.
    store = dist.TCPStore(here.address, here.port, is_master=here.rank == 0 and not here.opened)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"unrolled/{here.attempt}", store)  # type: ignore[attr-defined]


def _speaks_first(store: Any) -> bool:
    try:
        return bool(store.add(_SPOKEN, 1) == 1)
    except RuntimeError:  # the store was that of a process which is gone
        return True


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Without gloo's place in its sources in front, and its guesses behind.
        reason = re.sub(r"^\[.*?\] |\. This is.*|\n.*", "", str(error).strip(), flags=re.DOTALL)
        raise RankLostError(
            f"another rank has ended or can't be reached ({reason}), and so all end; the same command goes on from the "
            "newest model that was saved"
        ) from None
