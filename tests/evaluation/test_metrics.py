"""PSNR, SSIM, luma and pooling against values worked out by hand or by an independent reading of the papers."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from fairweather.errors import BadImage, MissingExtra
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


def test_pooling_is_torchs(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    picture = rng.random((51, 38, 3))
    there = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(picture).permute(2, 0, 1), (25, 12))
    assert np.abs(average_pool(picture, 25, 12) - there.permute(1, 2, 0).numpy()).max() < 1e-12


def test_pooling_by_hand() -> None:
    column = np.arange(5.0).reshape(5, 1, 1)
    assert average_pool(column, 2, 1).ravel().tolist() == [1, 3]  # bins 0..2 and 2..4 overlap in the middle


def test_too_small_for_the_window_is_said() -> None:
    with pytest.raises(BadImage, match=r"11 x 11.*10 x 10"):
        ssim(grey(0.1, 10), grey(0.2, 10))


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(BadImage, match=r"16 x 16.*20 x 20"):
        psnr(grey(0.1), grey(0.1, 20))


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"fairweather\[evaluate\]"):
        psnr(grey(0.1), grey(0.2))
