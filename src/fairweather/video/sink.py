"""Where frames go: a clip like the source's, with all that stood beside its pictures; or a folder of pictures."""

from __future__ import annotations

import logging
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadFolder, BadImage
from fairweather.images import Photo, write
from fairweather.video.formats import SCALING, Encoding
from fairweather.video.frame_output import FrameOutput
from fairweather.video.frames import Frame, Source
from fairweather.video.pictures import FrameFolder
from fairweather.video.source import Clip

if TYPE_CHECKING:
    from av import Packet

Array = NDArray[Any]
_log = logging.getLogger("fairweather")
_COARSE = {"gif": Fraction(1, 100), "webp": Fraction(1, 1000)}
_OWN = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
"""Metadata that is about the file that was read, not about what it shows."""


class Sink(Protocol):
    """Takes a film from front to back."""

    def put(self, frame: Frame) -> None:
        """The next frame; its time is in the source's time base, 0 where the result begins."""
        ...

    def copy(self, packet: Packet) -> None:
        """A packet of another stream, as it is."""
        ...

    def close(self) -> None:
        """Finish the file. Raises BadFolder where the disk does not take it."""
        ...


class ClipSink:
    """A clip, written by FFmpeg as frames come in."""

    def __init__(
        self,
        path: str | Path,
        container: str,
        source: Source,
        encoding: Encoding,
        *,
        size: tuple[int, int] | None = None,
        start: float = 0.0,
    ) -> None:
        """`path`: the file, whatever its suffix, or "-" for standard output; `size`: width and height of the frames,
        upright (default: the source's). Times of copied packets are moved by `start` seconds."""
        import av

        self._track = track = source.track
        self._start = start
        upright = size is not None and track.rotation % 180 != 0
        # What is put side by side is upright as it is; the matrix belongs to the stored picture.
        self._turns = 0 if size is not None else round(track.rotation / 90)
        width, height = size or (track.width, track.height)
        options = {"movflags": "use_metadata_tags"} if container in ("mp4", "mov") else {}
        if container == "gif":
            options["loop"] = "0"
        self._file: Any = sys.stdout.buffer if str(path) == "-" else str(path)
        self._out = av.open(self._file, "w", format=container, options=options)
        self._stream: Any = self._out.add_stream(encoding.encoder, rate=track.rate or 25, options=encoding.options)
        if container == "avi":
            self._stream.codec_context.max_b_frames = 0  # a file without times of its own cannot put them in order
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = encoding.pixel_format
        context = self._stream.codec_context
        # GIF and WebP count coarsely; frames that would fall together there are shown one tick each.
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
        if isinstance(source, Clip):
            self._beside(source, container)
        self._durations: dict[int, int] = {}

    def _beside(self, source: Clip, container: str) -> None:
        """Streams, metadata and chapters of the source that the container takes."""
        takes = self._out.supported_codecs
        for stream in source.streams:
            codec = stream.codec_context.name if stream.codec_context else "none"
            kind = stream.codec_context.codec.canonical_name if stream.codec_context else None
            try:
                if container in ("gif", "webp") or (kind is not None and kind not in takes):
                    raise ValueError(f"{container} does not hold it")
                if kind is None:
                    raise ValueError("it is data of an unknown kind")
                self._copied[stream.index] = copied = self._out.add_stream_from_template(stream)
                copied.metadata.update({key: value for key, value in stream.metadata.items() if key not in _OWN})
                copied.disposition = stream.disposition
            except Exception as error:
                _log.warning(
                    "%s: its %s stream (%s) stays behind: %s; .mkv takes nearly all",
                    source.name,
                    stream.type,
                    codec,
                    error,
                )
        self._out.metadata.update({k: v for k, v in source.container.metadata.items() if k not in _OWN})
        self._stream.metadata.update({k: v for k, v in source.track.metadata.items() if k not in _OWN})
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
    """256 colours for each frame of a GIF, chosen for it (FFmpeg's palettegen and paletteuse)."""

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


class FolderSink:
    """Pictures in a folder: with the names and kinds of a folder of frames, or numbered by a pattern (%05d)."""

    def __init__(self, target: Path, source: Source, *, overwrite: bool = False) -> None:
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
        """All frames are written: from now on they count as done."""
        self._output.finish()

    def close(self) -> None:
        self._output.close()
