"""Writers of videos: a file with all streams of its source (FFmpeg through PyAV), or a folder of frames.

A folder of frames cannot be written atomically as a file can, so a killed run leaves frames under their final names.
During a run a hidden list (`.%05d.png.unfinished`) names each frame before it is written; it is removed after the last
one. If there is a list, its frames belong to an interrupted run: the next run removes exactly these and starts again,
since temporal smoothing needs the previous frames. A run locks its list; the system unlocks it when the process ends.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.files import make_folder
from fairweather.images.io import Photo, write
from fairweather.video.encoding import SCALING, Encoding
from fairweather.video.reader import Frame, FrameFolder, FrameSource, VideoReader

if TYPE_CHECKING:
    from av import Packet

Array = NDArray[Any]

HEADER = b"fairweather: frames of an unfinished video\n"
_NUMBER = re.compile(r"%(0?\d*)d")
_COARSE = {"gif": Fraction(1, 100), "webp": Fraction(1, 1000)}
_FILE_METADATA = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
"""Metadata of the source file rather than of its content."""
_log = logging.getLogger("fairweather")


class FrameWriter(Protocol):
    """Receives a video from start to end."""

    def put(self, frame: Frame) -> None:
        """Write the next frame; its time is in the source's time base, 0 at the start of the result."""
        ...

    def copy(self, packet: Packet) -> None:
        """Copy a packet of another stream."""
        ...

    def close(self) -> None:
        """Finish the file.

        Raises:
            BadFolder: it cannot be written.
        """
        ...


