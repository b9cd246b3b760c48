"""The named ways to compare a restored picture with the truth; a score is worth nothing without one of these names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadImage, UnknownName
from fairweather.evaluation.metrics import average_pool, eight_bit, matlab_luma, psnr, size, ssim

METRICS = ("psnr", "ssim")


@dataclass(frozen=True)
class Protocol:
    """What is measured, and on what: colour space, rounding, border, pooling. SSIM's window is always that of Wang."""

    name: str
    description: str
    """In one sentence, all that somebody needs to repeat the measurement."""
    source: str
    """Whose rule this is."""
    colour: Literal["rgb", "luma"] = "rgb"
    """``luma`` is MATLAB's BT.601 luma of pictures rounded to 8 bit, itself rounded, with a peak of 255."""
    border: int = 0
    """A truth that is larger by exactly this many pixels on every side loses them."""
    pooled: bool = False
    """Whether SSIM is measured after average pooling that brings the short side towards 256 pixels."""

    def measure(self, output: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
        """{"psnr": dB, "ssim": 0..1} of one picture.

        output, target: H x W x 3 floats in [0,1]; values outside are clipped, as every display would.
        Raises BadImage for other shapes, for sizes that differ beyond the border rule, and for NaN.
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
        """The truth at the output's size, by the border rule; raises BadImage, naming both sizes, where that fails."""
        if output.shape == target.shape:
            return target
        b = self.border
        if b and target.shape[:2] == (output.shape[0] + 2 * b, output.shape[1] + 2 * b):
            return target[b:-b, b:-b]
        rule = f" (protocol {self.name} takes only a truth with a border of {b})" if b else ""
        raise BadImage(f"the output is {size(output)} pixels and the truth {size(target)}{rule}; they must be equal")

    @staticmethod
    def _checked(what: str, picture: NDArray[Any]) -> NDArray[Any]:
        picture = np.asarray(picture)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype.kind != "f":
            raise BadImage(f"the {what} is {picture.dtype} {picture.shape}; scores want H x W x 3 floats in [0,1]")
        if not np.isfinite(picture).all():
            raise BadImage(f"the {what} holds values that are not numbers (NaN or infinity)")
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
    """The protocol of that name; UnknownName lists them all."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
