"""Halos: light or dark seams in skies and in haze itself, found on a small sample of the photo and taken off it.

What tells a halo from what a restorer is for is that the photo says nothing of it: where the photo is smooth, a change
that is no function of its brightness and no slow trend was made up. NumPy and OpenCV, no PyTorch.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.restoring.strips import Scratch

Array = NDArray[Any]
Floats = NDArray[np.float32]

SMOOTH = 0.012
"""A place is smooth where luma's standard deviation is well below this, over 5 x 5 pixels of the reduced photo."""
REACH = 0.2
"""How far around a smooth place the change is compared with itself, as a share of the reduced photo's longer side."""
MOST = 16.0
"""No halo is taken for more than this, in levels."""
SIDE = 160
"""The longer side of the reduced photo."""
LEAST = 32
"""Photos with a shorter side below this have no sky to speak of."""
_EPS = 2e-4
_STEPS = 6
"""How finely, in bytes, a cell of the grid is told apart downwards."""


def find(photo: Array, restored: Array, unit: float) -> Floats | None:
    """What to take off, in levels, on a small grid over the photo, h x w x 3; None where there is nothing.

    A guided filter (He, Sun & Tang, TPAMI 2013) of each channel's change, with the channel itself as guide, that sees
    smooth places alone: its residual there is what neither the photo nor a slow trend explains.
    """
    if min(photo.shape[:2]) < LEAST:
        return None
    guide = _small(photo, unit)
    change = _small(restored, unit) - guide
    light = cv2.cvtColor(guide, cv2.COLOR_RGB2GRAY)
    mean = _box(light, 2)
    variance = (_box(light * light, 2) - mean * mean).clip(0)
    weight = cv2.erode(np.exp(-variance / SMOOTH**2), np.ones((3, 3), np.uint8))
    weight = cv2.GaussianBlur(weight, (0, 0), 1)[..., None]
    radius = max(2, round(REACH * max(light.shape)))
    seen = _box(weight, radius)[..., None] + 1e-4

    def around(values: Array) -> Array:
        return _box(np.asarray(values * weight, np.float32), radius) / seen

    mean, mean_change = around(guide), around(change)
    variance = (around(guide * guide) - mean * mean).clip(0)
    slope = (around(guide * change) - mean * mean_change) / (variance + _EPS)
    rest = np.asarray(weight * (change - mean_change - slope * (guide - mean)), np.float32)
    # Over a few smooth pixels, for noise is no halo.
    share = cv2.GaussianBlur(weight, (0, 0), 1.5)[..., None] + np.float32(1e-4)
    halo = 255 * weight * cv2.GaussianBlur(rest, (0, 0), 1.5) / share
    return MOST * np.tanh(halo / MOST) if np.abs(halo).max() >= 0.05 else None


def _small(picture: Array, unit: float) -> Floats:
    """The picture with at most SIDE pixels a side, float32 in [0,1]: by area, of every k-th pixel."""
    longer = max(picture.shape[:2])
    step = max(1, longer // (4 * SIDE))
    sample = every(step, picture)
    scale = min(1.0, SIDE / longer)
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(sample, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small.astype(np.float32) / np.float32(unit), np.float32)


def every(step: int, picture: Array) -> Array:
    """Every `step`-th pixel of every `step`-th row, from the middle of the first such square on, H x W x 3."""
    seen = picture[step // 2 :: step, step // 2 :: step]
    sample = np.empty(seen.shape, seen.dtype)
    for channel in range(seen.shape[2]):  # pixel by pixel NumPy would copy three values at a time: six times slower
        sample[..., channel] = seen[..., channel]
    return sample


def _box(values: Array, radius: int) -> Floats:
    """The mean over windows of 2 radius + 1."""
    return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1)), np.float32)


def take_off(halo: Floats, top: int, height: int, after: Array, unit: float, scratch: Scratch) -> None:
    """Take off a strip of the full size, in place, its part of `halo`; the strip begins at row `top` of `height`."""
    width, count = after.shape[1], len(after)
    if after.dtype != np.uint8:
        wide = columns(rows(halo, range(top, top + count), height), width)
        store = np.asarray(after - wide * np.float32(unit / 255), np.float32).clip(0, unit)
        np.copyto(after, store if after.dtype == np.float32 else np.rint(store), casting="unsafe")
        return
    # In bytes throughout, and where a cell of the grid is many pixels tall, several rows alike: much faster.
    step = max(1, height // len(halo) // _STEPS)
    thin = rows(halo, range(top + step // 2, top + step // 2 + count, step), height)
    if np.abs(thin).max() < 0.5:
        return
    shifted = columns(np.rint(thin + 128).astype(np.uint8), width).reshape(len(thin), -1)
    flat = np.ascontiguousarray(after).reshape(count, -1)
    field = scratch("halo", (len(thin), step, 3 * width), np.uint8)
    for change, part in ((cv2.subtract, cv2.subtract(shifted, 128)), (cv2.add, cv2.subtract(128, shifted))):
        field[...] = part[:, None]
        change(flat, field.reshape(-1, 3 * width)[:count], dst=flat)
    after[...] = flat.reshape(after.shape)


def rows(grid: Floats, which: range, height: int) -> Floats:
    """Some rows of `height` to which an h x w x C grid is enlarged, still w wide: bilinear, centres aligned."""
    at = ((np.array(which) + 0.5) * (len(grid) / height) - 0.5).clip(0, len(grid) - 1)
    above = np.minimum(at.astype(np.int64), max(0, len(grid) - 2))
    below = np.minimum(above + 1, len(grid) - 1)
    share = (at - above).astype(np.float32)[:, None, None]
    return np.asarray(grid[above] + share * (grid[below] - grid[above]), np.float32)


def columns(narrow: Array, width: int) -> Array:
    """Rows enlarged to their full width: count x w x C to count x width x C."""
    wide = cv2.resize(narrow, (width, len(narrow)), interpolation=cv2.INTER_LINEAR)
    return np.asarray(wide).reshape(len(narrow), width, -1)
