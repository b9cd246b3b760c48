"""Strips: every row once, errors come out, and each thread has memory of its own that it gets again."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from fairweather.inference.haze_maps import SCRATCH, Scratch, run_in_strips, strip_pool


@pytest.mark.parametrize(("height", "width", "pixels"), [(1, 1, 1), (7, 5, 10), (64, 3, 1000), (100, 2000, 50)])
def test_every_row_is_worked_once(height: int, width: int, pixels: int) -> None:
    seen = np.zeros(height, int)

    def work(top: int, bottom: int) -> None:
        assert (bottom - top) * width <= max(pixels, width)
        seen[top:bottom] += 1

    run_in_strips(height, width, work, pixels)
    assert (seen == 1).all()


def test_what_a_strip_raises_comes_out() -> None:
    def work(top: int, bottom: int) -> None:
        if top == 3:
            raise ZeroDivisionError("in the fourth row")

    with pytest.raises(ZeroDivisionError, match="fourth"):
        run_in_strips(9, 10, work, 10)


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


def test_threads_and_what_they_hold_are_there_for_the_next_photo() -> None:
    held: list[dict[int, np.ndarray]] = [{}, {}]
    for photo in held:

        def work(top: int, bottom: int, photo: dict[int, np.ndarray] = photo) -> None:
            photo[threading.get_ident()] = SCRATCH("x", (5,))
            time.sleep(0.002)  # long enough for every thread to get a strip

        run_in_strips(64, 10, work, 20)
    assert len({*held[0], *held[1]}) <= strip_pool()._max_workers
    shared = held[0].keys() & held[1].keys()
    assert shared
    assert all(np.shares_memory(held[0][thread], held[1][thread]) for thread in shared)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    run_in_strips(4, 4, lambda top, bottom: None, 4)
    child = os.fork()
    if not child:
        signal.alarm(20)  # a pool without threads would never answer
        run_in_strips(4, 4, lambda top, bottom: None, 4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
