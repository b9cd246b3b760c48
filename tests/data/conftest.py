"""Small folders of photos for the data tests, written with OpenCV instead of the code under test."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather.data import Augment

QUIET = Augment(crop=32, tone=0, noise_share=0, jpeg_share=0)
"""Crops and flips only."""


def write_photo(path: Path, pixels: np.ndarray) -> Path:
    """Write H x W [x 3] RGB in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
    return path


def scene(number: int, height: int = 72, width: int = 96) -> np.ndarray:
    """A photo whose red is the number of its scene, and whose green and blue are the pixel's position."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([np.full_like(x, number), x * 255 // (width - 1), y * 255 // (height - 1)], axis=-1).astype(
        np.uint8
    )


@pytest.fixture
def pairs_folder(tmp_path: Path) -> Path:
    """Eight scenes with two hazes each; the degraded side is half as bright as the clear one."""
    for number in range(8):
        clear = scene(20 * number)
        write_photo(tmp_path / "pairs" / "clear" / f"{1400 + number}.png", clear)
        for haze in (1, 2):
            write_photo(tmp_path / "pairs" / "hazy" / f"{1400 + number}_{haze}.png", clear // 2)
    return tmp_path / "pairs"


@pytest.fixture
def clear_folder(tmp_path: Path, photo: np.ndarray) -> Path:
    """Six clear photos."""
    for number in range(6):
        write_photo(tmp_path / "photos" / f"photo{number}.png", np.roll(photo, 16 * number, axis=1))
    return tmp_path / "photos"
