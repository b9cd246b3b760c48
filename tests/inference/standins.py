"""Stand-ins for models, and small pictures on disk, shared by the tests of batches, memory and clusters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fairweather.inference.weather_detection import PlannedModel, RestorePlan, Weather

Function = Callable[[np.ndarray], np.ndarray]


class FunctionRestorer:
    """Restores by a function; where `clear` is true of a photo, it stays unchanged."""

    def __init__(self, function: Function, clear: Callable[[np.ndarray], bool] = lambda pixels: False) -> None:
        self.function, self.clear = function, clear

    def plan(self, photo: np.ndarray, weather: str = "auto") -> RestorePlan:
        clear = self.clear(photo)
        return RestorePlan(Weather(0.0 if clear else 1.0, 0.0), () if clear else (PlannedModel("haze", "f", 1.0),))

    def open(self, model: str) -> Any:
        return lambda photo, strength, guard: self.function(photo)


NEGATIVE = FunctionRestorer(lambda pixels: 255 - pixels)


def put(*paths: Path | str, value: int = 40) -> None:
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path, "PNG")
