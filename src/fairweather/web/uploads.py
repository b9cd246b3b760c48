"""What a clip's container says, read here before FFmpeg reads it: whether the file is whole, and how much is counted.

FFmpeg makes a list of all frames and pieces of sound that an MP4 or MOV announces, in memory, when it opens the file;
a few bytes may announce a thousand million. Nothing here trusts a number further than the file is long.
"""

from __future__ import annotations

import asyncio
import errno
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
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from fairweather.errors import BadImage, MissingExtra
from fairweather.inference.cancellation import check_cancelled
from fairweather.inference.weather_detection import Weather
from fairweather.video.encoding import CONTAINERS, VideoTrack
from fairweather.video.pipeline import detect_video_weather, frame_memory
from fairweather.video.reader import MAX_FRAME_PIXELS, Frame, TooLarge, VideoReader
from fairweather.web.limits import Limits, RequestRefused, as_refusal, too_large

PIECES = 20
"""Entries in all of an MP4's lists, for each frame that a clip may have: sound has more pieces than pictures, and a
file that is written in fragments several boxes for each."""
SAMPLES = 200_000
"""Uncompressed sound counts every sample as a piece (four tracks of 48 kHz): so many a second, if they are there."""
_COUNTING = (b"stsz", b"stz2", b"trun")
"""The boxes that tell how many entries a list has; whatever stands around them, FFmpeg heeds them."""


def is_whole_container(path: Path, kind: str) -> bool:
    """Whether the file is as long as its outermost boxes say; FFmpeg would end a truncated one early, in silence."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(256)
        if kind == "mov":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return all(end <= size for _, _, end in _boxes(data))
    if kind == "avi":
        return int.from_bytes(head[4:8], "little") <= size
    if kind == "matroska":
        first, taken = _number(head, 4)
        at = 4 + taken + (first or 0)
        if head[at : at + 4] == b"\x18\x53\x80\x67":
            segment, taken = _number(head, at + 4)
            return segment is None or at + 4 + taken + segment <= size
    return True


def plausible_counts(path: Path, kind: str, limits: Limits) -> bool:
    """Whether the file announces no more pieces than a clip within the limits has.

    Of an MP4 all that is not its data is searched, whichever boxes it lies in: FFmpeg is not particular about that. A
    table of contents that is compressed (an old QuickTime's) is not looked into, and is too much.
    """
    if kind != "mov":
        return True
    pieces, samples = PIECES * limits.frames, round(SAMPLES * limits.length)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        for name, begin, end in _boxes(data):
            pieces -= 1
            if pieces < 0:
                return False
            if name == b"mdat":
                pieces, samples = _taken(data, at, begin, pieces, samples)
                at = min(end, len(data))
        pieces, samples = _taken(data, at, len(data), pieces, samples)
    return pieces >= 0 and samples >= 0


def _taken(data: mmap.mmap, begin: int, end: int, pieces: int, samples: int) -> tuple[int, int]:
    """What is left of `pieces` and `samples` after all that is counted between two places."""
    if data.find(b"cmov", begin, end) >= 0:
        return -1, samples
    for name in _COUNTING:
        at = data.find(name, begin, end)
        while at >= 0 and pieces >= 0 and samples >= 0:
            told = data[at + 4 : at + 24]
            if data[max(0, at - 4) : at] == b"\0\0\0\1":  # a length of 64 bits follows
                told = told[8:]
            pieces -= 1
            if name == b"trun":
                pieces -= int.from_bytes(told[4:8], "big")
            else:
                each, count = int.from_bytes(told[4:8], "big"), int.from_bytes(told[8:12], "big")
                if name == b"stsz" and each > 0 and each * count <= len(data):
                    samples -= count
                else:
                    pieces -= count
            at = data.find(name, at + 4, end)
    return pieces, samples


def _boxes(data: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """The name, beginning and end of each outermost box of an MP4; the end may lie behind the file's."""
    at = 0
    while at + 8 <= len(data):
        length, name, begin = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        at = len(data) if length == 0 else at + length  # 0: to the end
        if 0 < length < 8:
            # What follows the boxes is none (some cameras leave zeros there); a file of nothing else is not whole.
            if not begin:
                yield name, begin, len(data) + 1
            return
        yield name, begin, at


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """Matroska's number of variable length, None where it says that it is unknown, and the bytes that it takes."""
    first = data[at] if at < len(data) else 0
    if not first:
        return None, 1
    count = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + count], "big") & ((1 << 7 * count) - 1)
    return (None if value == (1 << 7 * count) - 1 else value), count


# A request's file, from the network to disk: counted as it comes, so that no limit is passed before it is noticed.

FIELD = "photo"
"""The part of a multipart request that holds the file, where that is not a clip."""
UPLOAD_SLACK = 64 << 10
"""Bytes of a multipart request beside its file."""
LINGER = 10.0
"""Seconds for which a refused body is still taken in and thrown away: who is cut off sees no answer."""


