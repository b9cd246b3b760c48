"""runs/ship/weather.py: its samples and labels, how it sets a threshold, and that what it writes can be opened."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ship_weather", ROOT / "runs" / "ship" / "weather.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(ROOT / "runs" / "ship"))  # as when it is run: it has a second file beside it
    module = sys.modules["ship_weather"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every folder that the script asks for, with eight small scenes in each."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def save(path: Path, picture: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (picture.clip(0, 1) * 255).astype(np.uint8))

    for scene in range(8):
        clear = cv2.resize(rng.random((8, 10, 3)), (200, 160), interpolation=cv2.INTER_CUBIC) * 0.8
        for name in ("sots_outdoor", "sots_indoor", "o_haze", "nh_haze"):
            save(root / name / "clear" / f"{scene}.png", clear)
            save(root / name / "hazy" / f"{scene}.png", clear * 0.3 + 0.6)
        streaks = cv2.blur((rng.random((160, 200, 1)) > 0.99).astype(np.float32), (1, 15))[..., None] * 8
        save(root / "rain100" / "clear" / f"{scene}.png", clear)
        for name in ("light", "heavy"):
            save(root / "rain100" / name / f"{scene}.png", clear + streaks)
        save(root / "clear" / f"{scene}.png", clear)
        save(root / "depth" / f"{scene}.png", clear)
        save(root / "depth" / f"{scene}_disparity.png", clear)
    return root


@pytest.fixture(scope="module")
def samples(script: ModuleType, data: Path) -> Any:
    train, _ = script.sources(data)
    return script.Samples(train, script.PhotoCache(), seed=3, computed=8)


def test_scenes_are_held_back_whole(script: ModuleType, data: Path) -> None:
    train, held = script.sources(data)
    for name, pairs in held.hazy.items():
        assert len(pairs) == 1
        assert not {pair.clear for pair in pairs} & set(train.clear[name])
    assert {pair.degraded.parent.name for pair in held.rainy} == {"light", "heavy"}
    assert not {pair.clear for pair in held.rainy} & {pair.clear for pair in train.rainy}
    assert all(not path.stem.endswith("disparity") for side in (train, held) for path in side.clear["depth"])


def test_a_sample_is_a_function_of_seed_step_and_index(samples: Any) -> None:
    for index in range(6):
        first, again = samples.sample(5, index), samples.sample(5, index)
        assert torch.equal(first.picture, again.picture)
        assert str(first[1:]) == str(again[1:])  # NaN is not itself
    assert not torch.equal(samples.sample(5, 0).picture, samples.sample(6, 0).picture)


def test_samples_are_pictures_of_every_kind(script: ModuleType, samples: Any) -> None:
    drawn = [sample for step in range(3) for sample in samples.batch(step, 32)]
    for sample in drawn:
        assert sample.picture.shape == (3, script.REGION, script.REGION)
        assert 0 <= float(sample.picture.min()) <= float(sample.picture.max()) <= 1
    labels = {(sample.haze, sample.rain) for sample in drawn if not math.isnan(sample.haze + sample.rain)}
    assert labels == {(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)}
    darkest = {known: np.mean([float(s.picture.amin()) for s in drawn if s.haze == known]) for known in (0.0, 1.0)}
    assert darkest[1.0] > darkest[0.0], "haze is what is labelled haze"


def test_a_threshold_keeps_clear_photos_first(script: ModuleType) -> None:
    def rule(without: np.ndarray, having: np.ndarray) -> Any:
        return script.threshold(without, having, 0.03, 1.0, "m", None)

    apart = rule(np.linspace(-6, -2, 100), np.linspace(2, 6, 100))
    assert -2 < apart.logit < 2
    mixed = rule(np.linspace(-4, 2, 200), np.linspace(-1, 5, 200))
    assert np.mean(np.linspace(-4, 2, 200) > mixed.logit) <= 0.03
    assert mixed.logit > 1.8
    assert mixed.width > apart.width, "where the two overlap, nothing is as sure"


def test_an_estimate_weighs_what_it_knows(script: ModuleType) -> None:
    """Two witnesses of equal noise, one of which speaks in units twice as large, and one that knows nothing."""
    rng = np.random.default_rng(1)
    truth = rng.random(2000) < 0.5
    logits = 3.0 * truth + rng.normal(0, 1.5, 2000)
    equal = 6.0 * truth + rng.normal(0, 3.0, 2000)
    shares = np.ones(2000)
    assert script.weight(np.column_stack([logits, equal]), truth, shares) == pytest.approx(0.5, abs=0.07)
    against = np.column_stack([logits, rng.normal(0, 1, 2000) - truth])
    with pytest.raises(SystemExit, match="do not agree"):
        script.weight(against, truth, shares)


def test_costly_photos_are_those_that_a_model_changes(
    script: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = script.sources(data)
    photos = script.PhotoCache()
    every = [path for paths in train.clear.values() for path in paths]
    pale = photos.get(every[0]).tobytes()  # a scene of the fixture's is in every folder

    def dehaze(photo: np.ndarray) -> np.ndarray:
        return photo // 2 if photo.tobytes() == pale else photo

    changed = script.dear(train, photos, dehaze)
    assert changed == [path for path in every if path.name == every[0].name]
    chosen = script.Samples(train, photos, seed=3, computed=8, costly=1.0, dear=changed[:1])
    taken: list[Path] = []
    get = photos.get
    monkeypatch.setattr(photos, "get", lambda path: taken.append(path) or get(path))
    for number in range(8):
        chosen._taken("clear", np.random.default_rng(number))
    assert taken == changed[:1] * 8


def test_it_learns_and_ships_a_folder_that_opens(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairweather.inference import load
    from fairweather.inference.weather_detection import load_detector

    monkeypatch.setattr(script, "weight", lambda *_: 0.5)  # two steps teach nothing that agrees with the models
    script.main(["--data", str(data), "--out", str(tmp_path / "weather"), "--steps", "2", "--batch", "8"])
    look = load_detector(load, tmp_path / "weather")
    assert set(look.card.training["asks"]) == {"dehaze", "derain"}
    assert look.card.training["on_held_back_scenes"]["sots_outdoor, clear"].keys() == {"none", "haze", "rain", "both"}
    weather = look(np.zeros((50, 60, 3), np.uint8))
    assert 0 <= weather.haze <= 1
