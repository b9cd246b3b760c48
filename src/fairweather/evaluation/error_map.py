"""Where a picture is wrong: the error of every pixel as a colour, on one scale for all pictures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SCALE = 0.25
"""The error that gets the brightest colour, and all above it: a quarter of the range from black to white. Fixed, so
that maps of other photos and of other models can be compared."""
COLOURS = cv2.COLORMAP_INFERNO
"""Smith and van der Walt's inferno: equal steps look equal, brightness alone tells them apart (in grey and to
colour-blind people too), and black is no error."""


def pixel_error(output: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float32]:
    """H x W x 3 and H x W x 3 in [0,1] -> H x W: the root of the mean square over R, G and B.

    The mean square of this map is the picture's mean square error, which PSNR is the logarithm of.
    """
    difference = output.clip(0, 1).astype(np.float32) - target.clip(0, 1).astype(np.float32)
    error: NDArray[np.float32] = np.sqrt(np.square(difference).mean(axis=2))
    return error


def coloured(error: NDArray[Any]) -> NDArray[np.uint8]:
    """H x W errors -> H x W x 3 RGB: 0 is black, SCALE and more the brightest yellow."""
    levels = np.floor(np.clip(error / SCALE, 0, 1) * 255 + 0.5).astype(np.uint8)
    picture: NDArray[np.uint8] = cv2.applyColorMap(levels, COLOURS)[..., ::-1]
    return np.ascontiguousarray(picture)


def error_map(output: NDArray[Any], target: NDArray[Any], longest: int) -> NDArray[np.uint8]:
    """The coloured map with at most `longest` pixels a side: errors are averaged, not colours."""
    error = pixel_error(output, target)
    height, width = error.shape
    ratio = longest / max(height, width)
    if ratio < 1:
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        error = cv2.resize(error, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return coloured(error)


def colour_bar(width: int, height: int) -> NDArray[np.uint8]:
    """The scale itself, from 0 on the left to SCALE on the right."""
    return coloured(np.tile(np.linspace(0, SCALE, width), (height, 1)))
