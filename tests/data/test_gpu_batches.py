"""Batches made on a device: the same samples as the loader's where both draw the same, else the same statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fairweather.data import Augment, Mixture, MixtureSettings, SourceSettings
from fairweather.data import augment as aug
from fairweather.data import gpu_batches as module
from fairweather.data.datasets import item_rng
from fairweather.data.gpu_batches import GPUBatches, batch_crops, batch_jpeg
from fairweather.errors import BadSettings
from fairweather.weather.haze import HazeSettings
from fairweather.weather.rain import RainSettings
from tests.data.conftest import QUIET, write_photo

LOUD = Augment(crop=32, tone=1, noise_share=0, jpeg_share=0)
ROUNDING = 0.5 / 255 + 1e-5


def planar(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(photo[..., None] if photo.ndim == 2 else photo).transpose(0, 2, 1).copy())


@pytest.fixture
def root(tmp_path: Path, photo: np.ndarray) -> Path:
    """Photos of two shapes, one of them with a disparity map; pairs; rain pairs of two shapes."""
    for number in range(6):
        one = np.roll(photo, 16 * number, axis=1)
        one = one.transpose(1, 0, 2) if number % 3 == 2 else one
        write_photo(tmp_path / "photos" / f"photo{number}.png", one)
        write_photo(tmp_path / "pairs" / "clear" / f"{number}.png", one)
        write_photo(tmp_path / "pairs" / "hazy" / f"{number}.png", (0.4 * one + 130).astype(np.uint8))
        streaks = np.where(np.arange(one.shape[1])[None, :, None] % 9 == number, 80, 0)
        write_photo(tmp_path / "rain" / "clear" / f"{number}.png", one)
        write_photo(tmp_path / "rain" / "rainy" / f"{number}.png", (one + streaks).clip(0, 255).astype(np.uint8))
    near = np.full((96, 128), 4000, np.uint16)
    near[:, 64:] = 40000
    write_photo(tmp_path / "photos" / "photo0_disparity.png", near)
    return tmp_path


def mixture(root: Path, *sources: SourceSettings, augment: Augment = QUIET, **more: Any) -> Mixture:
    return Mixture(MixtureSettings(sources=sources, augment=augment, **{"short_side": 96, **more}), root)


def batched(data: Mixture) -> GPUBatches:
    return GPUBatches(data, "cpu", 2**28)


def both(data: Mixture, count: int = 24) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same samples from the loader, stacked, and as a batch."""
    keys = [divmod(at, len(data)) for at in range(count)]
    samples = [data.sample(5, *key) for key in keys]
    loaded = {side: torch.stack([sample[side] for sample in samples]) for side in ("degraded", "clear")}
    return loaded, batched(data).batch(5, keys)


@pytest.mark.parametrize(
    "augment",
    [Augment(crop=32), Augment(crop=48, scale=(0.1, 0.5), enlarge=4), Augment.paper(32), Augment.paper(96)],
    ids=["reduced", "enlarged too", "paper", "paper, enlarged"],
)
def test_crops_equal_the_loaders_except_for_rounding(photo: np.ndarray, augment: Augment) -> None:
    photos = [photo, photo[:40], photo.transpose(1, 0, 2), photo[:, 7:80]]
    for number in range(6):
        boxes = [aug.draw_crop(augment, *one.shape[:2], item_rng(number, at)) for at, one in enumerate(photos)]
        found = batch_crops([planar(one) for one in photos], boxes, augment.crop)
        for one, box, made in zip(photos, boxes, found, strict=True):
            wanted = aug.crop(one, box, augment.crop).transpose(2, 0, 1)
            # OpenCV's weights for 8-bit pixels have 11 bits
            assert np.abs(made.clamp(0, 255).numpy() - wanted.astype(np.float32)).max() < 1.1


def test_maps_are_cropped_like_photos_and_do_not_overshoot() -> None:
    step = np.where(np.arange(60)[None] < 30, 0, 65535).repeat(50, 0).astype(np.uint16)
    augment = Augment(crop=40, scale=(0.2, 1.0), enlarge=5)
    boxes = [aug.draw_crop(augment, 50, 60, item_rng(at)) for at in range(20)]
    found = batch_crops([planar(step.astype(np.float32) / 65535)] * 20, boxes, 40, smooth=False)
    assert found.min() >= -1e-4
    assert found.max() <= 1 + 1e-4
    for box, made in zip(boxes, found, strict=True):
        wanted = aug.crop(step, box, 40).astype(np.float32) / 65535
        assert made[0].numpy() == pytest.approx(wanted, abs=2e-3)


def test_jpeg_equals_that_of_a_file(photo: np.ndarray) -> None:
    picture = photo[:90, :100].astype(np.float32) / 255  # not a multiple of 16
    qualities = (10, 50, 75, 95)
    clear = torch.from_numpy(picture).permute(2, 0, 1)[None]
    coded = batch_jpeg(clear.expand(4, -1, -1, -1), torch.tensor(qualities, dtype=torch.float32))
    for one, quality in zip(coded.permute(0, 2, 3, 1).numpy(), qualities, strict=True):
        wanted = aug.jpeg(picture.copy(), quality)
        damage = np.abs(wanted - picture).mean()
        assert damage > 1 / 255
        assert np.abs(one - wanted).mean() < 0.35 * damage
        assert np.abs(one - picture).mean() == pytest.approx(damage, rel=0.1)
    assert torch.equal(coded[3:], batch_jpeg(clear, torch.tensor([95.0])))


