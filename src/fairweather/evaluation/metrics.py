"""PSNR and SSIM, and the named protocols under which they are measured.

A score is meaningless without its protocol: colour space, rounding, borders and pooling change it by decibels.
scikit-image (the extra `evaluate`) computes both metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadImage, MissingExtra, UnknownName

METRICS = ("psnr", "ssim")
WINDOW = 11
"""Side of SSIM's Gaussian window, in pixels."""


def psnr(output: NDArray[Any], target: NDArray[Any], *, peak: float = 1.0) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal pictures.

    Args:
        output: H x W or H x W x C floats in [0, peak].
        target: the same.
        peak: the largest value.

    Raises:
        BadImage: the shapes differ.
        MissingExtra: scikit-image is missing.
    """
    _same_shape(output, target)
    if np.array_equal(output, target):
        return float("inf")  # scikit-image divides by zero here, with a warning
    measure = _skimage().peak_signal_noise_ratio
    return float(measure(target.astype(np.float64), output.astype(np.float64), data_range=peak))


def ssim(output: NDArray[Any], target: NDArray[Any], *, peak: float = 1.0) -> float:
    """Return the structural similarity, averaged over pixels and channels; 1 for equal pictures.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004: Gaussian
    window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population (co)variance, only windows entirely inside the
    picture, as in the authors' MATLAB code and pytorch-msssim.

    Args:
        output: H x W or H x W x C floats in [0, peak].
        target: the same.
        peak: the largest value.

    Raises:
        BadImage: the shapes differ, or are below 11 x 11 pixels.
        MissingExtra: scikit-image is missing.
    """
    _same_shape(output, target)
    if min(output.shape[:2]) < WINDOW:
        raise BadImage(
            f"SSIM needs at least {WINDOW} x {WINDOW} pixels, but this picture has {size(output)}: use a larger one"
        )
    value = _skimage().structural_similarity(
        target.astype(np.float64),
        output.astype(np.float64),
        data_range=peak,
        channel_axis=None if output.ndim == 2 else 2,
        gaussian_weights=True,  # scikit-image truncates sigma 1.5 to a window of 11
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def eight_bit(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """Quantize a picture in [0, 1] to 8 bits: clipped, rounded half up."""
    levels: NDArray[np.uint8] = np.floor(np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return levels


def matlab_luma(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the luma of MATLAB's `rgb2ycbcr`: H x W x 3 RGB uint8 -> H x W integers in 16..235.

    ITU-R BT.601: 16 + (65.481 R + 128.553 G + 24.966 B) / 255, rounded half up as `rgb2ycbcr` does for uint8.
    """
    weights = np.array([65.481, 128.553, 24.966]) / 255
    luma: NDArray[np.float64] = np.floor(16 + pixels.astype(np.float64) @ weights + 0.5)
    return luma


