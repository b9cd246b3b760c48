"""Sources of video frames: files, cameras and streams (FFmpeg through PyAV), folders of frames, animated WebP."""

from __future__ import annotations

import errno
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

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.images.io import SUFFIXES, Photo, read
from fairweather.inference import cancellation
from fairweather.video.encoding import CONTAINERS, SCALING, VideoTrack

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer

Array = NDArray[Any]

NETWORK = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|srt|rtp)://", re.IGNORECASE)
DEVICE = re.compile(r"/dev/video\d+")
TIMEOUT = 15.0
"""Seconds without data after which a camera or a stream fails."""
MAX_FRAME_PIXELS = 64_000_000
_DEMUXERS = (
    *("mov", "matroska", "avi", "gif", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "nut", "mxf", "ivf"),
    *("h264", "hevc", "m4v", "mjpeg", "obu", "dv", "yuv4mpegpipe", "apng"),
)
"""FFmpeg's demuxers of containers. Others (concat, hls, dash, sdp, image2) follow references to other files."""
_MAX_OTHER_BYTES = 64 << 20
"""Limit of the audio and subtitle bytes of an untrusted file, in addition to its size: Matroska can compress them by a
factor of a thousand."""
_PACKET_BYTES = 512
"""Approximate memory of an FFmpeg packet without its data."""
_BOXES = {b"mdat", b"moov", b"moof", b"free", b"skip", b"wide", b"udta", b"uuid", b"sidx", b"styp", b"ftyp", b"mfra"}
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_STILL_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


@dataclass
class Frame:
    """A frame of a video."""

    pixels: Array
    """H x W x 3 uint8 or uint16, RGB, upright."""
    time: int
    """Presentation time, in the track's time base."""
    duration: int = 0
    """In the track's time base; 0 if unknown."""
    alpha: Array | None = None
    """H x W uint8, of animations that have it."""
    photo: Photo | None = None
    """The photo of a folder of frames, with its kind of file."""


class FrameSource(Protocol):
    """A video that is read once from start to end."""

    name: str
    track: VideoTrack
    live: bool
    """Whether it is a live source, which ends only when it is stopped."""

    def items(self) -> Iterator[Frame | Packet]:
        """Yield the frames in presentation order, and between them the packets of the streams that are copied."""
        ...

    def close(self) -> None:
        """Close the file. Repeated calls have no effect."""
        ...


class TooLarge(BadImage):
    """A video whose frames exceed the limit of pixels."""


def is_video(given: str | Path) -> bool:
    """Whether a path or address is a video rather than a photo.

    Videos are addresses, cameras, "-" (a pipe), and files by their suffix: GIF always, WebP if it is animated.
    """
    text = str(given)
    if text == "-" or is_live(text):
        return True
    suffix = Path(text).suffix.lower()
    return _is_animated(Path(text)) if suffix == ".webp" else suffix in CONTAINERS


def is_live(given: str | Path) -> bool:
    """Whether this is a camera or an address."""
    return bool(NETWORK.match(str(given)) or DEVICE.fullmatch(str(given)))


def sniff_container(head: bytes) -> str | None:
    """Return FFmpeg's demuxer for MP4, MOV, Matroska, WebM, AVI or GIF, by a file's first 64 bytes; None for others."""
    brand = head[8:12]
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and brand not in _STILL_BRANDS:
        return "mov"
    if head[:4] == _EBML.to_bytes(4, "big"):
        return "matroska"
    if head[:4] == b"RIFF" and brand == b"AVI ":
        return "avi"
    return "gif" if head[:4] == b"GIF8" else None


def open_video(given: str | Path, *, rate: Fraction | None = None) -> FrameSource:
    """Open a video.

    Args:
        given: a file, an address (rtsp://, http://, udp://, ...), a camera (/dev/video0), "-" (a pipe) or a folder of
            frames. Untrusted files are opened with `VideoReader` and `only`.
        rate: frames per second of a folder of frames (default: 25).

    Raises:
        BadImage: it is missing, damaged or not a video.
        BadFolder: there are no pictures in the folder.
    """
    path = Path(given)
    if str(given) != "-" and not is_live(given):
        if path.is_dir():
            return FrameFolder(path, rate or Fraction(25))
        if path.suffix.lower() == ".webp":
            return AnimatedWebP(path)
    return VideoReader(str(given))


