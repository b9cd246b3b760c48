"""How much memory a photo takes on its way from file to file, told from its header before anything is decoded.

Bounds from above, not means: what a decoder or an encoder holds beside the pixels was measured for each format
(`tests/images/test_footprint.py` measures again), and where it depends on the picture the worst is counted.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from fairweather.errors import BadImage, BadSettings, FairweatherError
from fairweather.images.codecs import Header
from fairweather.images.formats import ALPHA, DEEP, FORMATS, GREY, INK
from fairweather.images.io import MAX_PIXELS, header
from fairweather.inference import tiling

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


def photo_footprint(header: Header, format: str) -> Footprint:
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


# A budget of memory for the whole process: what of it photos may take, and what is left for a network's windows.
#
# What is counted is what the operating system counts, resident memory. Of the total, the interpreter with the engines and
# the loaded models comes off first (measured when a run begins, with an allowance for what the first photos bring in);
# each photo on its way from file to file reserves the most that it can take (`fairweather.inference.memory`); a network
# that works in windows gets what then remains. The next photo is not read before there is room for it.

BASE_ALLOWANCE = 96 << 20
"""What comes on top of what is resident when a run begins, with one model: an engine's kernels for the sizes it meets,
the reduced photo, strips of the full size on each core, code of the codecs."""
BASE_ALLOWANCE_AUTO = 320 << 20
"""The same where models are opened when a photo first needs them: two, and the recognizer."""
MIN_WINDOW_MEMORY = 64 << 20
"""Kept free of photos, for a network that works in windows."""
COMFORTABLE_WINDOW = 1_000_000
"""Pixels of a window that costs a network with a wide field little more than the whole photo would."""
COMFORTABLE_WINDOW_AUTO = 300 << 20
"""Bytes of such a window for the largest of the models that auto may open."""
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_RETURNED = 4 << 20


def parse_size(text: str, flag: str = "--memory") -> int:
    """Bytes from "2GB", "1.5 GiB", "500M", "800000000": KB, MB, GB, TB are powers of 1000, KiB to TiB of 1024.

    Raises BadSettings, which names the flag.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if found is None or (found[3] and not found[2]):
        raise BadSettings(f"{flag} {text!r} is no amount: give it as 2GB, 1.5GiB or 500MB")
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])
    if size < 1:
        raise BadSettings(f"{flag} {text} is nothing: give it as 2GB, 1.5GiB or 500MB")
    return size


def format_size(size: float) -> str:
    """An amount as `parse` takes it, rounded up: "640MB", "2.4GB"."""
    if size >= 1e9:
        return f"{-(-size // 1e8) / 10:g}GB"
    return f"{-(-size // 1e7) * 10:.0f}MB"


