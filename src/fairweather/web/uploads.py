"""Uploads: receiving a request's file within the limits, and checking an uploaded video before it is processed.

An untrusted video is opened only with the demuxer that its first bytes identify, and other files to which it refers are
not read.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from fairweather.errors import BadImage, MissingExtra
from fairweather.inference.cancellation import check_cancelled
from fairweather.inference.weather_detection import Weather
from fairweather.video.encoding import CONTAINERS
from fairweather.video.pipeline import detect_video_weather
from fairweather.video.reader import MAX_FRAME_PIXELS, Frame, TooLarge, VideoReader
from fairweather.web.limits import Limits, RequestRefused, as_refusal, disk_full, too_large

FORM_OVERHEAD = 64 << 10
"""Bytes of a multipart request in addition to its file."""
DRAIN_SECONDS = 10.0
"""Seconds for which the rest of a rejected body is read and discarded: otherwise the client may see no response."""


async def receive_upload(
    request: Request, folder: Path, limits: Limits, name: str | None, field: str = "photo"
) -> tuple[Path, str]:
    """Write a request's file into a folder, counting its bytes as they arrive.

    Args:
        request: its body is the file, or multipart/form-data with the file as one part.
        folder: where the file is written.
        limits: the server's limits.
        name: the file's name; None: that of the form's part.
        field: the name of the form's part.

    Returns:
        The file's path, and its name for messages and downloads.

    Raises:
        RequestRefused: 400 for a form that cannot be read or an incomplete body, 408 for a slow one, 413 for a large
            one, 422 without a file, 507 if the disk is full.
    """
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    limit = limits.max_bytes + (FORM_OVERHEAD if multipart else 0)
    name, path = safe_name(name) if name else None, folder / "source"
    declared = request.headers.get("content-length", "")
    body = _CountedBody(request, limit)
    try:
        async with asyncio.timeout(limits.timeout):
            if declared.isdigit() and int(declared) > limit:
                raise too_large(name or field, limits)
            if multipart:
                name = await _receive_form(body.request, path, name, limits, field)
            else:
                name = name or field
                with path.open("wb") as file:
                    async for chunk in body.request.stream():
                        file.write(chunk)
    except TimeoutError:
        raise RequestRefused(
            408, "timeout", f"{name or field}: the upload took longer than {limits.timeout:g} s: send it again"
        ) from None
    except _BodyTooLarge:
        await body.drain()
        raise too_large(name or field, limits) from None
    except RequestRefused as error:
        if error.status == 413:
            await body.drain()
        raise
    except ClientDisconnect:
        raise RequestRefused(400, "incomplete", f"{name or field}: the upload is incomplete: send it again") from None
    except OSError as error:
        raise as_refusal(error, str(path), name or field) from error
    if not path.stat().st_size:
        raise RequestRefused(
            422, "empty", f"{name} is empty (0 bytes): send the file as the body, or as the form's part {field!r}"
        )
    return path, name


class _BodyTooLarge(Exception):
    """The body has more bytes than allowed."""


class _CountedBody:
    """A request whose body is counted while it is read."""

    def __init__(self, request: Request, limit: int) -> None:
        self._receive, self._left, self._ended = request.receive, limit, False
        self.request = Request(request.scope, self._next)

    async def _next(self) -> Any:
        message = await self._receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _BodyTooLarge
        return message

    async def drain(self) -> None:
        """Read and discard the rest, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended:
                    with suppress(_BodyTooLarge):
                        await self._next()


async def _receive_form(request: Request, path: Path, name: str | None, limits: Limits, field: str) -> str:
    try:
        form = await request.form(max_files=1, max_fields=8)
    except (_BodyTooLarge, ClientDisconnect, OSError):
        raise
    except Exception as error:  # of the parser, or Starlette's HTTPException for it
        raise RequestRefused(
            400, "bad_form", f"the form cannot be read: send one part {field!r} with the file"
        ) from error
    try:
        upload = form.get(field)
        if not isinstance(upload, UploadFile):
            raise RequestRefused(422, "no_file", f"there is no file in the form: send it as the part {field!r}")
        name = name or (safe_name(upload.filename) if upload.filename else field)
        if (upload.size or 0) > limits.max_bytes:
            raise too_large(name, limits)
        with path.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, upload.file, file)
    finally:
        await form.close()
    return name


