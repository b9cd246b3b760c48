"""Strips: every row once, errors come out, and each thread has memory of its own that it gets again."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from fairweather.restoring.strips import Scratch, in_strips


@pytest.mark.parametrize(("height", "width", "pixels"), [(1, 1, 1), (7, 5, 10), (64, 3, 1000), (100, 2000, 50)])
def test_every_row_is_worked_once(height: int, width: int, pixels: int) -> None:
    seen = np.zeros(height, int)

    def work(top: int, bottom: int) -> None:
        assert (bottom - top) * width <= max(pixels, width)
        seen[top:bottom] += 1

    in_strips(height, width, work, pixels)
    assert (seen == 1).all()


def test_what_a_strip_raises_comes_out() -> None:
    def work(top: int, bottom: int) -> None:
        if top == 3:
            raise ZeroDivisionError("in the fourth row")

    with pytest.raises(ZeroDivisionError, match="fourth"):
        in_strips(9, 10, work, 10)


def test_scratch_is_the_threads_own_and_is_used_again() -> None:
    scratch = Scratch()
    first = scratch("a", (4, 6))
    assert first.shape == (4, 6)
    assert first.dtype == np.float32
    assert np.shares_memory(first, scratch("a", (3, 2))), "smaller: the same memory"
    assert not np.shares_memory(first, scratch("b", (4, 6)))
    assert not np.shares_memory(first, scratch("a", (4, 6), np.uint8)), "of another type"
    mine = scratch("a", (2, 2))
    theirs: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: theirs.append(scratch("a", (2, 2))))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])