class MemoryBudget:
    """The memory of one run over photos.

    `total`: bytes; None takes three quarters of what is free, for no more than keeping photos from being read that
    there is no room for yet: none is refused then. `copies`: restored pixels that are alive at once beside the photo's.
    """

    def __init__(self, total: int | None = None, *, allowance: int = BASE_ALLOWANCE, copies: int = 1) -> None:
        self.strict = total is not None
        self.allowance = allowance
        self.copies = copies
        self.at_ease = MIN_WINDOW_MEMORY
        """What is kept free for windows while several photos are in memory: with less, more is computed twice."""
        self.total = total if total is not None else resident_memory() + 3 * tiling.available_memory() // 4
        self.base = 0
        self.reserved: dict[Path, int] = {}
        self.held = 0
        """What other work beside the photos has taken (`hold`)."""
        self._alone: Path | None = None
        """The photo whose windows were given all that was left: until it is done no other one is read."""
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Measure what the process holds before its first photo, once. Raises BadSettings where that is too much."""
        if self.base:
            return
        if self.strict:
            _return_freed()
        self.base = resident_memory() + self.allowance
        if self.strict and self.total < self.base + MIN_WINDOW_MEMORY:
            raise BadSettings(
                f"--memory {format_size(self.total)} is too little: fairweather and its models alone take "
                f"{format_size(self.base + MIN_WINDOW_MEMORY)} here; give that and what a photo takes, about 12 bytes a pixel"
            )

    def admit(self, source: Path, destination: Path, max_pixels: int = MAX_PIXELS) -> bool:
        """Reserve what a photo takes, where there is room for it now; False: wait until another is done.

        What cannot be told, because the file is damaged or missing, reserves nothing: reading it says why.
        Raises BadImage where there would not be room for it alone, if the budget is a strict one.
        """
        need, size = self._need(source, destination, max_pixels)
        with self._lock:
            taken = sum(self.reserved.values())
            crowded = taken + need > self._all() - self._kept()
            if (self.reserved or self.held) and (self._alone in self.reserved or crowded):
                return False
            if self.strict and need > self._all() - MIN_WINDOW_MEMORY:
                least = self.base + MIN_WINDOW_MEMORY
                raise BadImage(
                    f"{source}: {size} pixels take about {format_size(need)} beside the {format_size(least)} of fairweather and its "
                    f"models, more than --memory {format_size(self.total)}: give --memory {format_size(least + need)}, or make the "
                    "photo smaller"
                )
            self.reserved[source] = need
        return True

    def release(self, source: Path) -> None:
        """The photo is written, or has failed."""
        with self._lock:
            self.reserved.pop(source, None)

    def hold(self, need: int) -> bool:
        """Take so many bytes for work beside the photos, where there is room now; False: wait until other work is done.

        Photos then have the rest, and go on. Raises BadSettings where there never is, if the budget is a strict one.
        """
        with self._lock:
            if self.reserved or self.held:
                taken = sum(self.reserved.values())
                if self._alone in self.reserved or taken + need > self._all() - self._kept():
                    return False
            if self.strict and need > self._all() - 2 * MIN_WINDOW_MEMORY:
                raise BadSettings(
                    f"--memory {format_size(self.total)} is too little: this takes {format_size(need)} more"
                )
            self.held += need
        return True

    def let_go(self, need: int) -> None:
        """What was held is free again."""
        with self._lock:
            self.held -= need

    def windows(self) -> int:
        """What a network may take now, beside the photos that are in memory: all that is left where there is but one,
        else what is kept free for windows whatever photos come."""
        with self._lock:
            left = self._all() - sum(self.reserved.values())
            if len(self.reserved) > 1:
                left = min(left, self._kept())
            else:
                self._alone = next(iter(self.reserved), None)
        return max(MIN_WINDOW_MEMORY, left)

    def _all(self) -> int:
        """For photos and windows together."""
        return self.total - self.base - self.held

    def _kept(self) -> int:
        return max(MIN_WINDOW_MEMORY, min(self.at_ease, self._all() // 2))

    def _need(self, source: Path, destination: Path, max_pixels: int) -> tuple[int, str]:
        try:
            told = header(source, max_pixels=max_pixels)
        except (FairweatherError, MemoryError):
            return 0, ""
        taken = photo_footprint(told, FORMATS.get(destination.suffix.lower(), told.format))
        need = max(taken.reading, taken.held + self.copies * taken.pixels, taken.writing)
        return need, f"{told.width} x {told.height}"


def resident_memory() -> int:
    """Bytes of RAM that this process holds now; where that cannot be asked, the most it has held; else 300 MB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        import resource

        return pages * resource.getpagesize()
    except (OSError, ValueError, ImportError):
        pass
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:
        return 300_000_000


def _return_freed() -> None:
    """Where the C library is glibc: what is freed in large pieces goes back to the system at once, and is not kept
    for later, which it would count as held. Costs a little time for every piece."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").mallopt(-3, _RETURNED)  # M_MMAP_THRESHOLD
        except (OSError, AttributeError):  # another C library
            return
