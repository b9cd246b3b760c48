"""Memory: a budget for the whole process, and how much of it a photo needs, estimated from its header.

The budget counts resident memory, as the operating system does. The interpreter, the engines and the loaded models are
subtracted first (measured when a run starts, plus an allowance for what the first photos load); each photo in progress
reserves its maximum; networks that work in windows get the rest. A photo is read only when its reservation fits.

Estimates are upper bounds: what a decoder or encoder allocates besides the pixels was measured for each format
(tests/images measures again), and where it depends on the content the worst case counts.
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

BASE_ALLOWANCE = 96 << 20
"""Allowance on top of the resident memory at the start of a run with one model: the engine's kernels for each size, the
reduced photo, full-size strips on each core, code of the codecs."""
BASE_ALLOWANCE_AUTO = 320 << 20
"""The same where the detector and two models are opened when a photo first needs them."""
MIN_WINDOW_MEMORY = 64 << 20
"""Minimum reserved for a network's windows."""
COMFORTABLE_WINDOW = 1_000_000
"""Pixels of a window with which a network with a wide receptive field computes little more than on the whole photo."""
COMFORTABLE_WINDOW_AUTO = 300 << 20
"""Bytes of such a window for the largest model that "auto" may open."""
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_RETURNED = 4 << 20


def parse_size(text: str, flag: str = "--memory") -> int:
    """Parse "2GB", "1.5 GiB", "500M" or "800000000" as bytes; KB, MB, GB, TB are powers of 1000, KiB to TiB of 1024.

    Args:
        text: the size.
        flag: the option it belongs to, for the message.

    Raises:
        BadSettings: it is not a positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?)(I?)B?\s*", text.upper())
    size = 0
    if found is not None and (found[2] or not found[3]):
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])
    if size < 1:
        raise BadSettings(f"{flag}: invalid size {text!r}: write 2GB, 1.5GiB or 500MB")
    return size


def format_size(size: float) -> str:
    """A size as `parse_size` reads it, rounded up: "640MB", "2.4GB"."""
    if size >= 1e9:
        return f"{-(-size // 1e8) / 10:g}GB"
    return f"{-(-size // 1e7) * 10:.0f}MB"


class MemoryBudget:
    """The memory of one run over photos and videos.

    Args:
        total: limit in bytes. None: three quarters of the free memory; photos may then have to wait, but none is
            rejected.
        allowance: bytes on top of the resident memory at the start.
        copies: restored copies of a photo that are alive at once besides the photo itself.
        comfortable: bytes kept free for windows while several photos are in memory: with less, overlaps grow.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        allowance: int = BASE_ALLOWANCE,
        copies: int = 1,
        comfortable: int = MIN_WINDOW_MEMORY,
    ) -> None:
        self.strict = total is not None
        self.total = total if total is not None else resident_memory() + 3 * available_memory() // 4
        self.allowance = allowance
        self.copies = copies
        self.comfortable = comfortable
        self.base = 0
        self.reserved: dict[str, int] = {}
        """Input -> bytes, for the photos in progress."""
        self.held = 0
        """Bytes of other work, such as videos."""
        self._alone: str | None = None
        """The photo whose network may use all remaining memory: until it is done, no other one is read."""
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Measure the process before its first photo, once. Raises BadSettings if it already exceeds the limit."""
        if self.base:
            return
        if self.strict:
            _return_freed_memory()
        self.base = resident_memory() + self.allowance
        if self.strict and self.total < self.base + MIN_WINDOW_MEMORY:
            raise BadSettings(
                f"--memory {format_size(self.total)} is too small: fairweather and its models need "
                f"{format_size(self.base + MIN_WINDOW_MEMORY)} here: add about 12 bytes per pixel of a photo to that"
            )

    def admit(self, source: str | Path, destination: str | Path, max_pixels: int = MAX_PIXELS) -> bool:
        """Reserve memory for a photo if it fits now.

        A file that cannot be read reserves nothing: reading it reports why.

        Returns:
            False: try again when another photo is done.

        Raises:
            BadImage: the photo alone exceeds a strict budget.
        """
        need, size = self._need(Path(source), Path(destination), max_pixels)
        with self._lock:
            if self._crowded(need):
                return False
            if self.strict and need > self._usable() - MIN_WINDOW_MEMORY:
                least = self.base + MIN_WINDOW_MEMORY
                raise BadImage(
                    f"{source}: {size} pixels need about {format_size(need)} in addition to the {format_size(least)} "
                    f"of fairweather and its models, more than --memory {format_size(self.total)}: "
                    f"use --memory {format_size(least + need)}, or a smaller photo"
                )
            self.reserved[str(source)] = need
        return True

    def release(self, source: str | Path) -> None:
        """Release a photo's memory when it is written or has failed."""
        with self._lock:
            self.reserved.pop(str(source), None)

    def hold(self, need: int, what: str = "this") -> bool:
        """Reserve bytes for work other than photos, which continue in the rest, if they fit now.

        Returns:
            False: try again when other work is done.

        Raises:
            BadSettings: it exceeds a strict budget; `what` names it.
        """
        with self._lock:
            if self._crowded(need):
                return False
            if self.strict and need > self._usable() - 2 * MIN_WINDOW_MEMORY:
                least = self.base + 2 * MIN_WINDOW_MEMORY
                raise BadSettings(
                    f"--memory {format_size(self.total)} is too small: {what} needs {format_size(need)} in addition to "
                    f"the {format_size(least)} of fairweather and its models: use --memory {format_size(least + need)}"
                )
            self.held += need
        return True

    def free(self, need: int) -> None:
        """Return bytes reserved with `hold`."""
        with self._lock:
            self.held -= need

    def windows(self) -> int:
        """Bytes that a network may use now: all that is left with one photo in memory, else what is kept free."""
        with self._lock:
            left = self._usable() - sum(self.reserved.values())
            if len(self.reserved) > 1:
                left = min(left, self._kept_free())
            else:
                self._alone = next(iter(self.reserved), None)
        return max(MIN_WINDOW_MEMORY, left)

    def _crowded(self, need: int) -> bool:
        """Whether other work is in progress and leaves no room for `need` bytes."""
        if not self.reserved and not self.held:
            return False
        return self._alone in self.reserved or (sum(self.reserved.values()) + need > self._usable() - self._kept_free())

    def _usable(self) -> int:
        """Bytes for photos and windows together."""
        return self.total - self.base - self.held

    def _kept_free(self) -> int:
        return max(MIN_WINDOW_MEMORY, min(self.comfortable, self._usable() // 2))

    def _need(self, source: Path, destination: Path, max_pixels: int) -> tuple[int, str]:
        try:
            found = header(source, max_pixels=max_pixels)
        except (FairweatherError, MemoryError):
            return 0, ""
        footprint = photo_footprint(found, FORMATS.get(destination.suffix.lower(), found.format))
        need = max(footprint.reading, footprint.held + self.copies * footprint.pixels, footprint.writing)
        return need, f"{found.width} x {found.height}"


def resident_memory() -> int:
    """Bytes of RAM that this process uses."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def available_memory() -> int:
    """Bytes of RAM that this process may still use: the system's, or the container's if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, max(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()), 0))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return free


