"""Cancellation of work in threads: a thread polls an event between its steps. Ctrl-C reaches the main thread only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_current = threading.local()


class Cancelled(Exception):
    """The work was cancelled."""


@contextmanager
def cancel_scope(event: threading.Event | None) -> Iterator[None]:
    """Inside, `check_cancelled()` in this thread polls this event (None: no event)."""
    before = getattr(_current, "event", None)
    _current.event = event
    try:
        yield
    finally:
        _current.event = before


def check_cancelled() -> None:
    """Raise Cancelled if this thread's event is set; called between long steps."""
    event = current_cancel_event()
    if event is not None and event.is_set():
        raise Cancelled


def current_cancel_event() -> threading.Event | None:
    """This thread's event, for passing it on to helper threads."""
    return getattr(_current, "event", None)


def cancel_requested() -> Callable[[], bool]:
    """Return a function, callable from any thread, that returns whether this thread's event is set."""
    event = current_cancel_event()
    return (lambda: False) if event is None else event.is_set
