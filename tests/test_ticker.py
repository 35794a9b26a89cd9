"""What the line that tells of progress leaves behind."""

import io
import sys

import pytest

from unrolled.ticker import Ticker


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch):
    """The time, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(sys.modules["unrolled.ticker"].time, "monotonic", lambda: now[0])
    return now


def test_a_line_on_a_terminal_is_overwritten_and_gone_in_the_end(now):
    stream = Terminal()

    def interrupted() -> None:
        with Ticker(stream) as ticker:
            for now[0] in (1.4, 1.6, 1.7, 1.9):
                ticker.show("blocks", int(10 * now[0]), 20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    first, second, *rest = stream.getvalue().split("\r")[1:]
    assert (first.rstrip(), second.rstrip()) == ("blocks: 80%", "blocks: 95%")
    assert len(first) == len(second)
    assert rest == [" " * len(first), ""]


def test_elsewhere_it_is_silent_until_it_takes_long(now):
    stream = io.StringIO()
    with Ticker(stream) as ticker:
        for now[0] in (1.0, 2.0, 6.0, 7.5, 8.0):
            ticker.show("stateful", int(2 * now[0]), 20)
    assert stream.getvalue() == "stateful: 20%\nstateful: 75%\n"
