"""When to stop: a time limit, and the signals of a user or a job queue."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from idrc_jax.core import validate


class Deadline:
    """A time limit (0: none) that leaves room for the work in hand.

    `over` is true once what is left would not hold `margin_ticks` more ticks at the pace so far and a
    twentieth of the whole (at most a minute) for saving.
    """

    def __init__(self, minutes: float) -> None:
        self._limit = 60 * validate.at_least("max_minutes", minutes, 0) or math.inf
        self._start = time.monotonic()
        self._first_tick = math.nan
        self._ticks = 0
        self._pace = 0.0

    def expect(self, seconds_a_tick: float) -> None:
        """Set the pace until enough ticks have been seen to measure it."""
        self._pace = seconds_a_tick

    def tick(self, count: int = 1) -> None:
        """Note that `count` units of work are done."""
        now = time.monotonic()
        if self._ticks == 0:
            self._first_tick = now  # the first tick holds the compilation
        else:
            self._pace = (now - self._first_tick) / self._ticks
        self._ticks += count

    def over(self, *, margin_ticks: int = 1) -> bool:
        """Whether to stop now."""
        left = self._limit - (time.monotonic() - self._start)
        return left <= min(60.0, self._limit / 20) + margin_ticks * self._pace


@dataclass
class Interrupt:
    """Whether the user or the job queue has asked to stop."""

    requested: bool = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn Ctrl-C and SIGTERM into a request that a loop looks at, so that it stops between two steps.

    A second Ctrl-C stops at once. On leaving, a request becomes the KeyboardInterrupt that it was. Outside
    the main thread signals cannot be caught and nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def request(number: int, frame: object) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupt.requested:
        raise KeyboardInterrupt
