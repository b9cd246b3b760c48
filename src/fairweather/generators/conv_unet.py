"""ConvUNet: a U-Net of 3 x 3 convolutions on unshuffled pixels, which processors run fast, also in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators.layers import add_change

RESIDUAL_GAIN = 0.1
"""Initial gain of a residual block's second convolution: blocks start close to identities, which deep networks without
norms need (Zhang et al., Fixup Initialization, ICLR 2019)."""


class ConvUNet(nn.Module):
    """Our design, after U-Net (Ronneberger et al., MICCAI 2015), with the residual blocks without norms of EDSR (Lim et
    al., CVPRW 2017) and pixels folded into channels (Shi et al., CVPR 2016); N x 3 x H x W -> N x 3 x H x W in [0,1];
    3,146,220 parameters.

    Only convolutions, ReLU, additions and shuffles, without global statistics: it can be quantized and run in tiles.
    The network predicts the change to the photo.

    Args:
        shuffle: pixels of shuffle x shuffle become channels at the input, and back at the output.
        widths: channels of each scale, from the finest.
        encoder: residual blocks of each scale on the way down.
        decoder: residual blocks of each scale but the coarsest on the way up; scales are joined by addition.
    """

    output: Literal["image"] = "image"
    growable: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    def __init__(
        self,
        *,
        shuffle: int = 2,
        widths: Sequence[int] = (32, 64, 128, 192),
        encoder: Sequence[int] = (1, 2, 2, 2),
        decoder: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        levels = len(widths)
        if levels < 1 or len(encoder) != levels or len(decoder) != levels - 1:
            raise BadSettings(
                f"conv_unet with {levels} widths needs {levels} numbers of encoder blocks and {max(0, levels - 1)} of "
                f"decoder blocks, got {len(encoder)} and {len(decoder)}"
            )
        if shuffle < 1 or min(widths) < 1 or min([0, *encoder, *decoder]) < 0:
            raise BadSettings("conv_unet: shuffle and widths must be at least 1, numbers of blocks at least 0")
        self.multiple_of = shuffle * 2 ** (levels - 1)
        self.shuffle = shuffle
        cell = 3 * shuffle**2
        self.stem = _convolution(cell, widths[0])
        self.encoder = nn.ModuleList(_stage(width, blocks) for width, blocks in zip(widths, encoder, strict=True))
        self.down = nn.ModuleList(_convolution(a, b, kernel=2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_convolution(b, 4 * a, kernel=1) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_stage(width, blocks) for width, blocks in zip(widths, decoder, strict=False))
        self.head = _convolution(widths[0], cell, gain=RESIDUAL_GAIN)
        self.receptive_field: int | None = _receptive_field(shuffle, encoder, decoder)

    def forward(self, degraded: Tensor) -> Tensor:
        """N x 3 x H x W in [0,1], sides divisible by `multiple_of` -> the same shape and range."""
        x = self.stem(F.pixel_unshuffle(degraded, self.shuffle))
        skips: list[Tensor] = []
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.down))):
            x = F.pixel_shuffle(self.up[level](x), 2) + skips[level]
            x = self.decoder[level](x)
        change = F.pixel_shuffle(self.head(x), self.shuffle).to(degraded.dtype)
        return add_change(degraded, change, training=self.training)

    def grow(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a network with fewer blocks in some stages; the outputs are the same.

        New blocks start as identities (zero-initialized residuals: Goyal et al., arXiv:1706.02677, section 5.1).
        Raises RuntimeError if the weights do not fit otherwise.
        """
        added: dict[str, Tensor] = {}
        for path, module in self.named_modules():
            if isinstance(module, Block) and f"{path}.first.weight" not in weights:
                nn.init.zeros_(module.second.weight)
                added |= module.state_dict(prefix=f"{path}.")
        self.load_state_dict({**added, **weights})


class Block(nn.Module):
    """x + conv(relu(conv(x))), N x C x h x w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = _convolution(width, width, gain=RESIDUAL_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.second(F.relu(self.first(x)))
        return changed


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(blocks)))


def _convolution(into: int, out: int, *, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A convolution whose output has the variance of its input (He et al., ICCV 2015), times `gain`."""
    convolution = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
    nn.init.normal_(convolution.weight, std=gain * (into * kernel * kernel) ** -0.5)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _receptive_field(shuffle: int, encoder: Sequence[int], decoder: Sequence[int]) -> int:
    """Side in pixels of the smallest window, centred on an output pixel, with all inputs that it depends on."""
    # In cells of the finest scale, to one side: stem and head, then two convolutions per block at each scale.
    reach: int = 2 + sum(2 * blocks * 2**level for stages in (encoder, decoder) for level, blocks in enumerate(stages))
    # A pixel at one end of a cell of the coarsest scale depends on the other end too.
    coarsest: int = shuffle * 2 ** (len(encoder) - 1)
    return 2 * (shuffle * reach + coarsest - 1) + 1
