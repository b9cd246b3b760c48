"""Metrics against values computed by hand or by an independent implementation of the papers, and the protocols."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest

from fairweather.errors import BadImage, MissingExtra, UnknownName
from fairweather.evaluation import PROTOCOLS, find_protocol
from fairweather.evaluation.metrics import average_pool, eight_bit, matlab_luma, psnr, ssim


def grey(value: float, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), value, np.float32)


def wang(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel as Wang's ssim_index.m has it: fspecial('gaussian', 11, 1.5), valid windows only."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(a: np.ndarray) -> np.ndarray:
        return (np.lib.stride_tricks.sliding_window_view(a, (11, 11)) * window).sum(axis=(2, 3))

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def test_psnr_by_hand() -> None:
    assert psnr(grey(0.5), grey(0.6)) == pytest.approx(20, abs=1e-4)
    one_channel = grey(0.5)
    one_channel[..., 1] += 0.1
    assert psnr(one_channel, grey(0.5)) == pytest.approx(20 + 10 * math.log10(3), abs=1e-4)
    assert psnr(grey(50), grey(75.5), peak=255) == pytest.approx(20, abs=1e-4)
    assert psnr(grey(0.3), grey(0.3)) == math.inf


def test_ssim_of_flat_pictures_by_hand() -> None:
    a, b, c1 = 0.2, 0.8, 1e-4
    assert ssim(grey(a), grey(b)) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)
    assert ssim(grey(a), grey(a)) == 1


def test_ssim_is_that_of_wang(photo: np.ndarray, rng: np.random.Generator) -> None:
    """The window, its sigma, the border and the covariance: any other setting is off by more than this allows."""
    from skimage.metrics import structural_similarity

    clear = photo / 255.0
    noisy = (clear + rng.normal(0, 0.05, clear.shape)).clip(0, 1)
    ours = ssim(noisy, clear)
    assert ours == pytest.approx(np.mean([wang(noisy[..., c], clear[..., c]) for c in range(3)]), abs=1e-9)
    plain = structural_similarity(clear, noisy, data_range=1, channel_axis=2)  # 7 x 7, uniform: skimage's own default
    assert abs(ours - plain) > 0.01
    assert ssim(noisy * 255, clear * 255, peak=255) == pytest.approx(ours, abs=1e-9)


@pytest.mark.parametrize(
    ("rgb", "luma"),
    [
        ((255, 255, 255), 235),
        ((0, 0, 0), 16),
        ((255, 0, 0), 81),
        ((0, 255, 0), 145),
        ((0, 0, 255), 41),
        ((255, 255, 0), 210),
        ((0, 255, 255), 170),
        ((255, 0, 255), 106),
        ((128, 128, 128), 126),
    ],
)
def test_luma_is_matlabs(rgb: tuple[int, int, int], luma: int) -> None:
    """rgb2ycbcr of the eight corners of the cube: the colour bars of BT.601."""
    assert matlab_luma(np.array([[rgb]], np.uint8))[0, 0] == luma


def test_eight_bit_rounds_half_up_and_clips() -> None:
    values = np.array([-1, 0.49 / 255, 0.5 / 255, 1.5 / 255, 2.5 / 255, 2])
    assert eight_bit(values).tolist() == [0, 0, 1, 2, 3, 255]


def test_pooling_averages_the_bins_of_torch(rng: np.random.Generator) -> None:
    picture = rng.random((51, 38, 3))
    pooled = average_pool(picture, 25, 12)
    for row in range(25):
        for column in range(12):
            rows = slice(row * 51 // 25, math.ceil((row + 1) * 51 / 25))
            columns = slice(column * 38 // 12, math.ceil((column + 1) * 38 / 12))
            assert pooled[row, column] == pytest.approx(picture[rows, columns].mean((0, 1)), abs=1e-12)


def test_pooling_by_hand() -> None:
    column = np.arange(5.0).reshape(5, 1, 1)
    assert average_pool(column, 2, 1).ravel().tolist() == [1, 3]  # bins 0..2 and 2..4 overlap in the middle


def test_pictures_smaller_than_the_window() -> None:
    with pytest.raises(BadImage, match=r"11 x 11.*10 x 10"):
        ssim(grey(0.1, 10), grey(0.2, 10))


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(BadImage, match=r"16 x 16.*20 x 20"):
        psnr(grey(0.1), grey(0.1, 20))


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"fairweather\[evaluate\]"):
        psnr(grey(0.1), grey(0.2))


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
