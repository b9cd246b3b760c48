"""Sources with synthetic weather: haze along given, measured and invented depth, reused fog, rain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fairweather import images
from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data.datasets import PhotoCache, item_rng, photos_in, to_tensor
from fairweather.data.gpu_batches import GPUBatches
from fairweather.data.mixture import CLEAR_SUFFIX, divide_holdout
from fairweather.data.synthetic import (
    BLOCK,
    MARGIN,
    RESIDE_INDOOR,
    ClearPhotos,
    HazedPair,
    RehazedPairs,
    RGBDHaze,
    SyntheticHaze,
    SyntheticRain,
    block_of_photo,
    depth_of_disparity,
    measured_transmission,
    streak_layer,
)
from fairweather.errors import BadFolder, BadImage
from fairweather.pairs import Pair, find_pairs
from fairweather.weather.haze import HazeSettings, compose, haze
from fairweather.weather.rain import RainSettings
from tests.data.conftest import QUIET, scene, write_photo

PLAIN = Augment.plain(64)
EVEN = HazeSettings(density=(2.0, 2.0), airlight=(0.9, 0.9), tint=0.0, patchy=0.0, linear=0.0, noise=0.0)
THICK = replace(EVEN, density=(3.0, 3.5))


@pytest.fixture
def root(tmp_path: Path, photo: np.ndarray) -> Path:
    """120 tiny rooms with depth in rooms/, numbered 1 to 120; four photos in clear/, and depth maps for three."""
    ramp = np.linspace(40, 200, 64).astype(np.uint8)[None, :].repeat(48, 0)
    for number in range(1, 121):
        write_photo(tmp_path / "rooms" / "clear" / f"{number:04d}.png", np.full((48, 64, 3), number, np.uint8))
        write_photo(tmp_path / "rooms" / "depth" / f"{number:04d}.png", ramp)
    for number in range(4):
        write_photo(tmp_path / "clear" / f"{'sharp' if number % 2 else 'soft'}_{number}.png", photo[:64, :64] // 2)
    far_left = np.linspace(65535, 0, 16).astype(np.uint16)[None, :].repeat(16, 0)
    for name in ("sharp_1", "soft_2", "sharp_3"):
        write_photo(tmp_path / "depths" / "clear" / f"{name}.png.png", far_left)
    return tmp_path


def mixture(root: Path, *sources: SourceSettings, **more: Any) -> Mixture:
    return Mixture(MixtureSettings(sources=sources, augment=PLAIN, short_side=64, **more), root)


def test_clear_photos_stay_clear_except_for_corruption(clear_folder: Path) -> None:
    paths = photos_in(clear_folder)
    sample = ClearPhotos(paths, PhotoCache(), QUIET).make(0, item_rng(1))
    assert torch.equal(sample["degraded"], sample["clear"])
    corrupted = ClearPhotos(paths, PhotoCache(), replace(QUIET, jpeg_share=1)).make(0, item_rng(1))
    assert torch.equal(corrupted["clear"], sample["clear"])
    assert 0 < (corrupted["degraded"] - corrupted["clear"]).abs().mean() < 0.1


def test_haze_changes_the_degraded_side_only(clear_folder: Path) -> None:
    hazed = SyntheticHaze(photos_in(clear_folder), PhotoCache(), QUIET, settings=THICK)
    clear = ClearPhotos(photos_in(clear_folder), PhotoCache(), QUIET)
    for item in range(6):
        sample = hazed.make(item, item_rng(item))
        assert torch.equal(sample["clear"], clear.make(item, item_rng(item))["clear"])
        assert sample["degraded"].std() < 0.9 * sample["clear"].std()
        assert (sample["degraded"] - 0.9).abs().mean() < (sample["clear"] - 0.9).abs().mean()
    assert hazed.holdout == []


def test_true_depth_is_used_where_a_disparity_map_exists(tmp_path: Path) -> None:
    write_photo(tmp_path / "street.png", np.full((64, 64, 3), 40, np.uint8))
    disparity = np.full((64, 64), 4000, np.uint16)
    disparity[:, 32:] = 40000  # the right half is ten times as near
    write_photo(tmp_path / "street_disparity.png", disparity)
    source = SyntheticHaze(photos_in(tmp_path), PhotoCache(), PLAIN, settings=THICK)
    assert source.items == 1
    hazy = source.make(0, item_rng(0))["degraded"]
    # t is exp(-beta) on the left, exp(-beta / 10) on the right, beta about 3.25
    assert 0.82 < hazy[:, :, :28].mean() < 0.89
    assert 0.3 < hazy[:, :, 36:].mean() < 0.45


def test_unknown_disparities_are_filled(tmp_path: Path) -> None:
    disparity = np.full((40, 60), 200, np.uint8)
    disparity[:, 30:] = 50
    disparity[20, 25:35] = 0  # a hole between near and far: far
    disparity[:6, :] = 0  # sky
    disparity[36:, :] = 0  # the bonnet
    depth = depth_of_disparity(write_photo(tmp_path / "a_disparity.png", disparity), (40, 60)) / 65535
    assert depth[10, 45] == pytest.approx(1.0)
    assert depth[10, 5] == pytest.approx(0.25, abs=0.001)
    assert depth[20, 27] == pytest.approx(1.0)
    assert depth[2] == pytest.approx(np.ones(60))
    assert depth[38] == pytest.approx(np.full(60, 0.25), abs=0.001)
    with pytest.raises(BadImage, match="b_disparity"):
        depth_of_disparity(write_photo(tmp_path / "b_disparity.png", np.zeros((4, 4), np.uint8)), (4, 4))


def foggy_pair(photo: np.ndarray, a: float = 0.9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A hazy photo with a white wall in it, the clear one, and the transmission."""
    clear = np.repeat(np.repeat(photo, 2, axis=0), 2, axis=1) // 2
    clear[40:80, 40:80] = round(a * 255)
    t = np.broadcast_to(np.linspace(0.25, 0.9, clear.shape[0], dtype=np.float32)[:, None], clear.shape[:2])
    picture = torch.from_numpy(clear.astype(np.float32) / 255).permute(2, 0, 1)[None]
    hazy = compose(picture, torch.from_numpy(t.copy())[None, None], torch.full((1, 3), a))
    return (hazy[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), clear, t


def test_pairs_are_measured_and_rehazed(photo: np.ndarray, tmp_path: Path) -> None:
    hazy, clear, t = foggy_pair(photo)
    measured = measured_transmission(hazy, clear) / 65535
    assert np.abs(measured - t)[8:-8, 8:-8].mean() < 0.03
    assert np.abs(measured - t)[40:80, 40:80].mean() < 0.12  # the wall is filled in from its surroundings
    pair = Pair(write_photo(tmp_path / "hazy.png", hazy), write_photo(tmp_path / "clear.png", clear), "hazy")
    source = RehazedPairs([pair], PhotoCache(), Augment.plain(96), settings=THICK)
    samples = [source.make(0, item_rng(number)) for number in range(8)]
    assert np.ptp([float(sample["degraded"].mean()) for sample in samples]) > 0.05
    for sample in samples:
        lift = sample["degraded"] - sample["clear"]
        assert lift[:, :20].mean() > lift[:, -20:].mean() + 0.05  # dense above, thin below, as measured


def test_real_fog_of_one_scene_is_applied_to_another(tmp_path: Path, clear_folder: Path) -> None:
    clear = scene(5)
    t = np.ones(clear.shape[:2], np.float32)
    t[:, : clear.shape[1] // 2] = 0.2  # a swath over the left half
    tensors = (torch.from_numpy(x)[None] for x in (clear.transpose(2, 0, 1) / np.float32(255), t[None]))
    foggy = compose(*tensors, torch.full((1, 3), 0.9))
    write_photo(tmp_path / "hazy" / "1.png", np.asarray(foggy[0].permute(1, 2, 0) * 255).round().astype(np.uint8))
    write_photo(tmp_path / "clear" / "1.png", clear)
    source = SyntheticHaze(photos_in(clear_folder), PhotoCache(), PLAIN, settings=EVEN, fog=find_pairs(tmp_path))
    for item in range(4):
        sample = source.make(item, item_rng(item))
        changed = (sample["degraded"] - sample["clear"]).abs().mean(0)
        assert changed[:, :24].mean() > 5 * changed[:, 40:].mean()


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
    for bank in ((), find_pairs(tmp_path / "set")):
        source = SyntheticRain(photos_in(clear_folder), PhotoCache(), QUIET, settings=settings, streaks=bank)
        lifts = [s["degraded"] - s["clear"] for s in (source.make(n % 6, item_rng(n)) for n in range(6))]
        assert all(lift.min() > -1e-5 for lift in lifts)
        assert np.mean([lift.mean() for lift in lifts]) > 0.005


def test_rgbd_photos_get_resides_haze_along_their_depth(root: Path) -> None:
    data = mixture(root, SourceSettings("rgbd", "rooms"))
    source = data.sources[0]
    assert isinstance(source, RGBDHaze)
    assert source.settings == RESIDE_INDOOR
    depth = source.depth(source.paths[0])
    assert depth is not None
    assert depth[0, 0] / 65535 == pytest.approx(0.2, abs=0.01)  # 40 of 200: a share of the photo's farthest point
    assert depth[0, -1] == 65535
    samples = [data.sample(0, 0, index) for index in range(60)]
    changes = []
    for sample in samples:
        assert torch.equal(sample["degraded"][0], sample["degraded"][2])  # a grey room under grey light
        change = (sample["degraded"] - sample["clear"]).mean((0, 1))
        changes.append(sorted((float(change[0]), float(change[-1]))))
        # over the whole photo, d from 0.2 to 1, (1 - exp(-beta d)) grows by 2.8 to 4; the crop is three quarters of it
        assert 1.6 < changes[-1][1] / changes[-1][0] < 4
    assert np.std([far for _, far in changes]) > 0.02
    # RESIDE's formula exactly
    recipe = replace(RESIDE_INDOOR, density=(1.5, 1.5), airlight=(1.0, 1.0))
    exact = mixture(root, SourceSettings("rgbd", "rooms", haze=recipe)).sources[0]
    assert isinstance(exact, RGBDHaze)
    hazy, clear = HazedPair(*(exact.paths[9],) * 2, "0010", exact).sides()
    t = np.exp(-1.5 * np.linspace(40, 200, 64).astype(np.uint8) / 200)
    assert (clear == 10).all()
    assert np.abs(hazy[5, :, 1] / 255 - (10 / 255 * t + 1 - t)).max() < 0.6 / 255


def test_neighbouring_rooms_are_held_out_together_and_validated_on(root: Path) -> None:
    rooms = SourceSettings("rgbd", "rooms"), SourceSettings("rgbd", "rooms", validate="rooms, thick", haze=EVEN)
    data = mixture(root, *rooms, hold_back=0.3)
    source = data.sources[0]
    assert isinstance(source, RGBDHaze)
    held = {int(pair.clear.stem) for pair in source.holdout}
    trained = {int(path.stem) for path in source.paths}
    assert min(abs(a - b) for a in held for b in trained) > MARGIN
    # whole blocks leave the training, their ends are not validated on
    assert 120 - len(trained) >= BLOCK
    assert 0 < len(held) < 120 - len(trained)
    assert block_of_photo(Path("a/0039.png")) == block_of_photo(Path("0021.avif")) != block_of_photo(Path("0041.png"))
    assert block_of_photo(Path("room.png")) == "room"
    division = divide_holdout([{"kind": "rgbd", "path": "rooms"}], root, 0.3)
    assert {int(path.stem) for path in division.trained} == trained
    assert held < {int(pair.clear.stem) for pair in division.holdout["rooms/clear" + CLEAR_SUFFIX]}
    # validation pairs are fixed
    first, again = data.holdout(), mixture(root, *rooms, hold_back=0.3).holdout()
    assert sorted(first) == ["rgbd:rooms", "rooms, thick"]
    brightness = set()
    for one, two in zip(first["rgbd:rooms"], again["rgbd:rooms"], strict=True):
        assert isinstance(one, HazedPair)
        assert isinstance(two, HazedPair)
        assert all(np.array_equal(a, b) for a, b in zip(one.sides(), two.sides(), strict=True))
        hazy, clear = one.sides()
        assert hazy.shape == clear.shape == (48, 64, 3)
        assert hazy.mean() > clear.mean() + 20
        brightness.add(hazy.mean())
    assert len(brightness) > 3


def test_haze_follows_estimated_depth_where_there_is_a_map(root: Path) -> None:
    data = mixture(root, SourceSettings("synthetic", "clear", haze=EVEN), depths="depths")
    source = data.sources[0]
    assert isinstance(source, SyntheticHaze)
    known = [path for path in source.paths if source.depth(path) is not None]
    assert [path.stem for path in known] == ["sharp_1", "sharp_3", "soft_2"]
    depth = source.depth(known[0])
    assert depth is not None
    assert depth.shape == (64, 64)
    assert depth[0, 0] > 65000
    sample = source.make(source.paths.index(known[0]), np.random.default_rng(0))
    change = (sample["degraded"] - sample["clear"]).abs().mean((0, 1))
    assert change[:8].mean() > 4 * change[-8:].mean()
    own = mixture(root, SourceSettings("synthetic", "clear", haze=EVEN, depths=str(root / "depths")))
    assert torch.equal(own.sample(0, 0, 1)["degraded"], data.sample(0, 0, 1)["degraded"])


def test_missing_and_broken_depth_maps_are_named(root: Path) -> None:
    hazed = SourceSettings("synthetic", "clear")
    with pytest.raises(BadFolder, match="nowhere is not a folder"):
        mixture(root, hazed, depths="nowhere")
    (root / "empty").mkdir()
    assert mixture(root, hazed, depths="empty").sources[0].items == 4
    with pytest.raises(BadFolder, match="empty has no depth map"):
        mixture(root, SourceSettings("synthetic", "clear", depths="empty"))
    (root / "depths" / "clear" / "soft_2.png.png").write_bytes(b"none")
    with pytest.raises(BadImage, match="soft_2"):
        mixture(root, hazed, depths="depths")
    (root / "rooms" / "depth" / "0003.png").unlink()
    with pytest.raises(BadFolder, match=r"no depth map for 0003\.png"):
        mixture(root, SourceSettings("rgbd", "rooms"))


def test_at_night_the_clear_side_is_dark_as_well(root: Path) -> None:
    night = HazeSettings(night=1.0, airlight=(0.1, 0.2), noise=0.0, patchy=0.0)
    data = mixture(root, SourceSettings("synthetic", "clear", haze=night), SourceSettings("clear", "clear"))
    by_day, by_night = (data.sources[number].make(1, np.random.default_rng(4)) for number in (1, 0))
    assert by_night["clear"].mean() < 0.7 * by_day["clear"].mean()
    on_device = GPUBatches(data, "cpu", 2**28).batch(3, [(0, index) for index in range(8)])
    loaded = torch.stack([data.sample(3, 0, index)["clear"] for index in range(8)])
    # lamps differ there; which pictures are dark does not
    dark = loaded.mean((1, 2, 3)) < 0.7 * loaded.mean((1, 2, 3)).max()
    assert 0 < int(dark.sum()) < 8
    assert on_device["clear"][dark].mean() < 0.7 * on_device["clear"][~dark].mean()


def test_real_depth_and_transmission(shared_data: Path, tmp_path: Path) -> None:
    train = shared_data / "train"
    depth = depth_of_disparity(train / "depth" / "aachen_disparity.png", (512, 1024)) / 65535
    assert depth[:8].mean() > 0.95  # a street: far above, near below
    assert depth[:40].mean() > 0.75
    assert depth[400:].mean() < 0.15
    names = ["sots_indoor/hazy/1400_1.jpg", "sots_indoor/hazy/1400_9.jpg", "sots_indoor/clear/1400.jpg"]
    names += ["depth/Teddy.png", "depth/Teddy_disparity.png", "nyu/clear/0700.avif", "nyu/depth/0700.avif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(train / name)
    kinds = {"synthetic": "depth", "rehazed": "sots_indoor", "rgbd": "nyu"}
    sources = tuple(SourceSettings(kind, path) for kind, path in kinds.items())  # type: ignore[arg-type]
    data = Mixture(MixtureSettings(sources=sources, augment=PLAIN, short_side=96), tmp_path)
    assert [source.items for source in data.sources] == [1, 2, 1]
    for source in data.sources:
        sample = source.make(0, item_rng(1))
        assert torch.isfinite(sample["degraded"]).all()
        assert sample["degraded"].std() < sample["clear"].std()
    # two hazes of one scene differ in density and airlight, but their depths agree
    rehazed = data.sources[1]
    assert isinstance(rehazed, RehazedPairs)
    light, dense = (-np.log(rehazed.transmission(item) / 65535 + 1e-3).ravel() for item in (0, 1))
    assert np.corrcoef(light, dense)[0, 1] > 0.8


def test_a_published_indoor_haze_is_reproduced(shared_data: Path) -> None:
    """The depth of a SOTS scene follows from its thinner hazes; along it, the densest is the published one."""
    folder = shared_data / "train" / "sots_indoor"
    clear = images.to_float(images.read(folder / "clear" / "1407.jpg").pixels)
    depth = np.zeros(clear.shape[:2], np.float32)
    for number in (1, 3, 5, 7):
        hazy = images.to_float(images.read(folder / "hazy" / f"1407_{number}.jpg").pixels)
        light = 1 - clear
        t = (light * (1 - hazy)).sum(2) / np.maximum((light * light).sum(2), 1e-4)
        depth -= np.log(np.clip(cv2.GaussianBlur(t, (0, 0), 1.0), 0.02, 1)) / (0.5 + 0.1 * number) / 4
    recipe = replace(RESIDE_INDOOR, density=(1.4, 1.4), airlight=(1.0, 1.0))
    given = torch.from_numpy(depth.clip(0, 1))[None, None]
    synthesized, _ = haze(to_tensor(clear)[None], torch.Generator().manual_seed(0), recipe, given)
    published = to_tensor(images.to_float(images.read(folder / "hazy" / "1407_9.jpg").pixels))
    assert float(-10 * (synthesized[0] - published).square().mean().log10()) > 42  # the rest is JPEG's
