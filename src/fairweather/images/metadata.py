"""EXIF: the orientation, and the tags that a TIFF stores in its own directory."""

from __future__ import annotations

import logging
import struct
from typing import Any

from PIL import Image, TiffImagePlugin

ORIENTATION = 0x0112
# Camera, author and time, as against tags that describe a TIFF's own layout.
_PHOTO_TAGS = (270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, 40091, 40092, 40093, 40094, 40095)
_DIRECTORIES = (34665, 34853)  # EXIF, GPS
_DAMAGED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError, struct.error)
_log = logging.getLogger("fairweather")


def reset_orientation(exif: bytes) -> tuple[int, bytes]:
    """Return the orientation of EXIF data, and the data with orientation 1 and without thumbnail.

    Bytes are changed in place, since maker notes contain offsets.

    Args:
        exif: a TIFF stream, with or without the "Exif" prefix.

    Returns:
        Orientation and changed EXIF without prefix; (1, b"") if damaged.
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


def exif_of_tiff(tags: Image.Exif) -> bytes:
    """Copy the tags of a TIFF that describe the photo into EXIF data of their own; b"" if there are none."""
    exif = Image.Exif()
    try:
        for tag, value in _photo_tags(tags).items():
            exif[tag] = value
        return exif.tobytes() if len(exif) else b""
    except _DAMAGED as error:
        _log.warning("EXIF that cannot be copied is dropped (%s)", error)
        return b""


def tiff_tags_of_exif(exif: bytes) -> dict[int, Any]:
    """Return the tags of EXIF data that describe the photo, for a TIFF's directory; {} if damaged."""
    if not exif:
        return {}
    try:
        parsed = Image.Exif()
        parsed.load(exif)
        tags = _photo_tags(parsed)
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in tags.items():
            directory[tag] = value
        directory.tobytes()
    except _DAMAGED as error:
        _log.warning("EXIF that a TIFF cannot hold is dropped (%s)", error)
        return {}
    return tags


def _photo_tags(exif: Image.Exif) -> dict[int, Any]:
    tags = {tag: exif[tag] for tag in _PHOTO_TAGS if tag in exif}
    return tags | {tag: dict(inner) for tag in _DIRECTORIES if (inner := exif.get_ifd(tag))}
