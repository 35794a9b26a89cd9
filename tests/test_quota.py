import sys
import time
from pathlib import Path

import pytest

from unrolled import quota
from unrolled.quota import Throttling, granted, processors, run_held, throttling

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups and process clocks are Linux's")

STAT = "usage_usec 5\nnr_periods 40\nnr_throttled 12\nthrottled_usec 1500000\n"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINES = {
    "version 2": (
        "0::/user/box\n",
        {"cpu.max": "max 100000\n", "user/cpu.max": "max 100000\n", "user/box/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "the tightest of several counts": (
        "0::/user/box\n",
        {"user/cpu.max": "150000 100000\n", "user/box/cpu.max": "300000 100000\n"},
        1.5,
    ),
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "the root, which has no such file": ("0::/\n", {"cgroup.procs": ""}, None),
    "version 1": (
        "4:memory:/a\n3:cpu,cpuacct:/docker/a\n",
        {"cpu,cpuacct/docker/a/cpu.cfs_quota_us": "20000\n", "cpu,cpuacct/docker/a/cpu.cfs_period_us": "10000\n"},
        2.0,
    ),
    "version 1, under its short name": (
        "1:cpu:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "25000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        0.25,
    ),
    "version 1 without a limit": (
        "1:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "another system": ("", {}, None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_the_share_that_control_groups_grant(name, tmp_path):
    cgroup, files, share = MACHINES[name]
    assert granted(machine(tmp_path, cgroup, files)) == share


def test_the_counters_of_the_nearest_group():
    assert Throttling(5, 3, 0.5) - Throttling(1, 1, 0.25) == Throttling(4, 2, 0.25)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b\n", {"a/cpu.stat": STAT, "a/b/cpu.stat": "usage_usec 1\n"}, Throttling(40, 12, 1.5)),
        (
            "2:cpu:/a\n",
            {"cpu/a/cpu.stat": "nr_periods 7\nnr_throttled 0\nthrottled_time 3000000000\n"},
            Throttling(7, 0, 3.0),
        ),
        ("0::/\n", {"cpu.stat": "usage_usec 1\n"}, None),
        ("", {}, None),
    ],
)
def test_throttling_is_read(cgroup, files, expected, tmp_path):
    assert throttling(machine(tmp_path, cgroup, files)) == expected


def test_of_this_process():
    assert processors() >= 1
    share = granted()
    assert share is None or share > 0


@linux
def test_a_process_is_held_to_its_share():
    """Until it has used 60 ms: at a tenth of a processor that is 10 ms in each of six periods."""
    program = "import time; print('ready')\nwhile time.process_time() < start + 0.06: pass".replace(
        "\n", "\nstart = time.process_time()\n", 1
    )
    begun = time.monotonic()
    held = run_held([sys.executable, "-c", program], 0.1)
    assert (held.status, held.output) == (0, "ready\n")
    assert held.throttling.throttled >= 4
    assert held.throttling.periods >= held.throttling.throttled - 1
    assert 0 < held.throttling.seconds < time.monotonic() - begun


@linux
def test_a_process_that_waits_is_not_stopped():
    held = run_held([sys.executable, "-S", "-c", "import time; time.sleep(0.3)"], 50)
    assert held.status == 0
    assert held.throttling.throttled == 0
    assert held.throttling.periods >= 2


@linux
def test_the_status_is_handed_on():
    assert run_held([sys.executable, "-c", "import sys; sys.exit(3)"], 1).status == 3


@linux
def test_an_interruption_leaves_no_stopped_process(monkeypatch):
    started = []

    def interrupted(child, cpus):
        started.append(child)
        child.send_signal(quota.signal.SIGSTOP)
        raise KeyboardInterrupt

    monkeypatch.setattr(quota, "_hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_held([sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert started[0].wait(timeout=10) != 0


def test_what_cannot_be_tried_is_refused(monkeypatch):
    for share in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"quota=.* must be above 0: the processors' worth of time, such as 0.5"):
            run_held(["true"], share)
    monkeypatch.setattr(quota.sys, "platform", "darwin")
    with pytest.raises(ValueError, match="a quota can be tried on Linux alone, and this is darwin"):
        run_held(["true"], 0.5)
