"""The limits of one server, and the errors with which it refuses requests: a status, a kind, and a message."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError, MissingExtra, UnknownName

MAX_FRAME_RATE = 120
"""Highest mean frame rate of a video of the full `max_video_seconds`: a video has at most their product of frames."""


@dataclass(frozen=True)
class Limits:
    """The limits of one server, the same for the page and the API. Each field is a flag of `fairweather serve`, which
    takes its default from here (`workers`: one for each core, at most 8).

    Raises:
        BadSettings: a value is out of range.
    """

    max_bytes: int = 100_000_000
    """Bytes of one upload."""
    max_pixels: int = 100_000_000
    """Pixels of a photo or of a video's frame, read from the header before anything is decoded."""
    max_video_seconds: float = 60.0
    """Maximum length of a video, both as its file declares it and as its frames are counted."""
    workers: int = 2
    """Requests processed at once."""
    queue: int = 16
    """Number of requests, and of videos, that may wait; further ones get 503."""
    timeout: float = 120.0
    """Time limit in seconds for receiving an upload, and again for processing it, waiting included."""
    video_timeout: float = 1800.0
    """Time limit in seconds for restoring one video."""
    keep: float = 30.0
    """Minutes for which videos and the page's photos are stored after their last use."""
    disk: int = 2_000_000_000
    """Bytes of all stored files; beyond it those unused for longest are removed."""

    @property
    def max_frames(self) -> int:
        """Frames of one video."""
        return max(1, round(self.max_video_seconds * MAX_FRAME_RATE))

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("max_pixels", 1), ("workers", 1), ("queue", 0), ("disk", 1)):
            if getattr(self, name) < least:
                raise BadSettings(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        for name in ("max_video_seconds", "timeout", "video_timeout", "keep"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadSettings(f"--{name.replace('_', '-')} must be a number above 0, not {getattr(self, name)}")


class RequestRefused(FairweatherError):
    """A request that fails: `status` is the HTTP status, `kind` an identifier for programs.

    Args:
        status: the HTTP status, 4xx or 5xx.
        kind: what went wrong, in one identifier; docs/api.md lists them all.
        message: what is wrong and how to fix it, with the client's name of the file.
        retry_after: seconds after which to retry.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = {"Cache-Control": "no-store", **(headers or {})}
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    @property
    def detail(self) -> dict[str, object]:
        """The `error` object of the JSON response."""
        return {"status": self.status, "kind": self.kind, "message": str(self)}


def too_large(name: str, limits: Limits) -> RequestRefused:
    """The error for an upload of too many bytes."""
    return RequestRefused(
        413, "too_large", f"{name} is larger than {limits.max_bytes / 1e6:g} MB, the limit of this server: "
        "make it smaller, or save it with stronger compression"
    )  # fmt: skip


def disk_full(error: Exception) -> bool:
    """Whether an error means that the server's disk is full or not writable."""
    return isinstance(error, BadFolder) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def as_refusal(error: Exception, path: str = "", name: str = "the request") -> RequestRefused:
    """Convert an error to one that may be sent to the client.

    Args:
        error: what was raised.
        path: the file's path on the server, which the message must not contain.
        name: the client's name of the file, which replaces the path.

    Returns:
        The error with its status; 500 without details for a fault of the server.
    """
    if isinstance(error, RequestRefused):
        return error
    message = str(error).replace(path, name) if path else str(error)
    if isinstance(error, MissingExtra):
        return RequestRefused(415, "unsupported", f"{name}: {message} on the server, or use another format")
    if isinstance(error, UnknownName):
        return RequestRefused(404, "unknown_model", message)
    if isinstance(error, BadSettings):
        return RequestRefused(422, "bad_setting", message)
    if isinstance(error, BadImage):
        return RequestRefused(422, "bad_photo", message)
    if disk_full(error):
        return RequestRefused(
            507, "disk_full", f"{name}: the server's disk is full or not writable: contact its administrator"
        )
    if isinstance(error, MemoryError):
        return RequestRefused(
            503, "out_of_memory", f"{name}: the server is short of memory: try again later, or make it smaller",
            10
        )  # fmt: skip
    return RequestRefused(
        500, "internal_error", f"{name}: the server failed ({type(error).__name__}): see the server's log"
    )
