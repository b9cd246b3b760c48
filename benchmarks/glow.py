"""A figure for glow: the halos along roof lines and around trunks that maps coarser than the photo leave behind.

PSNR hardly sees them. What tells a halo from every other error is that it is no local function of the scene: the sky
beside a roof and the sky further off have one colour in the truth and two in the output. So, of a photo's luma:

1. error = output - truth;
2. from it goes all that is locally an affine function of the truth (a guided filter with the truth as guide, radius
   10 % of the long side): wrong brightness, contrast or tint, also where they change slowly;
3. what is left is smoothed (sigma 2 pixels), so that noise and texture do not count;
4. its root mean square is taken in a band around the truth's strong edges, and elsewhere.

Both are in levels of 255. Glow raises the first; noise, or haze that is patchy by itself, raises both. A hazy photo has
some of its own, since its haze follows depth and depth jumps at edges: compare systems with it and with each other. On
clear photos compared with themselves all of it was brought in by the restorer.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from dark_channel import guided_filter
from numpy.typing import NDArray

STRONG = 0.04
"""An edge is strong where the truth's luma, smoothed by sigma 2, changes by this much in a pixel."""
INNER, OUTER = 2, 0.03
"""The band: from INNER pixels off the edge (nearer, a shift of half a pixel counts) to OUTER times the long side."""
REACH = 0.1
EPS = 1e-4


def glow(output: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """(near strong edges, elsewhere) in levels of 255; NaN where a photo has no such place.

    output, truth: H x W x 3 floats in [0,1] of one size.
    """
    light = [cv2.cvtColor(p.astype(np.float32), cv2.COLOR_RGB2GRAY) for p in (output, truth)]
    error = light[0] - light[1]
    radius = max(4, round(REACH * max(error.shape)))
    halo = cv2.GaussianBlur(error - guided_filter(light[1], error, radius, EPS), (0, 0), 2)
    near, elsewhere = bands(light[1])
    return _levels(halo[near]), _levels(halo[elsewhere])


def bands(luma: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (H x W) of the band around strong edges and of all that lies beyond it; the edges are in neither."""
    smooth = cv2.GaussianBlur(luma, (0, 0), 2)
    steep = cv2.magnitude(cv2.Scharr(smooth, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(smooth, cv2.CV_32F, 0, 1) / 32)
    distance = cv2.distanceTransform((steep < STRONG).astype(np.uint8), cv2.DIST_L2, 5)
    outer = max(INNER + 1.0, OUTER * max(luma.shape))
    if not (steep >= STRONG).any():
        distance[:] = np.inf
    return (distance > INNER) & (distance <= outer), distance > outer


def _levels(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))) * 255) if values.size else float("nan")
