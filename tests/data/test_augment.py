"""Crops, tone and corruption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fairweather.data import augment as aug
from fairweather.data.augment import Augment
from fairweather.data.datasets import item_rng
from fairweather.errors import BadSettings
from tests.data.conftest import QUIET, scene


def boxes(augment: Augment, height: int = 300, width: int = 400, n: int = 300) -> list[aug.CropBox]:
    return [aug.draw_crop(augment, height, width, item_rng(0, 0, i)) for i in range(n)]


def test_crops_are_inside_the_photo_and_vary() -> None:
    found = boxes(QUIET)
    assert all(0 <= b.top <= b.top + b.height <= 300 and 0 <= b.left <= b.left + b.width <= 400 for b in found)
    assert 0.1 < np.mean([b.height == 300 and b.width == 400 for b in found]) < 0.21  # whole = 0.15
    assert 0.4 < np.mean([b.mirrored for b in found]) < 0.6
    shapes = [b for b in found if b.width != 400]
    assert min(b.height for b in shapes) < 140
    assert max(b.height for b in shapes) > 270
    ratios = [b.width / b.height for b in shapes]
    assert 0.73 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.36


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (33, 7), (32, 32)])
def test_photos_of_any_size_give_samples(height: int, width: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    for augment in (QUIET, Augment.paper(32), Augment.plain(32)):
        for box in boxes(augment, height, width, 20):
            assert aug.crop(picture, box, 32).shape == (32, 32, 3)


def test_crops_are_not_enlarged_beyond_the_setting() -> None:
    augment = replace(QUIET, crop=256, scale=(0.1, 1.0), enlarge=1.25, whole=0, aspect=(1, 1))
    assert min(box.height for box in boxes(augment)) == pytest.approx(256 / 1.25, abs=2)


def test_the_papers_way_is_resize_crop_flip() -> None:
    augment = Augment.paper()
    assert (augment.load_size, augment.crop) == (286, 256)
    found = boxes(augment)
    assert {(b.height, b.width, b.load_size) for b in found} == {(256, 256, 286)}
    assert {b.top for b in found} == set(range(31)) == {b.left for b in found}
    # left edge of the crop in a photo whose green is the column: 286 columns for 400
    box = replace(found[0], left=30, top=0, mirrored=False)
    green = aug.crop(scene(0, 300, 400), box, 256)[0, 0, 1]
    assert int(green) == pytest.approx(30 / 286 * 255, abs=1.5)
    assert aug.draw_tone(augment, item_rng(0))[:, 0, 0] == pytest.approx(np.arange(256) / 255)


def test_a_box_crops_both_sides_and_maps_alike() -> None:
    clear = scene(100, 300, 400)
    depth = (clear[..., 1].astype(np.uint16)) * 257
    for box in boxes(QUIET, n=20):
        first, second = aug.crop(clear, box, 32), aug.crop(clear // 2, box, 32)
        assert np.abs(first.astype(int) - 2 * second.astype(int)).max() <= 3
        assert np.abs(aug.crop(depth, box, 32) / 257 - first[..., 1]).max() <= 1.5


def test_flips() -> None:
    box = aug.CropBox(0, 0, 300, 400, False)
    plain, mirrored = (aug.crop(scene(1, 300, 400), replace(box, mirrored=m), 32) for m in (False, True))
    assert (plain[:, ::-1] == mirrored).all()
    assert plain[0, 0, 1] < plain[0, -1, 1]


def test_tone_is_an_increasing_curve_within_the_range() -> None:
    tables = [aug.draw_tone(replace(QUIET, tone=1), item_rng(i)) for i in range(40)]
    for table in tables:
        assert table.shape == (256, 1, 3)
        assert table.dtype == np.float32
        assert (np.diff(table, axis=0) >= 0).all()
        assert table.min() >= 0
        assert table.max() <= 1
    means = [table.mean() for table in tables]
    assert min(means) < 0.45 < 0.5 < max(means)
    balance = [table[128, 0, 0] / table[128, 0, 2] for table in tables]
    assert 0.01 < np.std(balance) < 0.12


def test_noise_and_jpeg_stay_within_their_range() -> None:
    grey = np.full((64, 64, 3), 0.5, np.float32)
    noisy = aug.corrupt(replace(QUIET, noise=0.1, noise_share=1), grey.copy(), item_rng(3))
    assert 0.0 < noisy.std() < 0.11
    assert aug.corrupt(QUIET, grey.copy(), item_rng(3)).std() == 0
    picture = (
        scene(90, 64, 64).astype(np.float32) / 255 * np.float32(0.5) + item_rng(1).random((64, 64, 3), np.float32) / 4
    )
    errors = [np.abs(aug.jpeg(picture, quality) - picture).mean() for quality in (95, 60, 20)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.1
    red = np.float32([1, 0, 0]) * np.ones((32, 32, 1), np.float32)
    assert aug.jpeg(red, 95)[16, 16] == pytest.approx([1, 0, 0], abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"flip": 1.5}, "flip"),
        ({"scale": (0.9, 0.4)}, "scale"),
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"gamma": (0.0, 1.0)}, "gamma"),
        ({"exposure": (1.0, 0.0)}, "exposure"),
        ({"load_size": 100}, "load_size"),
        ({"crop": 0}, "crop"),
        ({"jpeg": (50, 101)}, "jpeg"),
        ({"noise": float("nan")}, "noise"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(BadSettings, match=named):
        Augment(**wrong)