async def receive_upload(
    request: Request, folder: Path, limits: Limits, name: str | None, field: str = FIELD
) -> tuple[Path, str]:
    """Write the request's file into `folder`; gives its path, and what it is called: `name`, or as the part says.

    The body is the file itself, or multipart/form-data with a part `photo` (or what `field` says).
    Raises Refused: 413, 408 (too slow), 422 (no file in it), 400 (a form that cannot be read).
    """
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    most = limits.bytes + (UPLOAD_SLACK if multipart else 0)
    called = plain_name(name) if name else field
    declared = request.headers.get("content-length", "")
    counted = _Counted(request, most)
    path = folder / "source"
    try:
        async with asyncio.timeout(limits.seconds):
            if declared.isdigit() and int(declared) > most:
                raise too_large(called, limits)
            if multipart:
                called = await _form(counted.request(), path, called, given=bool(name), limits=limits, field=field)
            else:
                with path.open("wb") as file:
                    async for chunk in counted.request().stream():
                        file.write(chunk)
    except TimeoutError:
        raise RequestRefused(
            408, "too_slow", f"{called}: took longer than {limits.seconds:g} s to arrive; send it again"
        ) from None
    except _TooMuch:
        await counted.linger()
        raise too_large(called, limits) from None
    except RequestRefused as error:
        if error.status == 413:
            await counted.linger()
        raise
    except ClientDisconnect:
        raise RequestRefused(400, "incomplete", f"{called}: did not arrive whole; send it again") from None
    except OSError as error:
        raise RequestRefused(507, "no_room", f"{called}: the server's disk is full or cannot be written") from error
    if not path.stat().st_size:
        raise RequestRefused(
            422, "empty", f"{called}: is empty (0 bytes); send the {field}'s file as the body, or as a part {field!r}"
        )
    return path, called


class _TooMuch(Exception):
    """More bytes than are taken."""


class _Counted:
    """The request, with its body counted while it is read."""

    def __init__(self, request: Request, most: int) -> None:
        self._request, self._left, self._ended = request, most, False

    def request(self) -> Request:
        return Request(self._request.scope, self._receive)

    async def _receive(self) -> Any:
        message = await self._request.receive()
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _TooMuch
        return message

    async def linger(self) -> None:
        """Take in what is still being sent and throw it away, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self._ended:
                    with suppress(_TooMuch):
                        await self._receive()


async def _form(request: Request, path: Path, called: str, *, given: bool, limits: Limits, field: str) -> str:
    try:
        form = await request.form(max_files=1, max_fields=8)
    except MultiPartException as error:
        raise RequestRefused(
            400, "bad_form", f"the form cannot be read ({error.message}); send one part {field!r}"
        ) from None
    except Exception as error:
        # Starlette turns what the parser raises into its own HTTPException where an app is in the scope.
        if isinstance(error, _TooMuch | ClientDisconnect | TimeoutError | OSError):
            raise
        raise RequestRefused(
            400, "bad_form", f"the form cannot be read; send one part {field!r} with the file"
        ) from error
    try:
        found = form.get(field)
        if not isinstance(found, UploadFile):
            raise RequestRefused(422, "no_file", f"there is no file in the form; send it as the part {field!r}")
        if not given and found.filename:
            called = plain_name(found.filename)
        if (found.size or 0) > limits.bytes:
            raise too_large(called, limits)
        with path.open("wb") as file:
            await asyncio.to_thread(shutil.copyfileobj, found.file, file)
    finally:
        await form.close()
    return called


# Clips among what is sent: told from photos by their first bytes, and looked at before anything of them is worked on.
#
# A stranger's file is opened with the demuxer that its first bytes name and with no other, and nothing but this file is
# read, whatever it refers to: FFmpeg follows playlists where it may choose.

AV = "av"
"""PyAV, of the extra `video`."""
CLIP_SUFFIXES = {"mov": (".mp4", ".m4v", ".mov"), "matroska": (".mkv", ".webm"), "avi": (".avi",), "gif": (".gif",)}
"""FFmpeg's demuxer -> the suffixes of the files that are taken, and written again."""
ACCEPTED_CONTAINERS = "MP4, MOV, MKV, WebM, AVI or GIF"
CLIP_MEDIA_TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska",
        ".webm": "video/webm", ".avi": "video/x-msvideo", ".gif": "image/gif"}  # fmt: skip
