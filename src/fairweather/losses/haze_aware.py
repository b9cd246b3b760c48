"""More weight where the haze is: masks of haze, and a Charbonnier difference that looks into them a second time.

A mask is N x 1 x H x W in [0,1]: the share of airlight in each pixel, 1 - t. It is soft, because haze is; a threshold
makes it 0 or 1. Masks carry no gradient and are computed in fp32.
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
"""Share of the pixels, by dark channel, whose mean colour is taken for the airlight (He et al., section 4.4)."""
DIMMEST_AIRLIGHT = 0.5
"""Daylight haze is at least this bright. Without the bound a clear, dark crop would count as full of haze."""


@torch.no_grad()
def dark_channel_mask(degraded: Tensor, *, patch: int = 15, threshold: float | None = None) -> Tensor:
    """The haze in N x 3 x H x W photos, from themselves: the dark channel of I / A.

    He, Sun and Tang, Single Image Haze Removal Using Dark Channel Prior, CVPR 2009, eq. 12 (there 1 - t before omega):
    the least of the three channels in the `patch` x `patch` px around each pixel. Raises BadSettings for an even patch.
    """
    if patch < 1 or patch % 2 == 0:
        raise BadSettings(f"the dark channel's patch has a middle pixel: its side is odd, not {patch}")
    photos = degraded.float()
    dark = _least(photos.amin(1, keepdim=True), patch)
    count = max(1, round(BRIGHTEST * dark[0].numel()))
    haziest = dark.flatten(1).topk(count).indices[:, None].expand(-1, 3, -1)
    airlight = photos.flatten(2).gather(2, haziest).mean(2).clamp_min(DIMMEST_AIRLIGHT)
    mask = _least((photos / airlight[:, :, None, None]).amin(1, keepdim=True), patch)
    return _finished(mask, threshold)


@torch.no_grad()
def transmission_mask(degraded: Tensor, clear: Tensor, *, threshold: float | None = None) -> Tensor:
    """The haze between the two photos of N pairs, N x 3 x H x W each: 1 - t by `transmission_of_pair`."""
    with torch.autocast(degraded.device.type, enabled=False):
        transmission, _ = transmission_of_pair(degraded.float(), clear.float())
    return _finished(1 - transmission, threshold)


def haze_aware(output: Tensor, target: Tensor, mask: Tensor, *, inside: float = 0.3) -> Tensor:
    """(1 - inside) times the Charbonnier difference of the whole, plus `inside` times that inside the mask.

    Where the mask is empty the second part is zero.
    """
    return (1 - inside) * charbonnier(output, target) + inside * charbonnier(output, target, mask)


def _least(values: Tensor, patch: int) -> Tensor:
    # The window is cut at the border: max-pooling pads with minus infinity. Rows, then columns: the same, and faster.
    rows = functional.max_pool2d(-values, (1, patch), stride=1, padding=(0, patch // 2))
    return -functional.max_pool2d(rows, (patch, 1), stride=1, padding=(patch // 2, 0))


def _finished(mask: Tensor, threshold: float | None) -> Tensor:
    return mask.clamp(0, 1) if threshold is None else (mask > threshold).float()
