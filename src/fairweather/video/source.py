"""Where frames come from: clips and live sources through FFmpeg (PyAV), and by name whatever else is a film."""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadImage, BadSettings, FairweatherError
from fairweather.restoring import stopping
from fairweather.video.formats import CONTAINERS, SCALING, Track
from fairweather.video.frames import Frame, Source
from fairweather.video.pictures import AnimatedWebP, FrameFolder
from fairweather.video.truncation import announced_size

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer

Array = NDArray[Any]

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


def is_clip(given: str | Path) -> bool:
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


def open_source(given: str | Path, *, rate: Fraction | None = None) -> Source:
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
    return Clip(str(given))


class Clip:
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
            stopping.check()  # there may be millions of packets, and no frame
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

    def _track(self, first: Any) -> Track:
        stream, context = self.stream, self.stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        length = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if not length and self._container.duration:
            length = self._container.duration / 1e6
        count = stream.frames or (round(length * float(rate)) if length and rate else None)
        matrix = _matrix(first)
        return Track(
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

    def __init__(self, track: Track) -> None:
        self._usual = max(1, round(1 / (float(track.rate) * float(track.time_base)))) if track.rate else 1
        self._last: int | None = None

    def __call__(self, time: int | None, duration: int | None) -> tuple[int, int]:
        if time is None:
            time = 0 if self._last is None else self._last + self._usual
        if self._last is not None and time <= self._last:
            time = self._last + 1
        self._last = time
        return time, duration or 0


def seconds_of(given: str) -> float:
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


__all__ = ["FairweatherError", "Frame", "Source", "is_clip", "is_live", "open_source", "seconds_of"]
