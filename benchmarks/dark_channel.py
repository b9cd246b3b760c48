"""The dark channel prior with a guided filter: the classical baseline for haze removal.

He, Sun and Tang, "Single image haze removal using dark channel prior", CVPR 2009, and "Guided image filtering", ECCV
2010. Patch 15, omega 0.95, t0 0.1 as in the first paper; the guided filter replaces its soft matting.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

PATCH = 15
"""Side of the window of the dark channel, in pixels (section 4.1)."""
OMEGA = 0.95
"""Fraction of the haze that is removed; the rest keeps distant objects natural (section 4.1, equation 12)."""
FLOOR = 0.1
"""t0: lower bound of the transmission (section 4.3, equation 16)."""
BRIGHTEST = 0.001
"""Fraction of the pixels with the highest dark channel that are candidates for the airlight (section 4.4)."""
RADIUS = 60
EPS = 1e-3
"""Radius in pixels and regularisation of the guided filter."""

Picture = NDArray[np.float32]


def restore(photo: Picture) -> Picture:
    """Remove haze: H x W x 3 float32 in [0, 1] -> the same shape."""
    airlight = estimate_airlight(photo)
    t = transmission(photo, airlight)
    t = np.maximum(t, FLOOR, out=t)
    clear = cv2.divide(photo - airlight, cv2.merge([t, t, t]))
    clear += airlight
    return np.clip(clear, 0, 1, out=clear)


def dark_channel(photo: Picture) -> NDArray[np.float32]:
    """H x W: minimum over channels and patch (equation 5)."""
    least = cv2.min(cv2.min(photo[..., 0], photo[..., 1]), photo[..., 2])
    return cv2.erode(least, np.ones((PATCH, PATCH), np.uint8))


def estimate_airlight(photo: Picture) -> NDArray[np.float32]:
    """RGB of the brightest pixel among the 0.1 % with the highest dark channel (section 4.4)."""
    dark = dark_channel(photo).ravel()
    count = max(1, int(dark.size * BRIGHTEST))
    haziest = photo.reshape(-1, 3)[np.argpartition(dark, -count)[-count:]]
    return np.maximum(haziest[haziest.sum(axis=1).argmax()], 1e-3)


def transmission(photo: Picture, airlight: NDArray[np.float32]) -> NDArray[np.float32]:
    """H x W in (0, 1]: 1 - omega times the dark channel of I / A, refined along the photo's edges."""
    raw = 1 - OMEGA * dark_channel(photo / airlight)
    return guided_filter(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), raw.astype(np.float32), RADIUS, EPS)


def guided_filter(guide: NDArray[Any], source: NDArray[Any], radius: int, eps: float) -> NDArray[np.float32]:
    """Guided filter with a grey guide, H x W each -> H x W (ECCV 2010, algorithm 1)."""

    def mean(picture: NDArray[Any]) -> NDArray[Any]:
        return cv2.blur(picture, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    guide_mean, source_mean = mean(guide), mean(source)
    slope = (mean(guide * source) - guide_mean * source_mean) / (mean(guide * guide) - guide_mean**2 + eps)
    offset = source_mean - slope * guide_mean
    return mean(slope) * guide + mean(offset)
