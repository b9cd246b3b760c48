"""Haze masks, and a Charbonnier loss with extra weight inside them.

A mask is N x 1 x H x W in [0,1], the share of airlight in each pixel, 1 - t; with a threshold it is 0 or 1. Masks carry
no gradient and are computed in fp32.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fairweather.errors import BadSettings
from fairweather.losses.pixel import charbonnier
from fairweather.weather.haze import transmission_of_pair

HazeMask = Literal["dark_channel", "transmission"]

BRIGHTEST = 0.001
"""Share of the pixels, with the brightest dark channel, whose mean is the airlight (He et al., section 4.4)."""
DIMMEST_AIRLIGHT = 0.5
"""Lower bound of the airlight; without it a clear, dark crop would count as hazy."""


@torch.no_grad()
def dark_channel_mask(degraded: Tensor, *, patch: int = 15, threshold: float | None = None) -> Tensor:
    """Mask of the haze in N x 3 x H x W photos: the dark channel of I / A.

    He, Sun and Tang, Single Image Haze Removal Using Dark Channel Prior, CVPR 2009, eq. 12 (there 1 - t before omega):
    the minimum over channels and over `patch` x `patch` pixels. Raises BadSettings for an even patch.
    """
    if patch < 1 or patch % 2 == 0:
        raise BadSettings(f"the side of the dark channel's patch must be odd, got {patch}")
    photos = degraded.float()
    dark = _minimum(photos.amin(1, keepdim=True), patch)
    count = max(1, round(BRIGHTEST * dark[0].numel()))
    haziest = dark.flatten(1).topk(count).indices[:, None].expand(-1, 3, -1)
    airlight = photos.flatten(2).gather(2, haziest).mean(2).clamp_min(DIMMEST_AIRLIGHT)
    mask = _minimum((photos / airlight[:, :, None, None]).amin(1, keepdim=True), patch)
    return _thresholded(mask, threshold)


@torch.no_grad()
def transmission_mask(degraded: Tensor, clear: Tensor, *, threshold: float | None = None) -> Tensor:
    """Mask of the haze between the photos of pairs, N x 3 x H x W each: 1 - t by `transmission_of_pair`."""
    with torch.autocast(degraded.device.type, enabled=False):
        transmission, _ = transmission_of_pair(degraded.float(), clear.float())
    return _thresholded(1 - transmission, threshold)


def haze_aware(output: Tensor, target: Tensor, mask: Tensor, *, inside: float = 0.3) -> Tensor:
    """(1 - inside) times the Charbonnier loss of the whole picture, plus `inside` times that inside the mask.

    The second term is zero for an empty mask.
    """
    return (1 - inside) * charbonnier(output, target) + inside * charbonnier(output, target, mask)


def _minimum(values: Tensor, patch: int) -> Tensor:
    # Max-pooling pads with minus infinity, so windows are cropped at the border. Rows, then columns: faster.
    rows = functional.max_pool2d(-values, (1, patch), stride=1, padding=(0, patch // 2))
    return -functional.max_pool2d(rows, (patch, 1), stride=1, padding=(patch // 2, 0))


def _thresholded(mask: Tensor, threshold: float | None) -> Tensor:
    return mask.clamp(0, 1) if threshold is None else (mask > threshold).float()
