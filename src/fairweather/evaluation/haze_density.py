"""How hazy does a photo look? An estimate of our own, fitted on haze of known density.

After the idea of FADE (Choi, You & Bovik, "Referenceless prediction of perceptual fog density and perceptual image
defogging", TIP 2015): statistics in which hazy and clear photos differ. FADE compares them with two corpora; here they
go into a regression whose truth is known, since the haze was computed (`benchmarks/haze_density.py` fits the weights
below and says how well they do). The two numbers cannot be compared.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 256
"""Photos are reduced to this longer side by area, so that the answer does not depend on the camera's pixels."""
CELL = 9
"""Local statistics are taken over CELL x CELL pixels of the reduced photo."""
QUANTILES = (0.1, 0.5, 0.9)

CENTRE: tuple[float, ...] = (
    *(0.1754, 0.317, 0.5216),
    *(0.1005, 0.201, 0.3487),
    *(-4.159, -3.171, -2.179),
    *(-3.489, -2.421, -1.414),
    *(0.1101, 0.2351, 0.4447),
    *(0.155, 0.3226, 0.5779),
    *(3.434, 0.5068),
)
SCALE: tuple[float, ...] = (
    *(0.1466, 0.1811, 0.2088),
    *(0.09179, 0.1468, 0.1967),
    *(0.6152, 0.6225, 0.4777),
    *(0.7903, 0.7497, 0.6178),
    *(0.09642, 0.1731, 0.2792),
    *(0.1017, 0.1581, 0.1831),
    *(0.4094, 0.126),
)
WEIGHTS: tuple[float, ...] = (
    *(0.8138, 0.4415, -0.5343),
    *(-0.1181, -0.2024, 0.03411),
    *(0.3654, 0.01603, 0.3903),
    *(-0.5723, 0.02526, -0.3365),
    *(0.1057, 0.05294, 0.138),
    *(-0.2853, 0.1317, -0.6233),
    *(0.1753, -0.2284),
)
INTERCEPT = -2.175


def haze_density(picture: NDArray[Any]) -> float:
    """The estimated mean share of airlight, 1 - t: 0 in clear air, 1 where nothing but haze is seen.

    picture: H x W x 3 floats in [0,1], sRGB.
    """
    if not WEIGHTS:
        return 0.0
    x = (features(picture) - np.array(CENTRE)) / np.array(SCALE)
    return float(1 / (1 + np.exp(-(x @ np.array(WEIGHTS) + INTERCEPT))))


def features(picture: NDArray[Any]) -> NDArray[np.float64]:
    """The statistics that the regression sees: QUANTILES of six local ones, and two of the whole picture."""
    small = reduced(picture)
    light = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    low, high = small.min(2), small.max(2)
    kernel = np.ones((CELL, CELL), np.uint8)
    mean = cv2.blur(light, (CELL, CELL))
    spread = np.sqrt((cv2.blur(light * light, (CELL, CELL)) - mean * mean).clip(0))
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    local = (
        cv2.erode(low, kernel),  # the dark channel: haze lifts it
        cv2.blur((high - low) / (high + 0.02), (CELL, CELL)),  # saturation: haze takes it
        np.log(spread + 0.004),  # contrast: haze takes it
        np.log((spread + 0.004) / (mean + 0.02)),  # contrast for the brightness, which haze brings
        cv2.blur(np.hypot(lab[..., 1], lab[..., 2]), (CELL, CELL)) / 50,  # colourfulness
        cv2.dilate(high, kernel) - cv2.erode(low, kernel),  # range from the darkest to the brightest
    )
    counts = np.histogram(light, 64, (0, 1))[0] / light.size
    entropy = -(counts * np.log(counts + 1e-9)).sum()
    every_other = np.stack([values[::2, ::2].ravel() for values in local])  # neighbours say nearly the same
    quantiles = np.quantile(every_other, QUANTILES, axis=1)
    return np.array([*quantiles.T.ravel(), entropy, mean.mean()])


def reduced(picture: NDArray[Any]) -> Floats:
    """The photo with at most SIDE pixels along its longer side, float32 in [0,1]."""
    picture = picture.astype(np.float32, copy=False).clip(0, 1)
    ratio = SIDE / max(picture.shape[:2])
    if ratio >= 1:
        return np.ascontiguousarray(picture)
    width, height = (max(1, round(side * ratio)) for side in (picture.shape[1], picture.shape[0]))
    small: Floats = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return small
