"""Windows: aligned, of one size, with halos wide enough, and every pixel kept exactly once."""

from __future__ import annotations

import numpy as np
import pytest

from fairweather.inference import tiling


def check_grid(grid: tiling.Grid, height: int, width: int, halo: int, multiple_of: int) -> None:
    kept = np.zeros((height, width), int)
    tall, wide = tiling.padded_side(height, multiple_of), tiling.padded_side(width, multiple_of)
    assert len(list(grid)) == len(grid)
    for row, column in grid:
        kept[row.first : row.last, column.first : column.last] += 1
        for span, end, length in ((row, tall, height), (column, wide, width)):
            assert span.start % multiple_of == 0
            assert span.stop % multiple_of == 0
            assert 0 <= span.start <= span.first < span.last <= min(span.stop, length)
            assert span.stop <= end
            assert span.start == 0 or span.first - span.start >= halo
            assert span.stop == end or span.stop - span.last >= halo
        assert (row.stop - row.start, column.stop - column.start) == grid.window
    assert (kept == 1).all()


@pytest.mark.parametrize(("multiple_of", "halo"), [(1, 0), (1, 3), (4, 4), (8, 24), (32, 32)])
def test_fixed_tiles_keep_every_pixel_once(multiple_of: int, halo: int, rng: np.random.Generator) -> None:
    for height, width in rng.integers(1, 120, (8, 2)):
        for tile in (7, 32, 100, 1000):
            grid = tiling.fixed_grid(int(height), int(width), tile, halo, multiple_of)
            check_grid(grid, int(height), int(width), halo, multiple_of)
            assert max(grid.window) <= tiling.round_up(max(tile, 16), multiple_of) + 2 * halo + tiling.MIN_SIDE


@pytest.mark.parametrize(("multiple_of", "halo"), [(1, 3), (4, 8), (16, 48)])
def test_cheapest_tiles_stay_within_the_pixels_allowed(multiple_of: int, halo: int, rng: np.random.Generator) -> None:
    fitted = 0
    for height, width in rng.integers(1, 500, (10, 2)):
        for pixels in (1_000, 10_000, 30_000, 1_000_000):
            grid = tiling.cheapest_grid(int(height), int(width), pixels, halo, multiple_of)
            tall, wide = tiling.padded_side(int(height), multiple_of), tiling.padded_side(int(width), multiple_of)
            least = min(tall, 2 * halo + multiple_of) * min(wide, 2 * halo + multiple_of)
            assert (grid is None) == (least > pixels)
            if grid is not None:
                fitted += 1
                check_grid(grid, int(height), int(width), halo, multiple_of)
                assert np.prod(grid.window) <= pixels
                assert len(grid) == 1 or tall * wide > pixels
    assert fitted > 10


def test_more_memory_never_computes_more() -> None:
    costs = [
        len(grid) * int(np.prod(grid.window))
        for pixels in (300_000, 600_000, 1_500_000, 6_000_000, 12_100_000)
        if (grid := tiling.cheapest_grid(3000, 4000, pixels, 96, 32)) is not None
    ]
    assert len(costs) == 5
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == tiling.round_up(3000, 32) * 4000


def test_reading_pads_as_numpy_reflects(rng: np.random.Generator) -> None:
    for height, width in [(1, 1), (1, 5), (2, 3), (5, 40), (17, 16), (33, 7)]:
        photo = rng.integers(0, 65536, (height, width, 3)).astype(np.uint16)
        grid = tiling.whole_grid(height, width, 32)
        ((row, column),) = grid
        tall, wide = grid.window
        assert (tall, wide) == (tiling.round_up(height, 32), tiling.round_up(width, 32))
        expected = np.pad(photo, ((0, tall - height), (0, wide - width), (0, 0)), mode="reflect")
        window = tiling.read_window(photo, row, column)
        assert window.dtype == np.uint16
        assert (window == expected).all()
        window[:] = 0
        assert photo.any()


def test_halo_covers_half_the_receptive_field() -> None:
    assert tiling.halo(1, 1) == 1
    assert tiling.halo(61, 8) == 32
    assert tiling.halo(64, 8) == 32
    assert tiling.halo(66, 8) == 40
