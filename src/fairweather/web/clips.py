"""Clips among what is sent: told from photos by their first bytes, and looked at before anything of them is worked on.

A stranger's file is opened with the demuxer that its first bytes name and with no other, and nothing but this file is
read, whatever it refers to: FFmpeg follows playlists where it may choose.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadImage, MissingExtra
from fairweather.restoring.recognise import Weather
from fairweather.restoring.stopping import check
from fairweather.video.formats import CONTAINERS, Track
from fairweather.video.frames import Frame
from fairweather.video.run import weather_of
from fairweather.video.source import MAX_FRAME_PIXELS, Clip, TooLarge
from fairweather.web import containers
from fairweather.web.limits import Limits, Refused, refused

AV = "av"
"""PyAV, of the extra `video`."""
SUFFIXES = {"mov": (".mp4", ".m4v", ".mov"), "matroska": (".mkv", ".webm"), "avi": (".avi",), "gif": (".gif",)}
"""FFmpeg's demuxer -> the suffixes of the files that are taken, and written again."""
TAKEN = "MP4, MOV, MKV, WebM, AVI or GIF"
TYPE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska",
        ".webm": "video/webm", ".avi": "video/x-msvideo", ".gif": "image/gif"}  # fmt: skip
PLAYED = {".mp4": ("h264",), ".m4v": ("h264",), ".webm": ("vp8", "vp9")}
"""What every browser plays, with 8 bits, and as large as two of them side by side still run smoothly."""
MOST_PLAYED = 1920 * 1088
MOST_SHOWN = 1280 * 720
"""Pixels of what is played in place of all others, about (`showing`)."""
HEARD = ("aac", "mp3", "opus", "flac")
SLACK = 0.5
"""Seconds over the limit that are let pass: sound often ends a little later than the pictures."""
GROWN = 1344 * 784
"""Pixels that frames may come to have whatever the first one had (720p, with a codec's margins): recorded calls begin
small."""
NEAR = 50
"""Frames that are decoded at the most to come from a key frame to the one wanted."""
_PICTURES = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_log = logging.getLogger("fairweather")


class Facts(NamedTuple):
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
        return (32 << 20) + (500 if self.deep else 240) * self.pixels + previews

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


def is_clip(start: bytes) -> bool:
    """Whether a file that begins so is a moving picture: MP4, MOV, Matroska, WebM, AVI or GIF."""
    return demuxer(start) is not None


def start_of(path: Path) -> bytes:
    """The first bytes of a file, enough to tell what it is."""
    with path.open("rb") as file:
        return file.read(64)


def refusal(name: str) -> Refused:
    """What whoever sends a clip as a photo is told."""
    remedy = "POST it to /api/v1/clips" if find_spec(AV) else f"{_lacking()}, where the server runs"
    return Refused(415, "clip", f"{name}: is a clip, and this path takes photos alone; {remedy}")


