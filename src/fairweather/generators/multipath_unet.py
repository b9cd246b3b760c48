"""MultipathUNet: a U-Net with several encoders of different dilation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators.layers import as_picture, initialise, norm_layer, normalised, upsample


class MultipathUNet(nn.Module):
    """After Dolz, Ben Ayed & Desrosiers, Dense Multi-path U-Net, arXiv:1810.07003 (2018), where every path has its own
    encoder and paths are dilated; N x 3 x H x W -> N x 3 x H x W in [0,1]; 13,078,563 parameters.

    Their paths take different imaging modalities; ours all take the photo and differ in their receptive fields, as the
    streams of Zhang & Patel, Density-aware Single Image De-raining, CVPR 2018, do for rain streaks of different size.
    A path convolves at full size and then at each scale, with a 4 x 4 convolution of stride 2 and a dilated one,
    LeakyReLU 0.2. At every scale a 1 x 1 convolution fuses the paths, for the skips of a single decoder, ReLU.

    Args:
        width: channels of each path at full size; they double from scale to scale, up to eight times `width`.
        levels: number of halvings.
        paths: dilation of each path's 3 x 3 convolutions: (1, 2, 3) span 3, 5 and 7 pixels.
        norm: "batch" or "instance".
        upsampling: "transposed", or "resize", which leaves no checkerboard.
        dropout: probability after all but the last step of the decoder, in training.
        residual: predict the change to the photo.
    """

    output: Literal["image"] = "image"

    def __init__(
        self,
        *,
        width: int = 32,
        levels: int = 4,
        paths: Sequence[int] = (1, 2, 3),
        norm: Literal["batch", "instance"] = "batch",
        upsampling: Literal["transposed", "resize"] = "transposed",
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if levels < 1 or width < 1:
            raise BadSettings(f"multipath_unet: levels and width must be at least 1, got {levels} and {width}")
        if not paths or min(paths) < 1:
            raise BadSettings(f"multipath_unet: paths must be one or more dilations from 1, got {list(paths)}")
        if not 0 <= dropout < 1:
            raise BadSettings(f"multipath_unet: dropout must be at least 0 and below 1, got {dropout}")
        # Instance norm needs features larger than 1 x 1.
        self.multiple_of: int = 2 ** (levels + 1) if norm == "instance" else 2**levels
        self.receptive_field: int | None = receptive_field(levels, max(paths)) if norm == "batch" else None
        self.residual = residual
        channels = [min(2**level, 8) * width for level in range(levels + 1)]
        self.paths = nn.ModuleList(_path(channels, dilation, norm) for dilation in paths)
        self.fusions = nn.ModuleList(
            normalised(nn.Conv2d(len(paths) * out, out, 1, bias=False), norm, nn.LeakyReLU(0.2)) for out in channels
        )
        self.decoder = nn.ModuleList(  # from the innermost scale out
            MultipathUp(channels[level + 1], channels[level], norm, upsampling, dropout if level else 0.0)
            for level in reversed(range(levels))
        )
        self.head = nn.Conv2d(width, 3, 3, padding=1)
        initialise(self)

    def forward(self, degraded: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by `multiple_of` -> the same shape and range."""
        features = [degraded * 2 - 1] * len(self.paths)
        skips: list[Tensor] = []
        for level, fuse in enumerate(self.fusions):
            features = [cast(nn.ModuleList, path)[level](x) for path, x in zip(self.paths, features, strict=True)]
            skips.append(fuse(torch.cat(features, 1)))
        x = skips.pop()
        for up in self.decoder:
            x = up(x, skips.pop())
        return as_picture(degraded, self.head(x), residual=self.residual, training=self.training)


class MultipathUp(nn.Module):
    """One step of the decoder: N x into x h x w and the skip N x out x 2h x 2w -> N x out x 2h x 2w."""

    def __init__(self, into: int, out: int, norm: str, upsampling: str, dropout: float) -> None:
        super().__init__()
        self.up = nn.Sequential(upsample(upsampling, into, out, 4, bias=False), norm_layer(norm, out), nn.ReLU())
        self.join = normalised(nn.Conv2d(2 * out, out, 3, padding=1, bias=False), norm, nn.ReLU(), nn.Dropout(dropout))

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.up(features), skip], 1))
        return joined


def receptive_field(levels: int, dilation: int) -> int:
    """Side in pixels of the smallest window, centred on any output pixel, with all inputs that it depends on.

    `dilation` is the widest path's. Half the side, rounded down, is the halo of tiles that start at multiples of
    `2**levels`.
    """
    reach = 0
    for pixel in range(2**levels):
        first, last = pixel - 1, pixel + 1  # the head
        for _ in range(levels):  # the joining convolution; then up, where o depends on (o - 2) / 2 ... (o + 1) / 2
            first, last = first - 1, last + 1
            first, last = -((2 - first) // 2), (last + 1) // 2
        for _ in range(levels):  # the dilated convolution; then down, where j depends on 2j - 1 ... 2j + 2
            first, last = first - dilation, last + dilation
            first, last = 2 * first - 1, 2 * last + 2
        # Paths through the skips are shorter.
        reach = max(reach, pixel - first + dilation, last - pixel + dilation)
    return 2 * reach + 1


def _path(channels: list[int], dilation: int, norm: str) -> nn.ModuleList:
    """The stages of one encoder, the first at full size."""

    def dilated(into: int, out: int, *, bias: bool = False) -> nn.Conv2d:
        return nn.Conv2d(into, out, 3, padding=dilation, dilation=dilation, bias=bias)

    # No norm in the first stage, as in pix2pix: it would remove the brightness of the photo.
    stages = nn.ModuleList([nn.Sequential(dilated(3, channels[0], bias=True), nn.LeakyReLU(0.2))])
    for into, out in pairwise(channels):
        down = nn.Conv2d(into, out, 4, stride=2, padding=1, bias=False)
        stages.append(
            nn.Sequential(
                *normalised(down, norm, nn.LeakyReLU(0.2)),
                *normalised(dilated(out, out), norm, nn.LeakyReLU(0.2)),
            )
        )
    return stages
