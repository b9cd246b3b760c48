"""benchmarks/weather.py: what it counts, and what it says a wrong decision costs."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairweather import model_folder
from fairweather.inference.restorer import AutoRestorer
from fairweather.inference.weather_detection import Weather
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("weather_benchmark", ROOT / "benchmarks" / "weather.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["weather_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A hazy set of two photos, one of them so dark that it is taken for clear; their clear sides, one of them bright
    enough to be taken for haze."""
    for name, hazy, clear in (("seen", 200, 104), ("missed", 90, 40), ("stray", 200, 160)):
        for side, value in (("hazy", hazy), ("clear", clear)):
            path = tmp_path / "fog" / side / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24, 3), value, np.uint8)).save(path)
    return tmp_path


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AutoRestorer:
    def look(photo: np.ndarray) -> Weather:
        return Weather(1.0 if photo.mean() > 0.5 else 0.1, 0.1)

    def opened(name: str) -> Any:
        return lambda photo, strength, guard: photo * np.float32(0.5)

    monkeypatch.setattr(model_folder, "shipped", lambda: {"dehaze": tmp_path})
    return AutoRestorer(lambda open_model: look, opened)


def test_decisions_are_counted_and_wrong_ones_cost(benchmark: ModuleType, data: Path, auto: AutoRestorer) -> None:
    hazy, clear = benchmark.rows_of(auto, data, None, None, lambda name: None)
    assert (hazy.name, hazy.counts, hazy.truth) == ("fog", [1, 2, 0, 0], "haze")
    assert (clear.name, clear.counts) == ("fog, clear", [2, 1, 0, 0])
    assert list(hazy.strays) == ["missed"]
    assert list(clear.strays) == ["stray"]
    assert hazy.decibel["seen"] == hazy.named["seen"]
    assert hazy.named["missed"] > hazy.decibel["missed"]  # 45 is nearer to 40 than 90 is
    assert hazy.loss == pytest.approx((hazy.named["missed"] - hazy.decibel["missed"]) / 3)
    assert math.isinf(clear.decibel["seen"])
    assert clear.decibel["stray"] == pytest.approx(20 * math.log10(255 / 80), abs=1e-3)
    table = benchmark.confusion([hazy, clear])
    assert "| fog | 3 | 1 | 2 | 0 | 0 | 67% |" in table
    said = benchmark.consequences([hazy, clear])
    assert f"{hazy.loss:.2f} dB lost by deciding" in said
    assert "| all clear photos | 3 | 67% at 36 dB or more, 1 below 28 dB, the worst 10.1 dB |" in said


def test_rain_without_a_model_is_not_measured(benchmark: ModuleType, data: Path, auto: AutoRestorer) -> None:
    (data / "fog" / "hazy").rename(data / "fog" / "rain")
    rainy, _ = benchmark.rows_of(auto, data, None, None, lambda name: None)
    assert rainy.truth == "rain"
    assert not rainy.named
    assert "no model for rain" in benchmark.consequences([rainy])