class VideoWriter:
    """A video file, written by FFmpeg."""

    def __init__(
        self,
        path: str | Path,
        container: str,
        source: FrameSource,
        encoding: Encoding,
        *,
        size: tuple[int, int] | None = None,
        start: float = 0.0,
    ) -> None:
        """Create the file, with the source's other streams, metadata and chapters if the container supports them.

        Args:
            path: the file, with any suffix, or "-" for standard output.
            container: the container, from `container_of`.
            source: the video that is restored.
            encoding: from `choose_encoding`.
            size: upright width and height of the frames (default: the source's).
            start: seconds of the source at which the result starts; copied packets are moved by it.
        """
        import av

        self._track = track = source.track
        self._start = start
        upright = size is not None and track.rotation % 180 != 0
        # Frames of another size are upright already; the display matrix turns stored frames.
        self._turns = 0 if size is not None else round(track.rotation / 90)
        width, height = size or (track.width, track.height)
        options = {"movflags": "use_metadata_tags"} if container in ("mp4", "mov") else {}
        if container == "gif":
            options["loop"] = "0"
        self._file: Any = sys.stdout.buffer if str(path) == "-" else str(path)
        self._out = av.open(self._file, "w", format=container, options=options)
        self._stream: Any = self._out.add_stream(encoding.encoder, rate=track.rate or 25, options=encoding.options)
        if container == "avi":
            self._stream.codec_context.max_b_frames = 0  # AVI has no timestamps to reorder frames by
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = encoding.pixel_format
        context = self._stream.codec_context
        # GIF and WebP have coarse times; frames that would coincide get one tick each.
        self._time_base = max(track.time_base, _COARSE.get(container, track.time_base))
        self._last = -1
        context.time_base = self._stream.time_base = self._time_base
        if encoding.bit_rate is not None:
            self._stream.bit_rate = encoding.bit_rate
        if "q" in encoding.options:
            context.qscale = True
            context.global_quality = int(float(encoding.options["q"]) * 118)
        if track.aspect and not upright:
            context.sample_aspect_ratio = track.aspect
        self._rgb = av.VideoFormat(encoding.pixel_format).is_rgb or encoding.encoder == "gif"
        if not self._rgb:
            matrix = track.colour[0] if track.colour[0] not in (0, 2) else 2
            context.colorspace, context.color_primaries = matrix, track.colour[1]
            context.color_trc, context.color_range = track.colour[2], track.colour[3]
        context.thread_type = "AUTO"
        self._palette = _Palette(width, height, self._time_base) if encoding.encoder == "gif" else None
        if track.matrix is not None and size is None:
            self._stream.set_display_matrix(list(track.matrix))
        self._copied: dict[int, Any] = {}
        if isinstance(source, VideoReader):
            self._copy_streams(source, container)
        self._durations: dict[int, int] = {}

    def _copy_streams(self, source: VideoReader, container: str) -> None:
        """Add the streams, metadata and chapters of the source that the container supports."""
        takes = self._out.supported_codecs
        for stream in source.streams:
            codec = stream.codec_context.name if stream.codec_context else "none"
            kind = stream.codec_context.codec.canonical_name if stream.codec_context else None
            try:
                if container in ("gif", "webp") or (kind is not None and kind not in takes):
                    raise ValueError(f"{container} does not support it")
                if kind is None:
                    raise ValueError("its codec is unknown")
                self._copied[stream.index] = copied = self._out.add_stream_from_template(stream)
                copied.metadata.update(
                    {key: value for key, value in stream.metadata.items() if key not in _FILE_METADATA}
                )
                copied.disposition = stream.disposition
            except Exception as error:
                _log.warning(
                    "%s: its %s stream (%s) is dropped: %s; .mkv supports nearly all",
                    source.name,
                    stream.type,
                    codec,
                    error,
                )
        self._out.metadata.update({k: v for k, v in source.container.metadata.items() if k not in _FILE_METADATA})
        self._stream.metadata.update({k: v for k, v in source.track.metadata.items() if k not in _FILE_METADATA})
        if not self._start and (chapters := source.container.chapters()):
            self._out.set_chapters(chapters)

    def put(self, frame: Frame) -> None:
        import av

        pixels = np.rot90(frame.pixels, -self._turns) if self._turns else frame.pixels
        pixels = np.ascontiguousarray(pixels)
        if frame.alpha is not None and pixels.dtype == np.uint8:
            picture = av.VideoFrame.from_ndarray(np.dstack([pixels, frame.alpha]), "rgba")
        else:
            picture = av.VideoFrame.from_ndarray(pixels, "rgb48le" if pixels.dtype == np.uint16 else "rgb24")
        time = frame.time
        if self._time_base != self._track.time_base:
            time = self._last = max(self._last + 1, round(frame.time * self._track.time_base / self._time_base))
        duration = round(frame.duration * self._track.time_base / self._time_base)
        picture.pts, picture.time_base = time, self._time_base
        if duration:
            picture.duration = self._durations[time] = duration
        if self._palette is not None:
            picture = self._palette(picture)
        else:
            picture = picture.reformat(
                format=self._stream.pix_fmt,
                dst_colorspace=None if self._rgb else self._track.yuv,
                dst_color_range=None if self._rgb else (2 if self._full else 1),
                interpolation=SCALING[pixels.dtype == np.uint16],
                threads=2,
            )
            picture.pts, picture.time_base = time, self._time_base
        self._mux(self._stream.encode(picture))

    @property
    def _full(self) -> bool:
        return self._track.colour[3] == 2 or self._stream.pix_fmt.startswith("yuvj")

    def copy(self, packet: Packet) -> None:
        stream = self._copied.get(packet.stream.index)
        if stream is None:
            return
        if self._start and packet.time_base:
            moved = round(Fraction(self._start).limit_denominator(1_000_000) / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - moved
            packet.dts = None if packet.dts is None else packet.dts - moved
        packet.stream = stream
        self._mux([packet])

    def close(self) -> None:
        try:
            self._mux(self._stream.encode(None))
        finally:
            self._out.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if packet.stream is self._stream and packet.pts in self._durations:
                packet.duration = self._durations.pop(packet.pts)
            self._out.mux(packet)


class _Palette:
    """A palette of 256 colours for each frame of a GIF (FFmpeg's palettegen and paletteuse)."""

    def __init__(self, width: int, height: int, time_base: Fraction) -> None:
        self._size, self._time_base = (width, height), time_base

    def __call__(self, picture: Any) -> Any:
        import av

        graph = av.filter.Graph()
        whole = graph.add_buffer(
            width=self._size[0], height=self._size[1], format=picture.format, time_base=self._time_base
        )
        split = graph.add("split")
        generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=1")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        sink = graph.add("buffersink")
        whole.link_to(split)
        split.link_to(generate, 0, 0)
        split.link_to(use, 1, 0)
        generate.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        graph.push(picture)
        graph.push(None)
        result = graph.pull()
        result.pts, result.time_base = picture.pts, self._time_base
        return result


class FolderWriter:
    """A folder of frames: with the names and formats of a source folder, or numbered by a pattern (%05d)."""

    def __init__(self, target: Path, source: FrameSource, *, overwrite: bool = False) -> None:
        self._names = [file.name for file in source.files] if isinstance(source, FrameFolder) else None
        self._pattern = None if self._names is not None and "%" not in target.name else target.name
        self._output = FrameOutput(target, overwrite=overwrite)
        self._folder = self._output.folder
        self._number = 0

    def put(self, frame: Frame) -> None:
        if self._pattern is not None:
            name = self._pattern % (self._number + 1)
        else:
            assert self._names is not None
            name = self._names[self._number]
        self._number += 1
        photo = Photo(frame.pixels, frame.alpha)
        if frame.photo is not None and frame.photo.pixels.shape == frame.pixels.shape:
            photo = frame.photo.replaced(frame.pixels)
        self._output.claim(name)
        try:
            write(self._folder / name, photo)
        except BadImage as error:
            raise BadFolder(str(error)) from error

    def copy(self, packet: Packet) -> None:
        pass

    def finish(self) -> None:
        """Mark the frames as complete."""
        self._output.finish()

    def close(self) -> None:
        self._output.close()


class FrameOutput:
    """The output folder of a run, with its list of frames."""

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        """Create and lock the list, and remove the frames of an interrupted run.

        Args:
            target: a folder, or a pattern in one (frames/%05d.png).
            overwrite: whether existing frames may be replaced.

        Raises:
            BadFolder: the folder cannot be written, or another run is writing there.
        """
        check_pattern(target)
        self._overwrite = overwrite
        self.folder = make_folder(folder_of(target))
        path = list_of(target)
        unfinished = listed(target)
        try:
            self._file: BinaryIO = open(path, "xb" if unfinished is None else "r+b")  # noqa: SIM115
            _lock(self._file, target)
            for name in unfinished or ():
                with suppress(FileNotFoundError):
                    (self.folder / name).unlink()
            self._file.seek(0)
            self._file.truncate()
            self._file.write(HEADER)
            self._file.flush()
        except OSError as error:
            raise BadFolder(f"{path} cannot be written ({error.strerror}): choose another folder with -o") from error
        self._path, self._claimed = path, False

    def claim(self, name: str) -> None:
        """Add the next frame to the list.

        Raises:
            BadFolder: a file of that name exists.
        """
        if not self._overwrite and (self.folder / name).exists():
            raise BadFolder(f"{self.folder / name} exists: choose another folder with -o, or use --overwrite")
        try:
            self._claimed = True
            self._file.write(os.fsencode(name) + b"\n")
            self._file.flush()
        except OSError as error:
            raise BadFolder(f"{self._path} cannot be written ({error.strerror}): free some disk space") from error

    def finish(self) -> None:
        """Remove the list, after the last frame."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the list; without `finish`, its frames count as those of an interrupted run."""
        self._file.close()
        if not self._claimed:
            self._path.unlink(missing_ok=True)


def check_pattern(target: Path) -> None:
    """Check that a pattern numbers the frames.

    Raises:
        BadSettings: it does not.
    """
    if "%" in target.name and not (len(_NUMBER.findall(target.name)) == 1 == target.name.count("%")):
        raise BadSettings(f"{target} needs one number in its name, as in frames/%05d.png")


def folder_of(target: Path) -> Path:
    """Return the folder of the frames."""
    return target.parent if "%" in target.name else target


def list_of(target: Path) -> Path:
    """Return the path of the hidden list."""
    return folder_of(target) / f".{target.name}.unfinished"


def listed(target: Path) -> list[str] | None:
    """Return the names on the list of an interrupted run; None if there is none.

    The last frame may be incomplete, and so may its name, which is then omitted.
    """
    try:
        head, *names = list_of(target).read_bytes().split(b"\n")
    except OSError:
        return None
    if head + b"\n" != HEADER:
        return None
    # Only names in this folder: nothing else may be removed.
    return [os.fsdecode(name) for name in names[:-1] if name not in (b"", b".", b"..") and b"/" not in name]


def existing(target: Path, names: list[str] | None) -> list[Path]:
    """Return the existing files that frames would replace, in their order.

    Args:
        target: a folder or pattern.
        names: the names of the frames, if they are those of a source folder.
    """
    folder = folder_of(target)
    if "%" not in target.name:
        return [folder / name for name in names or () if (folder / name).exists()]
    number = _NUMBER.search(target.name)
    if number is None:
        return []
    before, after = target.name[: number.start()], target.name[number.end() :]
    found: dict[int, Path] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            digits = name[len(before) : len(name) - len(after)]
            if name.startswith(before) and name.endswith(after) and digits.strip().isdecimal():
                index = int(digits)
                if target.name % index == name and index > 0:
                    found[index] = folder / name
    return [found[index] for index in sorted(found)]


def _lock(file: BinaryIO, target: Path) -> None:
    """Lock the list, or raise BadFolder if another process has locked it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: other processes cannot remove an open file
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise BadFolder(f"{target}: another run is writing there: wait, or choose another folder (-o)") from error
        # Some network file systems have no locks.
