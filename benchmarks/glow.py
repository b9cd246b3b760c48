"""A measure of glow: halos along roof lines and tree trunks, caused by maps that are coarser than the photo.

PSNR hardly reflects them. Unlike other errors, a halo is not a local function of the scene: the sky next to a roof and
the sky further away have the same colour in the ground truth and different colours in the output. On a photo's luma:

1. error = output - ground truth;
2. subtract what is locally an affine function of the ground truth (a guided filter guided by it, radius 10 % of the
   long side): wrong brightness, contrast or tint, also if they vary slowly;
3. smooth the rest (sigma 2 pixels) to exclude noise and texture;
4. take its root mean square in a band around strong edges of the ground truth, and elsewhere.

Both values are in levels of 255. Glow raises the first; noise or patchy haze raises both. A hazy input has some glow
itself, because haze follows depth and depth changes at edges: compare systems with the input and with each other. On
clear photos compared with themselves, the restorer caused all of it.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from dark_channel import guided_filter
from numpy.typing import NDArray

STRONG = 0.04
"""Minimum gradient per pixel of a strong edge, in the ground truth's luma smoothed with sigma 2."""
INNER, OUTER = 2, 0.03
"""The band around an edge: from INNER pixels (closer, half a pixel of shift matters) to OUTER times the long side."""
REACH = 0.1
EPS = 1e-4


def glow(output: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """Glow (near strong edges, elsewhere) in levels of 255; NaN if a photo has no such region.

    output, truth: H x W x 3 floats in [0, 1] of one size.
    """
    light = [cv2.cvtColor(p.astype(np.float32), cv2.COLOR_RGB2GRAY) for p in (output, truth)]
    error = light[0] - light[1]
    radius = max(4, round(REACH * max(error.shape)))
    halo = cv2.GaussianBlur(error - guided_filter(light[1], error, radius, EPS), (0, 0), 2)
    near, elsewhere = bands(light[1])
    return _levels(halo[near]), _levels(halo[elsewhere])


def bands(luma: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (H x W) of the band around strong edges, and of the region beyond it; neither contains the edges."""
    smooth = cv2.GaussianBlur(luma, (0, 0), 2)
    steep = cv2.magnitude(cv2.Scharr(smooth, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(smooth, cv2.CV_32F, 0, 1) / 32)
    distance = cv2.distanceTransform((steep < STRONG).astype(np.uint8), cv2.DIST_L2, 5)
    outer = max(INNER + 1.0, OUTER * max(luma.shape))
    if not (steep >= STRONG).any():
        distance[:] = np.inf
    return (distance > INNER) & (distance <= outer), distance > outer


def _levels(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))) * 255) if values.size else float("nan")
