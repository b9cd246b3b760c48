"""Photos to calibrate on, and others to compare the result on, from a folder of pairs or of photos alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fairweather import images
from fairweather.errors import BadFolder
from fairweather.pairs import find_sets, pictures, survey

LARGEST_SIDE = 512
"""Longer sides are cut to their middle: what is asked here does not grow with the photo, and time does."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CalibrationSample:
    """A photo, and where it is known, its truth: H x W x 3 float32 in [0,1], of one size."""

    name: str
    degraded: NDArray[np.float32]
    clear: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class SampleSet:
    """What --data gives: photos by path, read when they are asked for."""

    folder: str
    calibrating: list[tuple[Path, Path | None]]
    measuring: list[tuple[Path, Path | None]]
    """None of them is among the former, unless there is but one scene."""
    training: list[tuple[Path, Path | None]]
    """All but those measured on."""

    @property
    def paired(self) -> bool:
        return self.measuring[0][1] is not None


def find_samples(folder: Path, *, calibrating: int = 64, measuring: int = 16) -> SampleSet:
    """The photos of a folder. Scenes (photos with one truth) are kept whole: none is in both parts.

    Raises BadFolder where there is nothing, or where photos and truths do not fit.
    """
    found: list[tuple[Path, Path | None]]
    if survey(folder):
        found = [(pair.degraded, pair.clear) for pairs in find_sets(folder).values() for pair in pairs]
    else:
        found = [(path, None) for path in pictures(folder)]
    if not found:
        raise BadFolder(f"{folder} holds no photos: give a folder of photos, or of pairs, that the model is made for")
    scenes = list(dict.fromkeys(clear or degraded for degraded, clear in found))
    kept = set(spread_evenly(scenes, min(measuring, max(1, len(scenes) // 2))))
    measured = [one for one in found if (one[1] or one[0]) in kept]
    rest = [one for one in found if (one[1] or one[0]) not in kept] or measured
    return SampleSet(folder.resolve().name, spread_evenly(rest, calibrating), spread_evenly(measured, measuring), rest)


def read_samples(paths: Sequence[tuple[Path, Path | None]], largest: int = LARGEST_SIDE) -> list[CalibrationSample]:
    """The photos, the middle of those with longer sides. Raises BadImage, and BadFolder where sizes differ."""
    samples = []
    for degraded, clear in paths:
        photo = _middle(images.read(degraded).pixels, largest)
        truth = None if clear is None else _middle(images.read(clear).pixels, largest)
        if truth is not None and truth.shape != photo.shape:
            raise BadFolder(f"{degraded} and {clear} differ in size: crop one of them, or take the pair out")
        samples.append(CalibrationSample(degraded.name, photo, truth))
    return samples


def synthetic_samples(pictures: Sequence[NDArray[Any]]) -> list[CalibrationSample]:
    """Pictures that are at hand, without a truth."""
    whole = (one if one.dtype == np.float32 else images.to_float(one) for one in pictures)
    return [CalibrationSample(f"invented {number}", one) for number, one in enumerate(whole, 1)]


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of them, evenly from the first to the last."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _middle(pixels: NDArray[Any], largest: int) -> NDArray[np.float32]:
    top, left = (max(0, side - largest) // 2 for side in pixels.shape[:2])
    return images.to_float(np.ascontiguousarray(pixels[top : top + largest, left : left + largest]))