def safe_name(name: str) -> str:
    """A file's name without folders and control characters, of at most 120 characters; "photo" where none is left."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(letter for letter in last if letter.isprintable()).strip()
    return (printable if printable.strip(". ") else "")[-120:] or "photo"


PYAV = "av"
"""The package that reads videos, of the extra `video`."""
VIDEO_SUFFIXES = {"mov": (".mp4", ".m4v", ".mov"), "matroska": (".mkv", ".webm"), "avi": (".avi",), "gif": (".gif",)}
"""FFmpeg's demuxer -> the suffixes of the files that are read and written."""
VIDEO_FORMATS = "MP4, MOV, MKV, WebM, AVI or GIF"
VIDEO_MEDIA_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska",
    ".webm": "video/webm", ".avi": "video/x-msvideo", ".gif": "image/gif",
}  # fmt: skip
BROWSER_CODECS = {".mp4": ("h264",), ".m4v": ("h264",), ".webm": ("vp8", "vp9")}
"""Codecs that every browser plays, with 8 bits."""
BROWSER_AUDIO = ("aac", "mp3", "opus", "flac")
MAX_PLAYED_PIXELS = 1920 * 1088
"""Maximum pixels of a frame for two videos to play smoothly side by side in a browser."""
MAX_PREVIEW_PIXELS = 1280 * 720
"""Pixels of a frame of a browser preview, about."""
LENGTH_TOLERANCE = 0.5
"""Seconds over the limit that are accepted: sound often ends a little later than the frames."""
MAX_GROWN_PIXELS = 1344 * 784
"""Pixels that later frames may always have (720p with a codec's margins), since recorded calls start small."""
MAX_SEEK_FRAMES = 50
"""Frames decoded at most from a key frame to the middle of a video."""
_PHOTO_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_log = logging.getLogger("fairweather")


class VideoInfo(NamedTuple):
    """The properties of an uploaded video."""

    demuxer: str
    suffix: str
    """Of its container."""
    width: int
    height: int
    """Pixels of an upright frame."""
    frames: int | None
    seconds: float | None
    """None if the file does not declare them."""
    deep: bool
    """More than 8 bits per channel."""
    playable: bool
    """Whether browsers play this file, and the result, which has the same format."""
    sound: bool
    """Whether there is sound that browsers play."""
    missing: str | None
    """What the file declares and does not contain, e.g. "only 15 of 60 frames are present"."""

    @property
    def container(self) -> str:
        return CONTAINERS[self.suffix]

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def memory(self) -> int:
        """Bytes for restoring it: frames between the steps and in the encoders (measured)."""
        previews = 0 if self.playable else 252 * min(self.pixels, MAX_PREVIEW_PIXELS)
        return (32 << 20) + (500 if self.deep else 240) * self.pixels + previews


