"""A film in memory: one frame of it, and what every source of frames is to the rest."""

from __future__ import annotations

import math
import os
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings, FairweatherError
from fairweather.images.io import SUFFIXES, Photo, read
from fairweather.inference import cancellation
from fairweather.video.encoding import CONTAINERS, SCALING, VideoTrack

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer

Array = NDArray[Any]


@dataclass
class Frame:
    """One picture of a film."""

    pixels: Array
    """H x W x 3 uint8 or uint16, RGB, upright."""
    time: int
    """When it is shown, in the track's time base."""
    duration: int = 0
    """How long, likewise; 0 where the source does not say."""
    alpha: Array | None = None
    """H x W uint8, of animations that have it."""
    photo: Photo | None = None
    """Of a folder of pictures: what else the file holds."""


class FrameSource(Protocol):
    """A film that is read from front to back, once."""

    name: str
    track: VideoTrack
    live: bool
    """Whether it has no end of its own, so that stopping it is how it ends."""

    def items(self) -> Iterator[Frame | Packet]:
        """Its frames in the order in which they are shown, and between them the packets of all that is copied."""
        ...

    def close(self) -> None:
        """Let go of the file. May be called again."""
        ...


# Films that are pictures: a folder of frames, and animated WebP.


class FrameFolder:
    """A folder whose pictures are the frames of one film, in the order of their names (2 before 10)."""

    live = False

    def __init__(self, folder: Path, rate: Fraction) -> None:
        self.name = str(folder)
        self.files = sorted(
            (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."),
            key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)],
        )
        if not self.files:
            raise BadFolder(f"{folder}: there are no pictures in this folder; looked for {', '.join(sorted(SUFFIXES))}")
        first = read(self.files[0]).pixels
        self.track = VideoTrack(
            width=first.shape[1],
            height=first.shape[0],
            time_base=1 / rate,
            rate=rate,
            codec="png",
            pixel_format="rgb48le" if first.dtype == np.uint16 else "rgb24",
            frames=len(self.files),
        )

    def items(self) -> Iterator[Frame | Packet]:
        """See Source. Raises BadImage for a picture that cannot be read or is of another size or depth."""
        shape = (self.track.height, self.track.width, 3)
        for number, file in enumerate(self.files):
            photo = read(file)
            if photo.pixels.shape != shape or (photo.pixels.dtype == np.uint16) != self.track.deep:
                found = f"{photo.pixels.shape[1]} x {photo.pixels.shape[0]} {photo.pixels.dtype}"
                raise BadImage(
                    f"{file}: {found} is not the size and depth of the first frame, {self.files[0].name}; "
                    "take it out of the folder"
                )
            yield Frame(photo.pixels, number, 1, photo=photo)

    def close(self) -> None:
        pass


class AnimatedWebP:
    """An animated WebP, which FFmpeg does not read; Pillow does, frame by frame."""

    live = False

    def __init__(self, path: Path) -> None:
        from PIL import Image

        self.name = str(path)
        try:
            self._image = Image.open(path)
            self._image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImage(f"{path}: cannot be read as an animated WebP ({error}); get a whole copy") from error
        count = getattr(self._image, "n_frames", 1)
        self.track = VideoTrack(
            width=self._image.width,
            height=self._image.height,
            time_base=Fraction(1, 1000),
            rate=None,
            codec="webp",
            pixel_format="rgb24",
            frames=count,
        )

    def items(self) -> Iterator[Frame | Packet]:
        """See Source."""
        time = 0
        for number in range(self.track.frames or 0):
            try:
                self._image.seek(number)
                shown = np.asarray(self._image.convert("RGBA"))
            except (OSError, EOFError, SyntaxError) as error:
                raise BadImage(f"{self.name}: is damaged at frame {number + 1} ({error}); get a whole copy") from error
            duration = max(1, int(self._image.info.get("duration", 100)))
            alpha = None if shown[..., 3].min() == 255 else shown[..., 3]
            yield Frame(np.ascontiguousarray(shown[..., :3]), time, duration, alpha)
            time += duration

    def close(self) -> None:
        self._image.close()


# Whether a video file ends before its container says that it does: a download or a recording that was cut short.
#
# FFmpeg reads such a file without a word: it ends where the bytes end. What the container itself announces tells, so that
# a whole video is never taken for one (a track shorter than the sound, variable rates and edit lists change no size).

_BOXES = {b"mdat", b"moof", b"moov", b"free", b"skip", b"wide", b"udta", b"uuid", b"sidx", b"styp", b"ftyp", b"mfra"}
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067


