"""What torchrun tells each process that it starts: which of how many it is. Without torch, so that errors are quick."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

# Seconds in which another rank says what went wrong, before this one's exit makes torchrun end all of them.
TIME_TO_SPEAK = 2.0


@dataclass(frozen=True)
class Place:
    """Number `rank` of `size` processes, number `local` of `here` on this machine.

    They meet at a store at `address` and `port`, which torchrun has `opened`, or else rank 0 opens; `attempt` says how
    often they have been started again.
    """

    rank: int
    size: int
    local: int
    here: int
    address: str
    port: int
    opened: bool
    attempt: int

    @property
    def words(self) -> list[str]:
        """What started this program. Of several machines: where they meet is for torchrun to be told."""
        return [
            "torchrun",
            *(["--nproc-per-node", str(self.here)] if self.here == self.size else ["..."]),
            "-m",
            "unrolled",
        ]


def place() -> Place | None:
    """None for a process that torchrun did not start, and for one that it started alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in os.environ for name in names) or os.environ["WORLD_SIZE"] == "1":
        return None
    rank, size, local, here, address, port = (os.environ[name] for name in names)
    opened = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return Place(int(rank), int(size), int(local), int(here), address, int(port), opened, attempt)


def let_another_speak() -> None:
    """Wait for torchrun to end this process, since another one does; return if it does not."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(TIME_TO_SPEAK)


def let_the_first_speak() -> None:
    """`let_another_speak`, if this is not rank 0: what is wrong with a command, all ranks find at once."""
    here = place()
    if here is not None and here.rank:
        let_another_speak()