def parse_time(given: str) -> float:
    """Return the seconds of "12.5", "1:02.5" or "0:01:02".

    Raises:
        BadSettings: it is not a time.
    """
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


class VideoReader:
    """A video that FFmpeg reads: a file, an address, a camera, or standard input."""

    def __init__(self, name: str, *, only: str | None = None, max_pixels: int = MAX_FRAME_PIXELS) -> None:
        """Open the video and decode its first frame.

        Args:
            name: a path, an address, a camera or "-".
            only: for untrusted files: the demuxer to use (`sniff_container`). Memory for audio and subtitles is then
                bounded by the size of the file.
            max_pixels: limit of a frame, checked before decoding.

        Raises:
            BadImage: it is missing, damaged or not a video.
            TooLarge: its frames exceed `max_pixels`.
        """
        import av

        self.name = "standard input" if name == "-" else name
        self.live = is_live(name) and only is None
        self._only, self._max_pixels = only, max_pixels
        self._other_bytes = None if only is None else _MAX_OTHER_BYTES + Path(name).stat().st_size
        self._container: InputContainer = self._open(name)
        videos = [one for one in self._container.streams.video if one.codec_context and not _is_cover(one)]
        if not videos:
            self.close()
            raise BadImage(f"{self.name} has no video stream that can be decoded: give a video")
        self.stream = videos[0]
        self.stream.thread_type = "AUTO"
        self._check_size(self.stream.width, self.stream.height)
        self.stream.codec_context.options = {"max_pixels": str(max_pixels)}  # frames may be larger than announced
        self._packets: Iterator[Packet] = self._container.demux()
        self._pending: list[Packet] = []
        self._ended, self._lost, self._end = False, 0, 0.0
        try:
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
        except av.FFmpegError as error:
            self.close()
            raise self._damaged(error) from error
        if self._first is None:
            self.close()
            raise BadImage(f"{self.name}: no frame can be decoded: get a complete copy")
        self.track = self._track(self._first)
        self._check_size(self.track.width, self.track.height)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            self.close()
            raise TooLarge(
                f"{self.name}: frames of {width} x {height} exceed the limit of {self._max_pixels:,} pixels: "
                "make the video smaller"
            )

    def _open(self, name: str) -> InputContainer:
        import av

        options = {"rtsp_transport": "tcp"} if name.lower().startswith("rtsp") else {}
        if not self.live:  # nothing but this file is read: no playlist is followed, no address opened
            options = {"format_whitelist": ",".join(_DEMUXERS), "protocol_whitelist": "file", "enable_drefs": "0"}
            options["max_pixels"] = str(self._max_pixels)
        if not self.live and name != "-":
            path = Path(name)
            if not path.exists():
                raise BadImage(f"{path}: no such file: check the name")
            if not path.stat().st_size:
                raise BadImage(f"{path} is empty: get a complete copy")
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
        """The other streams, which are copied: audio, subtitles, cover, data."""
        return [stream for stream in self._container.streams if stream.index != self.stream.index]

    @property
    def container(self) -> InputContainer:
        """FFmpeg's container, with its metadata and chapters."""
        return self._container

    def seek(self, seconds: float) -> None:
        """Go to the key frame at or before a time, before `items` is called."""
        start = self._container.start_time or 0
        self._container.seek(start + int(seconds * 1_000_000), backward=True)
        self._packets = self._container.demux()
        self._pending.clear()
        self._decoded = self._decode()
        self._first = None

    def items(self) -> Iterator[Frame | Packet]:
        """See FrameSource.

        Raises:
            BadImage: the file is damaged beyond what can be skipped.
        """
        import av

        clock = _Clock(self.track)
        if self._first is not None:
            yield from self._pending
            yield self._frame(self._first, clock)
            self._first = None
        self._pending.clear()
        try:
            for decoded in self._decoded:
                yield from self._pending
                self._pending.clear()
                yield self._frame(decoded, clock)
        except av.FFmpegError as error:
            raise self._damaged(error) from error
        yield from self._pending

    def close(self) -> None:
        self._container.close()

    def missing(self, end: float | None = None) -> str | None:
        """Describe what the file declares but does not contain.

        Before `items` has reached the end, only the container is examined.

        Args:
            end: end of the requested part in seconds; what is missing after it does not count.

        Returns:
            E.g. "only 15 of 60 frames are present"; None for a complete file.
        """
        if self.live or self.name == "standard input":
            return None
        size = Path(self.name).stat().st_size
        # The sample table of an MP4 lists each frame with its place in the file.
        table = self.stream.index_entries if self.stream.frames else ()
        lost = sum(entry.pos + entry.size > size for entry in table)
        wanted = end is None or (self._ended and self._end < end)
        if lost and wanted:
            return f"only {len(table) - lost} of {len(table)} frames are present"
        announced = announced_size(self.name) if not lost and not self._lists_every_frame(table) else None
        if announced is not None and announced > size and wanted:
            length = (self._container.duration or 0) / 1e6
            if self._ended and 0 < self._end < length:
                return f"only {self._end:.1f} of {length:.1f} s are present"
            return f"only {size:,} of {announced:,} bytes are present"
        return f"damaged frames: {self._lost}" if self._lost else None

    def _lists_every_frame(self, table: Any) -> bool:
        """Whether the table is that of an MP4; FFmpeg builds AVI's from the frames that are present."""
        return "mp4" in self._container.format.name and 0 < self.stream.frames <= len(table)

    def _decode(self) -> Iterator[Any]:
        """Yield decoded frames; packets of other streams are appended to `_pending`."""
        import av

        damaged, started, context = 0, False, self.stream.codec_context
        for packet in self._demuxed():
            cancellation.check_cancelled()  # there may be millions of packets without a frame
            if packet.stream.index != self.stream.index:  # stream_index is 0 in packets that end a stream
                if packet.dts is not None or packet.pts is not None:
                    self._count(packet)
                    self._pending.append(packet)
                continue
            try:
                for decoded in packet.decode():
                    started = True
                    yield decoded
            except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                if started and not 0 < context.width * context.height <= self._max_pixels:
                    raise BadImage(
                        f"{self.name}: later frames are much larger than the first: convert it to frames of one size"
                    ) from error
                damaged += 1  # a lost packet of a stream does not end it
                self._lost += started
                if damaged > 100 or isinstance(error, av.error.ArgumentError):
                    raise

    def _demuxed(self) -> Iterator[Packet]:
        yield from self._packets
        self._ended = True

    def _count(self, packet: Packet) -> None:
        """Limit the uncompressed size of an untrusted file."""
        if self._other_bytes is not None:
            self._other_bytes -= packet.size + _PACKET_BYTES
            if self._other_bytes < 0:
                raise BadImage(f"{self.name}: audio and data expand to far more than the file size: remove them")

    def _frame(self, decoded: Any, clock: _Clock) -> Frame:
        deep = self.track.deep
        picture = decoded.reformat(  # all frames get the size of the first, as in players
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
        self._end = float((time + duration - (self.stream.start_time or 0)) * self.track.time_base)
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
        """The bit rate of the whole file without its audio, if the stream does not declare its own."""
        others = sum(stream.bit_rate or 0 for stream in self._container.streams.audio)
        whole = self._container.bit_rate or (self._container.size * 8 / length if length else 0)
        return int(whole - others) if whole > others and not self.live else None

    def _damaged(self, error: Exception) -> BadImage:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if not self.live and getattr(error, "errno", None) == errno.EINVAL:
            reason = "not a supported container"
        remedy = "check the address, and that it is sending" if self.live else "get a complete copy, or convert it"
        return BadImage(f"{self.name} cannot be read as a video ({reason}): {remedy}")


class FrameFolder:
    """A folder of frames, in the order of their names (2 before 10)."""

    live = False

    def __init__(self, folder: Path, rate: Fraction) -> None:
        self.name = str(folder)
        self.files = sorted(
            (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."),
            key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)],
        )
        if not self.files:
            raise BadFolder(f"{folder}: no pictures in this folder: supported are {', '.join(sorted(SUFFIXES))}")
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
        """See FrameSource.

        Raises:
            BadImage: a frame cannot be read, or differs in size or depth.
        """
        shape = (self.track.height, self.track.width, 3)
        for number, file in enumerate(self.files):
            photo = read(file)
            if photo.pixels.shape != shape or (photo.pixels.dtype == np.uint16) != self.track.deep:
                found = f"{photo.pixels.shape[1]} x {photo.pixels.shape[0]} {photo.pixels.dtype}"
                raise BadImage(
                    f"{file}: {found} is not the size and depth of the first frame, {self.files[0].name}: "
                    "remove it from the folder"
                )
            yield Frame(photo.pixels, number, 1, photo=photo)

    def close(self) -> None:
        pass


