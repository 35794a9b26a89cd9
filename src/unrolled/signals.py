"""Ctrl-C and SIGTERM in a run: the first one lets it end well, the second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[Callable[[], int | None]]:
    """Inside, the first Ctrl-C or SIGTERM calls `stop`; yields what tells its number, None while none has come.

    After the first one both are as Python has them: Ctrl-C raises KeyboardInterrupt, SIGTERM ends the process. Only the
    main thread may handle signals: in another one nothing is changed.
    """
    came: list[int] = []

    def first(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop()

    def number() -> int | None:
        return came[0] if came else None

    if threading.current_thread() is not threading.main_thread():
        yield number
        return
    before = {one: signal.signal(one, first) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield number
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
