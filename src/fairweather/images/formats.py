"""The supported formats, and `Kind`: the properties of a file other than its pixels, so that they can be preserved.

How pictures are written, where the format allows a choice:

- JPEG from a JPEG: the source's quantization tables, subsampling and progressive flag; from anything else
  quality 95 without chroma subsampling. CMYK and YCCK are written as CMYK, all planes with the first plane's table.
- WebP: lossless stays lossless, else quality 95. AVIF: quality 90, 4:4:4, lossless alpha. HEIC: quality 90, 4:4:4;
  lossless with alpha. AVIF and HEIC with 10 or 12 bits are read as 8 bits, with a warning.
- TIFF: uncompressed stays uncompressed, all else is deflate with a predictor. Only the first of several pages is read,
  with a warning. 16-bit grey with alpha is written as RGBA.
- One-bit pictures become 8-bit grey. Palette PNGs stay palette PNGs while the result has at most 256 colours.
- The thumbnail inside EXIF is dropped (it shows the old picture), and so are XMP, JPEG comments and gain maps.
- Colour profiles are copied and never applied. A profile of another colour space than that of the output (CMYK to PNG,
  grey to WebP) is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

FORMATS = MappingProxyType({
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF",
    ".bmp": "BMP", ".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM",
})  # fmt: skip
"""Lower-case suffix -> format, for all formats that can be read and written."""

ALPHA = frozenset({"PNG", "WEBP", "TIFF", "AVIF", "HEIF"})
"""Formats with alpha; in the others it is flattened on white."""
DEEP = frozenset({"PNG", "TIFF"})
"""Formats with 16 bits; in the others values are rounded to 8."""
GREY = frozenset({"JPEG", "PNG", "TIFF", "AVIF", "HEIF", "BMP", "PPM"})
"""Formats with a single channel."""
INK = frozenset({"JPEG", "TIFF"})
"""Formats with CMYK."""


@dataclass(frozen=True)
class Kind:
    """The properties of a picture file other than its pixels."""

    format: str = ""
    """A value of `FORMATS`; empty for an array."""
    mode: str = "RGB"
    """The stored channels: L, LA, RGB, RGBA or CMYK."""
    palette: bool = False
    exif: bytes = b""
    """A TIFF stream without the "Exif" prefix, its orientation reset to 1."""
    icc: bytes = b""
    """Colour profile."""
    dpi: tuple[float, float] | None = None
    tables: tuple[tuple[int, ...], ...] = ()
    """Quantization tables of a JPEG, 64 numbers each: one for all components, or one for each of the first few."""
    subsampling: int = 0
    """Chroma of a JPEG: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0."""
    progressive: bool = False
    """JPEG with several scans."""
    plain_rgb: bool = False
    """JPEG that stores RGB rather than luma and chroma."""
    lossless: bool = False
    """Lossless WebP."""
    compressed: bool = False
    """TIFF with any compression."""
