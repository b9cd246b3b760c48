"""`fairweather restore` without a model: what is clear is copied, the rest is restored, and each photo has a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fairweather import cli, images
from fairweather.inference.restorer import AutoRestorer
from fairweather.inference.weather_detection import Weather


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos that are dark (clear), bright (hazy), middling (rainy) and white (both)."""
    (tmp_path / "in").mkdir()
    for name, value in {"dark.jpg": 20, "bright.png": 180, "grey.png": 100, "white.png": 240}.items():
        Image.fromarray(np.full((30, 40, 3), value, np.uint8)).save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Stand-ins for the recognizer and the models; the test decides which models ship."""
    from fairweather import inference, model_folder

    def look(photo: np.ndarray) -> Weather:
        level = photo.mean()
        return Weather(1.0 if level > 150 else 0.04, 0.7 if 50 < level < 150 or level > 200 else 0.1)

    names = {"dehaze", "derain"}

    def load(name: str, **_: Any) -> Any:
        if name == "auto":
            return AutoRestorer(look, load)
        change = {"dehaze": -50, "derain": 8}[name]
        return lambda photo, strength, guard: (photo.astype(int) + round(change * strength)).astype(photo.dtype)

    monkeypatch.setattr(inference, "load", load)
    monkeypatch.setattr(model_folder, "shipped", lambda: dict.fromkeys(names, tmp_path))
    return names


def made(here: Path) -> dict[str, int]:
    return {path.name: int(images.read(path).pixels[0, 0, 0]) for path in (here / "restored").iterdir()}


def lines(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("in/")}


@pytest.mark.usefixtures("ships")
def test_each_photo_gets_what_it_needs_and_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore", "in"]) == 0
    assert made(here) == {"dark.jpg": 20, "bright.png": 130, "grey.png": 102, "white.png": 192}
    assert (here / "restored" / "dark.jpg").read_bytes() == (here / "in" / "dark.jpg").read_bytes()
    said = capsys.readouterr()
    assert lines(said.err) == {
        "in/dark.jpg: no weather (90 % sure): left as it is",
        "in/bright.png: haze (90 % sure)",
        "in/grey.png: rain (70 % sure): 25 % of the rain taken out (all: --weather rain)",
        "in/white.png: haze and rain (70 % sure): 25 % of the rain taken out (all: --weather both)",
    }
    assert "3 of 4 photos restored" in said.out
    assert "1 left as they were" in said.out


def test_without_a_model_for_rain_photos_are_left_and_told(
    here: Path, ships: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ships.discard("derain")
    assert cli.main(["restore", "in"]) == 0
    assert made(here) == {"dark.jpg": 20, "bright.png": 130, "grey.png": 100, "white.png": 190}
    assert {
        "in/grey.png: rain (70 % sure), but no model for rain ships: left as it is",
        "in/white.png: haze and rain (70 % sure), but no model for rain ships",
    } <= lines(capsys.readouterr().err)
    assert cli.main(["restore", "in", "--weather", "both", "-o", "again"]) == 1
    said = capsys.readouterr().err
    assert "--weather both needs the model derain" in said
    assert "--model" in said
    assert not (here / "again").exists()


@pytest.mark.usefixtures("ships")
@pytest.mark.parametrize(("weather", "value"), [("haze", 130), ("rain", 188), ("both", 138), ("none", 180)])
def test_what_is_asked_for_is_done_without_looking(
    weather: str, value: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["restore", "in/bright.png", "--weather", weather]) == 0
    assert made(here) == {"bright.png": value}
    assert not lines(capsys.readouterr().err)


@pytest.mark.usefixtures("ships")
def test_none_copies_and_another_kind_of_file_is_written_anew(here: Path) -> None:
    assert cli.main(["restore", "in/bright.png", "--weather", "none", "-o", "same.png"]) == 0
    assert (here / "same.png").read_bytes() == (here / "in" / "bright.png").read_bytes()
    assert cli.main(["restore", "in/dark.jpg", "-o", "dark.png"]) == 0
    assert np.array_equal(images.read("dark.png").pixels, images.read("in/dark.jpg").pixels)
    assert Image.open("dark.png").format == "PNG"


@pytest.mark.usefixtures("ships")
def test_strength_is_the_models_and_0_copies(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore", "in/bright.png", "--strength", "0.5", "-o", "half.png"]) == 0
    assert images.read("half.png").pixels[0, 0, 0] == 155
    capsys.readouterr()
    assert cli.main(["restore", "in/bright.png", "--strength", "0", "-o", "none.png"]) == 0
    assert (here / "none.png").read_bytes() == (here / "in" / "bright.png").read_bytes()
    assert not lines(capsys.readouterr().err)


def test_a_model_and_a_weather_are_at_odds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["restore", "in", "--model", "dehaze", "--weather", "haze"]) == 1
    assert "both say what to take out" in capsys.readouterr().err
    assert not (here / "restored").exists()
