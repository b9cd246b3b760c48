"""Clips made for the tests: small, with everything that may stand beside the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairweather.inference.batch import Job, run
from fairweather.inference.restorer import RestoreOptions

av = pytest.importorskip("av", reason="the extra video is not installed")

Array = np.ndarray


class Lift:
    """In place of a film's models: adds so many levels, and remembers what it was called with."""

    def __init__(self, levels: int = 0) -> None:
        self.levels, self.steps, self.shapes = levels, [], []

    def begin(self, frame: Array, step: float) -> Callable[[], Array]:
        self.steps.append(step)
        self.shapes.append((frame.shape, str(frame.dtype)))
        return lambda: np.clip(frame.astype(int) + self.levels, 0, np.iinfo(frame.dtype).max).astype(frame.dtype)


def restored(source: Path | str, target: Path | str, film: Lift | None = None, **options: Any) -> Lift:
    """Restore one video by a stand-in for its models."""
    film = film or Lift()
    job = Job(str(source), str(target), video=True)
    assert run([job], RestoreOptions(**options), restorer=film).done == 1  # type: ignore[arg-type]
    return film


def pictures(count: int, height: int = 48, width: int = 64, dtype: str = "uint8") -> Iterator[Array]:
    """A soft pattern that moves: codecs keep it well."""
    top = np.iinfo(dtype).max
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    for number in range(count):
        waves = [np.sin((columns + 2 * number) / 9), np.cos(rows / 7), np.sin((rows + columns + number) / 11)]
        yield np.rint((np.stack(waves, -1) * 0.3 + 0.5) * top).astype(dtype)


def make(
    path: Path,
    *,
    times: list[int] | None = None,
    count: int = 12,
    time_base: Fraction = Fraction(1, 12800),
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    audio: str | None = None,
    rotation: int = 0,
    colour: tuple[int, int, int, int] | None = None,
    tags: bool = False,
    shown: Iterable[Array] | None = None,
) -> Path:
    """A clip; `times` in units of `time_base` (default: 25 a second); `shown`: its frames, in place of a pattern."""
    times = times if times is not None else [round(number / 25 / time_base) for number in range(count)]
    deep = "10" in pixel_format
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"crf": "10"} if "26" in codec else {})
        if path.suffix == ".avi":
            stream.codec_context.max_b_frames = 0
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        if colour:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = colour
        sound = out.add_stream(audio, rate=48000) if audio else None
        if tags:
            out.metadata["title"] = "Fog"
            stream.metadata["language"] = "deu"
            out.set_chapters(
                [{"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}]
            )
        if sound is not None:
            tone(out, sound, times[-1] * time_base)
        pattern = pictures(len(times), size[1], size[0], "uint16" if deep else "uint8")
        for time, picture in zip(times, pattern if shown is None else shown, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb48le" if deep else "rgb24")
            frame.pts, frame.time_base = time, time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def tone(out: Any, sound: Any, seconds: Fraction) -> None:
    samples = 1024
    for number in range(max(4, int(seconds * 48000) // samples)):
        wave = np.sin(np.arange(number * samples, (number + 1) * samples) / 20).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None], "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, number * samples, Fraction(1, 48000)
        resampled = av.AudioResampler(format=sound.format.name, layout=sound.layout.name, rate=48000).resample(frame)
        for part in resampled:
            part.pts = number * samples
            out.mux(sound.encode(part))
    out.mux(sound.encode(None))


def frames_of(path: Path | str) -> tuple[list[Fraction], list[Array]]:
    """Times in seconds and pictures of a clip."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        decoded = list(file.decode(stream))
        return [frame.pts * stream.time_base for frame in decoded], [
            frame.to_ndarray(format="rgb24") for frame in decoded
        ]


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """Times in seconds and bytes of the packets of the first stream of a kind."""
    with av.open(str(path)) as file:
        stream = getattr(file.streams, kind)[0]
        return [
            (packet.pts * packet.time_base, bytes(packet)) for packet in file.demux(stream) if packet.pts is not None
        ]
