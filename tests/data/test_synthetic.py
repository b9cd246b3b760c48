from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data.datasets import PhotoCache, item_rng, photos_in
from fairweather.data.synthetic import (
    ClearPhotos,
    RehazedPairs,
    SyntheticHaze,
    SyntheticRain,
    depth_of_disparity,
    measured_transmission,
    streak_layer,
)
from fairweather.errors import BadImage
from fairweather.pairs import Pair, find_pairs
from fairweather.weather.haze import HazeSettings, compose
from fairweather.weather.rain import RainSettings
from tests.data.conftest import scene, write_photo

QUIET = Augment(crop=48, tone=0, noise_share=0, jpeg_share=0)
THICK = HazeSettings(density=(3.0, 3.5), airlight=(0.9, 0.9), tint=0.0, patchy=0.0, linear=0.0, noise=0.0)


def test_clear_photos_stay_clear_but_for_noise_and_jpeg(clear_folder: Path) -> None:
    source = ClearPhotos(photos_in(clear_folder), PhotoCache(), QUIET)
    assert source.items == 6
    sample = source.make(0, item_rng(1))
    assert torch.equal(sample["degraded"], sample["clear"])
    spoilt = ClearPhotos(photos_in(clear_folder), PhotoCache(), Augment(crop=48, tone=0, jpeg_share=1)).make(
        0, item_rng(1)
    )
    assert torch.equal(spoilt["clear"], sample["clear"])
    assert 0 < (spoilt["degraded"] - spoilt["clear"]).abs().mean() < 0.1


def test_haze_goes_over_the_clear_side_and_leaves_it_alone(clear_folder: Path) -> None:
    hazed = SyntheticHaze(photos_in(clear_folder), PhotoCache(), QUIET, settings=THICK)
    clear = ClearPhotos(photos_in(clear_folder), PhotoCache(), QUIET)
    for item in range(6):
        sample = hazed.make(item, item_rng(item))
        assert torch.equal(sample["clear"], clear.make(item, item_rng(item))["clear"])
        assert sample["degraded"].std() < 0.9 * sample["clear"].std()
        assert (sample["degraded"] - 0.9).abs().mean() < (sample["clear"] - 0.9).abs().mean()
    assert hazed.holdout == []


def test_true_depth_is_used_where_a_disparity_map_lies_beside(tmp_path: Path) -> None:
    write_photo(tmp_path / "street.png", np.full((64, 64, 3), 40, np.uint8))
    disparity = np.full((64, 64), 4000, np.uint16)
    disparity[:, 32:] = 40000  # the right half is ten times as near
    write_photo(tmp_path / "street_disparity.png", disparity)
    augment = Augment.plain(64)
    source = SyntheticHaze(photos_in(tmp_path), PhotoCache(), augment, settings=THICK)
    assert source.items == 1
    hazy = source.make(0, item_rng(0))["degraded"]
    left, right = hazy[:, :, :28].mean(), hazy[:, :, 36:].mean()
    # t is exp(-beta) on the left, exp(-beta / 10) on the right, beta about 3.25
    assert 0.82 < left < 0.89
    assert 0.3 < right < 0.45


def test_unknown_disparities_are_filled_with_what_is_behind(tmp_path: Path) -> None:
    disparity = np.full((40, 60), 200, np.uint8)
    disparity[:, 30:] = 50
    disparity[20, 25:35] = 0  # a hole between near and far: far
    disparity[:6, :] = 0  # sky
    disparity[36:, :] = 0  # the bonnet
    depth = depth_of_disparity(write_photo(tmp_path / "a_disparity.png", disparity), (40, 60)) / 65535
    assert depth.shape == (40, 60)
    assert depth[10, 45] == pytest.approx(1.0)
    assert depth[10, 5] == pytest.approx(0.25, abs=0.001)
    assert depth[20, 27] == pytest.approx(1.0)
    assert depth[2] == pytest.approx(np.ones(60))
    assert depth[38] == pytest.approx(np.full(60, 0.25), abs=0.001)
    with pytest.raises(BadImage, match="b_disparity"):
        depth_of_disparity(write_photo(tmp_path / "b_disparity.png", np.zeros((4, 4), np.uint8)), (4, 4))


