"""Do no harm: what keeps a restored photo from being worse than the photo, whatever the network said.

Three guards, each nothing where nothing is wrong: a pixel that the network left as it was stays as it was.

1. **Cast.** A mean colour that moved further than haze explains is led back, softly, by one tone curve a channel.
2. **Noise.** Where flat places came out noisier than `NOISE`, fine detail of the noise's own size is taken off again.
3. **Clipping.** Towards black and white the change bends off, so that what the photo still told apart there stays
   apart: only pixels that were at 0 or 255 are there afterwards.

What has to be known of the whole (1, 2) is measured on a small sample of pixels; the work at full size is done in
strips. No guard depends on a threshold crossed: a video does not flicker by them. NumPy and OpenCV, no PyTorch.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

KNEE = 24
"""Levels (of 255) from black and from white inside which changes bend off."""
RETURNED = 0.06
"""Of the change that ends at black or white, the share that is given back: detail that was clipped shows by it."""
LEVEL = 0.75
"""Given back beside that share, in levels: enough that 8 bits tell a pixel from a clipped one."""
CAST = 16.0
"""Shifts of the mean colour (CIELAB a*, b*) up to half of this are let through whole; none gets beyond it."""
NOISE = 2.5
"""Noise in flat places, in levels, above which it is taken off as far as it was amplified."""
TAKEN = 2.0
"""Detail of up to this many times the noise's excess is taken off: the rest of a normal distribution is rare."""

_STRIP_PIXELS = 1 << 16
_SAMPLE_PIXELS = 1 << 15
_PATCH, _PATCHES = 32, 12
"""Noise is measured in _PATCHES x _PATCHES places, each _PATCH pixels wide."""
_MARGIN = 2


def guard(photo: Array, restored: Array) -> Array:
    """`restored`, made harmless, in place: both are H x W x 3 of one type (uint8, uint16, or float32 in [0,1])."""
    unit = float(np.iinfo(photo.dtype).max) if photo.dtype != np.float32 else 1.0
    shift = _shift(photo, restored, unit)
    threshold = _noise(photo, restored, unit)
    source = restored.copy() if threshold is not None else restored  # neighbours are read: what is written is apart
    height, width = restored.shape[:2]
    rows = max(1, _STRIP_PIXELS // width)

    def strip(top: int) -> None:
        bottom = min(height, top + rows)
        before, after = photo[top:bottom], restored[top:bottom]
        if threshold is not None:
            _core(source, threshold, top, bottom, after, unit)
        if shift is not None:
            _recolour(after, shift, unit)
        if photo.dtype == np.uint8:
            _unclip_bytes(before, after)
        else:
            _unclip(before, after, unit)

    with ThreadPoolExecutor(max_workers=cv2.getNumberOfCPUs()) as pool:
        list(pool.map(strip, range(0, height, rows)))
    return restored


def _bent(values: Floats) -> Floats:
    """0 from KNEE levels off the end, 1 at the end itself, smooth between; values: levels from the end."""
    x = (1 - values / KNEE).clip(0, 1)
    smooth: Floats = x * x * (3 - 2 * x)
    return smooth


def _given_back(change: Floats) -> Floats:
    """How many levels of a change are given back at the very end of the range."""
    return np.asarray(RETURNED * change + LEVEL * change.clip(0, 1), np.float32)


_LEVELS = np.arange(256, dtype=np.float32)
_FINE = 8
_NEAR_BLACK = np.rint(255 * _bent(_LEVELS)).astype(np.uint8)
_NEAR_WHITE = np.ascontiguousarray(_NEAR_BLACK[::-1])
_BACK = np.rint(_FINE * _given_back(_LEVELS)).astype(np.uint8)


def _unclip_bytes(before: Array, after: Array) -> None:
    """The third guard on 8 bits, in place: saturating byte arithmetic, which costs next to nothing."""
    scale = 1 / (255 * _FINE)
    near = cv2.LUT(after, _NEAR_WHITE)
    if near.any():
        back = cv2.LUT(cv2.subtract(after, before), _BACK)
        after -= cv2.multiply(back, near, scale=scale)
    near = cv2.LUT(after, _NEAR_BLACK)
    if near.any():
        back = cv2.LUT(cv2.subtract(before, after), _BACK)
        after += cv2.multiply(back, near, scale=scale)


def _unclip(before: Array, after: Array, unit: float) -> None:
    """The third guard on 16 bits and floats, in place."""
    old, new = (side.astype(np.float32) * np.float32(255 / unit) for side in (before, after))
    rise, fall = (new - old).clip(0, None), (old - new).clip(0, None)
    back = _bent(new) * _given_back(fall) - _bent(255 - new) * _given_back(rise)
    # In units of the picture, so that what is not changed keeps every bit.
    _store(np.asarray(after + back * np.float32(unit / 255), np.float32), after, unit, 1)


def _shift(photo: Array, restored: Array, unit: float) -> tuple[float, float] | None:
    """The part of the mean colour's shift (a*, b*) that is too much; None where there is none."""
    step = max(1, int((photo.shape[0] * photo.shape[1] / _SAMPLE_PIXELS) ** 0.5))
    chroma = []
    for picture in (photo, restored):
        sample = picture[step // 2 :: step, step // 2 :: step].astype(np.float32) / np.float32(unit)
        chroma.append(cv2.cvtColor(sample, cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1), np.float64))
    a, b = chroma[1] - chroma[0]
    length, free = float(np.hypot(a, b)), CAST / 2
    if length <= free:
        return None
    allowed = CAST - free / (1 + (length - free) / free)  # slope 1 where it sets in, never above CAST
    share = 1 - allowed / length
    return share * float(a), share * float(b)


def _recolour(after: Array, shift: tuple[float, float], unit: float) -> None:
    """Take a shift of a*, b* off a strip, in place. Black and white have no colour, and get none."""
    lab = cv2.cvtColor(after.astype(np.float32) / np.float32(unit), cv2.COLOR_RGB2LAB)
    room = (lab[..., 0] * (100 - lab[..., 0]) / 625).clip(0, 1)
    for channel, value in enumerate(shift, start=1):
        lab[..., channel] -= np.float32(value) * room
    _store(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), after, unit, unit)


