"""A picture in pieces: which windows the network sees, and which part of each answer is kept.

The picture is thought of as padded by reflection, below and to the right, to sides that are multiples of
`multiple_of`. Windows lie on that padded whole, aligned to `multiple_of`, so that a network with strides sees every
pixel at the phase at which it would see it in the whole. Where a window ends inside the picture, at least `halo`
pixels of its answer are thrown away; where it ends at the padded whole's own border, nothing is, for there the
network's own border treatment is the whole's. The kept parts are therefore the whole's answer, up to float rounding.

All windows of one picture have one size: an engine with free height and width prepares itself once.
The padded picture is never laid out in memory: a window is read through reflected indices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 16
"""No network is given a side below this: reflection padding and normalisation inside it need a few pixels."""


@dataclass(frozen=True)
class Span:
    """Along one axis: the window [start, stop) the network sees, and [first, last) of the picture that is kept."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Grid:
    """The windows over a picture: all pairs of a vertical and a horizontal span."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of every window."""
        return self.rows[0].stop - self.rows[0].start, self.columns[0].stop - self.columns[0].start


def round_up(length: int, multiple_of: int) -> int:
    """The least multiple that is not below `length`."""
    return -(-length // multiple_of) * multiple_of


def padded_side(length: int, multiple_of: int) -> int:
    """The side of the padded whole for a picture's side."""
    return round_up(max(length, MIN_SIDE), multiple_of)


def halo(receptive_field: int, multiple_of: int) -> int:
    """How far a kept pixel stays from a window's inner border: half the receptive field, aligned upwards."""
    return round_up(-(-receptive_field // 2), multiple_of)


def whole_grid(height: int, width: int, multiple_of: int) -> Grid:
    """One window: the padded whole."""
    return Grid(
        _spans(height, padded_side(height, multiple_of), 0, multiple_of),
        _spans(width, padded_side(width, multiple_of), 0, multiple_of),
    )


def fixed_grid(height: int, width: int, tile: int, halo: int, multiple_of: int) -> Grid:
    """Windows that each keep `tile` x `tile` pixels (rounded up to `multiple_of`) and see `halo` more around."""
    window = round_up(tile, multiple_of) + 2 * halo
    return Grid(_spans(height, window, halo, multiple_of), _spans(width, window, halo, multiple_of))


def cheapest_grid(height: int, width: int, pixels: int, halo: int, multiple_of: int) -> Grid | None:
    """The grid of windows of at most `pixels` pixels with which the network computes least; None where none fits."""
    tall, wide = padded_side(height, multiple_of), padded_side(width, multiple_of)
    low, narrow = min(tall, 2 * halo + multiple_of), min(wide, 2 * halo + multiple_of)
    best = None
    for number in range(1, wide // multiple_of + 1):
        across = max(narrow, round_up(-(-(wide + (number - 1) * 2 * halo) // number), multiple_of))
        down = min(tall, pixels // across // multiple_of * multiple_of)
        if down >= low:
            cost = down * across * _count(tall, down, halo) * _count(wide, across, halo)
            best = min(best or (cost, down, across), (cost, down, across))
        if across == narrow:
            break
    if best is None:
        return None
    return Grid(_spans(height, best[1], halo, multiple_of), _spans(width, best[2], halo, multiple_of))


def read_window(photo: NDArray[Any], row: Span, column: Span) -> NDArray[Any]:
    """The window of an H x W x 3 picture, padded by reflection where it reaches beyond; a new array of its dtype."""
    height, width = photo.shape[:2]
    if row.stop <= height and column.stop <= width:
        return photo[row.start : row.stop, column.start : column.stop].copy()
    rows, columns = _reflected(row.start, row.stop, height), _reflected(column.start, column.stop, width)
    return photo[rows[:, None], columns]


def available_memory() -> int:
    """Bytes of RAM that this process may still take: the system's, or the container's where that is less."""
    free = 4 << 30  # where nothing can be asked
    try:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (AttributeError, OSError, ValueError):
        pass
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, max(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()), 0))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return free


def _count(end: int, window: int, halo: int) -> int:
    """How many windows cover the padded side `end`, neighbours overlapping by two halos at least."""
    return 1 if window >= end else 1 + -(-(end - window) // (window - 2 * halo))


def _spans(length: int, window: int, halo: int, multiple_of: int) -> tuple[Span, ...]:
    """Windows of one size over the padded side: the first at its start, the last at its end, evenly between."""
    end = padded_side(length, multiple_of)
    window = min(window, end)
    number = _count(end, window, halo)
    if number == 1:
        return (Span(0, end, 0, length),)
    cells = (end - window) // multiple_of
    starts = [cells * k // (number - 1) * multiple_of for k in range(number)]
    # Neighbours meet where the later one's halo ends; the even spacing above leaves the earlier one at least its own.
    cuts = [0, *(start + halo for start in starts[1:]), end]
    return tuple(
        Span(start, start + window, min(first, length), min(last, length))
        for start, first, last in zip(starts, cuts, cuts[1:], strict=False)
        if first < length
    )


def _reflected(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Indices start..stop of a side continued by reflection about its last pixel, to and fro as often as needed."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, stop) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(stop - start, np.intp)
