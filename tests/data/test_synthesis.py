"""Weather over whole photos, written as files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather.data.synthesis import synthesize
from fairweather.errors import BadFolder, UnknownName
from fairweather.weather.haze import HazeSettings
from tests.data.conftest import write_photo

FOGGY = HazeSettings(density=(2.0, 3.0), airlight=(0.9, 0.95), noise=0.0)


def load(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("kind", ["haze", "rain"])
def test_names_sizes_and_folders_stay(kind: str, clear_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    write_photo(clear_folder / "deeper" / "odd.jpg", photo[:51, :77])
    done = synthesize(kind, clear_folder, tmp_path / "out")
    assert not done.failed
    assert len(done.written) == 7
    for path in done.written:
        original = load(clear_folder / path.relative_to(tmp_path / "out"))
        made = load(path)
        assert made.shape == original.shape
        assert made.dtype == original.dtype
        assert (made != original).any()


def test_the_weather_of_a_photo_does_not_depend_on_the_others(clear_folder: Path, tmp_path: Path) -> None:
    synthesize("haze", clear_folder, tmp_path / "all", haze=FOGGY)
    synthesize("haze", [clear_folder / "photo3.png", clear_folder / "photo1.png"], tmp_path / "two", haze=FOGGY)
    synthesize("haze", clear_folder / "photo3.png", tmp_path / "other", seed=1, haze=FOGGY)
    assert (load(tmp_path / "all" / "photo3.png") == load(tmp_path / "two" / "photo3.png")).all()
    assert (load(tmp_path / "all" / "photo3.png") != load(tmp_path / "other" / "photo3.png")).any()


def test_settings_and_bit_depth_reach_the_photo(tmp_path: Path, photo: np.ndarray) -> None:
    deep = write_photo(tmp_path / "deep.png", photo.astype(np.uint16) * 257)
    synthesize("haze", deep, tmp_path / "thick.png", haze=FOGGY)
    synthesize("haze", deep, tmp_path / "none.png", haze=HazeSettings(clear=1.0, noise=0.0))
    thick, none = load(tmp_path / "thick.png"), load(tmp_path / "none.png")
    assert thick.mean() > load(deep).mean() + 20 * 257
    assert np.abs(none.astype(int) - load(deep)).max() <= 1
    assert thick.dtype == none.dtype == np.uint16
    assert (thick % 257 != 0).mean() > 0.5  # not 8 bits enlarged


def test_disparity_maps_of_either_folder_give_the_depth(tmp_path: Path) -> None:
    photo = np.full((64, 64, 3), 40, np.uint8)
    disparity = np.full((64, 64), 4000, np.uint16)
    disparity[:, 32:] = 40000
    write_photo(tmp_path / "next" / "street.png", photo)
    write_photo(tmp_path / "next" / "street_disparity.png", disparity)
    write_photo(tmp_path / "alone" / "street.png", photo)
    first = synthesize("haze", tmp_path / "next", tmp_path / "a", haze=FOGGY)
    assert [path.name for path in first.written] == ["street.png"]
    synthesize("haze", tmp_path / "alone", tmp_path / "b", haze=FOGGY, depth=tmp_path / "next")
    made = load(tmp_path / "a" / "street.png")
    assert (made == load(tmp_path / "b" / "street.png")).all()
    assert made[:, :28].mean() > made[:, 36:].mean() + 50


def test_a_broken_photo_is_reported_and_the_others_are_written(clear_folder: Path, tmp_path: Path) -> None:
    (clear_folder / "broken.png").write_text("no photo")
    done = synthesize("haze", clear_folder, tmp_path / "out")
    assert [path.name for path in done.failed] == ["broken.png"]
    assert "broken.png" in done.failed[clear_folder / "broken.png"]
    assert len(done.written) == 6


def test_bad_inputs_and_outputs_are_errors(clear_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    with pytest.raises(UnknownName, match="snow"):
        synthesize("snow", clear_folder, tmp_path / "out")
    with pytest.raises(BadFolder, match="over the input"):
        synthesize("haze", clear_folder, clear_folder)
    other = write_photo(tmp_path / "other" / "photo1.png", photo)
    with pytest.raises(BadFolder, match="both be written"):
        synthesize("haze", [other, clear_folder / "photo1.png"], tmp_path / "out")
    with pytest.raises(BadFolder, match="nowhere"):
        synthesize("haze", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFolder, match="no photos in"):
        synthesize("haze", tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
