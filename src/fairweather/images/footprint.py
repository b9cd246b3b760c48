"""How much memory a photo takes on its way from file to file, told from its header before anything is decoded.

Bounds from above, not means: what a decoder or an encoder holds beside the pixels was measured for each format
(`tests/images/test_footprint.py` measures again), and where it depends on the picture the worst is counted.
"""

from __future__ import annotations

from typing import NamedTuple

from fairweather.images.formats import ALPHA, DEEP, GREY, INK
from fairweather.images.headers import Header

_READING = {"WEBP": 20, "AVIF": 24, "HEIF": 24, "BMP": 7, "PPM": 7}
"""What the decoder holds beside the result, in bytes a pixel, where that is simply so."""
_WRITING = {"WEBP": 26, "AVIF": 60, "HEIF": 40, "BMP": 8, "PPM": 8}
_FIXED = 16 << 20
"""Beside all that, whatever the size: tables, blocks that are taken in one piece."""
_MIXING = 12
"""Bytes a pixel of what turns CMYK into RGB."""
_FLOATS = 40
"""Bytes a pixel of the conversions that go through float32: alpha flattened, inks mixed, palettes searched."""


class Footprint(NamedTuple):
    """Bytes at the most, each on its own: they come one after the other."""

    reading: int
    """From the file to pixels."""
    held: int
    """The pixels, alpha and inks that a photo is in memory."""
    pixels: int
    """The part of `held` that a restored copy takes once more."""
    writing: int
    """From the restored pixels to the file, these included."""


def footprint(header: Header, format: str) -> Footprint:
    """What a photo with this header takes, if it is written as `format`."""
    count, size = header.width * header.height, 2 if header.deep else 1
    colours = 4 if header.inks else 1 if header.grey else 3
    stored = count * size * (colours + header.alpha)
    pixels = count * size * 3
    held = pixels + count * size * header.alpha + (4 * count if header.inks else 0)
    turn = stored if header.turned else 0
    apart = 0 if stored == pixels and colours == 3 else held + (_MIXING * count if header.inks else 0)
    reading = header.length + max(stored + _decoder(header, count, size), stored + max(turn, apart)) + _FIXED
    return Footprint(reading, held, pixels, held + _encoder(header, format, count, size) + _FIXED)


def _decoder(header: Header, count: int, size: int) -> int:
    if header.format in _READING:
        return _READING[header.format] * count
    if header.format == "JPEG":
        colours = 4 if header.inks else 1 if header.grey else 3
        return (
            count * colours * (3 if header.progressive else 1)
        )  # the decoder's own copy; of scans, 16-bit numbers too
    if header.format == "PNG" and not header.deep:
        return count * (1 if header.grey and not header.alpha else 9 if header.palette else 4)
    return count * 8 * size  # a TIFF, or a PNG of 16 bits


def _encoder(header: Header, format: str, count: int, size: int) -> int:
    """Beside what is held."""
    same = header.format == format
    deep = size if format in DEEP else 1
    inks, alpha = header.inks and format in INK, header.alpha and format in ALPHA
    colours = 4 if inks else 1 if header.grey and format in GREY else 3
    raw = count * deep * (colours + alpha)
    total = 0 if colours == 3 and not alpha else raw  # the channels as the file will hold them
    if size > deep:
        total += count * (24 + 3)
    if header.inks or (header.alpha and not alpha) or (header.palette and format == "PNG"):
        total += _FLOATS * count
    if format in _WRITING:
        return total + (2 if header.lossless and format == "WEBP" else 1) * _WRITING[format] * count
    if format == "JPEG":
        total += count * (4 if colours == 3 else colours)
        total += count * (2 * colours + 2) if same and header.progressive else 0
        return total + 2 * (2 * header.length if same else raw)
    if format == "PNG":
        copied = (colours == 3) != alpha  # Pillow shares RGBA and grey with the array
        return total + count * (8 * deep if deep > 1 else 4 if copied else 0) + raw * 5 // 4
    return total + 2 * raw  # TIFF: its strips, and the file
