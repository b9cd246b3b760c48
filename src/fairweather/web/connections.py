"""Connections of the HTTP server: those that send no request are closed, so that they cannot block the others."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
"""Open connections; beyond it uvicorn answers 503 as plain text."""
MAX_WAITING = 128
"""Connections that have not sent a complete request header; the oldest is closed for a further one."""
HEADER_TIMEOUT = 10.0
"""Seconds from the opening of a connection, or its last response, to the end of a request's header."""


class TimedConnection(H11Protocol):
    """One HTTP connection with a time limit for request headers, which uvicorn lacks."""

    _waiting: dict[TimedConnection, asyncio.TimerHandle] = {}  # noqa: RUF012 (shared by all connections)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._update()

    def handle_events(self) -> None:
        super().handle_events()
        self._update()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _update(self) -> None:
        """Start the timer where no request is in progress, and stop it where one is."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.transport.is_closing():
            self._stop_timer()
        elif self not in self._waiting:
            if len(self._waiting) >= MAX_WAITING:
                next(iter(self._waiting))._close()
            self._waiting[self] = self.loop.call_later(HEADER_TIMEOUT, self._close)

    def _stop_timer(self) -> None:
        if timer := self._waiting.pop(self, None):
            timer.cancel()

    def _close(self) -> None:
        self._stop_timer()
        self.transport.close()
