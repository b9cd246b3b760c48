"""The queue: a bounded number of requests inside, of which a few are worked on, each in a thread, for a bounded time.

A place is taken before a request's body is received, so that bodies on disk are bounded too. Work that is overdue is
told to stop (`restoring.stopping`); it gives its thread back at the next step that looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from fairweather.restoring.stopping import Stopped, heeding
from fairweather.web.limits import Limits, Refused

T = TypeVar("T")
RETRY = 5
"""Seconds after which a request that found no place may come again."""


class Turns:
    """Places for requests, and the threads that work for them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._room = limits.at_once + limits.waiting
        self._taken = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(limits.at_once, "turn")
        self._stops: set[threading.Event] = set()
        """Of all that waits or is worked on."""

    @property
    def taken(self) -> int:
        """How many requests are inside."""
        return self._taken

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be inside. Raises Refused (503) at once where all places are taken."""
        with self._lock:
            if self._taken >= self._room:
                raise Refused(
                    503, "busy", f"the server is busy with {self._taken} requests; try again in {RETRY} s", RETRY
                )
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def submit(self, work: Callable[[], T]) -> tuple[Future[T], Callable[[], None]]:
        """Have work done when its turn comes; gives its future, and what to call when nobody waits for it any more.

        The future raises what `work` raises, and Refused (504) where time ran out before the end.
        """
        stop, deadline = threading.Event(), time.monotonic() + self.limits.seconds

        def run() -> T:
            if stop.is_set() or time.monotonic() > deadline:
                raise self._overdue("waited too long for its turn")
            timer = threading.Timer(deadline - time.monotonic(), stop.set)
            timer.daemon = True
            timer.start()
            try:
                with heeding(stop):
                    return work()
            except Stopped:
                raise self._overdue("took too long") from None
            finally:
                timer.cancel()

        future = self._pool.submit(run)
        self._stops.add(stop)
        future.add_done_callback(lambda done: self._stops.discard(stop))

        def leave() -> None:
            stop.set()
            future.cancel()

        return future, leave

    def _overdue(self, what: str) -> Refused:
        return Refused(
            504,
            "too_slow",
            f"the photo {what}: this server works for {self.limits.seconds:g} s on one at the most; "
            "make it smaller, take another model, or come again when less is going on",
            RETRY,
        )

    def close(self) -> None:
        """Begin nothing more, and have what is done stop: the threads end before the process does."""
        for stop in list(self._stops):
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
