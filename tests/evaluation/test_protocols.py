"""The protocols, and the known differences between them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fairweather.errors import BadImage, UnknownName
from fairweather.evaluation import PROTOCOLS, find_protocol
from fairweather.evaluation.metrics import psnr, ssim


@pytest.fixture
def truth(photo: np.ndarray) -> np.ndarray:
    return photo.astype(np.float32) / 255


def test_luma_reads_higher_than_rgb_by_what_its_range_says(truth: np.ndarray) -> None:
    """A grey error shrinks by 219 / 255 on the way to luma while the peak stays 255: 1.32 dB, for no better picture."""
    truth = truth * 0.8 + 0.1
    rained = truth + 20 / 255 * (np.random.default_rng(1).random(truth.shape[:2]) > 0.7)[..., None].astype(np.float32)
    rgb, luma = PROTOCOLS["rgb"].measure(rained, truth), PROTOCOLS["rain-y"].measure(rained, truth)
    assert luma["psnr"] - rgb["psnr"] == pytest.approx(20 * math.log10(255 / 219), abs=0.05)


def test_luma_hardly_sees_an_error_in_blue(truth: np.ndarray) -> None:
    tinted = truth * 0.8
    blue = tinted.copy()
    blue[..., 2] += 0.1
    assert PROTOCOLS["rain-y"].measure(blue, tinted)["psnr"] > PROTOCOLS["rgb"].measure(blue, tinted)["psnr"] + 14


def test_rgb_does_not_round_and_rain_y_does(truth: np.ndarray) -> None:
    truth = np.round(truth * 255).astype(np.float32) / 255
    slightly = (truth * 0.9).astype(np.float32)
    slightly = np.round(slightly * 255).astype(np.float32) / 255
    output = slightly + np.float32(0.4 / 255)
    assert PROTOCOLS["rgb"].measure(output, slightly)["psnr"] == pytest.approx(20 * math.log10(255 / 0.4), abs=0.01)
    assert PROTOCOLS["rain-y"].measure(output, slightly) == {"psnr": math.inf, "ssim": 1.0}


def test_gunet_pools_large_pictures_before_ssim_and_nothing_else(rng: np.random.Generator) -> None:
    small = rng.random((383, 400, 3)).astype(np.float32) * 0.5 + 0.25
    large = rng.random((385, 400, 3)).astype(np.float32) * 0.5 + 0.25  # round(385 / 256) is 2
    for truth, pooled in ((small, False), (large, True)):
        output = truth + rng.normal(0, 0.05, truth.shape).astype(np.float32)
        plain, gunet = PROTOCOLS["rgb"].measure(output, truth), PROTOCOLS["gunet"].measure(output, truth)
        assert gunet["psnr"] == plain["psnr"]
        assert (gunet["ssim"] != plain["ssim"]) is pooled


def test_gunet_pools_whole_bins_exactly(rng: np.random.Generator) -> None:
    truth = rng.random((512, 520, 3)).astype(np.float32)
    output = (truth + 0.2 * rng.random(truth.shape).astype(np.float32)).clip(0, 1)
    halves = [p.reshape(256, 2, 260, 2, 3).mean(axis=(1, 3)) for p in (output, truth)]
    assert PROTOCOLS["gunet"].measure(output, truth)["ssim"] == pytest.approx(ssim(*halves), abs=1e-6)


def test_the_border_of_resides_indoor_photos(rng: np.random.Generator) -> None:
    large = rng.random((480, 640, 3)).astype(np.float32)
    output = (large[10:-10, 10:-10] + 0.05).clip(0, 1)
    inner = PROTOCOLS["sots-indoor"].measure(output, large)
    assert inner["psnr"] == pytest.approx(psnr(output, large[10:470, 10:630]))
    assert PROTOCOLS["sots-indoor"].measure(output, large[10:-10, 10:-10]) == inner  # already cropped: the same
    with pytest.raises(BadImage, match=r"620 x 460.*640 x 480"):
        PROTOCOLS["rgb"].measure(output, large)
    with pytest.raises(BadImage, match="border of 10"):
        PROTOCOLS["sots-indoor"].measure(output[:-1], large)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_documented_and_frozen(name: str, truth: np.ndarray) -> None:
    protocol = find_protocol(name)
    assert protocol.name == name
    assert len(protocol.description) > 40
    assert any(year in protocol.source for year in ("2004", "2019", "2020", "2021", "2022"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.border = 3  # type: ignore[misc]
    assert protocol.measure(truth, truth) == {"psnr": math.inf, "ssim": pytest.approx(1)}


def test_values_outside_are_clipped(truth: np.ndarray) -> None:
    wild = np.where(truth > 0.7, 3.0, truth).astype(np.float32)
    assert PROTOCOLS["rgb"].measure(wild, truth) == PROTOCOLS["rgb"].measure(wild.clip(0, 1), truth)


def test_what_cannot_be_measured(truth: np.ndarray) -> None:
    broken = truth.copy()
    broken[3, 3] = np.nan
    with pytest.raises(BadImage, match="NaN"):
        PROTOCOLS["rgb"].measure(broken, truth)
    with pytest.raises(BadImage, match="uint8"):
        PROTOCOLS["rgb"].measure((truth * 255).astype(np.uint8), truth)


def test_an_unknown_protocol_lists_the_known() -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'gunet'.*rain-y.*rgb.*sots-indoor"):
        find_protocol("gunets")
