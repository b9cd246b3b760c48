"""What a clip's container says, read here before FFmpeg reads it: whether the file is whole, and how much is counted.

FFmpeg makes a list of all frames and pieces of sound that an MP4 or MOV announces, in memory, when it opens the file;
a few bytes may announce a thousand million. Nothing here trusts a number further than the file is long.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from fairweather.web.limits import Limits

PIECES = 20
"""Entries in all of an MP4's lists, for each frame that a clip may have: sound has more pieces than pictures, and a
file that is written in fragments several boxes for each."""
SAMPLES = 200_000
"""Uncompressed sound counts every sample as a piece (four tracks of 48 kHz): so many a second, if they are there."""
_COUNTING = (b"stsz", b"stz2", b"trun")
"""The boxes that tell how many entries a list has; whatever stands around them, FFmpeg heeds them."""


def whole(path: Path, kind: str) -> bool:
    """Whether the file is as long as its outermost boxes say; FFmpeg would end a truncated one early, in silence."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(256)
        if kind == "mov":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return all(end <= size for _, _, end in _boxes(data))
    if kind == "avi":
        return int.from_bytes(head[4:8], "little") <= size
    if kind == "matroska":
        first, taken = _number(head, 4)
        at = 4 + taken + (first or 0)
        if head[at : at + 4] == b"\x18\x53\x80\x67":
            segment, taken = _number(head, at + 4)
            return segment is None or at + 4 + taken + segment <= size
    return True


def plausible(path: Path, kind: str, limits: Limits) -> bool:
    """Whether the file announces no more pieces than a clip within the limits has.

    Of an MP4 all that is not its data is searched, whichever boxes it lies in: FFmpeg is not particular about that. A
    table of contents that is compressed (an old QuickTime's) is not looked into, and is too much.
    """
    if kind != "mov":
        return True
    pieces, samples = PIECES * limits.frames, round(SAMPLES * limits.length)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        for name, begin, end in _boxes(data):
            pieces -= 1
            if pieces < 0:
                return False
            if name == b"mdat":
                pieces, samples = _taken(data, at, begin, pieces, samples)
                at = min(end, len(data))
        pieces, samples = _taken(data, at, len(data), pieces, samples)
    return pieces >= 0 and samples >= 0


def _taken(data: mmap.mmap, begin: int, end: int, pieces: int, samples: int) -> tuple[int, int]:
    """What is left of `pieces` and `samples` after all that is counted between two places."""
    if data.find(b"cmov", begin, end) >= 0:
        return -1, samples
    for name in _COUNTING:
        at = data.find(name, begin, end)
        while at >= 0 and pieces >= 0 and samples >= 0:
            told = data[at + 4 : at + 24]
            if data[max(0, at - 4) : at] == b"\0\0\0\1":  # a length of 64 bits follows
                told = told[8:]
            pieces -= 1
            if name == b"trun":
                pieces -= int.from_bytes(told[4:8], "big")
            else:
                each, count = int.from_bytes(told[4:8], "big"), int.from_bytes(told[8:12], "big")
                if name == b"stsz" and each > 0 and each * count <= len(data):
                    samples -= count
                else:
                    pieces -= count
            at = data.find(name, at + 4, end)
    return pieces, samples


def _boxes(data: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """The name, beginning and end of each outermost box of an MP4; the end may lie behind the file's."""
    at = 0
    while at + 8 <= len(data):
        length, name, begin = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        at = len(data) if length == 0 else at + length  # 0: to the end
        if 0 < length < 8:
            # What follows the boxes is none (some cameras leave zeros there); a file of nothing else is not whole.
            if not begin:
                yield name, begin, len(data) + 1
            return
        yield name, begin, at


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """Matroska's number of variable length, None where it says that it is unknown, and the bytes that it takes."""
    first = data[at] if at < len(data) else 0
    if not first:
        return None, 1
    count = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + count], "big") & ((1 << 7 * count) - 1)
    return (None if value == (1 << 7 * count) - 1 else value), count
