"""Work in a thread that can be told to stop between two of its steps: Ctrl-C reaches the main thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_current = threading.local()


class Cancelled(Exception):
    """What was being done is not wanted any more."""


@contextmanager
def cancel_scope(event: threading.Event | None) -> Iterator[None]:
    """Inside, `check` in this thread asks this event; None: no event at all."""
    before = getattr(_current, "event", None)
    _current.event = event
    try:
        yield
    finally:
        _current.event = before


def check_cancelled() -> None:
    """Raises Stopped where the event that this thread heeds is set; to be called between steps that take long."""
    event = current_cancel_event()
    if event is not None and event.is_set():
        raise Cancelled


def current_cancel_event() -> threading.Event | None:
    """The event that this thread heeds now, for another one that works for it."""
    return getattr(_current, "event", None)


def cancel_requested() -> Callable[[], bool]:
    """Whether the event that this thread heeds now is set, as a function that any thread may call."""
    event = current_cancel_event()
    return (lambda: False) if event is None else event.is_set
