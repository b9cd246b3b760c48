"""Any source of a mixture as clips: the same photos and the same weather, before a camera that moves."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fairweather import images
from fairweather.data.augment import Augment
from fairweather.data.camera import draw_camera
from fairweather.data.clips import Air, Picture, Pixels, Rain, consecutive, film, invented
from fairweather.data.folders import Pairs
from fairweather.data.rainy import Rained
from fairweather.data.source import Sample, to_tensor
from fairweather.data.synthetic import Clear, Hazed, Map, Rehazed
from fairweather.errors import BadFolder
from fairweather.pairs import Pair
from fairweather.weather.haze import MIN_TRANSMISSION

AGAIN = (0.4, 2.0)
"""The power of a measured transmission, as in `fairweather.weather.haze.rehaze`."""
Sides = tuple[Pixels, NDArray[np.generic]]
Weather = Callable[[int, Picture, Picture], Picture]


class Filmed:
    """Clips of a source's photos, as strips: `degraded` and `clear` are 3 x T S x S, the T frames one below another;
    `moves`, T x 2 x 3, says how the camera moved (`Camera.moves`).

    Pairs are filmed as they are, both sides by one camera. Haze hangs where the source would put it: along its depth,
    its measured transmission, or the fog it borrows; rain falls. With `moving` the photos are the frames of films (a
    folder each, in the order of their names), and a clip is T of them that follow each other.
    """

    def __init__(
        self, source: Pairs | Rehazed | Clear, frames: int, *, speed: float = 3.0, moving: bool = False
    ) -> None:
        self.source, self.frames, self.speed = source, frames, speed
        self.starts: list[int] | None = None
        if moving:
            paths = source.paths if isinstance(source, Clear) else [pair.clear for pair in source.pairs]
            self.starts = consecutive(paths, frames)
            if not self.starts:
                folder = paths[0].parent if paths else "the folder"
                raise BadFolder(f"{folder} has no {frames} frames in a row: give longer films, or lower data.frames")

    @property
    def items(self) -> int:
        return self.source.items if self.starts is None else len(self.starts)

    @property
    def held(self) -> list[Pair]:
        return self.source.held

    def make(self, item: int, rng: np.random.Generator) -> Sample:
        augment: Augment = self.source.augment
        films = self.starts is not None
        first = item if self.starts is None else self.starts[item]
        sides, weather = self._scene(first, films, rng)
        rows, columns = sides(0)[0].shape[:2]
        share = float(rng.uniform(*augment.scale))
        # One pixel of the frame is so many of the photo, which is reduced by that before the camera looks at it.
        window = max(1 / augment.enlarge, share * min(rows, columns) / augment.crop)
        size = (max(1, round(columns / window)), max(1, round(rows / window)))
        still = None if films else _reduced(sides(0), size)
        crop = (augment.crop, augment.crop)
        mirrored = bool(rng.random() < augment.flip)
        speed = float(rng.uniform(0, self.speed))
        camera = draw_camera(size[::-1], crop, rng, speed=speed, mirrored=mirrored)
        shots = film(
            lambda t: _reduced(sides(t), size) if still is None else still,
            *(camera, self.frames, augment, rng),
            weather=weather,
        )
        degraded, clear = (to_tensor(np.concatenate(frames)) for frames in shots)
        return {"degraded": degraded, "clear": clear, "moves": torch.from_numpy(camera.moves(self.frames))}

    def _scene(
        self, first: int, films: bool, rng: np.random.Generator
    ) -> tuple[Callable[[int], Sides], Weather | None]:
        """What lies before the camera in frame t (`film` says in which words), and the weather over it."""
        source = self.source

        def at(t: int) -> int:
            return first + t if films else first

        if isinstance(source, Pairs):
            pairs = source.pairs

            def both(t: int) -> Sides:
                pair = pairs[at(t)]
                degraded, clear = source.photos.pair(pair.degraded, pair.clear)
                return clear, degraded

            return both, None
        if isinstance(source, Rehazed):
            rehazed, hazes = source, source.settings

            def measured(t: int) -> Sides:
                pair = rehazed.pairs[at(t)]
                return rehazed.photos.pair(pair.degraded, pair.clear)[1], _distance(rehazed.transmission(at(t)))

            return measured, Air(hazes, rng, density=AGAIN)

        photo = source.photos.get(source.paths[first])
        distance = self._distance(photo, first, films, rng)

        def one(t: int) -> Sides:
            return source.photos.get(source.paths[at(t)]), distance

        if isinstance(source, Rained):
            return one, Rain(source.settings, self.frames, (source.augment.crop, source.augment.crop), rng)
        if isinstance(source, Hazed):
            return one, Air(source.settings, rng, density=AGAIN if source.fog else None)
        return one, lambda t, clear, _: clear.copy()

    def _distance(self, photo: Pixels, item: int, films: bool, rng: np.random.Generator) -> Picture:
        """Optical distance over a photo, H x W: borrowed fog, true depth, or invented; in a film that of its first
        frame stays."""
        source, size = self.source, photo.shape[1::-1]
        if isinstance(source, Hazed) and source.fog is not None:
            swaths = _distance(source.fog.transmission(int(rng.integers(source.fog.items))))
            fog: Picture = cv2.resize(swaths, size, interpolation=cv2.INTER_LINEAR)
            return fog
        known = source.depth(source.paths[item]) if isinstance(source, Hazed) and not films else None
        if known is not None:
            return known.astype(np.float32) / np.float32(65535)
        if isinstance(source, (Hazed, Rained)):
            return invented(images.to_float(photo), rng)
        return np.zeros(photo.shape[:2], np.float32)


def _distance(transmission: Map) -> Picture:
    """Optical distance of a transmission, 0..65535 for 0..1."""
    share = (transmission.astype(np.float32) / np.float32(65535)).clip(MIN_TRANSMISSION, 1)
    distance: Picture = -np.log(share)
    return distance


def _reduced(sides: Sides, size: tuple[int, int]) -> Sides:
    """Both at this width and height."""
    interpolation = cv2.INTER_AREA if size[0] < sides[0].shape[1] else cv2.INTER_CUBIC
    first = cv2.resize(sides[0], size, interpolation=interpolation)
    smooth = interpolation if sides[1].ndim == 3 else cv2.INTER_LINEAR  # maps must not overshoot
    second = cv2.resize(sides[1], size, interpolation=smooth)
    return first, second
