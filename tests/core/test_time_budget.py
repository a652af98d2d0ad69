"""A job stops in time, and between two steps when it is asked to."""

import os
import signal
import threading
import time

import pytest

from idrc_jax.core.time_budget import Budget


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_no_limit_is_never_over(monkeypatch):
    clock = Clock(monkeypatch)
    budget = Budget()
    clock.now += 1e9
    assert not budget.over()


def test_it_stops_while_there_is_room_for_the_work_in_hand(monkeypatch):
    """Ten minutes, 20 s a tick after a first tick of 60 s: the last start is before 600 - 30 - 2 * 20 s."""
    clock = Clock(monkeypatch)
    budget = Budget(10)
    clock.now += 60
    budget.tick()
    while not budget.over(margin_ticks=2):
        clock.now += 20
        budget.tick()
    assert 600 - 30 - 2 * 20 - 20 < clock.now - 100 <= 600 - 30


def test_it_keeps_time_for_what_comes_between_ticks(monkeypatch):
    clock = Clock(monkeypatch)
    budget = Budget(10)
    clock.now += 500
    assert not budget.over(margin_ticks=0, margin_seconds=60)
    assert budget.over(margin_ticks=0, margin_seconds=80)


def test_an_expected_pace_counts_before_the_first_tick(monkeypatch):
    clock = Clock(monkeypatch)
    budget = Budget(1)
    budget.expect(50)
    assert not budget.over()
    clock.now += 8
    assert budget.over()


def test_negative_limits_are_refused():
    with pytest.raises(ValueError, match="max_minutes >= 0"):
        Budget(-1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_request_and_then_ctrl_c(number):
    steps, before = 0, signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Budget() as budget:  # noqa: PT012
        for _ in range(10):
            if budget.over():
                break
            steps += 1
            if steps == 3:
                os.kill(os.getpid(), number)
    assert steps == 3
    assert budget.interrupted
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    before, reached = signal.getsignal(signal.SIGTERM), False
    with pytest.raises(KeyboardInterrupt), Budget():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert not reached
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_inside_is_told_rather_than_the_request():
    with pytest.raises(OSError, match="disk"), Budget():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("disk")


def test_outside_the_main_thread_nothing_is_caught():
    seen, before = [], signal.getsignal(signal.SIGINT)

    def work():
        with Budget() as budget:
            seen.append((budget.over(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