def test_pairs_and_clear_photos_equal_the_loaders(root: Path) -> None:
    """Photo, crop, flip and tone of every sample are the same; without enlargement they differ by rounding only."""
    sources = (SourceSettings("pairs", "pairs"), SourceSettings("clear", "photos"))
    for augment in (QUIET, LOUD):
        loaded, made = both(mixture(root, *sources, augment=augment))
        for side in ("degraded", "clear"):
            assert made[side].shape == loaded[side].shape
            # a gain of tone enlarges what rounding left
            assert (made[side] - loaded[side]).abs().max() < (1 if augment is QUIET else 2.2) * ROUNDING
    assert len({one.numpy().tobytes() for one in made["clear"]}) == 24


def test_weather_is_added_to_the_loaders_clear_side(root: Path) -> None:
    sources = [
        SourceSettings("rehazed", "pairs"),
        SourceSettings("synthetic", "photos"),
        SourceSettings("synthetic", "photos", fog="pairs"),
        SourceSettings("synthetic", "photos", weather="rain", streaks="rain"),
    ]
    loaded, made = both(mixture(root, *sources, augment=LOUD))
    assert (made["clear"] - loaded["clear"]).abs().max() < 2.2 * ROUNDING
    assert (made["degraded"] - made["clear"]).abs().mean((1, 2, 3)).min() > 0.003
    assert made["degraded"].min() >= 0
    assert made["degraded"].max() <= 1


def test_noise_and_jpeg_are_as_strong_as_the_loaders(root: Path) -> None:
    corrupted = replace(QUIET, noise_share=0.5, noise=0.1, jpeg_share=0.5)
    loaded, made = both(mixture(root, SourceSettings("clear", "photos"), augment=corrupted))
    first, second = ((one["degraded"] - one["clear"]).square().mean((1, 2, 3)).sqrt() for one in (loaded, made))
    assert (first < 0.25 / 255).sum() in range(2, 12)
    assert second.numpy() == pytest.approx(first.numpy(), rel=0.25, abs=0.5 / 255)


def test_draws_after_the_weather_equal_the_loaders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, int | None]] = []
    monkeypatch.setattr(
        aug, "corrupt", lambda augment, one, rng: drawn.append(aug.draw_corruption(augment, rng)) or one
    )
    rain, fog = {"weather": "rain", "streaks": "rain"}, {"fog": "pairs"}
    sources = [SourceSettings("rehazed", "pairs")]
    sources += [SourceSettings("synthetic", "photos", **more) for more in ({}, rain, fog)]
    data = mixture(root, *sources, augment=replace(QUIET, noise_share=0.5, jpeg_share=0.5))
    device = batched(data)
    for at in range(len(data)):
        data.sample(5, 0, at)
    mine = [device._draw(5, 0, at) for at in range(len(data))]
    assert {draw.source for draw in mine} == {0, 1, 2, 3}
    assert [(draw.noise, draw.quality) for draw in mine] == drawn


SPREAD = HazeSettings(density=(0.2, 3.0), airlight=(0.6, 1.0), blue=0.3, clear=0.1)


@pytest.mark.parametrize(
    "source",
    [
        SourceSettings("rehazed", "pairs", haze=SPREAD),
        SourceSettings("synthetic", "photos", haze=SPREAD),
        SourceSettings("synthetic", "photos", haze=SPREAD, fog="pairs"),
        SourceSettings("synthetic", "photos", weather="rain", streaks="rain", rain=RainSettings(recorded=0.5)),
    ],
    ids=["rehazed", "haze", "fog", "rain"],
)
def test_weather_has_the_loaders_statistics(root: Path, source: SourceSettings) -> None:
    """Mean colour and spread over pictures, and contrast within them, of 160 samples each."""
    data = mixture(root, source, samples=1000, augment=replace(QUIET, crop=16), short_side=32)
    loaded, made = both(data, 160)
    for of in (
        lambda one: one["degraded"].mean((2, 3)),
        lambda one: (one["degraded"] - one["clear"]).mean((2, 3)),
        # the picture's own transmission, roughly
        lambda one: ((one["degraded"].std((2, 3)) + 0.01) / (one["clear"].std((2, 3)) + 0.01)).log(),
    ):
        first, second = of(loaded), of(made)
        error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
        assert ((first.mean(0) - second.mean(0)).abs() < 4 * error + 1e-3).all()
        assert second.std(0).numpy() == pytest.approx(first.std(0).numpy(), rel=0.3)


