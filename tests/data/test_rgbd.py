"""Haze along given depth: RGB-D folders, estimated depth maps, and the validation pairs that both give."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fairweather import images
from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data.datasets import to_tensor
from fairweather.data.gpu_batches import GPUBatches
from fairweather.data.mixture import CLEAR_SUFFIX, divide_holdout
from fairweather.data.synthetic import BLOCK, MARGIN, RESIDE_INDOOR, HazedPair, RGBDHaze, SyntheticHaze, block_of_photo
from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.weather.haze import HazeSettings, haze
from tests.data.conftest import write_photo

PLAIN = Augment.plain(64)
THICK = HazeSettings(density=(2.0, 2.0), airlight=(0.9, 0.9), tint=0.0, patchy=0.0, linear=0.0, noise=0.0)


@pytest.fixture
def root(tmp_path: Path, photo: np.ndarray) -> Path:
    """120 tiny rooms with depth in rooms/, their photos 1 to 120; four photos in clear/ and depth maps for three."""
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


def test_rooms_get_resides_haze_along_their_depth(root: Path) -> None:
    data = mixture(root, SourceSettings("rgbd", "rooms"))
    source = data.sources[0]
    assert isinstance(source, RGBDHaze)
    assert source.settings == RESIDE_INDOOR
    assert source.items == 120
    depth = source.depth(source.paths[0])
    assert depth is not None
    assert depth[0, 0] / 65535 == pytest.approx(0.2, abs=0.01)  # 40 of 200: depth is a share of the photo's farthest
    assert depth[0, -1] == 65535
    lights = []
    for index in range(60):
        sample = data.sample(0, 0, index)
        hazy = sample["degraded"]
        # a grey room under grey light
        assert torch.equal(hazy[0], hazy[2])
        change = (hazy - sample["clear"]).mean((0, 1))
        change = change if change[-1] > change[0] else change.flip(0)
        # over the whole photo, d from 0.2 to 1, (1 - exp(-beta d)) grows by 2.8 to 4; the crop is three quarters of it
        assert 1.6 < change[-1] / change[0] < 4
        lights.append(float(change[-1]))
    again = mixture(root, SourceSettings("rgbd", "rooms")).sample(0, 0, 7)
    assert torch.equal(again["degraded"], data.sample(0, 0, 7)["degraded"])
    assert np.std(lights) > 0.02


def test_the_recipe_is_exact(root: Path) -> None:
    recipe = HazeSettings(**{**RESIDE_INDOOR.__dict__, "density": (1.5, 1.5), "airlight": (1.0, 1.0)})
    data = mixture(root, SourceSettings("rgbd", "rooms", haze=recipe))
    pair = HazedPair(*(data.sources[0].paths[9],) * 2, "0010", data.sources[0])  # type: ignore[attr-defined, arg-type]
    hazy, clear = pair.sides()
    depth = np.linspace(40, 200, 64).astype(np.uint8) / 200
    t = np.exp(-1.5 * depth)
    assert (clear == 10).all()
    assert np.abs(hazy[5, :, 1] / 255 - (10 / 255 * t + 1 - t)).max() < 0.6 / 255


def test_neighbouring_rooms_are_held_back_together(root: Path) -> None:
    data = mixture(root, SourceSettings("rgbd", "rooms"), hold_back=0.3)
    source = data.sources[0]
    assert isinstance(source, RGBDHaze)
    held = {int(pair.clear.stem) for pair in source.holdout}
    trained = {int(path.stem) for path in source.paths}
    assert held
    assert min(abs(a - b) for a in held for b in trained) > MARGIN
    # whole blocks leave the training, their ends are not validated on
    assert 120 - len(trained) >= BLOCK
    assert len(held) < 120 - len(trained)
    assert block_of_photo(Path("a/0039.png")) == block_of_photo(Path("0021.avif")) != block_of_photo(Path("0041.png"))
    assert block_of_photo(Path("room.png")) == "room"
    division = divide_holdout([{"kind": "rgbd", "path": "rooms"}], root, 0.3)
    assert {int(path.stem) for path in division.trained} == trained
    assert held < {int(pair.clear.stem) for pair in division.holdout["rooms/clear" + CLEAR_SUFFIX]}


def test_validation_pairs_stay_the_same(root: Path) -> None:
    sources = (SourceSettings("rgbd", "rooms"), SourceSettings("rgbd", "rooms", validate="rooms, thick", haze=THICK))
    first, again = (mixture(root, *sources, hold_back=0.3).holdout() for _ in range(2))
    assert sorted(first) == ["rgbd:rooms", "rooms, thick"]
    for one, two in zip(first["rgbd:rooms"], again["rgbd:rooms"], strict=True):
        assert isinstance(one, HazedPair)
        assert isinstance(two, HazedPair)
        assert all(np.array_equal(a, b) for a, b in zip(one.sides(), two.sides(), strict=True))
        hazy, clear = one.sides()
        assert hazy.shape == clear.shape == (48, 64, 3)
        assert hazy.mean() > clear.mean() + 20
    assert len({one.sides()[0].mean() for one in first["rgbd:rooms"]}) > 3  # type: ignore[attr-defined]


def test_haze_follows_estimated_depth_where_there_is_a_map(root: Path) -> None:
    data = mixture(root, SourceSettings("synthetic", "clear", haze=THICK), depths="depths")
    source = data.sources[0]
    assert isinstance(source, SyntheticHaze)
    known = [path for path in source.paths if source.depth(path) is not None]
    assert [path.stem for path in known] == ["sharp_1", "sharp_3", "soft_2"]
    depth = source.depth(known[0])
    assert depth is not None
    assert depth.shape == (64, 64)
    assert depth[0, 0] > 65000
    item = source.paths.index(known[0])
    sample = source.make(item, np.random.default_rng(0))
    change = (sample["degraded"] - sample["clear"]).abs().mean((0, 1))
    assert change[:8].mean() > 4 * change[-8:].mean()
    # an absolute path, and a source's own folder
    other = mixture(root, SourceSettings("synthetic", "clear", haze=THICK, depths=str(root / "depths")))
    assert torch.equal(other.sample(0, 0, 1)["degraded"], data.sample(0, 0, 1)["degraded"])
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.sample(0, 0, 1)["degraded"], data.sample(0, 0, 1)["degraded"])


def test_depth_maps_that_are_missing_or_broken_are_named(root: Path) -> None:
    haze_over = SourceSettings("synthetic", "clear")
    with pytest.raises(BadFolder, match="nowhere is not a folder"):
        mixture(root, haze_over, depths="nowhere")
    (root / "empty").mkdir()
    assert mixture(root, haze_over, depths="empty").sources[0].items == 4
    with pytest.raises(BadFolder, match="empty has no depth map"):
        mixture(root, SourceSettings("synthetic", "clear", depths="empty"))
    (root / "depths" / "clear" / "soft_2.png.png").write_bytes(b"none")
    with pytest.raises(BadImage, match="soft_2"):
        mixture(root, haze_over, depths="depths")
    (root / "rooms" / "depth" / "0003.png").unlink()
    with pytest.raises(BadFolder, match=r"no depth map for 0003\.png"):
        mixture(root, SourceSettings("rgbd", "rooms"))


def test_a_source_may_use_some_photos_of_a_folder(root: Path) -> None:
    whole = mixture(root, SourceSettings("clear", "clear"), hold_back=0.5)
    sharp = mixture(root, SourceSettings("synthetic", "clear", match=("sharp_*",), validate="fog"), hold_back=0.5)
    used, every = ({path.stem for path in data.sources[0].paths} for data in (sharp, whole))  # type: ignore[attr-defined]
    assert used == {name for name in every if name.startswith("sharp")}
    held = {pair.name for pairs in sharp.holdout().values() for pair in pairs}
    assert held == {"sharp_1", "sharp_3"} - used
    with pytest.raises(BadFolder, match=r"no file name matches blunt_\*"):
        mixture(root, SourceSettings("clear", "clear", match=("blunt_*",)))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "clear", "path": "clear", "depths": "depths"}, "clear has depths"),
        ({"kind": "synthetic", "path": "clear", "weather": "rain", "validate": "x"}, "clear has validate"),
        ({"kind": "pairs", "path": "a", "match": ["b*"]}, "a has match"),
    ],
)
def test_settings_without_effect_are_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        MixtureSettings.from_table({"sources": [table]})


def test_clips_have_no_night(root: Path) -> None:
    night = HazeSettings(night=0.5)
    with pytest.raises(BadSettings, match=r"haze\.night"):
        mixture(root, SourceSettings("synthetic", "clear", haze=night), frames=3)


def test_at_night_the_clear_side_is_dark_too(root: Path) -> None:
    night = HazeSettings(night=1.0, airlight=(0.1, 0.2), noise=0.0, patchy=0.0)
    data = mixture(root, SourceSettings("synthetic", "clear", haze=night), SourceSettings("clear", "clear"))
    by_day, by_night = (data.sources[number].make(1, np.random.default_rng(4)) for number in (1, 0))
    assert by_night["clear"].mean() < 0.7 * by_day["clear"].mean()
    made = GPUBatches(data, "cpu", 2**28).batch(3, [(0, index) for index in range(8)])
    loaded = torch.stack([data.sample(3, 0, index)["clear"] for index in range(8)])
    # lamps are drawn anew there; which pictures are dark is not
    dark = loaded.mean((1, 2, 3)) < 0.7 * loaded.mean((1, 2, 3)).max()
    assert 0 < int(dark.sum()) < 8
    assert made["clear"][dark].mean() < 0.7 * made["clear"][~dark].mean()


def test_batches_on_a_device_use_the_same_depth(root: Path) -> None:
    data = mixture(root, SourceSettings("rgbd", "rooms"), SourceSettings("synthetic", "clear", haze=THICK),
                   depths="depths")  # fmt: skip
    keys = [(0, index) for index in range(24)]
    made = GPUBatches(data, "cpu", 2**28).batch(1, keys)
    loaded = {side: torch.stack([data.sample(1, *key)[side] for key in keys]) for side in ("degraded", "clear")}
    assert (made["clear"] - loaded["clear"]).abs().max() < 0.01
    rooms = loaded["clear"].flatten(1).std(1) == 0
    assert int(rooms.sum()) > 10
    rise = (made["degraded"][rooms] - made["clear"][rooms]).mean((1, 2))
    assert (rise[:, -4:].mean(1) > 1.4 * rise[:, :4].mean(1)).all()


def test_a_published_indoor_haze_comes_out_again(shared_data: Path) -> None:
    """From the thinner hazes of a SOTS scene follows its depth; with that the densest is what was published."""
    folder = shared_data / "train" / "sots_indoor"
    clear = images.to_float(images.read(folder / "clear" / "1407.jpg").pixels)
    depth = np.zeros(clear.shape[:2], np.float32)
    for number in (1, 3, 5, 7):
        hazy = images.to_float(images.read(folder / "hazy" / f"1407_{number}.jpg").pixels)
        light = 1 - clear
        t = (light * (1 - hazy)).sum(2) / np.maximum((light * light).sum(2), 1e-4)
        depth -= np.log(np.clip(cv2.GaussianBlur(t, (0, 0), 1.0), 0.02, 1)) / (0.5 + 0.1 * number) / 4
    recipe = HazeSettings(**{**RESIDE_INDOOR.__dict__, "density": (1.4, 1.4), "airlight": (1.0, 1.0)})
    given = torch.from_numpy(depth.clip(0, 1))[None, None]
    made, _ = haze(to_tensor(clear)[None], torch.Generator().manual_seed(0), recipe, given)
    published = to_tensor(images.to_float(images.read(folder / "hazy" / "1407_9.jpg").pixels))
    error = (made[0] - published).square().mean()
    assert float(-10 * error.log10()) > 42  # what is left is JPEG's


def test_rooms_of_nyu_are_read(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "train" / "nyu").is_dir():
        pytest.skip("the rooms of NYU-v2 (../shared/data/train/nyu) are missing")
    for side in ("clear", "depth"):
        (tmp_path / "nyu" / side).mkdir(parents=True)
        for number in (1, 700, 1389):
            name = f"{number:04d}.avif"
            (tmp_path / "nyu" / side / name).symlink_to(shared_data / "train" / "nyu" / side / name)
    data = Mixture(MixtureSettings(sources=(SourceSettings("rgbd", "nyu"),), augment=PLAIN), tmp_path)
    for index in range(3):
        sample = data.sample(0, 0, index)
        assert sample["degraded"].mean() > sample["clear"].mean()
        assert sample["degraded"].std() < sample["clear"].std()
