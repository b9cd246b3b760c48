"""Browser previews: H.264 of a video that browsers cannot play, written in the same pass as the result."""

from __future__ import annotations

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

MAX_SIDE = 1280
"""Pixels of a preview's longer side."""


class BrowserPreview:
    """A writer of an MP4 that every browser plays: H.264, 8 bits, at most 1280 pixels wide or high.

    Args:
        path: the file.
        video: the video that the frames come from.
        width: width of an upright frame in pixels.
        height: height of an upright frame in pixels.
        sound: whether to copy sound that browsers play.
        result: the writer of the result, to which everything is forwarded.
    """

    def __init__(
        self,
        path: Path,
        video: VideoReader,
        width: int,
        height: int,
        *,
        sound: bool = False,
        result: FrameWriter | None = None,
    ) -> None:
        self._result = result
        scale = min(1.0, MAX_SIDE / max(width, height))
        self._size = max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
        encoding = Encoding("libx264", "yuv420p", {"crf": "20", "preset": "veryfast"})
        self._writer = VideoWriter(path, "mp4", _PreviewSource(video, sound), encoding, size=self._size)

    def put(self, frame: Frame) -> None:
        pixels = frame.pixels
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.shape[1::-1] != self._size:
            pixels = cv2.resize(pixels, self._size, interpolation=cv2.INTER_AREA)
        self._writer.put(replace(frame, pixels=pixels, alpha=None))
        if self._result is not None:
            self._result.put(frame)

    def copy(self, packet: Packet) -> None:
        import av

        twin = av.Packet(bytes(packet))  # the packet itself goes to the result's writer, which changes it
        twin.pts, twin.dts, twin.duration, twin.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
        twin.is_keyframe, twin.stream = packet.is_keyframe, packet.stream
        self._writer.copy(twin)
        if self._result is not None:
            self._result.copy(packet)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            if self._result is not None:
                self._result.close()


class _PreviewSource(VideoReader):
    """An open video reduced to its frames and, if wanted, the first sound that browsers play."""

    def __init__(self, video: VideoReader, sound: bool) -> None:
        self.__dict__.update(video.__dict__)
        self._sound = sound
        # The matrix is stored, since players guess it from the size, which differs from the original's.
        self.track = replace(video.track, colour=(video.track.yuv, *video.track.colour[1:3], 1), metadata={})

    @property
    def streams(self) -> list[Any]:
        return [stream for stream in super().streams if plays_in_browsers(stream)][: int(self._sound)]
