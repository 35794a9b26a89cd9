"""How much of the processors a process gets: what its control group grants, and how to try a smaller share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PERIOD = 0.1  # seconds: the scheduler's default, after which a share is granted anew


@dataclass(frozen=True)
class Throttling:
    """`throttled` of `periods` periods ended early because the share was used up; `seconds` in all were waited."""

    periods: int
    throttled: int
    seconds: float

    def __sub__(self, earlier: Throttling) -> Throttling:
        return Throttling(
            self.periods - earlier.periods, self.throttled - earlier.throttled, self.seconds - earlier.seconds
        )


@dataclass(frozen=True)
class Held:
    """What `run_held` did: the child's exit status, what it printed, and how often it was stopped."""

    status: int
    output: str
    throttling: Throttling


def processors() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def granted(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups of this process grant; None where none of them sets a limit."""
    shares = [share for group in _groups(root) if (share := _share(group)) is not None]
    return min(shares, default=None)


def throttling(root: Path = Path("/")) -> Throttling | None:
    """The counters of the nearest control group that has them, since it was made; None where they can't be read."""
    for group in _groups(root):
        lines = (line.split() for line in (_read(group / "cpu.stat") or "").splitlines())
        counters = {words[0]: int(words[1]) for words in lines if len(words) == 2}
        if "nr_periods" in counters:
            waited = counters.get("throttled_usec", 0) / 1e6 + counters.get("throttled_time", 0) / 1e9
            return Throttling(counters["nr_periods"], counters["nr_throttled"], waited)
    return None


def run_held(command: Sequence[str], cpus: float) -> Held:
    """Run `command` on `cpus` processors' worth of time, as the scheduler's bandwidth control would, but unprivileged.

    In each period of 100 ms the child runs until its threads have used `cpus` x 100 ms together, and is stopped for the
    rest of it; what it used too much counts against the next. The kernel does this on every processor at once, this a
    few tenths of a millisecond later. Only on Linux; ValueError elsewhere and for a share that is not above 0.
    """
    if not sys.platform.startswith("linux"):
        raise ValueError(f"a quota can be tried on Linux alone, and this is {sys.platform}")
    if not 0 < cpus < float("inf"):
        raise ValueError(f"quota={cpus} must be above 0: the processors' worth of time, such as 0.5")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            throttled = _hold(child, cpus)
        finally:
            if child.poll() is None:
                child.kill()
                child.send_signal(signal.SIGCONT)
        assert child.stdout is not None
        return Held(child.returncode, child.stdout.read(), throttled)


def _hold(child: subprocess.Popen[str], cpus: float) -> Throttling:
    clock = (~child.pid << 3) | 2  # the CPU time of another process; clock_getcpuclockid(3) computes it so
    budget, periods, stops, waited = cpus * _PERIOD, 0, 0, 0.0
    begun, used_before = time.monotonic(), time.clock_gettime(clock)
    while child.poll() is None:
        used, now = time.clock_gettime(clock) - used_before, time.monotonic()
        if used >= budget and now < begun + _PERIOD:
            child.send_signal(signal.SIGSTOP)
            time.sleep(begun + _PERIOD - now)
            child.send_signal(signal.SIGCONT)
            stops, waited, now = stops + 1, waited + time.monotonic() - now, time.monotonic()
        if now >= begun + _PERIOD:
            periods, begun = periods + 1, now
            used_before += min(used, budget)
            if used < budget:
                used_before = time.clock_gettime(clock)
        # Not before this can its threads have used up the rest.
        time.sleep(max(0.0002, min((budget - used) / processors(), begun + _PERIOD - now)))
    return Throttling(periods, stops, waited)


def _groups(root: Path) -> Iterator[Path]:
    """Directories of the control groups that limit this process's time, the nearest first."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"] if number == "0" and not controllers else []
        if "cpu" in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"]
        mount = next((root / name for name in mounts if (root / name).is_dir()), None)
        if mount is None:
            continue
        group = mount / path.lstrip("/")
        yield group
        yield from (above for above in group.parents if above == mount or mount in above.parents)


def _share(group: Path) -> float | None:
    words = (_read(group / "cpu.max") or "").split()
    if not words:
        words = [(_read(group / f"cpu.cfs_{name}_us") or "").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(words) or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return None
