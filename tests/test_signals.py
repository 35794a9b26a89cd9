import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import unrolled
from unrolled.signals import stopped_by_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for a process alone")
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_stops_and_then_all_is_as_python_has_it(number):
    calls, before = [], [signal.getsignal(one) for one in SIGNALS]
    with stopped_by_signals(lambda: calls.append(1)) as signalled:
        assert signalled() is None
        signal.raise_signal(number)
        assert signalled() == number
        assert calls == [1]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert calls == [1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for a process alone")
def test_the_second_sigterm_ends_the_process_at_once():
    script = (
        "import signal\n"
        "from unrolled.signals import stopped_by_signals\n"
        "with stopped_by_signals(lambda: print('first', flush=True)):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('still there')\n"
    )
    here = str(Path(unrolled.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "first\n")


def test_in_another_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere():
        with stopped_by_signals(lambda: None) as signalled:
            seen.append((signal.getsignal(signal.SIGINT), signalled()))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(before, None)]
