"""What can be said of a restored photo without knowing the truth: always as a change from the photo as it came.

None of these numbers says that a picture is right. They say what a restorer did: whether contrast came, and whether it
was paid for with clipped pixels, a colour cast or noise. `haze_density` has a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadImage
from fairweather.evaluation.haze_density import haze_density
from fairweather.evaluation.metrics import eight_bit, size

Floats = NDArray[np.float32]

WINDOW = 0.02
"""The side of a window of local contrast, as a share of the longer side; 7 pixels at least."""
BLOCK = 16
FLAT = 0.1
"""Noise is measured in this share of the input's blocks of BLOCK x BLOCK pixels, the flattest ones."""


@dataclass(frozen=True)
class Change:
    """From a photo to its restored version."""

    contrast: float
    """Ratio of the mean local contrast after to that before: 1 is unchanged, 2 is twice as much."""
    saturated: float
    """Change of the share of pixels with a channel at 0 or 255, in percentage points."""
    cast: float
    """Length of the shift (a, b) below, in units of CIELAB: from 2 or 3 a shift can be seen side by side."""
    cast_a: float
    """Shift of the mean a*: above 0 towards red, below towards green."""
    cast_b: float
    """Shift of the mean b*: above 0 towards yellow, below towards blue."""
    noise: float
    """Change of the standard deviation of the noise in flat places, in levels of 255."""
    density: float
    """Change of the estimated share of airlight, see `haze_density`: below 0 there is less haze."""

    def as_dict(self) -> dict[str, float]:
        """Name -> value, four decimals."""
        return {field.name: round(float(getattr(self, field.name)), 4) for field in fields(self)}


def change(before: NDArray[Any], after: NDArray[Any]) -> Change:
    """What became of a photo: H x W x 3 floats in [0,1] twice, of one size. Raises BadImage where the sizes differ."""
    if before.shape != after.shape:
        raise BadImage(f"a photo of {size(before)} cannot be compared with one of {size(after)} pixels")
    before, after = before.astype(np.float32, copy=False), after.astype(np.float32, copy=False)
    a, b = (float(shift) for shift in mean_chroma(after) - mean_chroma(before))
    flat = flat_blocks(before)
    return Change(
        contrast=local_contrast(after) / max(local_contrast(before), 1e-4),
        saturated=100 * (saturated_share(after) - saturated_share(before)),
        cast=float(np.hypot(a, b)),
        cast_a=a,
        cast_b=b,
        noise=255 * (noise_level(after, flat) - noise_level(before, flat)),
        density=haze_density(after) - haze_density(before),
    )


def local_contrast(picture: Floats) -> float:
    """Mean over all windows of the standard deviation of luma inside; H x W x 3 in [0,1], the answer in the same unit.

    Windows are squares with a side of WINDOW times the longer side, around each pixel; at the border they reflect.
    """
    light = _luma(picture)
    side = max(7, round(WINDOW * max(light.shape)) // 2 * 2 + 1)
    mean = cv2.blur(light, (side, side))
    variance = cv2.blur(light * light, (side, side)) - mean * mean
    return float(np.sqrt(variance.clip(0)).mean())


def saturated_share(picture: Floats) -> float:
    """Share of pixels of which a channel is 0 or 255 in an 8-bit file; H x W x 3 in [0,1]."""
    levels = eight_bit(picture)
    return float(((levels == 0) | (levels == 255)).any(axis=2).mean())


def mean_chroma(picture: Floats) -> NDArray[np.float64]:
    """The mean a* and b* (CIELAB, D65) of an H x W x 3 sRGB picture in [0,1]."""
    lab: NDArray[np.float64] = cv2.cvtColor(picture.clip(0, 1), cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1), np.float64)
    return lab


def noise_level(picture: Floats, flat: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of the noise in luma (in [0,1] units), measured in flat blocks.

    Immerkaer, "Fast noise variance estimation", CVIU 1996: a mask that is blind to planes and to straight edges,
    its answer divided by its own norm; here by block, and the median over the blocks that are flat.
    """
    if flat is None:
        flat = flat_blocks(picture)
    light = _luma(picture)
    if min(light.shape) < BLOCK:
        return 0.0
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    blocks = _by_block(np.square(cv2.filter2D(light, -1, mask)))
    return float(np.sqrt(np.median(blocks[flat])))


def flat_blocks(picture: Floats) -> NDArray[np.bool_]:
    """Which blocks of BLOCK x BLOCK pixels vary least, as a mask over the blocks; clipped ones do not count.

    In a clipped block noise is hidden. Of a photo of clipped blocks alone, the flattest are taken all the same.
    """
    light = _luma(picture)
    if min(light.shape) < BLOCK:
        return np.zeros((0, 0), np.bool_)
    smooth = cv2.blur(light, (3, 3))
    spread = _by_block(smooth * smooth) - np.square(_by_block(smooth))
    clipped = _by_block(((light < 2 / 255) | (light > 253 / 255)).astype(np.float32)) > 0
    if not clipped.all():
        spread[clipped] = np.inf
    count = max(1, round(FLAT * spread.size))
    flat: NDArray[np.bool_] = spread <= np.partition(spread.ravel(), count - 1)[count - 1]
    return flat


def _by_block(values: Floats) -> Floats:
    """The mean of each whole block."""
    rows, columns = values.shape[0] // BLOCK, values.shape[1] // BLOCK
    whole = values[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    mean: Floats = whole.mean((1, 3))
    return mean


def _luma(picture: Floats) -> Floats:
    light: Floats = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return light
