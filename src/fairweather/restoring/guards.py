"""Do no harm: what keeps a restored photo from being worse than the photo, whatever the network said.

Four guards, and none of them touches a photo that the network left as it was.

1. **Halos.** Where the photo is smooth (sky, haze itself) the change is smooth as well: what it is not, and no local
   function of the photo's brightness explains, is taken off.
2. **Noise.** Where flat places came out noisier than `NOISE`, fine detail of the noise's own size is taken off again.
3. **Cast.** A mean colour that moved further than haze explains is led back, softly.
4. **Clipping.** Towards black and white the change bends off, so that what the photo still told apart there stays
   apart: only pixels that were at 0 or 255 are there afterwards.

What has to be known of the whole (1 to 3) is found on a small sample of pixels; the work at full size is done in
strips. No guard depends on a threshold crossed: a video does not flicker by them. NumPy and OpenCV, no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.restoring import halos
from fairweather.restoring.strips import SCRATCH, STRIP_PIXELS, Scratch, cores, in_strips

Array = NDArray[Any]
Floats = NDArray[np.float32]

KNEE = 24
"""Levels (of 255) from black and from white inside which changes bend off."""
RETURNED = 0.06
"""Of the change that ends at black or white, the share that is given back: detail that was clipped shows by it."""
LEVEL = 0.75
"""Given back beside that share, in levels, if the change was as much: 8 bits then tell a pixel from a clipped one."""
CAST = 16.0
"""Shifts of the mean colour (CIELAB a*, b*) up to half of this are let through whole; none gets beyond it."""
NOISE = 2.5
"""Noise in flat places, in levels, above which it is taken off as far as it was amplified."""
TAKEN = 2.0
"""Detail of up to this many times the noise's excess is taken off: the rest of a normal distribution is rare."""

_STRIP_PIXELS = STRIP_PIXELS
_BAND_PIXELS = 1 << 22
_SAMPLE_PIXELS = 1 << 15
_PATCH, _PATCHES = 32, 12
"""Noise is measured in _PATCHES x _PATCHES places, each _PATCH pixels wide."""
_MARGIN = 2


def guard(photo: Array, restored: Array) -> Array:
    """`restored`, made harmless, in place: both are H x W x 3 of one type (uint8, uint16, or float32 in [0,1])."""
    unit = float(np.iinfo(photo.dtype).max) if photo.dtype != np.float32 else 1.0
    halo, threshold, tint = cores().map(lambda find: find(photo, restored, unit), (halos.find, _noise, _tint))
    scratch = SCRATCH

    def smooth(top: int, after: Array) -> None:
        if halo is not None:
            halos.take_off(halo, top, len(photo), after, unit, scratch)

    def rest(top: int, after: Array) -> None:
        if tint is not None:
            _recolour(after, tint, unit)
        before = photo[top : top + len(after)]
        _unclip_bytes(before, after, scratch) if unit == 255 else _unclip(before, after, unit)

    if threshold is None:
        _in_strips(restored, smooth, rest)
    else:
        _in_strips(restored, smooth)
        for first, source, band in _bands(restored):

            def core(top: int, after: Array, first: int = first, source: Array = source) -> None:
                _core(source, threshold, top, first, len(photo), after, unit)

            _in_strips(band, core, rest, above=first)
    return restored


