"""HazeHeal's U-Net: mobile bottlenecks beside plain convolutions at every scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators.layers import NORMS, as_picture, norm_layer, upsample

SILU_GAIN = 1.677
"""1 / sqrt(E[SiLU(z)^2]) of a unit normal z: what keeps a signal's size through a convolution that SiLU feeds."""
RELU_GAIN = math.sqrt(2)
"""The same for ReLU (He et al., Delving Deep into Rectifiers, ICCV 2015, section 2.2)."""
HEAD_GAIN = 0.3
"""The last convolution's: the first answers are near grey (or the photo, with `residual`), far from tanh's ends."""


class MBConvUNet(nn.Module):
    """After HazeHeal's description of its generator, of the blocks of Sandler et al., MobileNetV2, CVPR 2018, and
    Tan & Le, EfficientNet, ICML 2019; N x 3 x H x W -> N x 3 x H x W in [0,1]; 18,662,856 parameters.

    A U-Net of `levels` scales, the first at half size. A scale halves by a 4 x 4 convolution and goes two ways side by
    side, a plain 3 x 3 convolution and an MBConv block, whose outputs a 1 x 1 convolution fuses; its activation is SiLU
    (Swish: Ramachandran et al. 2017). The decoder doubles (see `upsample`) and joins the skip with a 3 x 3 convolution,
    ReLU; the last convolution sees the photo itself too. `width` is the channels of the first scale; they double from
    scale to scale up to eight times that. `expansion` is how many times wider a block is inside, `squeeze` the channels
    of its squeeze-and-excitation as a share of its input's. `norm` "none" leans on the initial weights alone.

    Squeeze-and-excitation pools over the whole photo, so the network cannot go over it in tiles.
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
            raise BadSettings(f"width, levels and expansion must be at least 1, got {width}, {levels} and {expansion}")
        if not 0 < squeeze <= 1:
            raise BadSettings(f"squeeze must be above 0 and at most 1, got {squeeze}")
        # Instance norm has nothing to measure in features of 1 x 1.
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
            upsample(upsampling, width, width, 4, bias=norm == "none"), _norm(norm, width), nn.ReLU()
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
        for rise in self.decoder:
            features = rise(features, skips.pop())
        features = self.head(torch.cat([self.last(features), photo], 1))
        return as_picture(degraded, features, residual=self.residual, training=self.training)


class Scale(nn.Module):
    """One scale of the encoder: n x into x 2h x 2w -> n x out x h x w."""

    def __init__(self, into: int, out: int, *, expansion: int, squeeze: float, norm: str) -> None:
        super().__init__()
        self.down = _normalised(nn.Conv2d(into, out, 4, 2, 1, bias=norm == "none"), norm, nn.SiLU())
        self.plain = _normalised(nn.Conv2d(out, out, 3, padding=1, bias=norm == "none"), norm, nn.SiLU())
        self.bottleneck = MBConv(out, expansion=expansion, squeeze=squeeze, norm=norm)
        # No norm here: what the block hands through keeps its size, also under instance norm.
        self.fuse = nn.Sequential(nn.Conv2d(2 * out, out, 1), nn.SiLU())

    def forward(self, features: Tensor) -> Tensor:
        features = self.down(features)
        fused: Tensor = self.fuse(torch.cat([self.plain(features), self.bottleneck(features)], 1))
        return fused


class MBConv(nn.Module):
    """Expand 1 x 1, depthwise 3 x 3, squeeze and excite, project 1 x 1, plus the input: n x c x h x w -> the same.

    MobileNetV2's inverted residual (section 3.3; no activation after the projection) with the squeeze-and-excitation
    (Hu et al., CVPR 2018) and the Swish of EfficientNet (section 4).
    """

    def __init__(self, channels: int, *, expansion: int, squeeze: float, norm: str) -> None:
        super().__init__()
        inside, bias = channels * expansion, norm == "none"
        self.expand = _normalised(nn.Conv2d(channels, inside, 1, bias=bias), norm, nn.SiLU())
        self.depthwise = _normalised(nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=bias), norm, nn.SiLU())
        squeezed = max(1, round(channels * squeeze))
        self.excite = nn.Sequential(
            nn.Conv2d(inside, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, inside, 1), nn.Sigmoid()
        )
        self.project = _normalised(nn.Conv2d(inside, channels, 1, bias=bias), norm)

    def forward(self, features: Tensor) -> Tensor:
        inside = self.depthwise(self.expand(features))
        change: Tensor = self.project(inside * self.excite(inside.mean((2, 3), keepdim=True)))
        return features + change


class MBConvUp(nn.Module):
    """One step of the decoder: n x into x h x w and the skip n x out x 2h x 2w -> n x out x 2h x 2w."""

    def __init__(self, into: int, out: int, *, norm: str, upsampling: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.up = nn.Sequential(upsample(upsampling, into, out, 4, bias=bias), _norm(norm, out), nn.ReLU())
        self.join = _normalised(nn.Conv2d(2 * out, out, 3, padding=1, bias=bias), norm, nn.ReLU())

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.up(features), skip], 1))
        return joined


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    if norm not in NORMS:
        raise UnknownName("norm", norm, (*NORMS, "none"))
    return norm_layer(norm, channels)


def _normalised(convolution: nn.Conv2d, norm: str, *activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution, _norm(norm, convolution.out_channels), *activation)


def _initialise(network: nn.Module, gain: float) -> None:
    """Weights from normal(0, gain / sqrt(inputs that one output sees)), biases zero, in place.

    With the papers' normal(0, 0.02) a depthwise convolution, which sees nine values, divides its signal by sixteen;
    without norms nothing would be left of it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            seen = module.in_channels // module.groups * math.prod(module.kernel_size)
            if isinstance(module, nn.ConvTranspose2d):  # each output is reached by every second row and column
                seen //= math.prod(module.stride)
            nn.init.normal_(module.weight, 0.0, gain / math.sqrt(seen))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