PLAYED = {".mp4": ("h264",), ".m4v": ("h264",), ".webm": ("vp8", "vp9")}
"""What every browser plays, with 8 bits, and as large as two of them side by side still run smoothly."""
MOST_PLAYED = 1920 * 1088
MOST_SHOWN = 1280 * 720
"""Pixels of what is played in place of all others, about (`showing`)."""
BROWSER_AUDIO = ("aac", "mp3", "opus", "flac")
CLIP_SLACK = 0.5
"""Seconds over the limit that are let pass: sound often ends a little later than the pictures."""
GROWN = 1344 * 784
"""Pixels that frames may come to have whatever the first one had (720p, with a codec's margins): recorded calls begin
small."""
NEAREST_PLAYABLE = 50
"""Frames that are decoded at the most to come from a key frame to the one wanted."""
_PICTURES = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_log = logging.getLogger("fairweather")


class ClipFacts(NamedTuple):
    """What a clip says of itself."""

    demuxer: str
    suffix: str
    """Of its kind of file."""
    width: int
    height: int
    """Of a frame, upright."""
    frames: int | None
    seconds: float | None
    """None where the file does not say."""
    deep: bool
    plays: bool
    """Whether browsers play this very file, and the result, which is of its kind."""
    sound: bool
    """Whether there is sound that browsers play."""

    @property
    def container(self) -> str:
        return CONTAINERS[self.suffix]

    @property
    def memory(self) -> int:
        """Bytes that restoring it takes: frames that wait between its steps, and those in the encoders (measured)."""
        previews = 0 if self.plays else 252 * min(self.pixels, MOST_SHOWN)
        return frame_memory(self.width, self.height, self.deep) + previews

    @property
    def pixels(self) -> int:
        return self.width * self.height


