"""How long a job may go on: its time limit, and the wish of a user or a job queue that it stop."""

import contextlib
import math
import signal
import threading
import time
from types import FrameType
from typing import Self

from idrc_jax.core import validate


class Budget:
    """The minutes that one job has, from when the budget is made (0: no limit), and whether it was asked to stop.

    As a context manager it turns Ctrl-C and SIGTERM into a request to stop: `over` is true from then on, so that a loop
    that asks ends between two steps. On leaving, a request becomes the KeyboardInterrupt that it was; a second signal
    is one at once. Outside the main thread signals cannot be caught and nothing changes.

    Attributes:
      minutes: the limit; 0 for none.
      interrupted: whether a signal has asked to stop.
    """

    def __init__(self, minutes: float = 0.0) -> None:
        self.minutes, self.interrupted = validate.at_least("max_minutes", minutes, 0), False
        self._limit = 60 * self.minutes or math.inf
        self._start = time.monotonic()
        self._first_tick = math.nan
        self._ticks = 0
        self._pace = 0.0
        self._signals = contextlib.ExitStack()

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

    def over(self, *, margin_ticks: int = 1, margin_seconds: float = 0.0) -> bool:
        """Whether to stop now: because a signal asked to, or because what is left would not hold `margin_ticks` more
        ticks at the pace so far, `margin_seconds` of other work and a twentieth of the whole (at most a minute) for
        saving."""
        left = self._limit - (time.monotonic() - self._start)
        return self.interrupted or left <= min(60.0, self._limit / 20) + margin_ticks * self._pace + margin_seconds

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._signals.callback(signal.signal, number, signal.signal(number, self._request))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._signals.close()
        if self.interrupted and kind is None:
            raise KeyboardInterrupt

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
