"""gUNet: a small U-Net of gated convolutions for dehazing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators.layers import add_change


class GUNet(nn.Module):
    """Song, Zhou, Qian & Du, Rethinking Performance Gains in Image Dehazing Networks, 2022 (arXiv:2209.11448),
    figure 2; N x 3 x H x W -> N x 3 x H x W in [0,1]; 844,899 parameters (their gUNet-T has 805 K).

    Skips and decoder are fused by a softmax per channel (SK fusion, after Li et al., SKNet, CVPR 2019), which pools
    over the whole photo, so the network cannot run in tiles. The network predicts the change to the photo. Not the
    paper's: borders are padded by repetition instead of reflection, which is undefined for features of 1 x 1.

    Args:
        width: channels of the finest scale; they double from scale to scale.
        depths: blocks of each stage, down and up again; an odd number of stages.
        kernel: side of the depthwise convolutions, odd.
    """

    output: Literal["image"] = "image"
    receptive_field: int | None = None

    def __init__(self, *, width: int = 24, depths: Sequence[int] = (2, 2, 2, 4, 2, 2, 2), kernel: int = 5) -> None:
        super().__init__()
        if len(depths) % 2 == 0 or min(depths) < 0 or width < 1 or kernel % 2 == 0:
            raise BadSettings(
                f"gunet needs an odd number of depths, a width of at least 1 and an odd kernel, got {list(depths)}, "
                f"{width} and {kernel}"
            )
        levels = len(depths) // 2
        widths = [width * 2**level for level in range(levels + 1)]
        self.multiple_of = 2**levels
        self.stem = nn.Conv2d(3, width, 3, padding=1, padding_mode="replicate")
        self.encoder = nn.ModuleList(_stage(w, n, kernel) for w, n in zip(widths, depths, strict=False))
        self.down = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, 2) for w in widths[:-1])
        self.up = nn.ModuleList(nn.Conv2d(2 * w, 4 * w, 1) for w in widths[:-1])
        self.skip = nn.ModuleList(nn.Conv2d(w, w, 1) for w in widths[:-1])
        self.fuse = nn.ModuleList(SelectiveFusion(w) for w in widths[:-1])
        self.decoder = nn.ModuleList(
            _stage(w, n, kernel) for w, n in zip(widths, reversed(depths[levels + 1 :]), strict=False)
        )
        self.head = nn.Conv2d(width, 3, 3, padding=1, padding_mode="replicate")
        nn.init.normal_(self.head.weight, std=1e-3)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, degraded: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by `multiple_of` -> the same shape and range."""
        x = self.stem(degraded)
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.down))):
            x = F.pixel_shuffle(self.up[level](x), 2)
            x = self.decoder[level](self.fuse[level](x, self.skip[level](skips[level])))
        return add_change(degraded, self.head(x).to(degraded.dtype), training=self.training)


class Gated(nn.Module):
    """The paper's gConv block, x + project(depthwise(mix(norm(x))) * sigmoid(gate(norm(x)))), N x C x h x w."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, padding_mode="replicate")
        self.gate = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        changed: Tensor = x + self.project(self.depthwise(self.mix(normed)) * torch.sigmoid(self.gate(normed)))
        return changed


class SelectiveFusion(nn.Module):
    """Two feature maps N x C x h x w -> one: a weighted mean, with a softmax per channel of both maps' global means."""

    def __init__(self, width: int, reduction: int = 8) -> None:
        super().__init__()
        inside = max(width // reduction, 4)
        self.choose = nn.Sequential(
            nn.Conv2d(width, inside, 1, bias=False), nn.ReLU(), nn.Conv2d(inside, 2 * width, 1, bias=False)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        scores = self.choose((first + second).mean((2, 3), keepdim=True))
        # The softmax of two values is a sigmoid of their difference.
        share = torch.sigmoid(scores[:, : first.shape[1]] - scores[:, first.shape[1] :])
        return second + share * (first - second)


def _stage(width: int, blocks: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*(Gated(width, kernel) for _ in range(blocks)))
