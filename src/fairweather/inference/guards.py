"""Guards: prevent common artefacts in a restored photo, regardless of the network.

Four guards, none of which changes a photo that the network left unchanged:

1. **Halos.** Where the photo is smooth (sky, haze) the change must be smooth too: the part of it that is neither smooth
   nor a local function of the photo's brightness is subtracted.
2. **Noise.** Where flat regions became noisier than `MAX_NOISE_GAIN`, fine detail of the noise's amplitude is removed.
3. **Cast.** A shift of the mean colour beyond what haze explains is reduced, softly.
4. **Clipping.** Changes are compressed towards black and white, so that tones that the photo distinguishes there stay
   distinct: only pixels that were at 0 or 255 are there afterwards.

Statistics of the whole photo (1 to 3) come from a small sample of pixels; full-size work is done in strips. No guard
has a hard threshold, so videos do not flicker. NumPy and OpenCV, no PyTorch.
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
"""Levels (of 255) from black and white within which changes are compressed."""
CLIP_RETURNED = 0.06
"""Share of a change ending at black or white that is undone, which keeps clipped detail visible."""
CLIP_LEVEL = 0.75
"""Levels undone in addition, at most the change itself: in 8 bits a pixel then differs from a clipped one."""
MAX_CAST = 16.0
"""Limit of the shift of the mean colour (CIELAB a*, b*); shifts up to half of it are unchanged."""
MAX_NOISE_GAIN = 2.5
"""Noise in flat regions, in levels, above which its amplification is removed."""
NOISE_REMOVED = 2.0
"""Detail of up to this many times the excess noise is removed: the rest of a normal distribution is rare."""

_BAND_PIXELS = 1 << 22
_SAMPLE_PIXELS = 1 << 15
_PATCH, _PATCHES = 32, 12
"""Noise is measured in up to _PATCHES x _PATCHES squares of _PATCH pixels a side."""
_MARGIN = 2


def apply_guards(photo: Array, restored: Array) -> Array:
    """Apply the guards to `restored`, in place.

    Args:
        photo: the original, H x W x 3, uint8, uint16 or float32 in [0, 1].
        restored: the restored photo, of the same shape and type.

    Returns:
        `restored`.
    """
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
    """Yield broad bands from top to bottom: first row, a copy of the band with up to _MARGIN original rows above and
    below, and the band itself. The filter reads the copy and writes the band, without a copy of the whole picture."""
    rows = max(_MARGIN, _BAND_PIXELS // picture.shape[1])
    above = picture[:0].copy()
    for first in range(0, len(picture), rows):
        band = picture[first : first + rows]
        source = np.concatenate([above, picture[first : first + rows + _MARGIN]])
        above = band[len(band) - min(_MARGIN, len(band)) :].copy()
        yield first, source, band


def _in_strips(picture: Array, *steps: Callable[[int, Array], None], above: int = 0) -> None:
    """Call the steps in order with each strip's first row (counted from `above`) and the strip, on all cores."""

    def strip(top: int, bottom: int) -> None:
        for step in steps:
            step(above + top, picture[top:bottom])

    run_in_strips(len(picture), picture.shape[1], strip, STRIP_PIXELS)


def _unclip_bytes(before: Array, after: Array, scratch: Scratch) -> None:
    """The fourth guard on 8 bits, in place: `_unclip` in saturating byte arithmetic, which is fast."""
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
    """The fourth guard on 16 bits and floats, in place: move towards the photo, more so near black and white."""
    old, new = before.astype(np.float32), after.astype(np.float32)
    level = np.float32(unit / 255)
    near = np.maximum(new - (255 - CLIP_KNEE) * level, CLIP_KNEE * level - new).clip(0, None) / (CLIP_KNEE * level)
    most = near * (CLIP_RETURNED * np.abs(new - old) + CLIP_LEVEL * level)
    _store(np.maximum(new - most, np.minimum(new + most, old)), after, unit, 1)


def _tint(photo: Array, restored: Array, unit: float) -> Floats | None:
    """The cast to subtract from R, G and B at mid-range, as shares of the range; None if there is none."""
    step = max(1, int((photo.shape[0] * photo.shape[1] / _SAMPLE_PIXELS) ** 0.5))
    before, after = (sample_every(step, picture).astype(np.float32) / np.float32(unit) for picture in (photo, restored))
    a, b = _chroma(after) - _chroma(before)
    length, free = float(np.hypot(a, b)), MAX_CAST / 2
    if length <= free:
        return None
    allowed = MAX_CAST - free / (1 + (length - free) / free)  # slope 1 at the start, never above MAX_CAST
    grey = np.array([[[60, 0, 0], [60, a, b]]], np.float32)
    plain, tinted = cv2.cvtColor(grey, cv2.COLOR_LAB2RGB)[0]
    tint = np.asarray((tinted - plain) * (1 - allowed / length), np.float32)
    for _ in range(3):  # iterate, since the effect of a tone curve on the mean depends on the photo
        reached = length - float(np.hypot(*(_chroma(_untinted(after, tint)) - _chroma(before))))
        tint = tint * np.float32(np.clip((length - allowed) / max(reached, 1e-3), 0.5, 2))
    return tint


