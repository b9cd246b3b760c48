"""What the page plays where a browser cannot play the clip itself: H.264 beside the result, made on the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fairweather.video.encoding import Encoding
from fairweather.video.reader import Frame, VideoReader
from fairweather.video.writer import FrameWriter, VideoWriter
from fairweather.web.uploads import plays_in_browsers

if TYPE_CHECKING:
    from av import Packet

SIDE = 1280
"""Pixels of a preview's longer side."""


class BrowserPreview:
    """A sink: an MP4 that every browser plays, 8 bits, at most 1280 pixels wide or high."""

    def __init__(self, path: Path, clip: VideoReader, width: int, height: int, *, sound: bool) -> None:
        """`width`, `height`: of the frames that come, upright. `sound`: copied where browsers play it."""
        factor = min(1.0, SIDE / max(width, height))
        self._size = tuple(max(2, 2 * round(side * factor / 2)) for side in (width, height))
        encoding = Encoding("libx264", "yuv420p", {"crf": "20", "preset": "veryfast"})
        self._sink = VideoWriter(path, "mp4", _Heard(clip, sound), encoding, size=(self._size[0], self._size[1]))

    def put(self, frame: Frame) -> None:
        pixels = frame.pixels
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.shape[1::-1] != self._size:
            pixels = cv2.resize(pixels, self._size, interpolation=cv2.INTER_AREA)
        self._sink.put(replace(frame, pixels=pixels, alpha=None))

    def copy(self, packet: Packet) -> None:
        """The packet stays as it is: another sink takes it as well."""
        import av

        twin = av.Packet(bytes(packet))
        twin.pts, twin.dts, twin.duration, twin.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
        twin.is_keyframe, twin.stream = packet.is_keyframe, packet.stream
        self._sink.copy(twin)

    def close(self) -> None:
        self._sink.close()


class PreviewWriter:
    """A sink that hands everything on to a preview, and then to the sink of the result."""

    def __init__(self, preview: BrowserPreview, result: FrameWriter | None) -> None:
        self._preview, self._result = preview, result

    def put(self, frame: Frame) -> None:
        self._preview.put(frame)
        if self._result is not None:
            self._result.put(frame)

    def copy(self, packet: Packet) -> None:
        self._preview.copy(packet)
        if self._result is not None:
            self._result.copy(packet)

    def close(self) -> None:
        try:
            self._preview.close()
        finally:
            if self._result is not None:
                self._result.close()


class _Heard(VideoReader):
    """A clip with nothing beside its pictures but the first sound that browsers play, if that."""

    def __init__(self, clip: VideoReader, sound: bool) -> None:
        self.__dict__.update(clip.__dict__)
        self._sound = sound
        colour = clip.track.colour
        # A smaller picture would be taken for one of another matrix where the file does not say which it has.
        self.track = replace(clip.track, colour=(clip.track.yuv, *colour[1:3], 1), metadata={})

    @property
    def streams(self) -> list[Any]:
        return [one for one in super().streams if plays_in_browsers(one)][: int(self._sound)]


def copied_stream(items: Iterator[Frame | Packet], preview: BrowserPreview | None) -> Iterator[Frame | Packet]:
    """The same items, of which the frames go into the preview as well; it is not closed here."""
    for item in items:
        if preview is not None and isinstance(item, Frame):
            preview.put(item)
        yield item


__all__ = ["PreviewWriter", "BrowserPreview", "copied_stream"]
