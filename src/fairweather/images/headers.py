"""What a picture file says of itself before anything is decoded: size, channels, depth. Used by `images.header`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from fairweather.images.decoding import opened
from fairweather.images.formats import ORIENTATION, settle


@dataclass(frozen=True)
class Header:
    """A picture's header, as `images.read` goes by it."""

    format: str
    """JPEG, PNG, WEBP, TIFF, AVIF, BMP, PPM or HEIF, as the first bytes tell."""
    width: int
    """Upright: after the turn that EXIF asks for."""
    height: int
    grey: bool
    alpha: bool
    """Transparency of any kind, that of a palette or of a single colour too."""
    palette: bool
    inks: bool
    """CMYK."""
    deep: bool
    """16 bits a channel."""
    frames: int
    """Pictures in the file: pages, or frames of an animation."""
    turned: bool = False
    """Stored lying on its side or mirrored: EXIF asks for a turn."""
    progressive: bool = False
    """A JPEG in several scans, all of which are held while it is decoded."""
    lossless: bool = False
    """A WebP without loss."""
    length: int = 0
    """Bytes of the file."""


def probe(file: IO[bytes], format: str) -> Header:
    """The header of an open file; raises what Pillow raises on damage."""
    file.seek(0)
    start = file.read(26)
    file.seek(0)
    picture = opened(file, format)
    exif = picture.info.get("exif") or b""
    told = picture.getexif().get(ORIENTATION, 1) if format == "TIFF" else settle(exif)[0]
    width, height = picture.size if told not in (5, 6, 7, 8) else picture.size[::-1]
    return Header(
        format=format,
        width=width,
        height=height,
        grey=picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;"),
        alpha=picture.has_transparency_data,
        palette=picture.mode in ("P", "PA"),
        inks=picture.mode == "CMYK",
        deep=start[24] == 16 if format == "PNG" else format == "TIFF" and _bits(picture) > 8,
        frames=getattr(picture, "n_frames", 1),
        turned=told in range(2, 9),
        progressive=bool(picture.info.get("progressive")),
        lossless=format == "WEBP" and start[12:16] == b"VP8L",
        length=file.seek(0, io.SEEK_END),
    )


def _bits(picture: object) -> int:
    bits = picture.tag_v2.get(258, 1)  # type: ignore[attr-defined]
    return max(bits) if isinstance(bits, tuple) else int(bits)