class AnimatedWebP:
    """An animated WebP, which Pillow reads and FFmpeg does not."""

    live = False

    def __init__(self, path: Path) -> None:
        from PIL import Image

        self.name = str(path)
        try:
            self._image = Image.open(path)
            self._image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImage(f"{path} cannot be read as an animated WebP ({error}): get a complete copy") from error
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
        """See FrameSource."""
        time = 0
        for number in range(self.track.frames or 0):
            try:
                self._image.seek(number)
                shown = np.asarray(self._image.convert("RGBA"))
            except (OSError, EOFError, SyntaxError) as error:
                damage = f"{self.name} is damaged at frame {number + 1} ({error})"
                raise BadImage(f"{damage}: get a complete copy") from error
            duration = max(1, int(self._image.info.get("duration", 100)))
            alpha = None if shown[..., 3].min() == 255 else shown[..., 3]
            yield Frame(np.ascontiguousarray(shown[..., :3]), time, duration, alpha)
            time += duration

    def close(self) -> None:
        self._image.close()


class _Clock:
    """Makes times increase from frame to frame where the source's do not, or are missing."""

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


def announced_size(path: str | os.PathLike[str]) -> int | None:
    """Return the file size that a container declares, which is larger than that of a truncated file.

    FFmpeg reads such a file without an error. A complete file never declares more than its size, whatever its rate,
    edit lists or audio.

    Args:
        path: MP4 and MOV declare the size by their boxes, Matroska and WebM by their segment, AVI and WebP by their
            RIFF header.

    Returns:
        Bytes; None if no size is declared, e.g. by a recording.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            if head[4:8] in _BOXES:
                return _end_of_boxes(file, length)
            if head[:4] == _EBML.to_bytes(4, "big"):
                return _end_of_segment(file)
            if head[:4] == b"RIFF":
                size = int.from_bytes(head[4:8], "little")
                return size + 8 if 0 < size < 0xFFFFFFFF else None
    except OSError:
        pass
    return None


def _end_of_boxes(file: BinaryIO, length: int) -> int | None:
    """The end of the last box; trailing data that is not a box does not count."""
    at = 0
    while at < length:
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind not in _BOXES:
            return at or None
        if size == 1:  # a size of 64 bits follows
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: the box extends to the end of the file
            return None
        at += size
    return at or None


def _end_of_segment(file: BinaryIO) -> int | None:
    """The end of the segment, whose size a muxer writes last."""
    while True:
        found = _ebml_number(file, marker=True), _ebml_number(file)
        if found[0] is None or found[1] is None:  # an unknown size: a stream, or a recording that was cut
            return None
        end = file.tell() + found[1]
        if found[0] == _SEGMENT:
            return end
        file.seek(end)


def _ebml_number(file: BinaryIO, *, marker: bool = False) -> int | None:
    """Read an EBML number of one to eight bytes (`marker`: with its length marker, as in identifiers)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    value = int.from_bytes(first + rest, "big")
    if len(rest) < more:
        return None
    if marker:
        return value
    value &= (1 << 7 * (more + 1)) - 1
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def _is_cover(stream: Any) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _matrix(frame: Any) -> tuple[int, ...] | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return struct.unpack("<9i", bytes(data))
    return None


def _is_animated(path: Path) -> bool:
    """Whether a WebP file is animated: a bit of its extended header."""
    try:
        with path.open("rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)
