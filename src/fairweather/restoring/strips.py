"""A photo's full-size work in strips of rows, on all cores, with arrays that are made once per core."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

STRIP_PIXELS = 1 << 17
"""A strip of so many pixels stays in the processor's outer cache with its intermediate results, and is still large
beside what a call of NumPy or OpenCV costs: with it goes what threads lose by handing Python's lock to each other, some
10 microseconds a call on a virtual machine, as long as a call takes on a few rows of bytes."""


class Scratch(threading.local):
    """Arrays by name, each thread its own; asked for again, a name gives the same memory.

    Fresh memory is not free: the system maps it page by page and fills it with zeros, which takes as long as an
    addition does over the same array.
    """

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """An array of this shape with anything in it."""
        size = prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self._held[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)


def in_strips(height: int, width: int, work: Callable[[int, int], None], pixels: int = STRIP_PIXELS) -> None:
    """Call `work` with (first row, row after the last) of strips of about `pixels` pixels, on all cores.

    What a strip raises is raised here. `work` must not call this in turn: it would wait for the thread that it is in.
    """
    rows = max(1, pixels // width)
    list(cores().map(lambda top: work(top, min(top + rows, height)), range(0, height, rows)))


def cores() -> ThreadPoolExecutor:
    """A thread for each core, the same ones for all photos, that what they hold (`SCRATCH`) is there for the next."""
    global _cores
    with _lock:
        if _cores is None:
            _cores = ThreadPoolExecutor(cv2.getNumberOfCPUs(), "strips")
        return _cores


_cores: ThreadPoolExecutor | None = None
_lock = threading.Lock()
SCRATCH = Scratch()
"""For strips; of each name there is one array in a thread, as large as the largest strip asked for."""


def _forked() -> None:
    """A fork has the pool but none of its threads."""
    global _cores, _lock
    _cores, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
