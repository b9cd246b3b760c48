"""What a network's answer on a reduced photo does to the full-size one: NumPy and OpenCV, in strips, no PyTorch.

`fairweather.generators.swift` does the same with maps in PyTorch for training; the parity check compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.cards import MapsSpec

MIN_TRANSMISSION = 0.1
Array = NDArray[Any]
Floats = NDArray[np.float32]

# With its intermediate results in float32 a strip of this many pixels takes some 2.5 MB: it stays in the processor's
# caches, and is still large beside what a call of NumPy costs.
_STRIP_PIXELS = 1 << 16


def reduced_size(height: int, width: int, spec: MapsSpec, multiple_of: int) -> tuple[int, int]:
    """Sides of about spec.size * spec.size pixels in the photo's aspect, multiples of `multiple_of`."""
    scale = min(1.0, spec.size / (height * width) ** 0.5)
    return (
        max(1, round(height * scale / multiple_of)) * multiple_of,
        max(1, round(width * scale / multiple_of)) * multiple_of,
    )


def reduce_photo(photo: Array, spec: MapsSpec, multiple_of: int) -> Floats:
    """H x W x 3 (uint8, uint16 or float32 in [0, 1]) to what the network sees: 1 x 3 x h x w float32 in [0, 1].

    By area where both sides shrink, else bilinear.
    """
    height, width = reduced_size(photo.shape[0], photo.shape[1], spec, multiple_of)
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
    slope, intercept = _guided_gain(reduced, maps, spec)
    airlight = np.ascontiguousarray(maps[0, 1:4].transpose(1, 2, 0))
    level = airlight + maps[0, 4:7].transpose(1, 2, 0)
    # I + s (A + K (I - A) + O - I) = K' (I - A) + P' with K' = 1 + s (K - 1) and P' = A + s O.
    level = np.ascontiguousarray(airlight + strength * (level - airlight), dtype=np.float32)
    unit = _unit(photo.dtype)
    gain = np.stack([slope / unit, intercept], axis=-1)
    enlarge = _enlarger(photo.shape[0], photo.shape[1], gain.shape[0], gain.shape[1])
    out = np.empty_like(photo, order="C")
    rows = max(1, _STRIP_PIXELS // photo.shape[1])

    def strip(top: int) -> None:
        picture = photo[top : top + rows].astype(np.float32)
        count = len(picture)
        coefficients = enlarge(gain, top, count)
        k = _luma(picture)
        k *= coefficients[..., 0]
        k += coefficients[..., 1]
        np.clip(k, 1, 1 / MIN_TRANSMISSION, out=k)
        if strength != 1:
            k -= 1
            k *= strength
            k += 1
        picture -= enlarge(airlight * unit, top, count)
        picture *= k[..., None]
        picture += enlarge(level * unit, top, count)
        _store(picture, out[top : top + rows])

    with ThreadPoolExecutor(max_workers=cv2.getNumberOfCPUs()) as pool:
        list(pool.map(strip, range(0, photo.shape[0], rows)))
    return out


def reduced_to(photo: Array, most_pixels: int) -> Floats | None:
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
    change = np.ascontiguousarray(change * (np.float32(strength) * _unit(photo.dtype)))
    enlarge = _enlarger(photo.shape[0], photo.shape[1], change.shape[0], change.shape[1])
    out = np.empty_like(photo, order="C")
    rows = max(1, _STRIP_PIXELS // photo.shape[1])

    def strip(top: int) -> None:
        picture = photo[top : top + rows].astype(np.float32)
        picture += enlarge(change, top, len(picture))
        _store(picture, out[top : top + rows])

    with ThreadPoolExecutor(max_workers=cv2.getNumberOfCPUs()) as pool:
        list(pool.map(strip, range(0, photo.shape[0], rows)))
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


def _enlarger(height: int, width: int, small_height: int, small_width: int) -> Callable[[Floats, int, int], Floats]:
    """Bilinear enlargement of h x w x C maps to rows [top, top + count) of the full size, pixel centres aligned."""
    at = (np.arange(height, dtype=np.float32) + 0.5) * (small_height / height) - 0.5
    at = at.clip(0, small_height - 1)
    above = np.minimum(at.astype(np.int64), max(0, small_height - 2))
    below = np.minimum(above + 1, small_height - 1)
    share = (at - above).astype(np.float32)[:, None, None]

    def enlarge(maps: Floats, top: int, count: int) -> Floats:
        rows = slice(top, top + count)
        upper, lower = maps[above[rows]], maps[below[rows]]
        lower -= upper
        lower *= share[rows]
        lower += upper
        if width != small_width:
            lower = cv2.resize(lower, (width, count), interpolation=cv2.INTER_LINEAR)
        return np.asarray(lower, np.float32).reshape(count, width, -1)

    return enlarge


def _luma(picture: Floats) -> Floats:
    luma = cv2.transform(picture, np.array([[0.299, 0.587, 0.114]], np.float32))
    return np.asarray(luma, np.float32).reshape(picture.shape[:2])


def _unit(dtype: np.dtype[Any]) -> np.float32:
    return np.float32(np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1)


def _to_float(picture: Array) -> Floats:
    return picture.astype(np.float32) / _unit(picture.dtype) if picture.dtype != np.float32 else picture


def _store(picture: Floats, out: Array) -> None:
    """Round and clip float code values into `out`."""
    if out.dtype == np.float32:
        np.clip(picture, 0, 1, out=out)
        return
    np.clip(picture, 0, _unit(out.dtype), out=picture)
    np.rint(picture, out=picture)
    np.copyto(out, picture, casting="unsafe")
