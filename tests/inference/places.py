"""What the tests of plan and run share: small pictures in places, and a stand-in for a network."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairweather.inference import batch
from fairweather.inference.batch import Job


def negative(pixels: np.ndarray) -> np.ndarray:
    return 255 - pixels


def put(*paths: Path, value: int = 40) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path, "PNG")


def pairs(jobs: list[Job]) -> set[tuple[str, str]]:
    return {(job.source.as_posix(), job.destination.as_posix()) for job in jobs}


class InMemory:
    """Counts the photos that have been read and are not written yet, in `folder.run`; writing takes `seconds` more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.most = self._held = 0
        self._lock, self._read, self._write, self._seconds = threading.Lock(), batch.read, batch.write, seconds
        monkeypatch.setattr(batch, "read", self.read)
        monkeypatch.setattr(batch, "write", self.write)

    def read(self, *a: Any, **k: Any) -> Any:
        with self._lock:
            self._held += 1
            self.most = max(self.most, self._held)
        return self._read(*a, **k)

    def write(self, *a: Any) -> None:
        time.sleep(self._seconds)
        self._write(*a)
        with self._lock:
            self._held -= 1