def _chroma(picture: Floats) -> NDArray[np.float64]:
    """The mean a* and b*."""
    mean: NDArray[np.float64] = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1), np.float64)
    return mean


def _untinted(picture: Floats, tint: Floats) -> Floats:
    """Subtract a tint from a picture in [0, 1]; black and white stay neutral."""
    return np.asarray((picture - tint * (4 * picture * (1 - picture))).clip(0, 1), np.float32)


def _recolour(after: Array, tint: Floats, unit: float) -> None:
    """Subtract a tint from a strip, in place."""
    if after.dtype == np.uint8:
        every = np.tile(np.linspace(0, 1, 256, dtype=np.float32)[None, :, None], (1, 1, 3))
        after[:] = cv2.LUT(after, np.rint(_untinted(every, tint) * 255).astype(np.uint8))
    else:
        _store(_untinted(after.astype(np.float32) / np.float32(unit), tint), after, unit, unit)


def _noise(photo: Array, restored: Array, unit: float) -> Floats | None:
    """How much fine detail to remove, in levels, on a grid over the photo; None if nothing is too noisy."""
    height, width = photo.shape[:2]
    if min(height, width) < 2 * _PATCH:
        return None
    tops = np.linspace(0, height - _PATCH, min(_PATCHES, height // _PATCH)).astype(int)
    lefts = np.linspace(0, width - _PATCH, min(_PATCHES, width // _PATCH)).astype(int)
    before, after = (_grain(picture, tops, lefts, unit) for picture in (photo, restored))
    # Noise is measured in the flattest patches: elsewhere the mask responds to texture, which may be amplified.
    sigma = float(np.quantile(before, 0.1))
    amplified = np.minimum(after, sigma * after / np.maximum(before, 1e-3))
    excess = (amplified - max(MAX_NOISE_GAIN, sigma)).clip(0, None).astype(np.float32)
    if not (excess > 0).any():
        return None
    return np.asarray(NOISE_REMOVED * cv2.GaussianBlur(excess, (3, 3), 0), np.float32)[..., None]


def _grain(picture: Array, tops: NDArray[np.int_], lefts: NDArray[np.int_], unit: float) -> Floats:
    """Noise in levels (Immerkaer, CVIU 1996) of the patches with these first rows and columns, one value each."""
    patches = np.array([[picture[t : t + _PATCH, x : x + _PATCH] for x in lefts] for t in tops], picture.dtype)
    light = cv2.cvtColor(patches.reshape(-1, _PATCH, 3).astype(np.float32), cv2.COLOR_RGB2GRAY)
    # All patches form one tall picture, each with its own mirrored border, which is discarded afterwards.
    framed = np.pad(light.reshape(-1, _PATCH, _PATCH), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) * np.float32(255 / unit / 6)
    answer = cv2.filter2D(framed.reshape(-1, _PATCH + 2), -1, mask).reshape(framed.shape)[:, 1:-1, 1:-1]
    sizes = np.sort(np.abs(answer).reshape(len(answer), -1), axis=1)
    middle = sizes[:, sizes.shape[1] // 2 - 1 : sizes.shape[1] // 2 + 1].mean(axis=1)
    return np.asarray(middle / np.float32(0.6745), np.float32).reshape(len(tops), len(lefts))


def _core(source: Array, threshold: Floats, top: int, band: int, height: int, after: Array, unit: float) -> None:
    """Remove fine detail of up to `threshold` levels from the rows starting at `top`, into `after`.

    `source` is the band of the photo of `height` rows that starts at row `band`, with up to _MARGIN rows above it.
    """
    count, start = len(after), band - min(_MARGIN, band)
    first, last = max(0, top - _MARGIN), min(height, top + count + _MARGIN)
    wide = source[first - start : last - start].astype(np.float32) * np.float32(255 / unit)
    detail = (wide - cv2.GaussianBlur(wide, (5, 5), 1.2))[top - first :][:count]
    limit = halo_columns(halo_rows(threshold, range(top, top + count), height), source.shape[1])
    _store(wide[top - first :][:count] - detail.clip(-limit, limit), after, unit, unit / 255)


def _store(values: Floats, out: Array, unit: float, scale: float) -> None:
    """Write `scale` times the values into `out`, rounded for integers."""
    if scale != 1:
        values *= np.float32(scale)
    np.clip(values, 0, unit, out=values)
    if out.dtype != np.float32:
        np.rint(values, out=values)
    np.copyto(out, values, casting="unsafe")


# Halos: light or dark seams in skies and haze. Where the photo is smooth, a change that is neither a function of its
# brightness nor a slow trend has no basis in the photo.

HALO_SMOOTH = 0.012
"""A region is smooth if luma's standard deviation is well below this, over 5 x 5 pixels of the reduced photo."""
HALO_REACH = 0.2
"""Radius in which a change is compared with its surroundings, as a share of the reduced photo's longer side."""
HALO_MAX = 16.0
"""Limit of the correction, in levels."""
HALO_SIDE = 160
"""The longer side of the reduced photo."""
HALO_MIN = 32
"""Photos with a shorter side below this are not checked."""
_HALO_EPS = 2e-4
_HALO_STEPS = 6
"""Vertical resolution of the correction in bytes, in steps per grid cell."""


def find_halos(photo: Array, restored: Array, unit: float) -> Floats | None:
    """The halos to subtract, in levels, on a small grid over the photo, h x w x 3; None if there are none.

    A guided filter (He, Sun & Tang, TPAMI 2013) fits each channel's change in smooth regions, guided by the channel;
    its residual is explained neither by the photo nor by a slow trend.
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
    total = _box(weight, radius)[..., None] + 1e-4

    def around(values: Array) -> Array:
        return _box(np.asarray(values * weight, np.float32), radius) / total

    mean, mean_change = around(guide), around(change)
    variance = (around(guide * guide) - mean * mean).clip(0)
    slope = (around(guide * change) - mean * mean_change) / (variance + _HALO_EPS)
    rest = np.asarray(weight * (change - mean_change - slope * (guide - mean)), np.float32)
    # Averaged over a few smooth pixels: noise is not a halo.
    share = cv2.GaussianBlur(weight, (0, 0), 1.5)[..., None] + np.float32(1e-4)
    halo = 255 * weight * cv2.GaussianBlur(rest, (0, 0), 1.5) / share
    return HALO_MAX * np.tanh(halo / HALO_MAX) if np.abs(halo).max() >= 0.05 else None


def _small(picture: Array, unit: float) -> Floats:
    """The picture reduced to at most HALO_SIDE pixels a side, float32 in [0, 1]: every k-th pixel, then by area."""
    longer = max(picture.shape[:2])
    step = max(1, longer // (4 * HALO_SIDE))
    sample = sample_every(step, picture)
    scale = min(1.0, HALO_SIDE / longer)
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = cv2.resize(sample, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small.astype(np.float32) / np.float32(unit), np.float32)


def sample_every(step: int, picture: Array) -> Array:
    """Every `step`-th pixel of every `step`-th row, starting in the middle of the first square, H x W x 3."""
    every = picture[step // 2 :: step, step // 2 :: step]
    sample = np.empty(every.shape, every.dtype)
    for channel in range(every.shape[2]):  # copying whole pixels, NumPy moves three values at a time: six times slower
        sample[..., channel] = every[..., channel]
    return sample


def _box(values: Array, radius: int) -> Floats:
    """The mean over windows of 2 radius + 1."""
    return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1)), np.float32)


def remove_halos(halo: Floats, top: int, height: int, after: Array, unit: float, scratch: Scratch) -> None:
    """Subtract its part of `halo` from a full-size strip that starts at row `top` of `height`, in place."""
    width, count = after.shape[1], len(after)
    if after.dtype != np.uint8:
        wide = halo_columns(halo_rows(halo, range(top, top + count), height), width)
        store = np.asarray(after - wide * np.float32(unit / 255), np.float32).clip(0, unit)
        np.copyto(after, store if after.dtype == np.float32 else np.rint(store), casting="unsafe")
        return
    # In bytes, and with several equal rows where a grid cell is many pixels tall: much faster.
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
    """Some of the rows of an h x w x C grid enlarged to `height`, still w wide: bilinear, pixel centres aligned."""
    at = ((np.array(which) + 0.5) * (len(grid) / height) - 0.5).clip(0, len(grid) - 1)
    above = np.minimum(at.astype(np.int64), max(0, len(grid) - 2))
    below = np.minimum(above + 1, len(grid) - 1)
    share = (at - above).astype(np.float32)[:, None, None]
    return np.asarray(grid[above] + share * (grid[below] - grid[above]), np.float32)


def halo_columns(narrow: Array, width: int) -> Array:
    """Enlarge rows to the full width: count x w x C to count x width x C."""
    wide = cv2.resize(narrow, (width, len(narrow)), interpolation=cv2.INTER_LINEAR)
    return np.asarray(wide).reshape(len(narrow), width, -1)
