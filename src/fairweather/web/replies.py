"""Answers: files that are removed once they are sent, and refusals as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import FileResponse, JSONResponse, Response

from fairweather.web.limits import Refused


def stored(path: Path, **options: Any) -> FileResponse:
    """A file that is kept. Raises Refused (404) where it has been let go of, or was not made yet."""
    try:
        told = path.stat()
    except FileNotFoundError:
        raise Refused(404, "gone", "this is not here any more; send the photo or clip again") from None
    return FileResponse(path, stat_result=told, **options)


class PassingFile(FileResponse):
    """A file, and what is to be done when it has been sent, or cannot be any more."""

    def __init__(self, path: Path, after: Callable[[], None], **options: Any) -> None:
        super().__init__(path, **options)
        self._after = after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._after()


def refusal(error: Refused) -> Response:
    """The JSON that says what is wrong, with its status."""
    headers = {"Cache-Control": "no-store"}
    if error.retry is not None:
        headers["Retry-After"] = str(error.retry)
    return JSONResponse(error.body(), error.status, headers)


def attached(name: str) -> str:
    """The header that gives a download its name, in ASCII and in full (RFC 6266)."""
    plain = "".join(letter if letter.isascii() and letter not in '"\\%' else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
