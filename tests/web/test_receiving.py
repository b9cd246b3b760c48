"""A body on its way to disk: too slow, broken off, too large; what is refused is taken in, that the answer is seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fairweather.web.limits import Limits, RequestRefused

pytestmark = pytest.mark.usefixtures("web")
LIMITS = Limits(bytes=1000, seconds=0.2)


def received(folder: Path, receive: Callable[[], Awaitable[Any]], **headers: str) -> tuple[Path, str]:
    from starlette.requests import Request

    from fairweather.web.uploads import receive_upload as take

    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": told}, receive)
    return asyncio.run(take(request, folder, LIMITS, "../harbour.jpg"))


class Body:
    """Gives these chunks, one after the other; then that the client has gone, where `whole` is false."""

    def __init__(self, *chunks: bytes, whole: bool = True) -> None:
        self.chunks, self.whole = list(chunks), whole

    async def __call__(self) -> dict[str, Any]:
        if not self.chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self.chunks.pop(0), "more_body": bool(self.chunks) or not self.whole}


def test_a_body_is_written_as_it_came(tmp_path: Path) -> None:
    path, name = received(tmp_path, Body(b"a" * 600, b"b" * 400))
    assert path.read_bytes() == b"a" * 600 + b"b" * 400
    assert name == "harbour.jpg"


def test_too_slow(tmp_path: Path) -> None:
    async def never() -> Any:
        await asyncio.sleep(30)

    began = time.monotonic()
    with pytest.raises(RequestRefused, match=r"harbour\.jpg: took longer than 0\.2 s") as wrong:
        received(tmp_path, never)
    assert wrong.value.status == 408
    assert time.monotonic() - began < 5


def test_broken_off(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match="did not arrive whole") as wrong:
        received(tmp_path, Body(b"abc", whole=False))
    assert (wrong.value.status, wrong.value.kind) == (400, "incomplete")


@pytest.mark.parametrize("headers", [{}, {"content_length": "5000"}])
def test_too_large_is_taken_in_to_its_end_and_not_written(tmp_path: Path, headers: dict[str, str]) -> None:
    body = Body(*[b"x" * 500] * 10)
    with pytest.raises(RequestRefused) as wrong:
        received(tmp_path, body, **headers)
    assert wrong.value.status == 413
    assert not body.chunks
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= LIMITS.bytes