def average_pool(picture: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """Average H x W x C over bins to height x width x C, as torch's `adaptive_avg_pool2d`.

    Bin i of n over N pixels is [floor(i N / n), ceil((i + 1) N / n)); bins may overlap.
    """
    pooled = picture.astype(np.float64)
    for axis, count in ((0, height), (1, width)):
        side = pooled.shape[axis]
        start = np.arange(count) * side // count
        stop = -(-(np.arange(count) + 1) * side // count)
        total = np.cumsum(pooled, axis=axis)
        total = np.concatenate([np.zeros_like(np.take(total, [0], axis=axis)), total], axis=axis)
        bins = np.take(total, stop, axis=axis) - np.take(total, start, axis=axis)
        pooled = bins / (stop - start).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    return pooled


def size(picture: NDArray[Any]) -> str:
    """Return "width x height"."""
    return f"{picture.shape[1]} x {picture.shape[0]}"


def _same_shape(output: NDArray[Any], target: NDArray[Any]) -> None:
    if output.shape != target.shape:
        raise BadImage(
            f"a picture of {size(output)} cannot be compared with one of {size(target)} pixels: use equal sizes"
        )


def _skimage() -> Any:
    try:
        from skimage import metrics
    except ImportError:
        raise MissingExtra("scikit-image", "evaluate", "measuring PSNR and SSIM") from None
    return metrics


@dataclass(frozen=True)
class Protocol:
    """A named way to compare a restored picture with the truth: colour space, rounding, border and pooling."""

    name: str
    description: str
    """The definition of the measurement, in one sentence."""
    source: str
    """The publications or code that define it."""
    colour: Literal["rgb", "luma"] = "rgb"
    """`luma` is MATLAB's rounded BT.601 luma of pictures rounded to 8 bits, with a peak of 255."""
    border: int = 0
    """Pixels cropped from each side of a truth that is larger by exactly this border."""
    pooled: bool = False
    """Whether SSIM is measured after average pooling of the short side to about 256 pixels."""

    def measure(self, output: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
        """Measure one picture.

        Args:
            output: H x W x 3 floats; clipped to [0, 1].
            target: the same.

        Returns:
            {"psnr": dB, "ssim": 0..1}.

        Raises:
            BadImage: another shape or dtype, sizes that differ by more than the border, or NaN.
            MissingExtra: scikit-image is missing.
        """
        output, target = self._checked("output", output), self._checked("truth", target)
        target = self.aligned(output, target)
        if self.colour == "luma":
            left, right = matlab_luma(eight_bit(output)), matlab_luma(eight_bit(target))
            return {"psnr": psnr(left, right, peak=255), "ssim": ssim(left, right, peak=255)}
        scores = {"psnr": psnr(output, target)}
        if self.pooled:
            output, target = _pooled(output), _pooled(target)
        scores["ssim"] = ssim(output, target)
        return scores

    def aligned(self, output: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
        """Return the truth at the output's size, without its border.

        Raises:
            BadImage: the sizes differ by anything else.
        """
        if output.shape == target.shape:
            return target
        b = self.border
        if b and target.shape[:2] == (output.shape[0] + 2 * b, output.shape[1] + 2 * b):
            return target[b:-b, b:-b]
        rule = f" (protocol {self.name} allows a border of {b} around the truth)" if b else ""
        raise BadImage(f"the output is {size(output)} pixels and the truth {size(target)}{rule}: use equal sizes")

    @staticmethod
    def _checked(what: str, picture: NDArray[Any]) -> NDArray[Any]:
        picture = np.asarray(picture)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype.kind != "f":
            raise BadImage(f"the {what} is {picture.dtype} {picture.shape}: give H x W x 3 floats in [0, 1]")
        if not np.isfinite(picture).all():
            raise BadImage(f"the {what} contains NaN or Inf: check the model or file that it comes from")
        return picture.clip(0, 1)


def _pooled(picture: NDArray[Any]) -> NDArray[Any]:
    height, width = picture.shape[:2]
    ratio = max(1, round(min(height, width) / 256))
    return average_pool(picture, height // ratio, width // ratio) if ratio > 1 else picture


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "rgb",
            "float32 straight from the restorer at full size, no rounding; PSNR over RGB; SSIM per channel with a "
            "gaussian window (11, sigma 1.5); mean over photos",
            "this project; PSNR as in gUNet's and FFA-Net's test code, SSIM as in Wang et al., IEEE TIP 2004",
        ),
        Protocol(
            "sots-indoor",
            "as rgb, after 10 pixels are cut from every side of a truth that is 20 pixels larger: RESIDE's clear "
            "indoor photos are 640 x 480 and the hazy ones 620 x 460",
            "Qin et al., FFA-Net, AAAI 2020: CenterCrop in net/data_utils.py; Li et al., RESIDE, IEEE TIP 2019",
            border=10,
        ),
        Protocol(
            "rain-y",
            "both rounded to 8 bit, MATLAB's rgb2ycbcr luma (BT.601, 16..235, rounded), PSNR with peak 255, SSIM with "
            "a gaussian window (11, sigma 1.5); mean over photos",
            "Zamir et al., MPRNet, CVPR 2021: Deraining/evaluate_PSNR_SSIM.m, which most deraining papers follow",
            colour="luma",
        ),
        Protocol(
            "gunet",
            "as rgb, but SSIM after both are average-pooled by max(1, round(min(height, width) / 256))",
            "Song et al., gUNet (Rethinking Performance Gains in Image Dehazing Networks), 2022: test.py, after Zhou "
            "Wang's advice; the same lines are in DehazeFormer, IEEE TIP 2023",
            pooled=True,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UnknownName: there is no such protocol; the message lists all.
    """
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
