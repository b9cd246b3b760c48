"""The U-Net of pix2pix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators.layers import as_picture, initialise, norm_layer, upsample


class UNet(nn.Module):
    """Isola et al., Image-to-Image Translation with Conditional Adversarial Networks (pix2pix), CVPR 2017, section 6.1;
    N x 3 x H x W -> N x 3 x H x W in [0,1]; 54,413,955 parameters.

    Encoder C64-C128-C256-C512 x 5, decoder CD512 x 3-C512-C256-C128-C64-C3: 4 x 4 convolutions of stride 2,
    LeakyReLU 0.2 on the way down, ReLU on the way up, a skip at every level, a final tanh. Not the paper's: at
    inference there is no dropout, and batch norm uses its running statistics, so that results are deterministic.

    Args:
        levels: number of halvings.
        width: channels of the first level; they double from level to level, up to eight times `width`.
        norm: "batch" or "instance".
        dropout: probability in the first three levels of the decoder, in training.
        upsampling: "transposed" (the paper's), or "resize", which leaves no checkerboard.
        residual: predict the change to the photo (not the paper's).
    """

    output: Literal["image"] = "image"

    def __init__(
        self,
        *,
        levels: int = 8,
        width: int = 64,
        norm: Literal["batch", "instance"] = "batch",
        dropout: float = 0.5,
        upsampling: Literal["transposed", "resize"] = "transposed",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if levels < 1 or width < 1:
            raise BadSettings(f"unet: levels and width must be at least 1, got {levels} and {width}")
        if not 0 <= dropout < 1:
            raise BadSettings(f"unet: dropout must be at least 0 and below 1, got {dropout}")
        self.multiple_of: int = 2**levels
        self.receptive_field: int | None = receptive_field(levels) if norm == "batch" else None
        channels = [min(2**level, 8) * width for level in range(levels)]
        # Both norms cancel a bias; the paper's code keeps it for instance norm.
        bias = norm != "batch"

        self.encoder = nn.ModuleList()
        for level in range(levels):
            layers: list[nn.Module] = []
            if level > 0:
                layers.append(nn.LeakyReLU(0.2))
            into = channels[level - 1] if level > 0 else 3
            layers.append(nn.Conv2d(into, channels[level], 4, stride=2, padding=1, bias=bias))
            # No norm in the outermost level, as in the paper, nor in the innermost: its features may be 1 x 1, and a
            # single value minus its mean is zero.
            if 0 < level < levels - 1:
                layers.append(norm_layer(norm, channels[level]))
            self.encoder.append(nn.Sequential(*layers))

        self.decoder = nn.ModuleList()  # from the innermost level out
        for level in reversed(range(levels)):
            into = channels[level] * (1 if level == levels - 1 else 2)
            if level == 0:
                self.decoder.append(nn.Sequential(nn.ReLU(), upsample(upsampling, into, 3, 4)))
                break
            layers = [
                nn.ReLU(),
                upsample(upsampling, into, channels[level - 1], 4, bias=bias),
                norm_layer(norm, channels[level - 1]),
            ]
            if level > levels - 4:
                layers.append(nn.Dropout(dropout))
            self.decoder.append(nn.Sequential(*layers))
        self.residual = residual
        initialise(self)

    def forward(self, degraded: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by `multiple_of` -> the same shape and range."""
        features = degraded * 2 - 1
        skips: list[Tensor] = []
        for down in self.encoder:
            features = down(features)
            skips.append(features)
        features = skips.pop()
        for up in self.decoder[:-1]:
            features = torch.cat([skips.pop(), up(features)], dim=1)
        return as_picture(degraded, self.decoder[-1](features), residual=self.residual, training=self.training)


def receptive_field(levels: int) -> int:
    """Side in pixels of the smallest window, centred on any output pixel, with all inputs that it depends on.

    Half of it, rounded down, is the halo of tiles that start at multiples of `2**levels`.
    """
    reach = 0
    for pixel in range(2**levels):
        first = last = pixel
        for _ in range(levels):  # up: output o of the transposed convolution depends on (o - 2) / 2 ... (o + 1) / 2
            first, last = -((2 - first) // 2), (last + 1) // 2
        for _ in range(levels):  # down: output j of the 4 x 4 convolution depends on 2j - 1 ... 2j + 2
            first, last = 2 * first - 1, 2 * last + 2
        # Paths through the skips are shorter.
        reach = max(reach, pixel - first, last - pixel)
    return 2 * reach + 1
