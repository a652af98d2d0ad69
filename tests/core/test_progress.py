import json
import os
import signal
import threading

import pytest

from idrc_jax.core import budget, files, progress
from idrc_jax.core.budget import Deadline


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_no_limit_is_never_over(monkeypatch):
    clock = Clock(monkeypatch)
    deadline = Deadline(0)
    clock.now += 1e9
    assert not deadline.over()


def test_it_stops_while_there_is_room_for_the_work_in_hand(monkeypatch):
    """Ten minutes, 20 s a tick after a first tick of 60 s: the last start is before 600 - 30 - 2 * 20 s."""
    clock = Clock(monkeypatch)
    deadline = Deadline(10)
    clock.now += 60
    deadline.tick()
    while not deadline.over(margin_ticks=2):
        clock.now += 20
        deadline.tick()
    assert 600 - 30 - 2 * 20 - 20 < clock.now - 100 <= 600 - 30


def test_an_expected_pace_counts_before_the_first_tick(monkeypatch):
    clock = Clock(monkeypatch)
    deadline = Deadline(1)
    deadline.expect(50)
    assert not deadline.over()
    clock.now += 8
    assert deadline.over()


def test_negative_limits_are_refused():
    with pytest.raises(ValueError, match="max_minutes >= 0"):
        Deadline(-1)


def test_ctrl_c_becomes_a_request_and_then_itself():
    steps, before = 0, signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), budget.interruptible() as interrupt:  # noqa: PT012
        for _ in range(10):
            if interrupt.requested:
                break
            steps += 1
            if steps == 3:
                os.kill(os.getpid(), signal.SIGINT)
    assert steps == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once():
    reached = False
    with pytest.raises(KeyboardInterrupt), budget.interruptible():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert not reached


def test_interruptible_works_outside_the_main_thread():
    seen = []

    def work():
        with budget.interruptible() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_status_is_json_and_replaced_whole(tmp_path):
    for done in (3, 5):
        progress.write_status(tmp_path / "s.json", "train", done=done, total=5)
    assert json.loads((tmp_path / "s.json").read_text()) == {"job": "train", "finished": True, "done": 5, "total": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]
