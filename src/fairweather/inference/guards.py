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

from fairweather.inference.haze_maps import SCRATCH, STRIP_PIXELS, Scratch, run_in_strips, strip_pool

Array = NDArray[Any]
Floats = NDArray[np.float32]

CLIP_KNEE = 24
"""Levels (of 255) from black and from white inside which changes bend off."""
CLIP_RETURNED = 0.06
"""Of the change that ends at black or white, the share that is given back: detail that was clipped shows by it."""
CLIP_LEVEL = 0.75
"""Given back beside that share, in levels, if the change was as much: 8 bits then tell a pixel from a clipped one."""
MAX_CAST = 16.0
"""Shifts of the mean colour (CIELAB a*, b*) up to half of this are let through whole; none gets beyond it."""
MAX_NOISE_GAIN = 2.5
"""Noise in flat places, in levels, above which it is taken off as far as it was amplified."""
NOISE_REMOVED = 2.0
"""Detail of up to this many times the noise's excess is taken off: the rest of a normal distribution is rare."""

_STRIP_PIXELS = STRIP_PIXELS
_BAND_PIXELS = 1 << 22
_SAMPLE_PIXELS = 1 << 15
_PATCH, _PATCHES = 32, 12
"""Noise is measured in _PATCHES x _PATCHES places, each _PATCH pixels wide."""
_MARGIN = 2


def apply_guards(photo: Array, restored: Array) -> Array:
    """`restored`, made harmless, in place: both are H x W x 3 of one type (uint8, uint16, or float32 in [0,1])."""
    unit = float(np.iinfo(photo.dtype).max) if photo.dtype != np.float32 else 1.0
    halo, threshold, tint = strip_pool().map(lambda find: find(photo, restored, unit), (find_halos, _noise, _tint))
    scratch = SCRATCH

    def smooth(top: int, after: Array) -> None:
        if halo is not None:
            remove_halos(halo, top, len(photo), after, unit, scratch)

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

    run_in_strips(len(picture), picture.shape[1], strip, _STRIP_PIXELS)


def _unclip_bytes(before: Array, after: Array, scratch: Scratch) -> None:
    """The fourth guard on 8 bits, in place: as `_unclip`, in saturating byte arithmetic, which costs little."""
    old, new = (np.ascontiguousarray(side).reshape(len(side), -1) for side in (before, after))
    near, most, low = (scratch(name, new.shape, np.uint8) for name in ("near", "most", "low"))
    cv2.subtract(new, 255 - CLIP_KNEE, dst=near)
    cv2.max(near, cv2.subtract(CLIP_KNEE, new, dst=low), dst=near)
    cv2.add(cv2.absdiff(new, old, dst=most), round(CLIP_LEVEL / CLIP_RETURNED), dst=most)
    cv2.multiply(most, near, dst=most, scale=CLIP_RETURNED / CLIP_KNEE)
    cv2.subtract(new, most, dst=low)
    cv2.min(cv2.add(new, most, dst=most), old, dst=most)
    after[...] = cv2.max(low, most, dst=low).reshape(after.shape)


def _unclip(before: Array, after: Array, unit: float) -> None:
    """The fourth guard on 16 bits and floats, in place: towards the photo, the more the nearer to black or white."""
    old, new = before.astype(np.float32), after.astype(np.float32)
    level = np.float32(unit / 255)
    near = np.maximum(new - (255 - CLIP_KNEE) * level, CLIP_KNEE * level - new).clip(0, None) / (CLIP_KNEE * level)
    most = near * (CLIP_RETURNED * np.abs(new - old) + CLIP_LEVEL * level)
    _store(np.maximum(new - most, np.minimum(new + most, old)), after, unit, 1)


def _tint(photo: Array, restored: Array, unit: float) -> Floats | None:
    """What to take off R, G and B in the middle of the range, as shares of it; None where there is no cast."""
    step = max(1, int((photo.shape[0] * photo.shape[1] / _SAMPLE_PIXELS) ** 0.5))
    before, after = (sample_every(step, picture).astype(np.float32) / np.float32(unit) for picture in (photo, restored))
    a, b = _chroma(after) - _chroma(before)
    length, free = float(np.hypot(a, b)), MAX_CAST / 2
    if length <= free:
        return None
    allowed = MAX_CAST - free / (1 + (length - free) / free)  # slope 1 where it sets in, never above CAST
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
    excess = (amplified - max(MAX_NOISE_GAIN, sigma)).clip(0, None).astype(np.float32)
    if not (excess > 0).any():
        return None
    return np.asarray(NOISE_REMOVED * cv2.GaussianBlur(excess, (3, 3), 0), np.float32)[..., None]


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
    limit = halo_columns(halo_rows(threshold, range(top, top + count), height), source.shape[1])
    _store(wide[top - first :][:count] - detail.clip(-limit, limit), after, unit, unit / 255)


def _store(values: Floats, out: Array, unit: float, scale: float) -> None:
    """`scale` times the values into `out`, rounded where it holds integers."""
    if scale != 1:
        values *= np.float32(scale)
    np.clip(values, 0, unit, out=values)
    if out.dtype != np.float32:
        np.rint(values, out=values)
    np.copyto(out, values, casting="unsafe")


# Halos: light or dark seams in skies and in haze itself, found on a small sample of the photo and taken off it.
#
# What tells a halo from what a restorer is for is that the photo says nothing of it: where the photo is smooth, a change
# that is no function of its brightness and no slow trend was made up. NumPy and OpenCV, no PyTorch.