def video_demuxer(path: Path) -> str | None:
    """FFmpeg's demuxer for a file with the first bytes of an accepted video, else None."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and start[8:12] not in _PHOTO_BRANDS:
        return "mov"
    if start[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    return "gif" if start[:4] == b"GIF8" else None


def video_instead_of_photo(name: str) -> RequestRefused:
    """The error for a video sent as a photo."""
    remedy = "POST it to /api/v1/videos" if find_spec(PYAV) else f"{_missing_extra()} on the server"
    return RequestRefused(415, "video", f"{name} is a video, and this path accepts photos only: {remedy}")


def inspect_video(path: Path, name: str, limits: Limits) -> VideoInfo:
    """Read the properties of an uploaded video; one frame is decoded.

    Args:
        path: the file.
        name: its name for messages.
        limits: the server's limits.

    Raises:
        RequestRefused: 415 for a file that is not a video, or if PyAV is missing; 413 for a video that is too large or
            too long; 422 for a damaged one.
    """
    demuxer = video_demuxer(path)
    if demuxer is None:
        raise RequestRefused(415, "not_a_video", f"{name} is not a video that can be read: send {VIDEO_FORMATS}")
    if find_spec(PYAV) is None:
        raise as_refusal(_missing_extra(), str(path), name)
    if demuxer == "mov" and not _plausible_counts(path, limits):
        raise RequestRefused(
            422, "bad_video", f"{name} declares far more frames or audio samples than a video of "
            f"{limits.max_video_seconds:g} s has, or has a compressed header: convert it"
        )  # fmt: skip
    try:
        video = open_upload(path, demuxer, limits)
    except Exception as error:
        raise video_error(error, path, name, limits) from None
    try:
        track, suffix = video.track, _suffix(path, name, demuxer)
        seconds = float(track.frames / track.rate) if track.frames and track.rate else None
        longest = max(seconds or 0.0, (video.container.duration or 0) / 1e6)
        sound = any(plays_in_browsers(stream) for stream in video.streams)
        missing = video.missing()
    finally:
        video.close()
    declared = (track.frames or 0) if demuxer == "mov" else 0  # other containers estimate it from an unreliable rate
    if longest > limits.max_video_seconds + LENGTH_TOLERANCE or declared > limits.max_frames:
        raise too_long(name, limits)
    size = (track.width, track.height)
    playable = track.codec in BROWSER_CODECS.get(suffix, ()) and track.pixel_format in ("yuv420p", "yuvj420p")
    return VideoInfo(
        demuxer,
        suffix,
        *(size[::-1] if track.rotation % 180 else size),
        frames=track.frames,
        seconds=seconds or longest or None,
        deep=track.deep,
        playable=playable and track.width * track.height <= MAX_PLAYED_PIXELS,
        sound=sound,
        missing=missing,
    )


def open_upload(path: Path | str, demuxer: str, limits: Limits, first_pixels: int | None = None) -> VideoReader:
    """Open an uploaded video with one demuxer.

    Args:
        path: the file.
        demuxer: FFmpeg's name of its container.
        limits: the server's limits.
        first_pixels: pixels of its first frame, where known; later frames may have twice as many.

    Raises:
        BadImage: it cannot be read; TooLarge: its frames have too many pixels.
    """
    limit = min(limits.max_pixels, MAX_FRAME_PIXELS)
    if first_pixels is not None:
        limit = min(limit, max(MAX_GROWN_PIXELS, 2 * first_pixels))
    return VideoReader(str(path), only=demuxer, max_pixels=limit)


def middle_frame(path: Path, info: VideoInfo, limits: Limits) -> NDArray[np.uint8]:
    """A frame from the middle of a video, H x W x 3 uint8 with square pixels.

    Raises:
        BadImage: no frame can be decoded.
    """
    video = open_upload(path, info.demuxer, limits, info.pixels)
    try:
        middle, aspect = (info.seconds or 0.0) / 2, video.track.aspect
        start, unit = video.stream.start_time or 0, float(video.track.time_base)
        if middle:
            video.seek(middle)
        found: Frame | None = None
        for number, item in enumerate(item for item in video.items() if isinstance(item, Frame)):
            found = item
            if (item.time - start) * unit >= middle or number == MAX_SEEK_FRAMES:
                break
    finally:
        video.close()
    if found is None:
        raise BadImage(f"{path}: no frame can be decoded: get a complete copy")
    pixels: NDArray[Any] = found.pixels if found.pixels.dtype == np.uint8 else (found.pixels >> 8).astype(np.uint8)
    if aspect and aspect != 1 and not video.track.rotation % 180 and 0.2 < aspect < 5:
        pixels = cv2.resize(pixels, (max(1, round(pixels.shape[1] * aspect)), pixels.shape[0]))
    return pixels


def video_weather(path: Path, info: VideoInfo, limits: Limits, detect: Callable[[NDArray[Any]], Weather]) -> Weather:
    """Detect the weather of a whole video, as `fairweather restore` does.

    Raises:
        BadImage: no frame can be decoded. Cancelled: the request was cancelled.
    """

    def open_again(path: str) -> VideoReader:
        check_cancelled()
        return open_upload(path, info.demuxer, limits, info.pixels)

    video = open_again(str(path))
    try:
        found = detect_video_weather(str(path), video, detect, open_again)
    finally:
        video.close()
    if found is None:
        raise BadImage(f"{path}: no frame can be decoded: get a complete copy")
    return found[0]


def video_error(error: Exception, path: Path, name: str, limits: Limits) -> RequestRefused:
    """Convert an error about a video to one that may be sent to the client; faults of the server are logged."""
    if isinstance(error, TooLarge):
        return RequestRefused(
            413, "too_many_pixels", f"the frames of {name} have more pixels than this server accepts "
            f"({min(limits.max_pixels, MAX_FRAME_PIXELS) / 1e6:g} megapixels): make it smaller"
        )  # fmt: skip
    if isinstance(error, BadImage):
        return RequestRefused(422, "bad_video", str(error).replace(str(path), name))
    if type(error).__module__.startswith(f"{PYAV}.") and not (disk_full(error) or isinstance(error, MemoryError)):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return RequestRefused(422, "bad_video", f"{name} cannot be restored as a video ({reason}): convert it")
    refused = as_refusal(error, str(path), name)
    if refused.status == 500 and refused is not error:
        _log.error("%s", name, exc_info=error)
    return refused


def too_long(name: str, limits: Limits) -> RequestRefused:
    """The error for a video of too many seconds or frames."""
    return RequestRefused(
        413, "too_long", f"{name} is longer than {limits.max_video_seconds:g} s (or {limits.max_frames:,} frames), "
        "the limit of this server: cut it, or use fairweather restore on the command line"
    )  # fmt: skip


def video_result_name(name: str, info: VideoInfo) -> str:
    """The name of a restored video: `harbour.MP4` becomes `harbour-clear.MP4`."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() == info.suffix else info.suffix
    return f"{path.stem}-clear{suffix}"


