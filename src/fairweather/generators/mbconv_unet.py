"""MBConvUNet, HazeHeal's generator: a U-Net of mobile bottlenecks parallel to plain convolutions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators.layers import as_picture, norm_layer, normalised, upsample

SILU_GAIN = 1.677
"""1 / sqrt(E[SiLU(z)^2]) for a unit normal z: the gain of a convolution after SiLU that preserves variance."""
RELU_GAIN = math.sqrt(2)
"""The same for ReLU (He et al., Delving Deep into Rectifiers, ICCV 2015, section 2.2)."""
HEAD_GAIN = 0.3
"""Gain of the last convolution: first outputs are near grey (or the photo, with `residual`), far from tanh's limits."""


class MBConvUNet(nn.Module):
    """After the description of HazeHeal's generator, with the blocks of Sandler et al., MobileNetV2, CVPR 2018, and
    Tan & Le, EfficientNet, ICML 2019; N x 3 x H x W -> N x 3 x H x W in [0,1]; 18,662,856 parameters.

    Each scale halves by a 4 x 4 convolution, followed by a 3 x 3 convolution and an MBConv block in parallel, fused by
    a 1 x 1 convolution; SiLU (Swish: Ramachandran et al. 2017). The decoder upsamples and joins the skip by a 3 x 3
    convolution, ReLU. The last convolution also takes the photo. Squeeze-and-excitation pools over the whole photo, so
    the network cannot run in tiles.

    Args:
        width: channels of the first scale, at half size; they double from scale to scale, up to eight times `width`.
        levels: number of halvings.
        expansion: channels inside a block as a multiple of its input's.
        squeeze: channels of squeeze-and-excitation as a share of the block's input.
        norm: "batch", "instance" or "none".
        upsampling: "transposed", or "resize", which leaves no checkerboard.
        residual: predict the change to the photo.
    """

    output: Literal["image"] = "image"
    receptive_field: int | None = None

    def __init__(
        self,
        *,
        width: int = 48,
        levels: int = 5,
        expansion: int = 4,
        squeeze: float = 0.25,
        norm: Literal["batch", "instance", "none"] = "batch",
        upsampling: Literal["transposed", "resize"] = "transposed",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if min(width, levels, expansion) < 1:
            raise BadSettings(
                f"mbconv_unet: width, levels and expansion must be at least 1, got {width}, {levels} and {expansion}"
            )
        if not 0 < squeeze <= 1:
            raise BadSettings(f"mbconv_unet: squeeze must be above 0 and at most 1, got {squeeze}")
        # Instance norm needs features larger than 1 x 1.
        self.multiple_of: int = 2 ** (levels + 1) if norm == "instance" else 2**levels
        self.residual = residual
        channels = [min(2**level, 8) * width for level in range(levels)]
        self.encoder = nn.ModuleList(
            Scale(into, out, expansion=expansion, squeeze=squeeze, norm=norm)
            for into, out in zip([3, *channels], channels, strict=False)
        )
        self.decoder = nn.ModuleList(  # from the innermost scale out
            MBConvUp(channels[level + 1], channels[level], norm=norm, upsampling=upsampling)
            for level in reversed(range(levels - 1))
        )
        self.last = nn.Sequential(
            upsample(upsampling, width, width, 4, bias=norm == "none"), norm_layer(norm, width), nn.ReLU()
        )
        self.head = nn.Conv2d(width + 3, 3, 3, padding=1)
        _initialise(self.encoder, SILU_GAIN)
        _initialise(self.decoder, RELU_GAIN)
        _initialise(self.last, RELU_GAIN)
        _initialise(self.head, HEAD_GAIN)

    def forward(self, degraded: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by `multiple_of` -> the same shape and range."""
        photo = features = degraded * 2 - 1
        skips: list[Tensor] = []
        for scale in self.encoder:
            features = scale(features)
            skips.append(features)
        features = skips.pop()
        for up in self.decoder:
            features = up(features, skips.pop())
        features = self.head(torch.cat([self.last(features), photo], 1))
        return as_picture(degraded, features, residual=self.residual, training=self.training)


class Scale(nn.Module):
    """One scale of the encoder: N x into x 2h x 2w -> N x out x h x w."""

    def __init__(self, into: int, out: int, *, expansion: int, squeeze: float, norm: str) -> None:
        super().__init__()
        self.down = normalised(nn.Conv2d(into, out, 4, 2, 1, bias=norm == "none"), norm, nn.SiLU())
        self.plain = normalised(nn.Conv2d(out, out, 3, padding=1, bias=norm == "none"), norm, nn.SiLU())
        self.bottleneck = MBConv(out, expansion=expansion, squeeze=squeeze, norm=norm)
        # No norm here, which preserves the magnitude of features, also with instance norm.
        self.fuse = nn.Sequential(nn.Conv2d(2 * out, out, 1), nn.SiLU())

    def forward(self, features: Tensor) -> Tensor:
        features = self.down(features)
        fused: Tensor = self.fuse(torch.cat([self.plain(features), self.bottleneck(features)], 1))
        return fused


class MBConv(nn.Module):
    """Expand 1 x 1, depthwise 3 x 3, squeeze and excite, project 1 x 1, plus the input, N x C x h x w.

    MobileNetV2's inverted residual (section 3.3; no activation after the projection) with the squeeze-and-excitation
    (Hu et al., CVPR 2018) and the Swish of EfficientNet (section 4).
    """

    def __init__(self, channels: int, *, expansion: int, squeeze: float, norm: str) -> None:
        super().__init__()
        inside, bias = channels * expansion, norm == "none"
        self.expand = normalised(nn.Conv2d(channels, inside, 1, bias=bias), norm, nn.SiLU())
        self.depthwise = normalised(nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=bias), norm, nn.SiLU())
        squeezed = max(1, round(channels * squeeze))
        self.excite = nn.Sequential(
            nn.Conv2d(inside, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, inside, 1), nn.Sigmoid()
        )
        self.project = normalised(nn.Conv2d(inside, channels, 1, bias=bias), norm)

    def forward(self, features: Tensor) -> Tensor:
        inside = self.depthwise(self.expand(features))
        change: Tensor = self.project(inside * self.excite(inside.mean((2, 3), keepdim=True)))
        return features + change


class MBConvUp(nn.Module):
    """One step of the decoder: N x into x h x w and the skip N x out x 2h x 2w -> N x out x 2h x 2w."""

    def __init__(self, into: int, out: int, *, norm: str, upsampling: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.up = nn.Sequential(upsample(upsampling, into, out, 4, bias=bias), norm_layer(norm, out), nn.ReLU())
        self.join = normalised(nn.Conv2d(2 * out, out, 3, padding=1, bias=bias), norm, nn.ReLU())

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.up(features), skip], 1))
        return joined


def _initialise(network: nn.Module, gain: float) -> None:
    """Draw weights from normal(0, gain / sqrt(inputs per output)), set biases to zero, in place.

    With the papers' normal(0, 0.02) a depthwise convolution, of nine inputs per output, divides the signal by sixteen;
    without norms it would vanish.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.in_channels // module.groups * math.prod(module.kernel_size)
            if isinstance(module, nn.ConvTranspose2d):  # each output has every second row and column of the kernel
                inputs //= math.prod(module.stride)
            nn.init.normal_(module.weight, 0.0, gain / math.sqrt(inputs))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