HALO_SMOOTH = 0.012
"""A place is smooth where luma's standard deviation is well below this, over 5 x 5 pixels of the reduced photo."""
HALO_REACH = 0.2
"""How far around a smooth place the change is compared with itself, as a share of the reduced photo's longer side."""
HALO_MAX = 16.0
"""No halo is taken for more than this, in levels."""
HALO_SIDE = 160
"""The longer side of the reduced photo."""
HALO_MIN = 32
"""Photos with a shorter side below this have no sky to speak of."""
_HALO_EPS = 2e-4
_HALO_STEPS = 6
"""How finely, in bytes, a cell of the grid is told apart downwards."""


def find_halos(photo: Array, restored: Array, unit: float) -> Floats | None:
    """What to take off, in levels, on a small grid over the photo, h x w x 3; None where there is nothing.

    A guided filter (He, Sun & Tang, TPAMI 2013) of each channel's change, with the channel itself as guide, that sees
    smooth places alone: its residual there is what neither the photo nor a slow trend explains.
    """
    if min(photo.shape[:2]) < HALO_MIN:
        return None
    guide = _small(photo, unit)
    change = _small(restored, unit) - guide
    light = cv2.cvtColor(guide, cv2.COLOR_RGB2GRAY)
    mean = _box(light, 2)
    variance = (_box(light * light, 2) - mean * mean).clip(0)
    weight = cv2.erode(np.exp(-variance / HALO_SMOOTH**2), np.ones((3, 3), np.uint8))
    weight = cv2.GaussianBlur(weight, (0, 0), 1)[..., None]
    radius = max(2, round(HALO_REACH * max(light.shape)))
    seen = _box(weight, radius)[..., None] + 1e-4

    def around(values: Array) -> Array:
        return _box(np.asarray(values * weight, np.float32), radius) / seen

    mean, mean_change = around(guide), around(change)
    variance = (around(guide * guide) - mean * mean).clip(0)
    slope = (around(guide * change) - mean * mean_change) / (variance + _HALO_EPS)
    rest = np.asarray(weight * (change - mean_change - slope * (guide - mean)), np.float32)
    # Over a few smooth pixels, for noise is no halo.
    share = cv2.GaussianBlur(weight, (0, 0), 1.5)[..., None] + np.float32(1e-4)
    halo = 255 * weight * cv2.GaussianBlur(rest, (0, 0), 1.5) / share
    return HALO_MAX * np.tanh(halo / HALO_MAX) if np.abs(halo).max() >= 0.05 else None


def _small(picture: Array, unit: float) -> Floats:
    """The picture with at most SIDE pixels a side, float32 in [0,1]: by area, of every k-th pixel."""
    longer = max(picture.shape[:2])
    step = max(1, longer // (4 * HALO_SIDE))
    sample = sample_every(step, picture)
    scale = min(1.0, HALO_SIDE / longer)
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(sample, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small.astype(np.float32) / np.float32(unit), np.float32)


def sample_every(step: int, picture: Array) -> Array:
    """Every `step`-th pixel of every `step`-th row, from the middle of the first such square on, H x W x 3."""
    seen = picture[step // 2 :: step, step // 2 :: step]
    sample = np.empty(seen.shape, seen.dtype)
    for channel in range(seen.shape[2]):  # pixel by pixel NumPy would copy three values at a time: six times slower
        sample[..., channel] = seen[..., channel]
    return sample


def _box(values: Array, radius: int) -> Floats:
    """The mean over windows of 2 radius + 1."""
    return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1)), np.float32)


def remove_halos(halo: Floats, top: int, height: int, after: Array, unit: float, scratch: Scratch) -> None:
    """Take off a strip of the full size, in place, its part of `halo`; the strip begins at row `top` of `height`."""
    width, count = after.shape[1], len(after)
    if after.dtype != np.uint8:
        wide = halo_columns(halo_rows(halo, range(top, top + count), height), width)
        store = np.asarray(after - wide * np.float32(unit / 255), np.float32).clip(0, unit)
        np.copyto(after, store if after.dtype == np.float32 else np.rint(store), casting="unsafe")
        return
    # In bytes throughout, and where a cell of the grid is many pixels tall, several rows alike: much faster.
    step = max(1, height // len(halo) // _HALO_STEPS)
    thin = halo_rows(halo, range(top + step // 2, top + step // 2 + count, step), height)
    if np.abs(thin).max() < 0.5:
        return
    shifted = halo_columns(np.rint(thin + 128).astype(np.uint8), width).reshape(len(thin), -1)
    flat = np.ascontiguousarray(after).reshape(count, -1)
    field = scratch("halo", (len(thin), step, 3 * width), np.uint8)
    for change, part in ((cv2.subtract, cv2.subtract(shifted, 128)), (cv2.add, cv2.subtract(128, shifted))):
        field[...] = part[:, None]
        change(flat, field.reshape(-1, 3 * width)[:count], dst=flat)
    after[...] = flat.reshape(after.shape)


def halo_rows(grid: Floats, which: range, height: int) -> Floats:
    """Some rows of `height` to which an h x w x C grid is enlarged, still w wide: bilinear, centres aligned."""
    at = ((np.array(which) + 0.5) * (len(grid) / height) - 0.5).clip(0, len(grid) - 1)
    above = np.minimum(at.astype(np.int64), max(0, len(grid) - 2))
    below = np.minimum(above + 1, len(grid) - 1)
    share = (at - above).astype(np.float32)[:, None, None]
    return np.asarray(grid[above] + share * (grid[below] - grid[above]), np.float32)


def halo_columns(narrow: Array, width: int) -> Array:
    """Rows enlarged to their full width: count x w x C to count x width x C."""
    wide = cv2.resize(narrow, (width, len(narrow)), interpolation=cv2.INTER_LINEAR)
    return np.asarray(wide).reshape(len(narrow), width, -1)
