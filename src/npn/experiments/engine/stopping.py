"""Reasons to stop a run before its end: a signal, or a limit of time."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from npn.errors import ConfigurationError

MARGIN = 1.1  # the next epoch may take so much longer than the longest of the last three


class Interrupted(Exception):
    """A signal stopped the run; it can be resumed."""


class OutOfTime(Interrupted):
    """The next epoch would have ended after the limit of time; the run can be resumed."""


class Deadline:
    """A limit of wall-clock time.

    Args:
        minutes: from now; None for no limit.

    Raises:
        ConfigurationError: `minutes` is not above 0.
    """

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and not minutes > 0:
            raise ConfigurationError(f"the minutes to stop after must be above 0, got {minutes}")
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._epochs: list[float] = []

    def epoch(self, seconds: float) -> None:
        """Record the length of an epoch.

        Args:
            seconds: that it took.
        """
        self._epochs = [*self._epochs[-2:], seconds]

    def left(self) -> float | None:
        """Return the minutes that are left, for several runs under one limit; None for no limit.

        Raises:
            OutOfTime: none are left.
        """
        if self._end is None:
            return None
        minutes = (self._end - time.monotonic()) / 60
        if minutes <= 0:
            raise OutOfTime
        return minutes

    @property
    def near(self) -> bool:
        """Whether another epoch would end after the limit, judged by the last three."""
        if self._end is None or not self._epochs:
            return False
        return time.monotonic() + MARGIN * max(self._epochs) > self._end


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set the flag at the first SIGINT or SIGTERM, to be read between epochs; a second SIGINT stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may catch signals
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