def _bands(picture: Array) -> Iterator[tuple[int, Array, Array]]:
    """Broad bands of the picture from top to bottom: the first row, a copy of the band with up to _MARGIN rows more
    above and below as they were before anything was written, and the band itself. A pixel's neighbours are read where
    others are written: what is read is apart, but not the whole picture once more."""
    rows = max(_MARGIN, _BAND_PIXELS // picture.shape[1])
    above = picture[:0].copy()
    for first in range(0, len(picture), rows):
        band = picture[first : first + rows]
        source = np.concatenate([above, picture[first : first + rows + _MARGIN]])
        above = band[len(band) - min(_MARGIN, len(band)) :].copy()
        yield first, source, band


def _in_strips(picture: Array, *steps: Callable[[int, Array], None], above: int = 0) -> None:
    """Call the steps, one after the other, with each strip's first row and the strip; strips on all cores. Rows are
    counted from `above` on."""

    def strip(top: int, bottom: int) -> None:
        for step in steps:
            step(above + top, picture[top:bottom])

    in_strips(len(picture), picture.shape[1], strip, _STRIP_PIXELS)


def _unclip_bytes(before: Array, after: Array, scratch: Scratch) -> None:
    """The fourth guard on 8 bits, in place: as `_unclip`, in saturating byte arithmetic, which costs little."""
    old, new = (np.ascontiguousarray(side).reshape(len(side), -1) for side in (before, after))
    near, most, low = (scratch(name, new.shape, np.uint8) for name in ("near", "most", "low"))
    cv2.subtract(new, 255 - KNEE, dst=near)
    cv2.max(near, cv2.subtract(KNEE, new, dst=low), dst=near)
    cv2.add(cv2.absdiff(new, old, dst=most), round(LEVEL / RETURNED), dst=most)
    cv2.multiply(most, near, dst=most, scale=RETURNED / KNEE)
    cv2.subtract(new, most, dst=low)
    cv2.min(cv2.add(new, most, dst=most), old, dst=most)
    after[...] = cv2.max(low, most, dst=low).reshape(after.shape)


def _unclip(before: Array, after: Array, unit: float) -> None:
    """The fourth guard on 16 bits and floats, in place: towards the photo, the more the nearer to black or white."""
    old, new = before.astype(np.float32), after.astype(np.float32)
    level = np.float32(unit / 255)
    near = np.maximum(new - (255 - KNEE) * level, KNEE * level - new).clip(0, None) / (KNEE * level)
    most = near * (RETURNED * np.abs(new - old) + LEVEL * level)
    _store(np.maximum(new - most, np.minimum(new + most, old)), after, unit, 1)


def _tint(photo: Array, restored: Array, unit: float) -> Floats | None:
    """What to take off R, G and B in the middle of the range, as shares of it; None where there is no cast."""
    step = max(1, int((photo.shape[0] * photo.shape[1] / _SAMPLE_PIXELS) ** 0.5))
    before, after = (halos.every(step, picture).astype(np.float32) / np.float32(unit) for picture in (photo, restored))
    a, b = _chroma(after) - _chroma(before)
    length, free = float(np.hypot(a, b)), CAST / 2
    if length <= free:
        return None
    allowed = CAST - free / (1 + (length - free) / free)  # slope 1 where it sets in, never above CAST
    grey = np.array([[[60, 0, 0], [60, a, b]]], np.float32)
    plain, tinted = cv2.cvtColor(grey, cv2.COLOR_LAB2RGB)[0]
    tint = np.asarray((tinted - plain) * (1 - allowed / length), np.float32)
    for _ in range(3):  # how much a tone curve moves the mean depends on the photo: what it reaches says how to go on
        reached = length - float(np.hypot(*(_chroma(_untinted(after, tint)) - _chroma(before))))
        tint = tint * np.float32(np.clip((length - allowed) / max(reached, 1e-3), 0.5, 2))
    return tint


def _chroma(picture: Floats) -> NDArray[np.float64]:
    """The mean a* and b*."""
    mean: NDArray[np.float64] = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1), np.float64)
    return mean


def _untinted(picture: Floats, tint: Floats) -> Floats:
    """A picture in [0,1] without a tint. Black and white have no colour, and are given none."""
    return np.asarray((picture - tint * (4 * picture * (1 - picture))).clip(0, 1), np.float32)


