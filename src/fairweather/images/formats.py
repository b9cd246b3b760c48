"""What `decoding` and `encoding` share: the table of formats, a file's kind, and what EXIF says of orientation.

Choices, where a format leaves one:

- JPEG from a JPEG: the source's quantization tables, subsampling and progressive flag; from anything else
  quality 95 without chroma subsampling. CMYK and YCCK are written as CMYK, all plates with the first one's table.
- WebP: lossless stays lossless, else quality 95. AVIF: quality 90, 4:4:4, alpha lossless. HEIC: quality 90, 4:4:4;
  lossless if there is alpha. AVIF and HEIC of 10 or 12 bits are read as 8 bits, with a warning.
- TIFF: uncompressed stays so, all else is deflate with a predictor; of several pages the first is read, with a warning.
- Two-channel TIFFs of 16 bits (grey, alpha) are written as RGBA. One-bit pictures become 8-bit grey.
- Palette PNGs stay so while the result has at most 256 colours; then they become RGB or RGBA.
- The thumbnail inside EXIF is dropped (it shows the old picture), and so are XMP, JPEG comments and gain maps.
- Colour profiles are carried over untouched; pixels are never converted from or to them. A profile of another
  colour space than what is written (CMYK to PNG, grey to WebP) is dropped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import MissingExtra

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""Channels as a file stores them: H x W (grey), or H x W x 2, 3, 4 in the order of the mode's letters."""

FORMATS = MappingProxyType({
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF",
    ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM",
})  # fmt: skip
"""Lower-case suffix -> format: what is read and written."""

ALPHA = frozenset({"PNG", "WEBP", "TIFF", "AVIF", "HEIF"})
"""Formats that hold alpha; the others are flattened on white."""
DEEP = frozenset({"PNG", "TIFF"})
"""Formats that hold 16 bits; the others are rounded to 8."""
GREY = frozenset({"JPEG", "PNG", "TIFF", "AVIF", "HEIF", "BMP", "PPM"})
"""Formats that hold a single channel."""
INK = frozenset({"JPEG", "TIFF"})
"""Formats that hold CMYK."""

# Tags that tell of camera, author and time, as against those that describe a TIFF's own layout.
TOLD_TAGS = (270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, 40091, 40092, 40093, 40094, 40095)
TOLD_DIRECTORIES = (34665, 34853)
"""EXIF, GPS."""
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Kind:
    """What a picture file is besides its pixels: enough to write the same sort of file again."""

    format: str = ""
    """A value of `FORMATS`; empty for an array that came from no file."""
    mode: str = "RGB"
    """The stored channels: L, LA, RGB, RGBA or CMYK."""
    palette: bool = False
    exif: bytes = b""
    """A TIFF stream without the "Exif" prefix, its orientation reset to 1."""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None
    tables: tuple[tuple[int, ...], ...] = ()
    """A JPEG's quantization tables of 64 numbers: one for all components, or one for each of the first few."""
    subsampling: int = 0
    """A JPEG's chroma: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0."""
    progressive: bool = False
    plain_rgb: bool = False
    """A JPEG that stores RGB itself, not luma and chroma."""
    lossless: bool = False
    """A WebP without loss."""
    compressed: bool = False
    """A TIFF that is compressed in some way."""


def settle(exif: bytes) -> tuple[int, bytes]:
    """The orientation that EXIF tells, and the same EXIF telling 1, its thumbnail unlinked; (1, b"") when damaged.

    Bytes are changed in place, not written anew: makers' notes hold offsets that would break.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    changed, orientation = bytearray(exif), 1
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        end = start + 2 + 12 * count
        for entry in range(start + 2, end, 12):
            tag, number = struct.unpack_from(order + "HH", exif, entry)
            if tag == ORIENTATION:
                form = order + ("I" if number == 4 else "H")
                (orientation,) = struct.unpack_from(form, exif, entry + 8)
                struct.pack_into(form, changed, entry + 8, 1)
        if len(exif) >= end + 4:
            struct.pack_into(order + "I", changed, end, 0)
    except (KeyError, struct.error):
        return 1, b""
    return orientation, bytes(changed)


def pillow_heif() -> Any:
    """The module that reads and writes HEIC; raises MissingExtra where it is not installed."""
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingExtra("pillow-heif", "photo", "HEIC") from error
    return pillow_heif