def _noise(photo: Array, restored: Array, unit: float) -> Floats | None:
    """How much fine detail to take off, in levels, on a grid over the photo; None where nothing is too noisy."""
    height, width = photo.shape[:2]
    if min(height, width) < 2 * _PATCH:
        return None
    tops = np.linspace(0, height - _PATCH, min(_PATCHES, height // _PATCH)).astype(int)
    lefts = np.linspace(0, width - _PATCH, min(_PATCHES, width // _PATCH)).astype(int)
    before, after = (
        np.array([[_grain(picture[t : t + _PATCH, x : x + _PATCH], unit) for x in lefts] for t in tops], np.float32)
        for picture in (photo, restored)
    )
    # Noise is what the flattest places have: elsewhere the mask answers to texture, which is to be amplified.
    sigma = float(np.quantile(before, 0.1))
    amplified = np.minimum(after, sigma * after / np.maximum(before, 1e-3))
    excess = (amplified - max(NOISE, sigma)).clip(0, None).astype(np.float32)
    if not (excess > 0).any():
        return None
    return np.asarray(TAKEN * cv2.GaussianBlur(excess, (3, 3), 0), np.float32)


def _grain(patch: Array, unit: float) -> float:
    """Noise of a patch in levels (Immerkaer, CVIU 1996), the median of its quarters' quarters."""
    light = cv2.cvtColor(patch.astype(np.float32), cv2.COLOR_RGB2GRAY) * np.float32(255 / unit)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    answer = cv2.filter2D(light, -1, mask)
    return float(np.median(np.abs(answer)) / 0.6745)


def _core(source: Array, threshold: Floats, top: int, bottom: int, after: Array, unit: float) -> None:
    """Take fine detail of up to `threshold` levels off the rows [top, bottom) of `source`, into `after`."""
    first, last = max(0, top - _MARGIN), min(len(source), bottom + _MARGIN)
    wide = source[first:last].astype(np.float32) * np.float32(255 / unit)
    smooth = cv2.GaussianBlur(wide, (5, 5), 1.2)
    detail = (wide - smooth)[top - first : bottom - first]
    height, width = source.shape[:2]
    y = ((np.arange(top, bottom) + 0.5) * (len(threshold) / height) - 0.5).astype(np.float32)
    x = ((np.arange(width) + 0.5) * (threshold.shape[1] / width) - 0.5).astype(np.float32)
    columns, rows = np.meshgrid(x, y)
    limit = cv2.remap(threshold, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., None]
    _store(wide[top - first : bottom - first] - detail.clip(-limit, limit), after, unit, unit / 255)


def _store(values: Floats, out: Array, unit: float, scale: float) -> None:
    """`scale` times the values into `out`, rounded where it holds integers."""
    if scale != 1:
        values *= np.float32(scale)
    np.clip(values, 0, unit, out=values)
    if out.dtype != np.float32:
        np.rint(values, out=values)
    np.copyto(out, values, casting="unsafe")