def test_true_depth_and_recorded_streaks_belong_to_their_pictures(root: Path) -> None:
    thick = HazeSettings(density=(3.0, 3.5), airlight=(0.9, 0.9), tint=0, patchy=0, linear=0, noise=0)
    plain = replace(Augment.plain(96), flip=0.0)
    data = mixture(root, SourceSettings("synthetic", "photos", haze=thick), augment=plain, samples=40)
    device = batched(data)
    assert list(device.photos[0].maps) == [0]
    keys = [(0, at) for at in range(40)]
    rows = [at for at, key in enumerate(keys) if device._draw(5, *key).item == 0]
    assert rows
    hazy = device.batch(5, keys)["degraded"][rows]
    # far on the left, near on the right: the left is airlight
    left, right = ((hazy[..., part] - 0.9).abs().mean((1, 2, 3)) for part in (slice(0, 30), slice(66, 96)))
    assert (left < 0.05).all()
    assert (right > 3 * left).all()
    alone = RainSettings(recorded=1.0, veil=0, drops=0, clear=0, screen=0, tint=0)
    rainy = SourceSettings("synthetic", "photos", weather="rain", streaks="rain", rain=alone)
    device = batched(mixture(root, rainy, samples=40))
    assert sorted(bank.shape[-2:] for bank in device.photos[0].banks) == [(96, 128), (128, 96)]
    made = device.batch(5, keys)
    assert ((made["degraded"] - made["clear"]).mean((1, 2, 3)) > 0.005).sum() > 35


def test_a_batch_depends_on_seed_and_keys_only(root: Path) -> None:
    sources = [SourceSettings("pairs", "pairs"), SourceSettings("synthetic", "photos")]
    data = mixture(root, *sources, augment=replace(LOUD, noise_share=0.5, jpeg_share=0.3))
    one, two, keys = batched(data), batched(data), [(0, at) for at in range(3, 11)]
    one.batch(5, keys[:2])
    first, second = one.batch(5, keys), two.batch(5, keys)
    assert all(torch.equal(first[side], second[side]) for side in first)
    for others in (one.batch(6, keys), one.batch(5, [(1, at) for at in range(3, 11)])):
        assert not any(torch.equal(first[side], others[side]) for side in first)


def test_shared_photos_are_copied_once_and_memory_is_limited(root: Path) -> None:
    pairs, again = SourceSettings("pairs", "pairs"), SourceSettings("rehazed", "pairs")
    one, two = batched(mixture(root, pairs)), batched(mixture(root, pairs, again))
    assert one.used == 6 * 2 * 96 * 128 * 3
    assert two.used == one.used + 6 * 96 * 128 * 2  # the maps alone
    with pytest.raises(BadSettings, match=r"data\.memory_gib.*data\.short_side.*data\.on_device = false"):
        GPUBatches(mixture(root, pairs), "cpu", one.used - 1)


def test_a_source_with_an_augment_of_its_own_keeps_it(root: Path) -> None:
    own = SourceSettings("clear", "photos", augment={"flip": 1.0, "noise_share": 1.0, "noise": 0.2})
    loaded, made = both(mixture(root, own, SourceSettings("clear", "photos")))
    assert (made["clear"] - loaded["clear"]).abs().max() < ROUNDING
    noisy = [(one["degraded"] != one["clear"]).any(3).any(2).any(1) for one in (loaded, made)]
    assert torch.equal(*noisy)
    assert 4 < noisy[0].sum() < 20


def test_no_tensor_stays_on_the_cpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta", a device without values, a tensor on the CPU is an error as on a GPU; draws have to be faked."""
    sources = [SourceSettings("pairs", "pairs"), SourceSettings("rehazed", "pairs"), SourceSettings("clear", "photos")]
    rain = {"weather": "rain", "streaks": "rain"}
    sources += [SourceSettings("synthetic", "photos", **more) for more in ({}, rain, {"fog": "pairs"})]
    data = mixture(root, *sources, augment=Augment(crop=32, noise_share=0.5, jpeg_share=0.5))
    monkeypatch.setattr(module, "Generator", lambda device: torch.Generator())
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True)
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: torch.zeros(1, 1, dtype=torch.long, device="meta"))
    made = GPUBatches(data, "meta", 2**28).batch(5, [(0, at) for at in range(30)])
    assert {side.device.type for side in made.values()} == {"meta"}
    assert {side.shape for side in made.values()} == {(30, 3, 32, 32)}


def test_known_depth_is_the_loaders(root: Path) -> None:
    """On a device, haze follows the depth map of an RGB-D photo, nearest on the right."""
    for number in range(4):
        ramp = np.linspace(200, 40, 128).astype(np.uint8)[None].repeat(96, 0)
        write_photo(root / "rooms" / "clear" / f"{number}.png", np.full((96, 128, 3), 40 * number, np.uint8))
        write_photo(root / "rooms" / "depth" / f"{number}.png", ramp)
    data = mixture(root, SourceSettings("rgbd", "rooms"), augment=replace(Augment.plain(64), flip=0.0), samples=8)
    loaded, made = both(data, 8)
    assert (made["clear"] - loaded["clear"]).abs().max() < ROUNDING
    rise = (made["degraded"] - made["clear"]).mean((1, 2))
    assert (rise[:, :4].mean(1) > 1.4 * rise[:, -4:].mean(1)).all()