def demuxer(start: bytes) -> str | None:
    """FFmpeg's name for the container of a file that begins so (64 bytes do), where it is a clip that is taken."""
    brand = start[8:12]
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and brand not in _PICTURES:
        return "mov"
    if start[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if start[:4] == b"RIFF" and brand == b"AVI ":
        return "avi"
    return "gif" if start[:4] == b"GIF8" else None


def is_clip_upload(start: bytes) -> bool:
    """Whether a file that begins so is a moving picture: MP4, MOV, Matroska, WebM, AVI or GIF."""
    return demuxer(start) is not None


def start_of(path: Path) -> bytes:
    """The first bytes of a file, enough to tell what it is."""
    with path.open("rb") as file:
        return file.read(64)


def refusal(name: str) -> RequestRefused:
    """What whoever sends a clip as a photo is told."""
    remedy = "POST it to /api/v1/clips" if find_spec(AV) else f"{_lacking()}, where the server runs"
    return RequestRefused(415, "clip", f"{name}: is a clip, and this path takes photos alone; {remedy}")


def examine(path: Path, name: str, limits: Limits) -> ClipFacts:
    """What the clip at `path`, which its owner calls `name`, is; one frame of it is decoded.

    Raises Refused: 415 for what is no clip, and where PyAV is missing; 413 for one that is too large or too long; 422
    for one that is damaged or truncated.
    """
    start = start_of(path)
    kind = demuxer(start)
    if kind is None:
        raise RequestRefused(
            415, "not_a_clip", f"{name}: is not a clip that can be read; give it as {ACCEPTED_CONTAINERS}"
        )
    if find_spec(AV) is None:
        raise as_refusal(_lacking(), str(path), name)
    if not plausible_counts(path, kind, limits):
        raise RequestRefused(
            422, "bad_clip", f"{name}: lists far more frames or pieces of sound than a clip of {limits.length:g} s "
            "has, or lists them in a way that is not looked into; convert it"
        )  # fmt: skip
    if not is_whole_container(path, kind):
        raise RequestRefused(422, "bad_clip", f"{name}: is truncated: the file ends before its end; get a whole copy")
    try:
        clip = open_clip(path, kind, limits)
    except Exception as error:
        raise clip_error(error, path, name, limits) from None
    try:
        track, suffix = clip.track, _suffix(name, kind, start)
        length = max(_length(track) or 0.0, (clip.container.duration or 0) / 1e6)
        sound = any(plays_in_browsers(stream) for stream in clip.streams)
        turned = track.rotation % 180 != 0
    finally:
        clip.close()
    counted = (track.frames or 0) if kind == "mov" else 0  # others guess, from a rate that may be none
    if length > limits.length + CLIP_SLACK or counted > limits.frames:
        raise too_long(name, limits)
    plays = track.codec in PLAYED.get(suffix, ()) and track.pixel_format in ("yuv420p", "yuvj420p")
    return ClipFacts(
        demuxer=kind,
        suffix=suffix,
        width=track.height if turned else track.width,
        height=track.width if turned else track.height,
        frames=track.frames,
        seconds=_length(track) or length or None,
        deep=track.deep,
        plays=plays and track.width * track.height <= MOST_PLAYED,
        sound=sound,
    )


def open_clip(path: Path | str, kind: str, limits: Limits, begins: int | None = None) -> VideoReader:
    """The file, as this kind of container and nothing else. `begins`: pixels of its first frame, where they are known;
    later ones may have more, within reason. Raises BadImage, and TooLarge of it."""
    most = min(limits.pixels, MAX_FRAME_PIXELS)
    return VideoReader(str(path), only=kind, max_pixels=most if begins is None else min(most, max(GROWN, 2 * begins)))


def middle_frame(path: Path, facts: ClipFacts, limits: Limits) -> NDArray[np.uint8]:
    """A frame from the middle of a clip, in 8 bits and with square pixels, H x W x 3. Raises BadImage."""
    clip = open_clip(path, facts.demuxer, limits, facts.pixels)
    try:
        half, aspect = (facts.seconds or 0.0) / 2, clip.track.aspect
        begins, unit = clip.stream.start_time or 0, float(clip.track.time_base)
        if half:
            clip.seek(half)
        found: Frame | None = None
        for number, item in enumerate(item for item in clip.items() if isinstance(item, Frame)):
            found = item
            if (item.time - begins) * unit >= half or number == NEAREST_PLAYABLE:
                break
    finally:
        clip.close()
    if found is None:
        raise BadImage(f"{path}: no frame of it can be decoded; get a whole copy")
    pixels: NDArray[Any] = found.pixels if found.pixels.dtype == np.uint8 else (found.pixels >> 8).astype(np.uint8)
    if aspect and aspect != 1 and not clip.track.rotation % 180 and 0.2 < aspect < 5:
        pixels = cv2.resize(pixels, (max(1, round(pixels.shape[1] * aspect)), pixels.shape[0]))
    return pixels


def clip_weather(path: Path, facts: ClipFacts, limits: Limits, recognise: Callable[[NDArray[Any]], Weather]) -> Weather:
    """The whole clip's weather, as `fairweather restore` sees it. Raises BadImage, Stopped."""

    def again(given: str) -> VideoReader:
        check_cancelled()
        return open_clip(given, facts.demuxer, limits, facts.pixels)

    clip = again(str(path))
    try:
        seen = detect_video_weather(str(path), clip, recognise, again)
    finally:
        clip.close()
    if seen is None:
        raise BadImage(f"{path}: no frame of it can be decoded; get a whole copy")
    return seen[0]


def clip_error(error: Exception, path: Path, name: str, limits: Limits) -> RequestRefused:
    """What went wrong with the clip at `path`, for the one who sent it; what is our fault is logged."""
    if isinstance(error, TooLarge):
        return RequestRefused(
            413, "too_many_pixels", f"{name}: its frames have more pixels than this server takes "
            f"({min(limits.pixels, MAX_FRAME_PIXELS) / 1e6:g} megapixels); make it smaller"
        )  # fmt: skip
    if isinstance(error, BadImage):
        return RequestRefused(422, "bad_clip", str(error).replace(str(path), name))
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if type(error).__module__.startswith(f"{AV}.") and not (full or isinstance(error, MemoryError)):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return RequestRefused(422, "bad_clip", f"{name}: cannot be restored as a video ({reason}); convert it")
    told = as_refusal(error, str(path), name)
    if told.status == 500 and told is not error:
        _log.error("%s", name, exc_info=error)
    return told


def too_long(name: str, limits: Limits) -> RequestRefused:
    """A clip that goes on for longer, or has more frames, than is taken."""
    return RequestRefused(
        413, "too_long", f"{name}: is longer than {limits.length:g} s (or {limits.frames:,} frames), the most that "
        "this server takes; cut a part out of it, or use fairweather restore on the command line"
    )  # fmt: skip


def clip_result_name(name: str, facts: ClipFacts) -> str:
    """What a result is called: `harbour.MP4` becomes `harbour-clear.MP4`."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() == facts.suffix else facts.suffix
    return f"{path.stem or 'clip'}-clear{suffix}"


def plays_in_browsers(stream: Any) -> bool:
    """Whether a stream is sound that browsers play."""
    return stream.type == "audio" and stream.codec_context is not None and stream.codec_context.name in BROWSER_AUDIO


def _lacking() -> MissingExtra:
    return MissingExtra(AV, "video", "restoring clips")


def _length(track: VideoTrack) -> float | None:
    return float(track.frames / track.rate) if track.frames and track.rate else None


def _suffix(name: str, kind: str, start: bytes) -> str:
    given = Path(name).suffix.lower()
    if given in CLIP_SUFFIXES[kind]:
        return given
    if kind == "mov":
        return ".mp4" if start[4:8] == b"ftyp" and start[8:12] != b"qt  " else ".mov"
    return ".webm" if kind == "matroska" and b"webm" in start else CLIP_SUFFIXES[kind][0]


def plain_name(name: str) -> str:
    """A file's name as it may be repeated: without folders and control characters, not long."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(letter for letter in last if letter.isprintable()).strip()
    return kept[-120:] or "photo"
