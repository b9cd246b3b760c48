"""Whether a video file ends before its container says that it does: a download or a recording that was cut short.

FFmpeg reads such a file without a word: it ends where the bytes end. What the container itself announces tells, so that
a whole video is never taken for one (a track shorter than the sound, variable rates and edit lists change no size).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_BOXES = {b"mdat", b"moof", b"moov", b"free", b"skip", b"wide", b"udta", b"uuid", b"sidx", b"styp", b"ftyp", b"mfra"}
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067


def announced_size(path: str | os.PathLike[str]) -> int | None:
    """The bytes that a video file should have at least, as its container says: MP4 and MOV by their boxes, Matroska and
    WebM by their segment, AVI and WebP by their RIFF header; None where nothing is announced, as by a recording."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            if head[4:8] in _BOXES:
                return _boxes(file, length)
            if head[:4] == _EBML.to_bytes(4, "big"):
                return _segment(file)
            if head[:4] == b"RIFF":
                size = int.from_bytes(head[4:8], "little")
                return size + 8 if 0 < size < 0xFFFFFFFF else None
    except OSError:
        pass
    return None


def _boxes(file: BinaryIO, length: int) -> int | None:
    """Where the last box ends. What stands behind the boxes and is none of them is no part of the file's promise."""
    at = 0
    while at < length:
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind not in _BOXES:
            return at or None
        if size == 1:  # a size of 64 bits follows
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: the box goes on to the end, wherever that is
            return None
        at += size
    return at or None


def _segment(file: BinaryIO) -> int | None:
    """Where the segment ends, whose size a muxer fills in when it has written all of it."""
    while True:
        found = _number(file, keep=True), _number(file)
        if found[0] is None or found[1] is None:  # a size that is not known: a stream, or a recording that was cut
            return None
        end = file.tell() + found[1]
        if found[0] == _SEGMENT:
            return end
        file.seek(end)


def _number(file: BinaryIO, *, keep: bool = False) -> int | None:
    """An EBML number of one to eight bytes (`keep`: with its length marker, as identifiers are written)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    value = int.from_bytes(first + rest, "big")
    if len(rest) < more:
        return None
    if keep:
        return value
    value &= (1 << 7 * (more + 1)) - 1
    return None if value == (1 << 7 * (more + 1)) - 1 else value