def _return_freed_memory() -> None:
    """Make glibc return large freed blocks to the system at once instead of keeping them, which would count as used."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").mallopt(-3, _RETURNED)  # M_MMAP_THRESHOLD
        except (OSError, AttributeError):  # another C library
            return


# The estimate for a photo.

_READING = {"WEBP": 20, "AVIF": 24, "HEIF": 24, "BMP": 7, "PPM": 7}
"""Bytes per pixel that a decoder allocates besides the result, where that is constant."""
_WRITING = {"WEBP": 26, "AVIF": 60, "HEIF": 40, "BMP": 8, "PPM": 8}
_FIXED = 16 << 20
"""Bytes in addition for any size: tables and fixed buffers."""
_MIXING = 12
"""Bytes per pixel of the conversion from CMYK to RGB."""
_FLOATS = 40
"""Bytes per pixel of conversions in float32: flattening alpha, converting inks, searching palettes."""


class Footprint(NamedTuple):
    """Maximum bytes of each step; the steps follow one another."""

    reading: int
    """From the file to pixels."""
    held: int
    """The decoded photo: pixels, alpha and inks."""
    pixels: int
    """The part of `held` that a restored copy needs again."""
    writing: int
    """From the restored pixels to the file, including them."""


def photo_footprint(header: Header, format: str) -> Footprint:
    """Estimate the memory of a photo with this header that is written as `format`."""
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
        return count * colours * (3 if header.progressive else 1)  # a copy; with scans, 16-bit coefficients too
    if header.format == "PNG" and not header.deep:
        return count * (1 if header.grey and not header.alpha else 9 if header.palette else 4)
    return count * 8 * size  # a TIFF, or a PNG of 16 bits


def _encoder(header: Header, format: str, count: int, size: int) -> int:
    """Bytes in addition to the decoded photo."""
    same = header.format == format
    deep = size if format in DEEP else 1
    inks, alpha = header.inks and format in INK, header.alpha and format in ALPHA
    colours = 4 if inks else 1 if header.grey and format in GREY else 3
    raw = count * deep * (colours + alpha)
    total = 0 if colours == 3 and not alpha else raw  # the channels as stored in the file
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
