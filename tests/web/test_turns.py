"""The queue: who finds no place, who waits too long, and who works too long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from fairweather.inference.cancellation import Cancelled, check_cancelled
from fairweather.web.jobs import RETRY, RequestQueue
from fairweather.web.limits import Limits, RequestRefused


def test_places_are_counted_and_come_back() -> None:
    turns = RequestQueue(Limits(at_once=1, waiting=1))
    with turns.place(), turns.place():
        assert turns.taken == 2
        with pytest.raises(RequestRefused) as wrong, turns.place():
            pass
        assert (wrong.value.status, wrong.value.kind, wrong.value.retry) == (503, "busy", RETRY)
    assert turns.taken == 0
    with pytest.raises(ZeroDivisionError), turns.place():
        _ = 1 / 0
    assert turns.taken == 0


def test_no_more_than_at_once_are_worked_on() -> None:
    turns, inside, most, lock = RequestQueue(Limits(at_once=2, waiting=9)), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1

    for future in [turns.submit(work)[0] for _ in range(8)]:
        future.result(5)
    assert most == 2


def test_overdue_work_is_told_to_stop() -> None:
    turns, stopped = RequestQueue(Limits(at_once=1, seconds=0.1)), threading.Event()

    def work() -> None:
        try:
            while True:
                check_cancelled()
                time.sleep(0.01)
        finally:
            stopped.set()

    began = time.monotonic()
    with pytest.raises(RequestRefused, match="too long") as wrong:
        turns.submit(work)[0].result(5)
    assert wrong.value.status == 504
    assert stopped.is_set()
    assert time.monotonic() - began < 2


def test_who_waits_too_long_is_not_begun() -> None:
    turns, begun = RequestQueue(Limits(at_once=1, seconds=0.1)), []
    turns.submit(lambda: time.sleep(0.3))
    late, _ = turns.submit(lambda: begun.append(1))
    with pytest.raises(RequestRefused, match="waited too long"):
        late.result(5)
    assert not begun


def test_who_leaves_is_not_begun() -> None:
    turns, begun = RequestQueue(Limits(at_once=1)), []
    turns.submit(lambda: time.sleep(0.1))
    future, leave = turns.submit(lambda: begun.append(1))
    leave()
    with pytest.raises(CancelledError):
        future.result(5)
    assert not begun


def test_the_end_stops_what_is_done(web: None, tmp_path: Path) -> None:
    from fairweather.web.jobs import PhotoService

    service, begun = PhotoService(Limits(at_once=1), parent=tmp_path), threading.Event()

    def work() -> None:
        with service.told(tmp_path, "harbour.jpg"):
            begun.set()
            try:
                while True:
                    check_cancelled()
                    time.sleep(0.01)
            except Cancelled:
                raise RuntimeError("cannot schedule new futures after shutdown") from None

    future, _ = service.turns.submit(work)
    assert begun.wait(5)
    service.close()
    with pytest.raises(RequestRefused) as wrong:
        future.result(5)
    assert wrong.value.status == 504, "it is logged as a fault of ours"
