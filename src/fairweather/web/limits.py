"""What one server takes on, and how a request that asks for more is refused: a status, a message, a remedy."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import FileResponse, JSONResponse, Response

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra, UnknownName

MIN_TIMEOUT = 120
"""Frames a second that a clip may have on the mean where it is as long as clips may be."""


@dataclass(frozen=True)
class Limits:
    """The limits of one server, the same for the page and for the API. Raises BadSettings."""

    bytes: int = 100_000_000
    """Of one file."""
    pixels: int = 100_000_000
    """Of one photo, or of a clip's frame, as the header says, before anything is decoded."""
    at_once: int = 2
    """Requests that are worked on."""
    waiting: int = 16
    """Requests that wait for their turn; a further one is refused at once."""
    seconds: float = 120.0
    """For receiving a file, and once more from there to its answer, waiting included."""
    keep: float = 30.0
    """Minutes that clips, and the page's photos, stay after they were last asked for."""
    disk: int = 2_000_000_000
    """Bytes of all clips, and of the page's photos, that are kept; beyond it the ones longest unused go."""
    length: float = 60.0
    """Seconds of one clip, as the file says, and counted once more while it is worked on."""
    work: float = 1800.0
    """Seconds for restoring one clip."""

    @property
    def frames(self) -> int:
        """Of one clip: no more than the fastest cameras make in the seconds that it may have."""
        return max(1, round(self.length * MIN_TIMEOUT))

    def __post_init__(self) -> None:
        for name, least in (("bytes", 1), ("pixels", 1), ("at_once", 1), ("waiting", 0), ("disk", 1)):
            if getattr(self, name) < least:
                raise BadSettings(f"--{_flag(name)} must be at least {least}, not {getattr(self, name)}")
        for name in ("seconds", "keep", "length", "work"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadSettings(f"--{_flag(name)} must be a number above 0, not {getattr(self, name)}")


def _flag(name: str) -> str:
    named = {"bytes": "max-bytes", "pixels": "max-pixels", "length": "max-clip-seconds", "work": "clip-seconds"}
    return named.get(name, name.replace("_", "-"))


class RequestRefused(FairweatherError):
    """A request that is not answered with a picture. `status` is HTTP's, `kind` one word for programs."""

    def __init__(self, status: int, kind: str, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry = retry
        """Seconds after which asking again makes sense."""

    def body(self) -> dict[str, object]:
        """What stands in the JSON answer."""
        return {"error": {"status": self.status, "kind": self.kind, "message": str(self)}}


def too_large(name: str, limits: Limits) -> RequestRefused:
    """A file of more bytes than are taken."""
    return RequestRefused(
        413, "too_large", f"{name}: is larger than {limits.bytes / 1e6:g} MB, the most that this server takes; "
        "make it smaller, or save it with stronger compression"
    )  # fmt: skip


def as_refusal(error: Exception, path: str = "", name: str = "the request") -> RequestRefused:
    """What went wrong with the file at `path`, which its owner calls `name`, for the one who sent it.

    The server's own paths are not told. What is nobody's fault but ours is a 500 without details.
    """
    if isinstance(error, RequestRefused):
        return error
    message = str(error).replace(path, name) if path else str(error)
    if isinstance(error, MissingExtra):
        return RequestRefused(415, "unsupported", f"{name}: {message}, where the server runs; or give another format")
    if isinstance(error, UnknownName):
        return RequestRefused(404, "unknown_model", message)
    if isinstance(error, BadSettings):
        return RequestRefused(422, "bad_setting", message)
    if isinstance(error, BadImage):
        return RequestRefused(422, "bad_picture", message)
    if isinstance(error, BadFolder) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return RequestRefused(
            507, "no_room", f"{name}: the server's disk is full or cannot be written; tell who runs it"
        )
    if isinstance(error, MemoryError):
        return RequestRefused(
            503, "no_memory", f"{name}: there is not enough memory for it now; try again, or make it smaller", 10
        )
    return RequestRefused(500, "failed", f"{name}: the server failed on it ({type(error).__name__}); its log says why")


# Answers: files that are removed once they are sent, and refusals as JSON.


def stored_file(path: Path, **options: Any) -> FileResponse:
    """A file that is kept. Raises Refused (404) where it has been let go of, or was not made yet."""
    try:
        told = path.stat()
    except FileNotFoundError:
        raise RequestRefused(404, "gone", "this is not here any more; send the photo or clip again") from None
    return FileResponse(path, stat_result=told, **options)


class TemporaryFileResponse(FileResponse):
    """A file, and what is to be done when it has been sent, or cannot be any more."""

    def __init__(self, path: Path, after: Callable[[], None], **options: Any) -> None:
        super().__init__(path, **options)
        self._after = after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._after()


def error_response(error: RequestRefused) -> Response:
    """The JSON that says what is wrong, with its status."""
    headers = {"Cache-Control": "no-store"}
    if error.retry is not None:
        headers["Retry-After"] = str(error.retry)
    return JSONResponse(error.body(), error.status, headers)


def attachment_header(name: str) -> str:
    """The header that gives a download its name, in ASCII and in full (RFC 6266)."""
    plain = "".join(letter if letter.isascii() and letter not in '"\\%' else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