def plays_in_browsers(stream: Any) -> bool:
    """Whether a stream is sound that browsers play."""
    return stream.type == "audio" and stream.codec_context is not None and stream.codec_context.name in BROWSER_AUDIO


def _missing_extra() -> MissingExtra:
    return MissingExtra(PYAV, "video", "restoring videos")


def _suffix(path: Path, name: str, demuxer: str) -> str:
    """The suffix of a video: the one of its name, or one that fits its first bytes."""
    given = Path(name).suffix.lower()
    if given in VIDEO_SUFFIXES[demuxer]:
        return given
    with path.open("rb") as file:
        start = file.read(64)
    if demuxer == "mov":
        return ".mp4" if start[4:8] == b"ftyp" and start[8:12] != b"qt  " else ".mov"
    return ".webm" if demuxer == "matroska" and b"webm" in start else VIDEO_SUFFIXES[demuxer][0]


# When FFmpeg opens an MP4 or MOV, it builds a list in memory of all frames and audio samples that the file declares,
# and a few bytes may declare a billion. So they are counted first.

ENTRIES_PER_FRAME = 20
"""Entries in all lists of an MP4 for each frame that a video may have: audio has more, and fragments have several
boxes each."""
SAMPLES_PER_SECOND = 200_000
"""Audio samples per second that uncompressed sound may list one by one (four tracks of 48 kHz)."""
_COUNTING_BOXES = (b"stsz", b"stz2", b"trun")
"""The boxes that declare the length of a list; FFmpeg reads them at any position."""


def _plausible_counts(path: Path, limits: Limits) -> bool:
    """Whether an MP4 or MOV declares no more entries than a video within the limits has.

    Everything but the media data is searched, whichever boxes it is in, since FFmpeg accepts them anywhere. A
    compressed header (`cmov`, of old QuickTime files) counts as too much.
    """
    entries, samples = ENTRIES_PER_FRAME * limits.max_frames, round(SAMPLES_PER_SECOND * limits.max_video_seconds)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        for name, begin, end in _boxes(data):
            entries -= 1
            if entries < 0:
                return False
            if name == b"mdat":
                entries, samples = _count_entries(data, at, begin, entries, samples)
                at = min(end, len(data))
        entries, samples = _count_entries(data, at, len(data), entries, samples)
    return entries >= 0 and samples >= 0


def _count_entries(data: mmap.mmap, begin: int, end: int, entries: int, samples: int) -> tuple[int, int]:
    """What is left of `entries` and `samples` after those declared between two offsets."""
    if data.find(b"cmov", begin, end) >= 0:
        return -1, samples
    for name in _COUNTING_BOXES:
        at = data.find(name, begin, end)
        while at >= 0 and entries >= 0 and samples >= 0:
            fields = data[at + 4 : at + 24]
            if data[max(0, at - 4) : at] == b"\0\0\0\1":  # a length of 64 bits follows
                fields = fields[8:]
            entries -= 1
            if name == b"trun":
                entries -= int.from_bytes(fields[4:8], "big")
            else:
                size, count = int.from_bytes(fields[4:8], "big"), int.from_bytes(fields[8:12], "big")
                if name == b"stsz" and size > 0 and size * count <= len(data):
                    samples -= count
                else:
                    entries -= count
            at = data.find(name, at + 4, end)
    return entries, samples


def _boxes(data: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """The name, start and end of each outermost box of an MP4; the end may be beyond the end of the file."""
    at = 0
    while at + 8 <= len(data):
        length, name, begin = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if 0 < length < 8:  # not a box; some cameras append zeros
            return
        at = len(data) if length == 0 else at + length  # 0: to the end of the file
        yield name, begin, at