def examine(path: Path, name: str, limits: Limits) -> Facts:
    """What the clip at `path`, which its owner calls `name`, is; one frame of it is decoded.

    Raises Refused: 415 for what is no clip, and where PyAV is missing; 413 for one that is too large or too long; 422
    for one that is damaged or truncated.
    """
    start = start_of(path)
    kind = demuxer(start)
    if kind is None:
        raise Refused(415, "not_a_clip", f"{name}: is not a clip that can be read; give it as {TAKEN}")
    if find_spec(AV) is None:
        raise refused(_lacking(), str(path), name)
    if not containers.plausible(path, kind, limits):
        raise Refused(
            422, "bad_clip", f"{name}: lists far more frames or pieces of sound than a clip of {limits.length:g} s "
            "has, or lists them in a way that is not looked into; convert it"
        )  # fmt: skip
    if not containers.whole(path, kind):
        raise Refused(422, "bad_clip", f"{name}: is truncated: the file ends before its end; get a whole copy")
    try:
        clip = opened(path, kind, limits)
    except Exception as error:
        raise wrong(error, path, name, limits) from None
    try:
        track, suffix = clip.track, _suffix(name, kind, start)
        length = max(_length(track) or 0.0, (clip.container.duration or 0) / 1e6)
        sound = any(heard(stream) for stream in clip.streams)
        turned = track.rotation % 180 != 0
    finally:
        clip.close()
    counted = (track.frames or 0) if kind == "mov" else 0  # others guess, from a rate that may be none
    if length > limits.length + SLACK or counted > limits.frames:
        raise too_long(name, limits)
    plays = track.codec in PLAYED.get(suffix, ()) and track.pixel_format in ("yuv420p", "yuvj420p")
    return Facts(
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


def opened(path: Path | str, kind: str, limits: Limits, begins: int | None = None) -> Clip:
    """The file, as this kind of container and nothing else. `begins`: pixels of its first frame, where they are known;
    later ones may have more, within reason. Raises BadImage, and TooLarge of it."""
    most = min(limits.pixels, MAX_FRAME_PIXELS)
    return Clip(str(path), only=kind, max_pixels=most if begins is None else min(most, max(GROWN, 2 * begins)))


def middle(path: Path, facts: Facts, limits: Limits) -> NDArray[np.uint8]:
    """A frame from the middle of a clip, in 8 bits and with square pixels, H x W x 3. Raises BadImage."""
    clip = opened(path, facts.demuxer, limits, facts.pixels)
    try:
        half, aspect = (facts.seconds or 0.0) / 2, clip.track.aspect
        begins, unit = clip.stream.start_time or 0, float(clip.track.time_base)
        if half:
            clip.seek(half)
        found: Frame | None = None
        for number, item in enumerate(item for item in clip.items() if isinstance(item, Frame)):
            found = item
            if (item.time - begins) * unit >= half or number == NEAR:
                break
    finally:
        clip.close()
    if found is None:
        raise BadImage(f"{path}: no frame of it can be decoded; get a whole copy")
    pixels: NDArray[Any] = found.pixels if found.pixels.dtype == np.uint8 else (found.pixels >> 8).astype(np.uint8)
    if aspect and aspect != 1 and not clip.track.rotation % 180 and 0.2 < aspect < 5:
        pixels = cv2.resize(pixels, (max(1, round(pixels.shape[1] * aspect)), pixels.shape[0]))
    return pixels


def weather(path: Path, facts: Facts, limits: Limits, recognise: Callable[[NDArray[Any]], Weather]) -> Weather:
    """The whole clip's weather, as `fairweather restore` sees it. Raises BadImage, Stopped."""

    def again(given: str) -> Clip:
        check()
        return opened(given, facts.demuxer, limits, facts.pixels)

    clip = again(str(path))
    try:
        seen = weather_of(str(path), clip, recognise, again)
    finally:
        clip.close()
    if seen is None:
        raise BadImage(f"{path}: no frame of it can be decoded; get a whole copy")
    return seen[0]


def wrong(error: Exception, path: Path, name: str, limits: Limits) -> Refused:
    """What went wrong with the clip at `path`, for the one who sent it; what is our fault is logged."""
    if isinstance(error, TooLarge):
        return Refused(
            413, "too_many_pixels", f"{name}: its frames have more pixels than this server takes "
            f"({min(limits.pixels, MAX_FRAME_PIXELS) / 1e6:g} megapixels); make it smaller"
        )  # fmt: skip
    if isinstance(error, BadImage):
        return Refused(422, "bad_clip", str(error).replace(str(path), name))
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if type(error).__module__.startswith(f"{AV}.") and not (full or isinstance(error, MemoryError)):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Refused(422, "bad_clip", f"{name}: cannot be restored as a video ({reason}); convert it")
    told = refused(error, str(path), name)
    if told.status == 500 and told is not error:
        _log.error("%s", name, exc_info=error)
    return told


def too_long(name: str, limits: Limits) -> Refused:
    """A clip that goes on for longer, or has more frames, than is taken."""
    return Refused(
        413, "too_long", f"{name}: is longer than {limits.length:g} s (or {limits.frames:,} frames), the most that "
        "this server takes; cut a part out of it, or use fairweather restore on the command line"
    )  # fmt: skip


def result_name(name: str, facts: Facts) -> str:
    """What a result is called: `harbour.MP4` becomes `harbour-clear.MP4`."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() == facts.suffix else facts.suffix
    return f"{path.stem or 'clip'}-clear{suffix}"


def heard(stream: Any) -> bool:
    """Whether a stream is sound that browsers play."""
    return stream.type == "audio" and stream.codec_context is not None and stream.codec_context.name in HEARD


def _lacking() -> MissingExtra:
    return MissingExtra(AV, "video", "restoring clips")


def _length(track: Track) -> float | None:
    return float(track.frames / track.rate) if track.frames and track.rate else None


def _suffix(name: str, kind: str, start: bytes) -> str:
    given = Path(name).suffix.lower()
    if given in SUFFIXES[kind]:
        return given
    if kind == "mov":
        return ".mp4" if start[4:8] == b"ftyp" and start[8:12] != b"qt  " else ".mov"
    return ".webm" if kind == "matroska" and b"webm" in start else SUFFIXES[kind][0]