def announced_size(path: str | os.PathLike[str]) -> int | None:
    """The bytes that a video file should have at least, as its container says: MP4 and MOV by their boxes, Matroska and
    WebM by their segment, AVI and WebP by their RIFF header; None where nothing is announced, as by a recording."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            if head[4:8] in _BOXES:
                return _boxes(file, length)
            if head[:4] == _EBML.to_bytes(4, "big"):
                return _segment(file)
            if head[:4] == b"RIFF":
                size = int.from_bytes(head[4:8], "little")
                return size + 8 if 0 < size < 0xFFFFFFFF else None
    except OSError:
        pass
    return None


def _boxes(file: BinaryIO, length: int) -> int | None:
    """Where the last box ends. What stands behind the boxes and is none of them is no part of the file's promise."""
    at = 0
    while at < length:
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind not in _BOXES:
            return at or None
        if size == 1:  # a size of 64 bits follows
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: the box goes on to the end, wherever that is
            return None
        at += size
    return at or None


def _segment(file: BinaryIO) -> int | None:
    """Where the segment ends, whose size a muxer fills in when it has written all of it."""
    while True:
        found = _number(file, keep=True), _number(file)
        if found[0] is None or found[1] is None:  # a size that is not known: a stream, or a recording that was cut
            return None
        end = file.tell() + found[1]
        if found[0] == _SEGMENT:
            return end
        file.seek(end)