def foggy_pair(photo: np.ndarray, a: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A clear photo with a white wall in it, its haze, and the transmission that made it."""
    clear = np.repeat(np.repeat(photo, 2, axis=0), 2, axis=1) // 2
    clear[40:80, 40:80] = round(a * 255)
    t = np.broadcast_to(np.linspace(0.25, 0.9, clear.shape[0], dtype=np.float32)[:, None], clear.shape[:2])
    picture = torch.from_numpy(clear.astype(np.float32) / 255).permute(2, 0, 1)[None]
    hazy = compose(picture, torch.from_numpy(t.copy())[None, None], torch.full((1, 3), a))
    return (hazy[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), clear, t


def test_a_pair_tells_its_transmission_even_where_it_says_nothing(photo: np.ndarray) -> None:
    hazy, clear, t = foggy_pair(photo)
    measured = measured_transmission(hazy, clear) / 65535
    inner = np.s_[8:-8, 8:-8]
    assert np.abs(measured - t)[inner].mean() < 0.03
    # on the wall the pair says nothing; its rim still knows
    assert np.abs(measured - t)[40:80, 40:80].mean() < 0.12


def test_rehazed_pairs_keep_their_clear_side_and_get_other_hazes(tmp_path: Path, photo: np.ndarray) -> None:
    hazy, clear, _ = foggy_pair(photo)
    pair = Pair(write_photo(tmp_path / "hazy.png", hazy), write_photo(tmp_path / "clear.png", clear), "hazy")
    source = RehazedPairs([pair], PhotoCache(), Augment.plain(96), settings=THICK)
    samples = [source.make(0, item_rng(number)) for number in range(8)]
    brightness = [float(sample["degraded"].mean()) for sample in samples]
    assert max(brightness) - min(brightness) > 0.05
    for sample in samples:
        lift = sample["degraded"] - sample["clear"]
        assert lift[:, :20].mean() > lift[:, -20:].mean() + 0.05  # thick above, thin below, as measured


def test_rain_is_computed_or_recorded(clear_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    streaked = photo.astype(int)
    streaked[:, 40:44] += 90
    rainy = np.clip(streaked, 0, 255).astype(np.uint8)
    layer = streak_layer(rainy, photo)
    assert layer.dtype == np.uint8
    assert (layer[:, 40:44] > 60).mean() > 0.5
    assert layer[:, :30].max() == 0
    write_photo(tmp_path / "set" / "rain" / "1.png", rainy)
    write_photo(tmp_path / "set" / "norain" / "1.png", photo)
    settings = RainSettings(recorded=1.0, veil=0, drops=0, tint=0)
    pairs = find_pairs(tmp_path / "set")
    for bank in ((), pairs):
        source = SyntheticRain(photos_in(clear_folder), PhotoCache(), QUIET, settings=settings, streaks=bank)
        lifts = [s["degraded"] - s["clear"] for s in (source.make(n % 6, item_rng(n)) for n in range(6))]
        assert all(lift.min() > -1e-5 for lift in lifts)
        assert np.mean([lift.mean() for lift in lifts]) > 0.005


def test_depth_and_transmission_of_real_photos(shared_data: Path, tmp_path: Path) -> None:
    train = shared_data / "train"
    for side, name in (("hazy", "1400_1"), ("hazy", "1400_9"), ("clear", "1400")):
        (tmp_path / "indoor" / side).mkdir(parents=True, exist_ok=True)
        (tmp_path / "indoor" / side / f"{name}.jpg").symlink_to(train / "sots_indoor" / side / f"{name}.jpg")
    (tmp_path / "depth").symlink_to(train / "depth")
    sources = SourceSettings("synthetic", "depth"), SourceSettings("rehazed", "indoor")
    data = Mixture(MixtureSettings(sources=sources, augment=Augment(crop=64), short_side=96), tmp_path)
    assert [source.items for source in data.sources] == [10, 2]
    for index in range(12):
        sample = data.sample(0, 0, index)
        assert sample["degraded"].shape == sample["clear"].shape == (3, 64, 64)
        assert torch.isfinite(sample["degraded"]).all()
    # the two hazes of a scene differ in density and airlight; what they tell of its depth is one thing
    rehazed = data.sources[1]
    assert isinstance(rehazed, RehazedPairs)
    light, dense = (-np.log(rehazed.transmission(item) / 65535 + 1e-3).ravel() for item in (0, 1))
    assert np.corrcoef(light, dense)[0, 1] > 0.8


def test_measured_depth_grows_upwards_on_a_real_street(shared_data: Path) -> None:
    depth = depth_of_disparity(shared_data / "train" / "depth" / "aachen_disparity.png", (512, 1024)) / 65535
    assert depth[:8].mean() > 0.95
    assert depth[:40].mean() > 0.75
    assert depth[400:].mean() < 0.15


def test_scene_pictures_are_as_the_tests_think() -> None:
    assert scene(5, 10, 20).shape == (10, 20, 3)
    assert scene(5, 10, 20)[0, -1].tolist() == [5, 255, 0]


def test_real_fog_of_one_scene_is_laid_over_another(tmp_path: Path, clear_folder: Path) -> None:
    clear = scene(5)
    there = np.ones(clear.shape[:2], np.float32)
    there[:, : clear.shape[1] // 2] = 0.2  # a swath over the left half
    foggy = compose(*(torch.from_numpy(x)[None] for x in (clear.transpose(2, 0, 1) / np.float32(255), there[None])),
                    torch.full((1, 3), 0.9))  # fmt: skip
    write_photo(tmp_path / "hazy" / "1.png", np.asarray(foggy[0].permute(1, 2, 0) * 255).round().astype(np.uint8))
    write_photo(tmp_path / "clear" / "1.png", clear)
    air = HazeSettings(airlight=(0.9, 0.9), tint=0.0, patchy=0.0, linear=0.0, noise=0.0)
    fog = find_pairs(tmp_path)
    source = SyntheticHaze(photos_in(clear_folder), PhotoCache(), Augment.plain(48), settings=air, fog=fog)
    for item in range(4):
        sample = source.make(item, item_rng(item))
        changed = (sample["degraded"] - sample["clear"]).abs().mean(0)
        assert changed[:, :18].mean() > 5 * changed[:, 30:].mean()
