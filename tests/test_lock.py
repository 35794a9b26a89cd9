"""One trainer for a directory: between processes and threads, gone with its process, a sentence for each refusal."""

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import unrolled.lock
from unrolled.disk import DiskWarning
from unrolled.lock import LOCK_FILE, LockedError, locked

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import sys
from pathlib import Path
from unrolled.disk import DiskWarning
from unrolled.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    with holding(tmp_path) as child:
        since = json.loads((tmp_path / LOCK_FILE).read_text())["since"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since)
        for _ in range(2):
            with pytest.raises(LockedError) as refused, locked(tmp_path):
                pytest.fail("two hold the lock")
            assert str(refused.value) == (
                f"{tmp_path} is being trained by process {child.pid} on {socket.gethostname()}, since {since}; wait "
                "until that has ended, or name another directory with --out"
            )
        child.communicate()
    with locked(tmp_path):
        pass


def test_a_forked_child_that_outlives_the_run_holds_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.close(writing)
        assert os.waitpid(child, 0) == (child, 0)
        os.close(reading)


def test_it_ends_with_a_killed_process(tmp_path: Path) -> None:
    with holding(tmp_path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == child.pid, "what the dead one wrote is no lock"
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_threads_of_one_process_are_two_trainers(tmp_path: Path) -> None:
    said: list[str] = []

    def second() -> None:
        try:
            with locked(tmp_path):
                pass
        except LockedError as error:
            said.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    (sentence,) = said
    assert f"is being trained by this process ({os.getpid()}), since " in sentence


def test_it_is_given_back_also_after_an_error_and_the_file_stays(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
    assert (tmp_path / LOCK_FILE).read_text() == "{}"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 3}', "\xff" * 2000])
def test_a_file_that_says_nothing(tmp_path: Path, text: str) -> None:
    with (tmp_path / LOCK_FILE).open("w", encoding="latin-1") as file:
        file.write(text)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="is being trained by another process; wait"), locked(tmp_path):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.warns(
            DiskWarning, match=r"has no locks \(.+\): see to it that no second trainer writes there"
        ) as record,
        locked(tmp_path),
    ):
        assert (tmp_path / LOCK_FILE).read_bytes() == b""
    assert [warning.filename for warning in record] == [__file__]


def test_other_errors_of_the_file_system_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass


def test_a_full_disk_does_not_keep_it_from_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unrolled.lock, "open", lambda path, *_, **__: Full(path, "a+"), raising=False)
    with locked(tmp_path), pytest.raises(LockedError, match="another process"), locked(tmp_path):
        pass
