"""Photos for calibration, and others for measuring the result, from a folder of pairs or of photos."""

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
"""Larger photos are cropped to their middle, which bounds the time."""
T = TypeVar("T")
PhotoPath = tuple[Path, Path | None]
"""A degraded photo, and its ground truth if there is one."""


@dataclass(frozen=True, eq=False)
class CalibrationSample:
    """A photo and, if known, its ground truth: H x W x 3 float32 in [0,1], of one size."""

    degraded: NDArray[np.float32]
    clear: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class SampleSet:
    """The photos of a folder, split by use."""

    folder: str
    """Name of the folder."""
    calibrating: list[PhotoPath]
    measuring: list[PhotoPath]
    """Of other scenes than `calibrating`, unless there is only one."""
    training: list[PhotoPath]
    """All but `measuring`, unless there is only one scene."""

    @property
    def paired(self) -> bool:
        """Whether there is ground truth."""
        return self.measuring[0][1] is not None


def find_samples(folder: Path, *, calibrating: int = 64, measuring: int = 16) -> SampleSet:
    """Split the photos of a folder; photos of one scene (of one ground truth) stay together.

    Raises:
        BadFolder: the folder contains no photos, or photos and ground truths do not match.
    """
    found: list[PhotoPath]
    if survey(folder):
        found = [(pair.degraded, pair.clear) for pairs in find_sets(folder).values() for pair in pairs]
    else:
        found = [(path, None) for path in pictures(folder)]
    if not found:
        raise BadFolder(f"{folder} contains no photos: give a folder of photos or pairs that suit the model")
    scenes = list(dict.fromkeys(clear or degraded for degraded, clear in found))
    chosen = set(spread_evenly(scenes, min(measuring, max(1, len(scenes) // 2))))
    measured = [one for one in found if (one[1] or one[0]) in chosen]
    rest = [one for one in found if (one[1] or one[0]) not in chosen] or measured
    return SampleSet(folder.resolve().name, spread_evenly(rest, calibrating), spread_evenly(measured, measuring), rest)


def read_samples(paths: Sequence[PhotoPath], largest: int = LARGEST_SIDE) -> list[CalibrationSample]:
    """Read photos, cropped to their middle of at most `largest` x `largest` pixels.

    Raises:
        BadImage: a photo cannot be read.
        BadFolder: a photo and its ground truth differ in size.
    """
    samples = []
    for degraded, clear in paths:
        photo = _middle(images.read(degraded).pixels, largest)
        truth = None if clear is None else _middle(images.read(clear).pixels, largest)
        if truth is not None and truth.shape != photo.shape:
            raise BadFolder(f"{degraded} and {clear} differ in size: crop one of them, or remove the pair")
        samples.append(CalibrationSample(photo, truth))
    return samples


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced from the first to the last."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _middle(pixels: NDArray[Any], largest: int) -> NDArray[np.float32]:
    top, left = (max(0, side - largest) // 2 for side in pixels.shape[:2])
    return images.to_float(np.ascontiguousarray(pixels[top : top + largest, left : left + largest]))
