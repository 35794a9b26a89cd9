"""torchrun at the command line, and what it tells a process."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_scenarios import RANKS, environment, settings, sums

from unrolled.checkpoint import latest, load_training
from unrolled.cli import main
from unrolled.ranks import ALONE, RankError, joined
from unrolled.torchrun import TIME_TO_SPEAK, Place, place

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
TRAIN = ("unrolled", "train", "--config", "run.toml")


@pytest.mark.parametrize("size", [None, "1"])
def test_without_torchrun_or_with_one_process_there_is_no_process_group(
    monkeypatch: pytest.MonkeyPatch, size: str | None
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with joined("auto") as ranks:
        assert ranks == ALONE
        assert not torch.distributed.is_initialized()
    assert place() is None


def started(monkeypatch: pytest.MonkeyPatch, **differing: str) -> None:
    """As rank 1 of 2 on one machine, but for what is given."""
    variables = {"rank": "1", "size": "2", "local": "1", "here": "2", "address": "nowhere", "port": "1", **differing}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, variables.values(), strict=True):
        monkeypatch.setenv(name, value)


def test_what_torchrun_says_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, address="there", port="29500")
    expected = Place(rank=1, size=2, local=1, here=2, address="there", port=29500, opened=False, attempt=0)
    assert place() == expected
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert place() == dataclasses.replace(expected, opened=True, attempt=3)


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [TIME_TO_SPEAK])])
def test_what_is_wrong_with_a_command_rank_0_says_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, waits: list[float]
) -> None:
    started(monkeypatch, rank=rank)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    before = signal.getsignal(signal.SIGTERM)
    for mistake in (["--lanes", "0"], ["--lanse", "8"], ["--steps", "1", "--minutes", "1"]):
        slept.clear()
        with pytest.raises(SystemExit) as ended:
            main(["train", *mistake])
        assert ended.value.code != 0
        assert capsys.readouterr().err.startswith("unrolled: ")
        assert slept == waits
    signal.signal(signal.SIGTERM, before)


def test_ranks_wait_for_a_day_and_a_cuda_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, local="1")
    asked: list[Any] = []

    def refuse(backend: str, timeout: timedelta, **_: Any) -> None:
        asked.append((backend, timeout))
        raise RuntimeError("[some/gloo/pair.cc:537] Connection refused. This is typically caused by something. GLHF!")

    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *_, **__: torch.distributed.HashStore())
    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    for device in ("cpu", "auto"):
        with pytest.raises(RankError, match=r"can't be reached \(Connection refused\), and so all end"), joined(device):
            raise AssertionError("never inside")
    assert asked == [("gloo", timedelta(days=1)), 1, ("cpu:gloo,cuda:nccl", timedelta(days=1))]


@pytest.mark.parametrize(("size", "words"), [("2", ["--nproc-per-node", "2"]), ("4", ["..."])])
def test_the_command_to_go_on_with(monkeypatch: pytest.MonkeyPatch, size: str, words: list[str]) -> None:
    started(monkeypatch, size=size)
    assert place().words == ["torchrun", *words, "-m", "unrolled"]


def torchrun(directory: Path, *arguments: str, restarts: int = 0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, f"--max-restarts={restarts}", "-m", *arguments],
        cwd=directory,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(parent: int) -> dict[int, int]:
    """Process ids of the ranks that a torchrun has started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(some.removeprefix(b"RANK=")): int(child) for some in variables if some.startswith(b"RANK=")}
    return ranks


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """One that did could abort the process as it ends."""
    (tmp_path / "leave.py").write_text(
        "import weakref\n"
        "import torch.distributed as dist\n"
        "from unrolled.ranks import joined\n"
        "with joined('cpu') as ranks:\n"
        "    import torch._dynamo\n"
        "    group = weakref.ref(dist.group.WORLD)\n"
        "    assert ranks.size == 2\n"
        "assert group() is None\n"
    )
    process = subprocess.run([*TORCHRUN, "leave.py"], cwd=tmp_path, env=environment(), capture_output=True, timeout=120)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(tmp_path, monkeypatch)
    process = torchrun(tmp_path, *TRAIN, "--lanes", "5")
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert [line for line in told.splitlines() if line.startswith("unrolled: ")] == [
        "unrolled: lanes=5 can't be divided among 2 ranks, which take equally many; use --lanes 4 or --lanes 6"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks under /proc")
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_killed_ends_all_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    settings(tmp_path, monkeypatch)
    process = torchrun(tmp_path, *TRAIN, "--steps", "100000", "--quiet")
    while latest(tmp_path / "run") is None:
        assert process.poll() is None
        time.sleep(0.05)
    ranks = processes_of(process.pid)
    assert ranks.keys() == {0, 1}
    os.kill(ranks[victim], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    (said,) = [line for line in told.splitlines() if line.startswith("unrolled: ")]
    assert said.startswith("unrolled: another rank has ended or can't be reached (")
    assert said.endswith("), and so all end; the same command goes on from the newest model that was saved")
    saved = load_training(tmp_path / "run").record["step"]
    assert saved >= 10
    rest = subprocess.run(
        [sys.executable, "-m", *TRAIN, "--steps", str(saved + 1), "--quiet"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=120,
    )
    assert rest.returncode == 0, rest.stderr
    assert load_training(tmp_path / "run").record["step"] == saved + 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks under /proc")
def test_torchrun_that_may_restart_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(tmp_path, monkeypatch)
    long = ("--steps", "1000", "--eval-every", "500", "--save-every", "50", "--dropout", "0.2", "--quiet")
    process = torchrun(tmp_path, *TRAIN, *long, restarts=1)
    while not (tmp_path / "run" / "step-00000100").is_dir():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(processes_of(process.pid)[1], signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    process = torchrun(tmp_path, *TRAIN, *long, "--out", str(tmp_path / "whole"))
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert sums(tmp_path / "run" / "step-00001000") == sums(tmp_path / "whole" / "step-00001000")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_that_is_interrupted_saves_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """And 2 ranks by torchrun, then 2 more, are the undisturbed run to the bit."""
    settings(tmp_path, monkeypatch)
    long = ("--steps", "800", "--eval-every", "400", "--save-every", "400", "--dropout", "0.2")
    process = torchrun(tmp_path, *TRAIN, *long)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and '"step": 20,' in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    stopped = load_training(tmp_path / "run").record["step"]
    assert 20 <= stopped < 800
    assert f"Stopped at step {stopped} of 800, saved. To go on:" in said
    assert "torchrun --nproc-per-node 2 -m unrolled train --config run/config.toml" in said.replace(
        str(tmp_path) + "/", ""
    )
    for out in ("run", "whole"):
        process = torchrun(tmp_path, *TRAIN, *long, "--out", str(tmp_path / out), "--quiet")
        _, told = process.communicate(timeout=200)
        assert process.returncode == 0, told
    assert sums(tmp_path / "run" / "step-00000800") == sums(tmp_path / "whole" / "step-00000800")
