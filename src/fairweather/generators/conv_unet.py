"""A U-Net of plain 3 x 3 convolutions on unshuffled pixels: what processors, and their int8, are fastest at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings

REST = 0.1
"""Gain of a residual block's second convolution: blocks begin nearly as identities, as deep networks without norms
need it (Zhang et al., Fixup Initialization, ICLR 2019)."""


class ConvUNet(nn.Module):
    """Ours, after U-Net (Ronneberger et al., MICCAI 2015) with the residual blocks of EDSR (Lim et al., CVPRW 2017),
    which have no norms, and pixels folded into channels (Shi et al., CVPR 2016); N x 3 x H x W -> N x 3 x H x W in
    [0,1]; 3,146,220 parameters.

    Pixels are unshuffled by `shuffle` (a cell of shuffle x shuffle x 3 values), and the network works at that and ever
    halved resolutions: `widths` are the channels of its scales, `encoder` and `decoder` the residual blocks in each on
    the way down and up. Scales meet by addition. The answer is what to change: the photo is added at the end.

    Convolutions, ReLU, additions and shuffles only, and nothing that looks at the whole photo: it can be folded,
    quantized, and run in tiles.
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
                f"{levels} widths take {levels} numbers of encoder blocks and {max(0, levels - 1)} of decoder blocks, "
                f"got {len(encoder)} and {len(decoder)}"
            )
        if shuffle < 1 or min(widths) < 1 or min([0, *encoder, *decoder]) < 0:
            raise BadSettings("shuffle and widths are at least 1, and numbers of blocks at least 0")
        self.multiple_of = shuffle * 2 ** (levels - 1)
        self.shuffle = shuffle
        cell = 3 * shuffle**2
        self.stem = _convolution(cell, widths[0])
        self.encoder = nn.ModuleList(_stage(width, blocks) for width, blocks in zip(widths, encoder, strict=True))
        self.down = nn.ModuleList(_convolution(a, b, kernel=2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_convolution(b, 4 * a, kernel=1) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_stage(width, blocks) for width, blocks in zip(widths, decoder, strict=False))
        self.head = _convolution(widths[0], cell, gain=REST)
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
        changed = degraded + change
        cut = changed.clamp(0, 1)
        # While it trains, gradients pass where the sum was cut.
        return changed + (cut - changed).detach() if self.training else cut

    def grow(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a network that has fewer blocks in some stages. Those that it lacks begin as identities
        (zero-initialized residuals: Goyal et al., arXiv:1706.02677, section 5.1), so that this network answers as that
        one did. Raises RuntimeError where the rest does not fit."""
        added: dict[str, Tensor] = {}
        for path, module in self.named_modules():
            if isinstance(module, Block) and f"{path}.first.weight" not in weights:
                nn.init.zeros_(module.second.weight)
                added |= module.state_dict(prefix=f"{path}.")
        self.load_state_dict({**added, **weights})


class Block(nn.Module):
    """x + conv(relu(conv(x))): n x c x h x w -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = _convolution(width, width, gain=REST)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.second(F.relu(self.first(x)))
        return changed


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(blocks)))


def _convolution(into: int, out: int, *, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size of its signal (He et al., ICCV 2015) times `gain`."""
    convolution = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
    nn.init.normal_(convolution.weight, std=gain * (into * kernel * kernel) ** -0.5)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


def _receptive_field(shuffle: int, encoder: Sequence[int], decoder: Sequence[int]) -> int:
    """Side in pixels of the window, centred on an output pixel, in which lies all that it sees."""
    # in cells of the first scale, to one side: stem and head, then two convolutions a block at each scale
    reach: int = 2 + sum(2 * blocks * 2**level for stages in (encoder, decoder) for level, blocks in enumerate(stages))
    # a pixel at one end of a cell of the coarsest scale sees to its other end
    coarsest: int = shuffle * 2 ** (len(encoder) - 1)
    return 2 * (shuffle * reach + coarsest - 1) + 1