def _number(file: BinaryIO, *, keep: bool = False) -> int | None:
    """An EBML number of one to eight bytes (`keep`: with its length marker, as identifiers are written)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    value = int.from_bytes(first + rest, "big")
    if len(rest) < more:
        return None
    if keep:
        return value
    value &= (1 << 7 * (more + 1)) - 1
    return None if value == (1 << 7 * (more + 1)) - 1 else value


# Where frames come from: clips and live sources through FFmpeg (PyAV), and by name whatever else is a film.

NETWORK = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt|rtp)://", re.IGNORECASE)
DEVICE = re.compile(r"/dev/video\d+")
TIMEOUT = 15.0
"""Seconds that a camera or an address may keep silent."""
MAX_FRAME_PIXELS = 64_000_000
BESIDE = 64 << 20
"""Bytes of sound and the like that a stranger's file may turn into, beside as many as it has: packed ones are unpacked
(Matroska), to a thousand times as many."""
PACKET = 512
"""Bytes that FFmpeg takes for a packet, about, whatever is in it."""


class TooLarge(BadImage):
    """A film whose frames have more pixels than are taken."""


def is_video(given: str | Path) -> bool:
    """Whether this names a film rather than a photo: by its suffix, as an address or camera, or "-", a pipe.

    GIF and WebP are films where they are animated.
    """
    text = str(given)
    if text == "-" or NETWORK.match(text) or DEVICE.fullmatch(text):
        return True
    suffix = Path(text).suffix.lower()
    if suffix in (".gif", ".webp"):
        return suffix == ".gif" or _animated(Path(text))
    return suffix in CONTAINERS


def is_live(given: str | Path) -> bool:
    """Whether this is a camera or an address."""
    return bool(NETWORK.match(str(given)) or DEVICE.fullmatch(str(given)))


def open_video(given: str | Path, *, rate: Fraction | None = None) -> FrameSource:
    """The film that a path, an address (rtsp://, http://, udp://, ...), a camera (/dev/video0), "-" (a pipe) or a
    folder of pictures amounts to; `rate` is for folders: frames a second (25). A file of a stranger is opened by `Clip`
    with `only`.

    Raises BadImage, which names the file and the remedy, for what is missing, damaged, or no film.
    """
    path = Path(given)
    if str(given) != "-" and not is_live(given):
        if path.is_dir():
            return FrameFolder(path, rate or Fraction(25))
        if path.suffix.lower() == ".webp":
            return AnimatedWebP(path)
    return VideoReader(str(given))


class VideoReader:
    """What FFmpeg reads: a file, an address, a camera, or standard input."""

    def __init__(self, name: str, *, only: str | None = None, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        """`only`: the container that it must be, by the name of FFmpeg's demuxer; then this file alone is read,
        whatever it refers to, and no more is taken into memory than such a file is worth. `max_pixels` of a frame:
        larger ones are refused before one is decoded."""
        import av

        self.name = "standard input" if name == "-" else name
        self.live = is_live(name) and only is None
        self._only, self._most = only, max_pixels
        self._beside = None if only is None else BESIDE + Path(name).stat().st_size
        self._container: InputContainer = self._opened(name)
        pictures = [one for one in self._container.streams.video if one.codec_context and not _attached(one)]
        if not pictures:
            self.close()
            raise BadImage(f"{self.name}: there are no moving pictures in it that can be read; give a video")
        self.stream = pictures[0]
        self.stream.thread_type = "AUTO"
        self._bounded(self.stream.width, self.stream.height)
        self.stream.codec_context.options = {"max_pixels": str(max_pixels)}  # what is said and what comes may differ
        self._packets: Iterator[Packet] = self._container.demux()
        self._before: list[Packet] = []
        self._ended, self._lost, self._until = False, 0, 0.0
        try:
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
        except av.FFmpegError as error:
            self.close()
            raise self._damaged(error) from error
        if self._first is None:
            self.close()
            raise BadImage(f"{self.name}: no frame of it can be decoded; get a whole copy")
        self.track = self._track(self._first)
        self._bounded(self.track.width, self.track.height)

    def _bounded(self, width: int, height: int) -> None:
        if width * height > self._most:
            self.close()
            raise TooLarge(f"{self.name}: frames of {width} x {height} are too large for a film")

    def _opened(self, name: str) -> InputContainer:
        import av

        options = {"rtsp_transport": "tcp"} if self.live and name.lower().startswith("rtsp") else {}
        if self._only is not None:
            # No playlist is followed (the demuxer is given), no file opened that a MOV refers to, nothing fetched.
            options = {"protocol_whitelist": "file", "enable_drefs": "0", "max_pixels": str(self._most)}
        if not self.live and name != "-":
            path = Path(name)
            if not path.exists():
                raise BadImage(f"{path}: no such file; check the name")
            if not path.stat().st_size:
                raise BadImage(f"{path}: is empty; get a whole copy")
        try:
            opened: InputContainer = av.open(
                sys.stdin.buffer if name == "-" else name,
                format="v4l2" if self.live and DEVICE.fullmatch(name) else self._only,
                options=options,
                timeout=TIMEOUT if self.live else None,
                metadata_errors="replace",
            )
            return opened
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._damaged(error) from error

    @property
    def streams(self) -> list[Any]:
        """The streams beside the pictures, which are copied: sound, subtitles, cover, data."""
        return [stream for stream in self._container.streams if stream.index != self.stream.index]

    @property
    def container(self) -> InputContainer:
        """FFmpeg's container, for what is copied of it: its metadata and chapters."""
        return self._container

    def seek(self, seconds: float) -> None:
        """Go to the key frame at or before this time. To be called before `items`."""
        start = self._container.start_time or 0
        self._container.seek(start + int(seconds * 1_000_000), backward=True)
        self._packets = self._container.demux()
        self._before.clear()
        self._decoded = self._decode()
        self._first = None

    def items(self) -> Iterator[Frame | Packet]:
        """See Source. Raises BadImage where the file ends in damage before any frame."""
        import av

        clock = _Clock(self.track)
        if self._first is not None:
            yield from self._before
            yield self._frame(self._first, clock)
            self._first = None
        self._before.clear()
        try:
            for decoded in self._decoded:
                yield from self._before
                self._before.clear()
                yield self._frame(decoded, clock)
        except av.FFmpegError as error:
            raise self._damaged(error) from error
        yield from self._before

    def close(self) -> None:
        self._container.close()

    def missing(self, end: float | None = None) -> str | None:
        """What the file announces and does not hold, as "15 of 60 frames are there"; None for a whole one.

        Args:
            end: seconds of the part that is asked for; what is missing behind it does not count.

        Before `items` has come to the end, only what the container alone tells is known.
        """
        if self.live or self.name == "standard input":
            return None
        size = Path(self.name).stat().st_size
        # The sample table of an MP4 is exact: each frame, and where in the file its bytes are.
        table = self.stream.index_entries if self.stream.frames else ()
        lost = sum(entry.pos + entry.size > size for entry in table)
        wanted = end is None or (self._ended and self._until < end)
        if lost and wanted:
            return f"{len(table) - lost} of {len(table)} frames are there"
        announced = announced_size(self.name) if not lost and not self._exact(table) else None
        if announced is not None and announced > size and wanted:
            length = (self._container.duration or 0) / 1e6
            if self._ended and 0 < self._until < length:
                return f"{self._until:.1f} of {length:.1f} s are there"
            return f"{size:,} of {announced:,} bytes are there"
        return f"all but {self._lost} damaged frames are there" if self._lost else None

    def _exact(self, table: Any) -> bool:
        """Whether the table lists every frame, as that of an MP4 does; AVI's is made up from what is there."""
        return "mp4" in self._container.format.name and 0 < self.stream.frames <= len(table)

    def _decode(self) -> Iterator[Any]:
        """The decoded frames; packets of other streams that come on the way are put into `_before`."""
        import av

        damaged, begun, context = 0, False, self.stream.codec_context
        for packet in self._demuxed():
            cancellation.check_cancelled()  # there may be millions of packets, and no frame
            if packet.stream.index != self.stream.index:  # stream_index is 0 in packets that end a stream
                if packet.dts is not None or packet.pts is not None:
                    self._count(packet)
                    self._before.append(packet)
                continue
            try:
                for decoded in packet.decode():
                    begun = True
                    yield decoded
            except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                if begun and not 0 < context.width * context.height <= self._most:
                    raise BadImage(
                        f"{self.name}: its frames become much larger on the way; convert it to frames of one size"
                    ) from error
                damaged += 1  # a lost packet of a stream is no reason to lose the rest
                self._lost += begun
                if damaged > 100 or isinstance(error, av.error.ArgumentError):
                    raise

    def _demuxed(self) -> Iterator[Packet]:
        yield from self._packets
        self._ended = True

    def _count(self, packet: Packet) -> None:
        """Raises BadImage where a stranger's file turns into far more than it is."""
        if self._beside is not None:
            self._beside -= packet.size + PACKET
            if self._beside < 0:
                raise BadImage(f"{self.name}: the sound and data in it are far more than the file; convert it without")

    def _frame(self, decoded: Any, clock: _Clock) -> Frame:
        deep = self.track.deep
        picture = decoded.reformat(  # a film has the size that it begins with, as players show it
            self.track.width,
            self.track.height,
            format="rgb48le" if deep else "rgb24",
            src_colorspace=self.track.yuv,
            interpolation=SCALING[deep],
            threads=2,
        )
        pixels = picture.to_ndarray()
        alpha = None
        if self.track.codec == "gif" and "a" in decoded.format.name:
            alpha = decoded.to_ndarray(format="bgra")[..., 3]
            alpha = None if alpha.min() == 255 else alpha
        if self.track.rotation:
            turns = round(self.track.rotation / 90)
            pixels = np.ascontiguousarray(np.rot90(pixels, turns))
        time, duration = clock(decoded.pts, decoded.duration)
        self._until = float((time + duration - (self.stream.start_time or 0)) * self.track.time_base)
        return Frame(pixels, time, duration, alpha)

    def _track(self, first: Any) -> VideoTrack:
        stream, context = self.stream, self.stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        length = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if not length and self._container.duration:
            length = self._container.duration / 1e6
        count = stream.frames or (round(length * float(rate)) if length and rate else None)
        matrix = _matrix(first)
        return VideoTrack(
            width=first.width,
            height=first.height,
            time_base=stream.time_base or first.time_base,
            rate=rate or None,
            codec=context.codec.canonical_name,
            pixel_format=first.format.name,
            bit_rate=stream.bit_rate or self._bit_rate(length),
            frames=count or None,
            aspect=stream.sample_aspect_ratio or None,
            colour=(first.colorspace, first.color_primaries, first.color_trc, first.color_range),
            matrix=matrix,
            rotation=round((first.rotation if matrix else 0) / 90) * 90,
            profile=context.profile,
            metadata=dict(stream.metadata),
        )

    def _bit_rate(self, length: float | None) -> int | None:
        """Where the pictures' own is not told: what the file has for its length, less the sound's."""
        others = sum(stream.bit_rate or 0 for stream in self._container.streams.audio)
        whole = self._container.bit_rate or (self._container.size * 8 / length if length else 0)
        return int(whole - others) if whole > others and not self.live else None

    def _damaged(self, error: Exception) -> BadImage:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        remedy = "check the address, and that it sends" if self.live else "get a whole copy, or convert it"
        return BadImage(f"{self.name}: cannot be read as a video ({reason}); {remedy}")


class _Clock:
    """Times that grow from frame to frame, where the source's do not, or lacks them."""

    def __init__(self, track: VideoTrack) -> None:
        self._usual = max(1, round(1 / (float(track.rate) * float(track.time_base)))) if track.rate else 1
        self._last: int | None = None

    def __call__(self, time: int | None, duration: int | None) -> tuple[int, int]:
        if time is None:
            time = 0 if self._last is None else self._last + self._usual
        if self._last is not None and time <= self._last:
            time = self._last + 1
        self._last = time
        return time, duration or 0


def parse_time(given: str) -> float:
    """Seconds from "12.5", "1:02.5" or "0:01:02". Raises BadSettings."""
    parts = given.split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = [math.nan]
    if len(parts) > 3 or not all(math.isfinite(value) and value >= 0 for value in values):
        raise BadSettings(f"a time is given as seconds (12.5) or as 1:02.5 or 0:01:02, not {given!r}")
    total = 0.0
    for value in values:
        total = 60 * total + value
    return total


def _attached(stream: Any) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _matrix(frame: Any) -> tuple[int, ...] | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return struct.unpack("<9i", bytes(data))
    return None


def _animated(path: Path) -> bool:
    """Whether a WebP file is animated: a bit of its extended header."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


__all__ = ["FairweatherError", "Frame", "FrameSource", "is_video", "is_live", "open_video", "parse_time"]
