"""Photos in memory: each decoded once, as 8 bits, no larger than training needs, within a budget."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import images
from fairweather.errors import BadFolder, BadImage

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
Values = NDArray[np.uint8] | NDArray[np.uint16]
"""H x W, a depth map as its file has it."""
V = TypeVar("V", NDArray[np.uint8], NDArray[np.uint8] | NDArray[np.uint16])

RESIDE_BORDER = 10
"""RESIDE's indoor clear photos keep a border of 10 px that its hazy ones have lost (640 x 480 and 620 x 460)."""


class Photos:
    """Photos by path. Safe to share between sources and threads: what is given depends on the path alone.

    A photo that does not fit into the budget any more is decoded whenever it is asked for: slower, the same pixels.
    """

    def __init__(self, short_side: int | None = None, memory: int = 4 * 2**30) -> None:
        """`short_side`: larger photos are reduced (by area) to this many pixels on their short side.
        `memory`: the most bytes kept."""
        self.short_side = short_side
        self.memory = memory
        self.used = 0
        self._kept: dict[tuple[Path, Size | None], Pixels] = {}
        self._maps: dict[Path, Values] = {}
        self._sizes: dict[Path, Size] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        # a worker process that is not forked gets a copy; a lock does not travel
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def check(
        self, photos: Iterable[Path], pairs: Iterable[tuple[Path, Path]] = (), maps: Iterable[Path] = ()
    ) -> None:
        """Decode everything once, and name every file that is broken and every pair whose sizes differ.

        Raises BadImage or BadFolder; the message names all of them (the first twenty), not the first alone.
        """
        singles = list(dict.fromkeys(photos))
        couples = list(dict.fromkeys(pairs))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            broken = list(pool.map(self._trial, singles)) + list(pool.map(self._trial_pair, couples))
            broken += list(pool.map(self._trial_map, dict.fromkeys(maps)))
        faults = list(dict.fromkeys(fault for fault in broken if fault))
        if faults:
            more = f"\n... and {len(faults) - 20} more" if len(faults) > 20 else ""
            kind = BadImage if all(fault.startswith("\0") for fault in faults) else BadFolder
            raise kind("\n".join(fault.lstrip("\0") for fault in faults[:20]) + more)

    def _trial(self, path: Path) -> str:
        try:
            self.get(path)
        except BadImage as error:
            return f"\0{error}"
        return ""

    def _trial_pair(self, pair: tuple[Path, Path]) -> str:
        try:
            self.pair(*pair)
        except BadImage as error:
            return f"\0{error}"
        except BadFolder as error:
            return str(error)
        return ""

    def _trial_map(self, path: Path) -> str:
        try:
            self.map(path)
        except BadImage as error:
            return f"\0{error}"
        return ""

    def map(self, path: Path) -> Values:
        """A depth map, H x W of its own 8 or 16 bits, reduced as photos are; not to be written to."""
        with self._lock:
            kept = self._maps.get(path)
        if kept is not None:
            return kept
        values = np.ascontiguousarray(images.read(path).pixels[..., 0])
        values = reduced(values, self.short_side)
        values.flags.writeable = False
        with self._lock:
            if path not in self._maps and self.used + values.nbytes <= self.memory:
                self._maps[path] = values
                self.used += values.nbytes
        return values

    def get(self, path: Path) -> Pixels:
        """H x W x 3 uint8, not to be written to."""
        return self._get(path, None)

    def pair(self, degraded: Path, clear: Path) -> tuple[Pixels, Pixels]:
        """Both photos of a pair at the same size; BadFolder where their sizes differ."""
        first = self._get(degraded, None)
        with self._lock:
            size = self._sizes[degraded]
        return first, self._get(clear, size)

    def _get(self, path: Path, size: Size | None) -> Pixels:
        with self._lock:
            kept = self._kept.get((path, size))
            if kept is None and size is not None and self._sizes.get(path) == size:
                kept = self._kept.get((path, None))
        if kept is not None:
            return kept
        pixels = eight_bits(images.read(path).pixels)
        own = (pixels.shape[0], pixels.shape[1])
        if size is not None and own != size:
            pixels = _without_border(pixels, size, path)
        pixels = reduced(pixels, self.short_side)
        pixels.flags.writeable = False
        key = (path, size if size != own else None)
        with self._lock:
            self._sizes[path] = own
            if key not in self._kept and self.used + pixels.nbytes <= self.memory:
                self._kept[key] = pixels
                self.used += pixels.nbytes
        return pixels


def eight_bits(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Pixels:
    """uint8 as it is; uint16 rounded to it."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def reduced(pixels: V, short_side: int | None) -> V:
    """Photos or maps reduced by area so that the short side is at most `short_side`; never enlarged."""
    height, width = pixels.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return pixels
    factor = short_side / min(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cast(V, np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=pixels.dtype))


def _without_border(pixels: Pixels, size: Size, path: Path) -> Pixels:
    border = RESIDE_BORDER
    height, width = pixels.shape[:2]
    if (height, width) != (size[0] + 2 * border, size[1] + 2 * border):
        raise BadFolder(
            f"{path} is {width} x {height}, its degraded partner {size[1]} x {size[0]}: "
            "the two photos of a pair must have the same size; crop one of them or take the pair out"
        )
    return np.ascontiguousarray(pixels[border:-border, border:-border])
