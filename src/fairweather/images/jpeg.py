"""JPEG integrity: find pictures of which a part is missing.

libjpeg fills missing parts with grey and only warns, and neither Pillow nor OpenCV passes its warnings on. So the
decoded picture is compared with the file's structure.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

_SCAN_END = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_PROGRESSIVE = 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ZEROS = re.compile(rb"\x00{64,}")
"""Compressed data of photos has no such run; a lost disk sector has 512."""
_FILLER = bytes(range(0x11, 0x91))
"""Valid compressed data without a marker."""


@dataclass(frozen=True)
class _Scan:
    start: int
    """The first byte of compressed data."""
    end: int
    """The marker that ends it."""
    components: bytes
    first: int
    last: int
    """The range of coefficients (0 to 63)."""
    low_bit: int
    """The lowest bit that it transmits of them."""


@dataclass
class _Structure:
    kind: int = 0
    """The frame's marker: 0xC0 is baseline, 0xC2 progressive."""
    frame: bytes = b""
    restart_interval: int = 0
    scans: list[_Scan] = field(default_factory=list)


def find_damage(data: bytes, pixels: NDArray[Any]) -> str | None:
    """Describe what is missing from a JPEG.

    Found are missing scans, wrong restart markers, compressed data that ends too early (the last corner is neutral
    grey), and runs of zeros after which the decoder is out of step. Other damage is not: random bytes, and bits that
    change colours alone.

    Args:
        data: the file.
        pixels: H x W or H x W x C uint8, as decoded.

    Returns:
        The damage, or None if none was found.
    """
    corner = pixels[-4:, -4:]
    grey_corner = bool(((corner == 127) | (corner == 128)).all())  # neutral in every colour space, plates included
    zeros = _ZEROS.search(data, _first_scan(data)) if bytes(64) in data else None
    if not (grey_corner or zeros or b"\xff\xdd" in data or b"\xff\xc2" in data):
        return None
    jpeg = _structure(data)
    if not jpeg.frame or not jpeg.scans:
        return None
    if jpeg.kind == _PROGRESSIVE and not _has_all_scans(jpeg):
        return "some of its progressive scans are missing"
    if jpeg.restart_interval and not _restarts_fit(data, jpeg):
        return "restart markers are missing or out of order"
    if grey_corner:
        longer = data
        for scan in reversed(jpeg.scans):
            longer = longer[: scan.end] + _FILLER + longer[scan.end :]
        whole = _decode(data, 8)
        if whole is not None and not _equal(whole, _decode(longer, 8)):
            return "its compressed data ends before the picture is complete"
    if zeros and zeros.end() < jpeg.scans[-1].end and not _is_in_step(data, zeros.end()):
        return "its compressed data is corrupt"
    return None


def _is_in_step(data: bytes, place: int) -> bool:
    """Whether the decoder consumes exactly the compressed data from `place` to the next marker.

    If it does, bytes inserted before the marker change nothing, and other bytes before it change the picture.
    """
    marker = _MARKER.search(data, place)
    if marker is None:
        return False
    end = place + len(data[place : marker.start()].rstrip(b"\0"))  # some cameras pad the end with zeros
    begin = end - 32
    whole = _decode(data)
    if begin <= place or whole is None:  # nothing but padding, or an unsupported variant
        return True
    begin -= data[begin - 1] == 0xFF
    longer = data[: marker.start()] + _FILLER + data[marker.start() :]
    altered = data[:begin] + _FILLER[: end - begin] + data[end:]
    same, other = (_decode(one) for one in (longer, altered))
    return _equal(whole, same) and not _equal(whole, other)


def has_end(data: bytes) -> bool:
    """Whether a scan starts and an end marker follows. OpenCV 4 fills a file without one with grey."""
    start = _first_scan(data)
    return start > 0 and data.find(b"\xff\xd9", start) > 0


def _first_scan(data: bytes) -> int:
    """The position of the first scan's marker; 0 if there is none."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == 0xDA:
            return place
        place += 1 if data[place + 1] == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


def _structure(data: bytes) -> _Structure:
    """Walk over all markers up to the end of the first picture."""
    found, place = _Structure(), 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker == 0xD9:
            break
        behind = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : behind]
        if marker in _FRAMES:
            found.kind, found.frame = marker, body
        elif marker == 0xDD:
            found.restart_interval = int.from_bytes(body[:2], "big")
        elif marker == 0xDA:
            end = _SCAN_END.search(data, behind)
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            place = end.start() if end else len(data)
            found.scans.append(_Scan(behind, place, body[1 : 1 + 2 * count : 2], first, last, bits & 15))
            continue
        place = behind
    return found


def _has_all_scans(jpeg: _Structure) -> bool:
    """Whether every coefficient of every component is transmitted down to its last bit."""
    components = jpeg.frame[6 : 6 + 3 * jpeg.frame[5] : 3]
    lowest = {component: [99] * 64 for component in components}
    for scan in jpeg.scans:
        for component in scan.components:
            lowest[component][scan.first : scan.last + 1] = [scan.low_bit] * (scan.last + 1 - scan.first)
    return not any(any(bits) for bits in lowest.values())


def _restarts_fit(data: bytes, jpeg: _Structure) -> bool:
    """Whether a single scan of all components has the restart markers that its size requires, in order."""
    height, width = (int.from_bytes(jpeg.frame[at : at + 2], "big") for at in (1, 3))
    count, scan = jpeg.frame[5], jpeg.scans[0]
    if len(jpeg.scans) > 1 or len(scan.components) != count or not height:
        return True
    sampling = jpeg.frame[7 : 7 + 3 * count : 3] if count > 1 else b"\x11"
    columns, rows = (8 * max(value >> shift & 15 for value in sampling) for shift in (4, 0))
    units = -(-width // columns) * -(-height // rows)
    found = [marker[1] & 7 for marker in _RESTART.findall(data, scan.start, scan.end)]
    expected = [number % 8 for number in range((units - 1) // jpeg.restart_interval)]
    return expected in (found, found[:-1])  # some encoders end with one more


def _decode(data: bytes, reduction: int = 1) -> NDArray[Any] | None:
    """Decode at a fraction of the size; None for an unsupported variant. OpenCV would print libjpeg's warnings."""
    try:
        picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        picture.draft(None, (max(1, picture.width // reduction), max(1, picture.height // reduction)))
        return np.asarray(picture)
    except (OSError, SyntaxError):
        return None


def _equal(first: NDArray[Any], second: NDArray[Any] | None) -> bool:
    return second is not None and np.array_equal(first, second)
