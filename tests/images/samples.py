"""What the tests of several formats share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fairweather import images


def rewritten(path: Path) -> Path:
    """Read, write under another name, and return that."""
    other = path.with_name("again" + path.suffix)
    images.write(other, images.read(path))
    return other


def inks(photo: np.ndarray, black: np.ndarray) -> Image.Image:
    """A CMYK picture: the photo's planes as C, M, Y, half of another as K."""
    return Image.merge("CMYK", [Image.fromarray(plane) for plane in (*photo.transpose(2, 0, 1), black // 2)])
