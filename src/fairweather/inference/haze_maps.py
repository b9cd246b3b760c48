"""Haze maps: reduce a photo for a network, and apply the maps it predicts to the full-size photo.

NumPy and OpenCV, in strips of rows on all cores. `fairweather.generators.scattering_maps` applies maps in PyTorch for
training; the parity check compares the two.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fairweather.model_folder import MapsSpec

MIN_TRANSMISSION = 0.1
MAX_ENLARGED_BYTES = 16 << 20
"""Up to this many bytes, the maps are widened to the photo's width once; beyond it, each strip widens its own rows."""
Array = NDArray[Any]
Floats = NDArray[np.float32]


class HazeMaps(NamedTuple):
    """The prediction of a maps network for one photo."""

    reduced: Floats
    """The photo as the network received it, 1 x 3 x h x w in [0, 1]."""
    maps: Floats
    """1 x 7 x h' x w': transmission, airlight (3), offset (3)."""


def reduce_photo(photo: Array, spec: MapsSpec, multiple_of: int) -> Floats:
    """Resize a photo to the network's input: about spec.size^2 pixels in the photo's aspect ratio.

    Uses area interpolation where both sides shrink, else bilinear. Even sides of at least four times the target are
    halved first.

    Args:
        photo: H x W x 3, uint8, uint16 or float32 in [0, 1].
        spec: the card's maps field.
        multiple_of: the sides become multiples of this.

    Returns:
        1 x 3 x h x w float32 in [0, 1].
    """
    scale = min(1.0, spec.size / (photo.shape[0] * photo.shape[1]) ** 0.5)
    height, width = (max(1, round(side * scale / multiple_of)) * multiple_of for side in photo.shape[:2])
    # Halving is many times as fast as other ratios, and its rounding is averaged away afterwards.
    while photo.shape[0] >= 4 * height and photo.shape[1] >= 4 * width and not (photo.shape[0] | photo.shape[1]) % 2:
        photo = cv2.resize(photo, (photo.shape[1] // 2, photo.shape[0] // 2), interpolation=cv2.INTER_AREA)
    enlarges = height > photo.shape[0] or width > photo.shape[1]
    small = cv2.resize(
        _to_float(photo) if enlarges else photo,
        (width, height),
        interpolation=cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA,
    )
    return np.ascontiguousarray(_to_float(small).transpose(2, 0, 1)[None])


def apply_maps(photo: Array, reduced: Floats, maps: Floats, spec: MapsSpec, strength: float = 1.0) -> Array:
    """Compute J = A + K (I - A) + O at full size, with K = 1 / t following the photo's luma.

    The gain is the output of a guided filter (He, Sun & Tang, TPAMI 2013) whose coefficients are computed on the maps'
    grid and enlarged (He & Sun, arXiv:1505.00996).

    Args:
        photo: H x W x 3, uint8, uint16 or float32 in [0, 1].
        reduced: the network's input, 1 x 3 x h x w.
        maps: transmission, airlight and offset, 1 x 7 x h' x w'.
        spec: the card's maps field.
        strength: s gives I + s (J - I).

    Returns:
        An array of the photo's size and type.
    """
    height, width = photo.shape[:2]
    slope, intercept = _guided_gain(reduced, maps, spec)
    airlight = maps[0, 1:4].transpose(1, 2, 0)
    # I + s (A + K (I - A) + O - I) = K' (I - A) + P' with K' = 1 + s (K - 1) and P' = A + s O.
    level = airlight + np.float32(strength) * maps[0, 4:7].transpose(1, 2, 0)
    unit = _unit(photo.dtype)
    # The slope applies to luma in code values, and the two levels are code values themselves.
    enlarged = _EnlargedMaps(height, width, slope / unit, intercept, airlight * unit, level * unit)
    out, scratch = np.empty_like(photo, order="C"), SCRATCH

    def strip(top: int, bottom: int) -> None:
        shape = (bottom - top, width)
        picture, k, gain = scratch("picture", (*shape, 3)), scratch("k", shape), scratch("gain", (*shape, 3))
        slope, intercept, airlight, level = enlarged.rows(top, bottom, scratch)
        np.copyto(picture, photo[top:bottom])
        cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY, dst=k)
        k *= slope
        k += intercept
        np.clip(k, 1, 1 / MIN_TRANSMISSION, out=k)
        if strength != 1:
            k -= 1
            k *= np.float32(strength)
            k += 1
        # Broadcasting the gain over the channels, NumPy would iterate in steps of three values, which is slow.
        cv2.cvtColor(k, cv2.COLOR_GRAY2RGB, dst=gain)
        picture -= airlight
        picture *= gain
        _add(picture, level, out[top:bottom])

    run_in_strips(height, width, strip)
    return out


def reduce_to_pixels(photo: Array, most_pixels: int) -> Floats | None:
    """Reduce a photo to about `most_pixels` pixels, float32 in [0, 1]; None if it has no more, or for 0."""
    height, width = photo.shape[:2]
    scale = (most_pixels / (height * width)) ** 0.5
    if not 0 < scale < 1:
        return None
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(_to_float(cv2.resize(photo, size, interpolation=cv2.INTER_AREA)))


def add_change(photo: Array, change: Floats, strength: float) -> Array:
    """Add `strength` times a change computed on the reduced photo, enlarged bilinearly.

    Args:
        photo: H x W x 3, uint8, uint16 or float32 in [0, 1].
        change: h x w x 3 float32, the difference of two pictures in [0, 1].
        strength: 0 to 1.

    Returns:
        An array of the photo's size and type.
    """
    height, width = photo.shape[:2]
    enlarged = _EnlargedMaps(height, width, change * (np.float32(strength) * _unit(photo.dtype)))
    out, scratch = np.empty_like(photo, order="C"), SCRATCH

    def strip(top: int, bottom: int) -> None:
        picture = scratch("picture", (bottom - top, width, 3))
        np.copyto(picture, photo[top:bottom])
        (change,) = enlarged.rows(top, bottom, scratch)
        _add(picture, change, out[top:bottom])

    run_in_strips(height, width, strip)
    return out


def _guided_gain(reduced: Floats, maps: Floats, spec: MapsSpec) -> tuple[Floats, Floats]:
    """Slope and intercept of the gain as a function of luma, h' x w' each."""
    height, width = maps.shape[-2:]
    small = cv2.resize(reduced[0].transpose(1, 2, 0), (width, height), interpolation=cv2.INTER_AREA)
    guide = _luma(small)
    gain = 1 / maps[0, 0]
    side = 2 * spec.radius + 1

    def total(x: Floats) -> Floats:
        filtered: Floats = cv2.boxFilter(x, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return filtered

    count = total(np.ones_like(guide))
    mean_guide, mean_square, mean_gain, mean_product = (
        total(x) / count for x in (guide, guide * guide, gain, guide * gain)
    )
    slope = (mean_product - mean_guide * mean_gain) / (mean_square - mean_guide * mean_guide + spec.eps)
    return total(slope) / count, total(mean_gain - slope * mean_guide) / count


class _EnlargedMaps:
    """Maps of h x w (x C each), enlarged bilinearly to height x width a few rows at a time, pixel centres aligned."""

    def __init__(self, height: int, width: int, *maps: Floats) -> None:
        self._maps = [np.ascontiguousarray(map_, np.float32) for map_ in maps]
        self._width = width
        self._values = width * sum(map_.shape[2] if map_.ndim == 3 else 1 for map_ in maps)
        small = len(maps[0])
        at = ((np.arange(height, dtype=np.float32) + 0.5) * (small / height) - 0.5).clip(0, small - 1)
        above = np.minimum(at.astype(np.int64), max(0, small - 2))
        self._share = (at - above).astype(np.float32)[:, None]
        self._above, self._below = above.tolist(), np.minimum(above + 1, small - 1).tolist()
        self._wide: Floats | None = None
        if small * self._values * 4 <= MAX_ENLARGED_BYTES:
            self._wide = self._widened(0, small, np.empty((small, self._values), np.float32))

    def rows(self, top: int, bottom: int, scratch: Scratch) -> list[Floats]:
        """Rows [top, bottom) of every map at full size, bottom - top x width (x C), in scratch arrays.

        The maps' own rows are widened first, side by side; each full-size row is then a weighted sum of two of them.
        """
        first, last = self._above[top], self._below[bottom - 1]
        if self._wide is not None:
            wide = self._wide[first : last + 1]
        else:
            wide = self._widened(first, last + 1, scratch("wide", (last + 1 - first, self._values)))
        out, step = scratch("rows", (bottom - top, self._values)), scratch("step", (self._values,))
        start = top
        while start < bottom:  # all rows between the same two rows of the maps
            end = bisect_right(self._above, self._above[start], start, bottom)
            upper, part = wide[self._above[start] - first], out[start - top : end - top]
            np.subtract(wide[self._below[start] - first], upper, out=step)
            np.multiply(self._share[start:end], step, out=part)
            part += upper
            start = end
        return self._parts(out)

    def _widened(self, first: int, end: int, wide: Floats) -> Floats:
        """Write the maps' rows [first, end) at full width into `wide`."""
        for map_, part in zip(self._maps, self._parts(wide), strict=True):
            if map_.shape[1] == self._width:
                part[...] = map_[first:end]
            else:
                cv2.resize(map_[first:end], part.shape[1::-1], dst=part, interpolation=cv2.INTER_LINEAR)
        return wide

    def _parts(self, rows: Floats) -> list[Floats]:
        """Split rows that contain all maps side by side."""
        parts, start = [], 0
        for map_ in self._maps:
            values = self._width * (1 if map_.ndim == 2 else map_.shape[2])
            parts.append(rows[:, start : start + values].reshape(len(rows), self._width, *map_.shape[2:]))
            start += values
        return parts


def _luma(picture: Floats) -> Floats:
    luma = cv2.transform(picture, np.array([[0.299, 0.587, 0.114]], np.float32))
    return np.asarray(luma, np.float32).reshape(picture.shape[:2])


def _unit(dtype: np.dtype[Any]) -> np.float32:
    return np.float32(np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1)


def _to_float(picture: Array) -> Floats:
    return picture.astype(np.float32) / _unit(picture.dtype) if picture.dtype != np.float32 else picture


def _add(picture: Floats, change: Floats, out: Array) -> None:
    """Write the sum of two arrays of code values, rounded and clipped, into `out`."""
    if out.dtype == np.float32:
        np.clip(np.add(picture, change, out=picture), 0, 1, out=out)
    else:
        cv2.add(picture, change, dst=out, dtype=cv2.CV_8U if out.dtype == np.uint8 else cv2.CV_16U)


# Full-size work in strips of rows, on all cores.

STRIP_PIXELS = 1 << 17
"""Pixels of a strip. Its intermediate results stay in the processor's outer cache, and it is large compared with the
overhead of a NumPy or OpenCV call, including the 10 microseconds or so that threads lose to Python's lock per call."""


class Scratch(threading.local):
    """Arrays by name, separate for each thread; the same name reuses the same memory.

    Allocating is slow: the system maps new memory page by page and zeroes it, which takes as long as an addition.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array of this shape with undefined contents."""
        size = prod(shape)
        array = self._arrays.get(name)
        if array is None or array.size < size or array.dtype != dtype:
            array = self._arrays[name] = np.empty(size, dtype)
        return array[:size].reshape(shape)


SCRATCH = Scratch()


def run_in_strips(height: int, width: int, work: Callable[[int, int], None], pixels: int = STRIP_PIXELS) -> None:
    """Call `work(first row, end row)` for strips of about `pixels` pixels, on all cores.

    Exceptions of `work` are raised here. `work` must not call this function: it would wait for its own thread.
    """
    rows = max(1, pixels // width)
    list(strip_pool().map(lambda top: work(top, min(top + rows, height)), range(0, height, rows)))


def strip_pool() -> ThreadPoolExecutor:
    """The pool with one thread per core; it is shared by all photos, so `SCRATCH` is reused."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cv2.getNumberOfCPUs(), "strips")
        return _pool


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _reset_after_fork() -> None:
    """A forked process inherits the pool but none of its threads."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
