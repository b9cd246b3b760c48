"""A photo's full-size work in strips of rows, on all cores, with arrays that are made once per core."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from fairweather.model_folder import MapsSpec

STRIP_PIXELS = 1 << 17
"""A strip of so many pixels stays in the processor's outer cache with its intermediate results, and is still large
beside what a call of NumPy or OpenCV costs: with it goes what threads lose by handing Python's lock to each other, some
10 microseconds a call on a virtual machine, as long as a call takes on a few rows of bytes."""


class Scratch(threading.local):
    """Arrays by name, each thread its own; asked for again, a name gives the same memory.

    Fresh memory is not free: the system maps it page by page and fills it with zeros, which takes as long as an
    addition does over the same array.
    """

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array of this shape with anything in it."""
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self._held[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)


def run_in_strips(height: int, width: int, work: Callable[[int, int], None], pixels: int = STRIP_PIXELS) -> None:
    """Call `work` with (first row, row after the last) of strips of about `pixels` pixels, on all cores.

    What a strip raises is raised here. `work` must not call this in turn: it would wait for the thread that it is in.
    """
    rows = max(1, pixels // width)
    list(strip_pool().map(lambda top: work(top, min(top + rows, height)), range(0, height, rows)))


def strip_pool() -> ThreadPoolExecutor:
    """A thread for each core, the same ones for all photos, that what they hold (`SCRATCH`) is there for the next."""
    global _cores
    with _lock:
        if _cores is None:
            _cores = ThreadPoolExecutor(cv2.getNumberOfCPUs(), "strips")
        return _cores


_cores: ThreadPoolExecutor | None = None
_lock = threading.Lock()
SCRATCH = Scratch()
"""For strips; of each name there is one array in a thread, as large as the largest strip asked for."""


def _forked() -> None:
    """A fork has the pool but none of its threads."""
    global _cores, _lock
    _cores, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

# What a network's answer on a reduced photo does to the full-size one: NumPy and OpenCV, in strips, no PyTorch.
#
# `fairweather.generators.scattering_maps` does the same with maps in PyTorch for training; the parity check compares the two.

MIN_TRANSMISSION = 0.1
MAX_ENLARGED_BYTES = 16 << 20
"""Bytes that all rows of the maps may take at full width, made once; where they take more, each strip makes its own."""
Array = NDArray[Any]
Floats = NDArray[np.float32]


def reduced_size(height: int, width: int, spec: MapsSpec, multiple_of: int) -> tuple[int, int]:
    """Sides of about spec.size * spec.size pixels in the photo's aspect, multiples of `multiple_of`."""
    scale = min(1.0, spec.size / (height * width) ** 0.5)
    return (
        max(1, round(height * scale / multiple_of)) * multiple_of,
        max(1, round(width * scale / multiple_of)) * multiple_of,
    )


def reduce_photo(photo: Array, spec: MapsSpec, multiple_of: int) -> Floats:
    """H x W x 3 (uint8, uint16 or float32 in [0, 1]) to what the network sees: 1 x 3 x h x w float32 in [0, 1].

    By area where both sides shrink, else bilinear. Even sides of four times the target and more are halved first.
    """
    height, width = reduced_size(photo.shape[0], photo.shape[1], spec, multiple_of)
    # Halving is many times as fast as other ratios, and what it rounds is averaged away after it.
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
    """J = A + K (I - A) + O at full size, K = 1 / t following the photo's luma; same size and dtype as `photo`.

    Shapes: photo H x W x 3, reduced 1 x 3 x h x w, maps 1 x 7 x h' x w' of transmission, airlight and offset.
    `strength` s gives I + s (J - I). The gain is a guided filter's answer (He, Sun & Tang, TPAMI 2013) whose
    coefficients are found on the maps' grid and enlarged (He & Sun, arXiv:1505.00996).
    """
    height, width = photo.shape[:2]
    slope, intercept = _guided_gain(reduced, maps, spec)
    airlight = maps[0, 1:4].transpose(1, 2, 0)
    # I + s (A + K (I - A) + O - I) = K' (I - A) + P' with K' = 1 + s (K - 1) and P' = A + s O.
    level = airlight + np.float32(strength) * maps[0, 4:7].transpose(1, 2, 0)
    unit = _unit(photo.dtype)
    # The slope is for code values, as luma is, and the two levels are code values themselves.
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
        # NumPy would walk a gain that it has to spread over the colours in steps of three values: slow.
        cv2.cvtColor(k, cv2.COLOR_GRAY2RGB, dst=gain)
        picture -= airlight
        picture *= gain
        _add(picture, level, out[top:bottom])

    run_in_strips(height, width, strip)
    return out


def reduce_to_pixels(photo: Array, most_pixels: int) -> Floats | None:
    """A photo of more than `most_pixels` pixels reduced by area to about that many, float32 in [0, 1]; None where it
    has no more, or `most_pixels` is 0."""
    height, width = photo.shape[:2]
    scale = (most_pixels / (height * width)) ** 0.5
    if not 0 < scale < 1:
        return None
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.ascontiguousarray(_to_float(cv2.resize(photo, size, interpolation=cv2.INTER_AREA)))


def add_change(photo: Array, change: Floats, strength: float) -> Array:
    """The photo plus `strength` times a change (h x w x 3 float32, of pictures in [0, 1]) that was found on the reduced
    photo, enlarged bilinearly; same size and dtype as `photo`."""
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
    """Slope and intercept (h' x w' each) of the gain as a function of luma."""
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
    """Maps of one h x w (x C each) enlarged bilinearly to height x width, centres aligned, some rows at a time."""

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
        """The rows [top, bottom) of every map at full size, in the thread's scratch: bottom - top x width (x C) each.

        The rows of the maps that they lie between are made as wide as the photo first, side by side; from there on all
        is sums of those long rows, which cost little whatever they hold.
        """
        first, last = self._above[top], self._below[bottom - 1]
        if self._wide is not None:
            wide = self._wide[first : last + 1]
        else:
            wide = self._widened(first, last + 1, scratch("wide", (last + 1 - first, self._values)))
        out, step = scratch("rows", (bottom - top, self._values)), scratch("step", (self._values,))
        start = top
        while start < bottom:  # rows between the same two of the maps
            end = bisect_right(self._above, self._above[start], start, bottom)
            upper, part = wide[self._above[start] - first], out[start - top : end - top]
            np.subtract(wide[self._below[start] - first], upper, out=step)
            np.multiply(self._share[start:end], step, out=part)
            part += upper
            start = end
        return self._parts(out)

    def _widened(self, first: int, end: int, wide: Floats) -> Floats:
        """The maps' rows [first, end) at full width, written into `wide`."""
        for map_, part in zip(self._maps, self._parts(wide), strict=True):
            if map_.shape[1] == self._width:
                part[...] = map_[first:end]
            else:
                cv2.resize(map_[first:end], part.shape[1::-1], dst=part, interpolation=cv2.INTER_LINEAR)
        return wide

    def _parts(self, rows: Floats) -> list[Floats]:
        """Rows that hold all maps side by side, map by map."""
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
    """The sum of two arrays of code values, rounded and clipped, into `out`."""
    if out.dtype == np.float32:
        np.clip(np.add(picture, change, out=picture), 0, 1, out=out)
    else:
        cv2.add(picture, change, dst=out, dtype=cv2.CV_8U if out.dtype == np.uint8 else cv2.CV_16U)
