"""The residual generators of CycleGAN, with nine blocks and with six."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators.layers import as_picture, initialise, upsample


class ResNet9(nn.Module):
    """Zhu et al., Unpaired Image-to-Image Translation (CycleGAN), ICCV 2017, section 7.2, for 256 px and above;
    N x 3 x H x W -> N x 3 x H x W in [0,1]; 11,378,179 parameters.

    c7s1-64, d128, d256, nine R256, u128, u64, c7s1-3: reflection padding, instance norm without parameters, ReLU and
    a final tanh.

    Args:
        width: channels of the first layer.
        blocks: residual blocks.
        upsampling: "transposed" (the paper's), or "resize", which leaves no checkerboard.
        residual: predict the change to the photo (not the paper's).
    """

    output: Literal["image"] = "image"
    # 4 by the strides; 8, since reflection and instance norm need features of at least 2 x 2.
    multiple_of: int = 8
    receptive_field: int | None = None  # instance norm depends on the whole picture

    def __init__(
        self,
        *,
        width: int = 64,
        blocks: int = 9,
        upsampling: Literal["transposed", "resize"] = "transposed",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if width < 1 or blocks < 0:
            raise BadSettings(f"resnet: width must be at least 1 and blocks at least 0, got {width} and {blocks}")
        self.network = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normalised(nn.Conv2d(3, width, 7), width),
            *_normalised(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), 2 * width),
            *_normalised(nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), 4 * width),
            *(Residual(4 * width) for _ in range(blocks)),
            *_normalised(upsample(upsampling, 4 * width, 2 * width, 3), 2 * width),
            *_normalised(upsample(upsampling, 2 * width, width, 3), width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, 3, 7),
        )
        self.residual = residual
        initialise(self)

    def forward(self, degraded: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by `multiple_of` -> the same shape and range."""
        return as_picture(degraded, self.network(degraded * 2 - 1), residual=self.residual, training=self.training)


class ResNet6(ResNet9):
    """Zhu et al., Unpaired Image-to-Image Translation (CycleGAN), ICCV 2017, section 7.2, for 128 px;
    N x 3 x H x W -> N x 3 x H x W in [0,1]; 7,837,699 parameters.

    ResNet9 with six residual blocks by default.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        blocks: int = 6,
        upsampling: Literal["transposed", "resize"] = "transposed",
        residual: bool = False,
    ) -> None:
        super().__init__(width=width, blocks=blocks, upsampling=upsampling, residual=residual)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with reflection padding, no activation after the sum, N x C x h x w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.ReflectionPad2d(1),
            *_normalised(nn.Conv2d(channels, channels, 3), channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.network(features)
        return features + change


def _normalised(layer: nn.Module, channels: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    # The ReLU can be in place: the backward of instance norm does not need its output.
    return layer, nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)
