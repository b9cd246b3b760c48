"""Connections that send no request, or half of one, cannot block the others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

pytestmark = pytest.mark.usefixtures("web")
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def test_idle_connections_are_closed_and_others_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    from fairweather.web import connections

    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 0.5)
    monkeypatch.setattr(connections, "MAX_WAITING", 8)

    async def run() -> None:
        config = uvicorn.Config(
            app, http=connections.TimedConnection, port=0, log_level="critical", lifespan="off", limit_concurrency=12
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()[:2]
        idle = [await asyncio.open_connection(*address) for _ in range(20)]
        for _, writer in idle[::2]:
            with contextlib.suppress(OSError):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):  # also on a connection that is kept alive
            writer.write(REQUEST)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.write(REQUEST[:-5])
        for other in (reader, *(reader for reader, _ in idle)):
            with contextlib.suppress(OSError):
                assert await asyncio.wait_for(other.read(), 3) == b""
        assert not connections.TimedConnection._waiting
        server.should_exit = True
        await task

    asyncio.run(run())