def _recolour(after: Array, tint: Floats, unit: float) -> None:
    """Take a tint off a strip, in place."""
    if after.dtype == np.uint8:
        every = np.tile(np.linspace(0, 1, 256, dtype=np.float32)[None, :, None], (1, 1, 3))
        after[:] = cv2.LUT(after, np.rint(_untinted(every, tint) * 255).astype(np.uint8))
    else:
        _store(_untinted(after.astype(np.float32) / np.float32(unit), tint), after, unit, unit)


def _noise(photo: Array, restored: Array, unit: float) -> Floats | None:
    """How much fine detail to take off, in levels, on a grid over the photo; None where nothing is too noisy."""
    height, width = photo.shape[:2]
    if min(height, width) < 2 * _PATCH:
        return None
    tops = np.linspace(0, height - _PATCH, min(_PATCHES, height // _PATCH)).astype(int)
    lefts = np.linspace(0, width - _PATCH, min(_PATCHES, width // _PATCH)).astype(int)
    before, after = (_grain(picture, tops, lefts, unit) for picture in (photo, restored))
    # Noise is what the flattest places have: elsewhere the mask answers to texture, which is to be amplified.
    sigma = float(np.quantile(before, 0.1))
    amplified = np.minimum(after, sigma * after / np.maximum(before, 1e-3))
    excess = (amplified - max(NOISE, sigma)).clip(0, None).astype(np.float32)
    if not (excess > 0).any():
        return None
    return np.asarray(TAKEN * cv2.GaussianBlur(excess, (3, 3), 0), np.float32)[..., None]


def _grain(picture: Array, tops: NDArray[np.int_], lefts: NDArray[np.int_], unit: float) -> Floats:
    """Noise in levels (Immerkaer, CVIU 1996) of the patches with these first rows and columns: one value a patch."""
    patches = np.array([[picture[t : t + _PATCH, x : x + _PATCH] for x in lefts] for t in tops], picture.dtype)
    light = cv2.cvtColor(patches.reshape(-1, _PATCH, 3).astype(np.float32), cv2.COLOR_RGB2GRAY)
    # One tall picture for all patches: each brings its own mirrored border, and the answers on the borders are left.
    framed = np.pad(light.reshape(-1, _PATCH, _PATCH), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) * np.float32(255 / unit / 6)
    answer = cv2.filter2D(framed.reshape(-1, _PATCH + 2), -1, mask).reshape(framed.shape)[:, 1:-1, 1:-1]
    sizes = np.sort(np.abs(answer).reshape(len(answer), -1), axis=1)
    middle = sizes[:, sizes.shape[1] // 2 - 1 : sizes.shape[1] // 2 + 1].mean(axis=1)
    return np.asarray(middle / np.float32(0.6745), np.float32).reshape(len(tops), len(lefts))


def _core(source: Array, threshold: Floats, top: int, band: int, height: int, after: Array, unit: float) -> None:
    """Take fine detail of up to `threshold` levels off the rows from `top` on of a photo of `height`, into `after`.

    `source` is the band of it that begins at row `band`, and up to _MARGIN rows above that.
    """
    count, start = len(after), band - min(_MARGIN, band)
    first, last = max(0, top - _MARGIN), min(height, top + count + _MARGIN)
    wide = source[first - start : last - start].astype(np.float32) * np.float32(255 / unit)
    detail = (wide - cv2.GaussianBlur(wide, (5, 5), 1.2))[top - first :][:count]
    limit = halos.columns(halos.rows(threshold, range(top, top + count), height), source.shape[1])
    _store(wide[top - first :][:count] - detail.clip(-limit, limit), after, unit, unit / 255)


def _store(values: Floats, out: Array, unit: float, scale: float) -> None:
    """`scale` times the values into `out`, rounded where it holds integers."""
    if scale != 1:
        values *= np.float32(scale)
    np.clip(values, 0, unit, out=values)
    if out.dtype != np.float32:
        np.rint(values, out=values)
    np.copyto(out, values, casting="unsafe")
