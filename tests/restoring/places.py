"""What the tests of plan and run share: small pictures in places, and a stand-in for a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fairweather.restoring.folder import Job


def negative(pixels: np.ndarray) -> np.ndarray:
    return 255 - pixels


def put(*paths: Path, value: int = 40) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path, "PNG")


def pairs(jobs: list[Job]) -> set[tuple[str, str]]:
    return {(job.source.as_posix(), job.destination.as_posix()) for job in jobs}
