"""Tiling: which windows of a photo the network receives, and which part of each output is used.

The photo is treated as padded by reflection, at the bottom and the right, to sides that are multiples of `multiple_of`.
Windows are aligned to `multiple_of`, so that a network with strides receives every pixel at the same phase as in the
whole. Where a window ends inside the photo, at least `halo` pixels of its output are discarded; at the padded photo's
own border nothing is, because the network treats that border as in the whole. The combined output therefore equals
that of the whole photo, up to float rounding.

All windows of a photo have the same size, so an engine with dynamic shapes is prepared once. The padded photo is never
materialized: windows are read through reflected indices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SIDE = 16
"""Minimum side of a window: reflection padding and normalization inside a network need a few pixels."""


@dataclass(frozen=True)
class Span:
    """Along one axis: the window [start, stop), and the part [first, last) of the photo that its output covers."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def inner(self) -> slice:
        """The used part, relative to the window."""
        return slice(self.first - self.start, self.last - self.start)


@dataclass(frozen=True)
class Grid:
    """The windows of a photo: all pairs of a vertical and a horizontal span."""

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
    """The smallest multiple that is at least `length`."""
    return -(-length // multiple_of) * multiple_of


def padded_side(length: int, multiple_of: int) -> int:
    """The side of the padded photo."""
    return round_up(max(length, MIN_SIDE), multiple_of)


def halo(receptive_field: int, multiple_of: int) -> int:
    """Minimum distance of a used pixel from a window's inner border: half the receptive field, rounded up."""
    return round_up(-(-receptive_field // 2), multiple_of)


def whole_grid(height: int, width: int, multiple_of: int) -> Grid:
    """One window: the padded photo."""
    return Grid(
        _spans(height, padded_side(height, multiple_of), 0, multiple_of),
        _spans(width, padded_side(width, multiple_of), 0, multiple_of),
    )


def fixed_grid(height: int, width: int, tile: int, halo: int, multiple_of: int) -> Grid:
    """Windows of `tile` x `tile` used pixels (rounded up to `multiple_of`) plus `halo` on each side."""
    window = round_up(tile, multiple_of) + 2 * halo
    return Grid(_spans(height, window, halo, multiple_of), _spans(width, window, halo, multiple_of))


def cheapest_grid(height: int, width: int, pixels: int, halo: int, multiple_of: int) -> Grid | None:
    """The grid with the least computation whose windows have at most `pixels` pixels; None if there is none."""
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
    """Copy a window of an H x W x 3 photo, padded by reflection beyond its border."""
    height, width = photo.shape[:2]
    if row.stop <= height and column.stop <= width:
        return photo[row.start : row.stop, column.start : column.stop].copy()
    rows, columns = _reflected(row.start, row.stop, height), _reflected(column.start, column.stop, width)
    return photo[rows[:, None], columns]


def _count(end: int, window: int, halo: int) -> int:
    """How many windows cover the padded side `end` with overlaps of at least two halos."""
    return 1 if window >= end else 1 + -(-(end - window) // (window - 2 * halo))


def _spans(length: int, window: int, halo: int, multiple_of: int) -> tuple[Span, ...]:
    """Windows of one size, spread evenly from the start to the end of the padded side."""
    end = padded_side(length, multiple_of)
    window = min(window, end)
    number = _count(end, window, halo)
    if number == 1:
        return (Span(0, end, 0, length),)
    cells = (end - window) // multiple_of
    starts = [cells * k // (number - 1) * multiple_of for k in range(number)]
    # Neighbours meet where the later one's halo ends; the spacing leaves the earlier one at least its own halo.
    cuts = [0, *(start + halo for start in starts[1:]), end]
    return tuple(
        Span(start, start + window, min(first, length), min(last, length))
        for start, first, last in zip(starts, cuts, cuts[1:], strict=False)
        if first < length
    )


def _reflected(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Indices start..stop of a side, reflected at both ends as often as necessary."""
    period = max(2 * (length - 1), 1)
    index = np.arange(start, stop) % period
    return np.minimum(index, period - index) if length > 1 else np.zeros(stop - start, np.intp)
