"""ScatteringMaps: a small network predicts maps of the scattering model from a reduced photo."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings

MIN_TRANSMISSION = 0.1


class ScatteringMaps(nn.Module):
    """Our design, after the scattering model (Narasimhan & Nayar 2002), with guided filtering (Wu et al., CVPR 2018).

    N x 3 x H x W in [0, 1] -> the same, any H and W. 2,027,330 parameters.

    The photo is reduced by area to about `size` x `size` pixels. A U-Net of 3 x 3 convolutions with foldable batch norm
    predicts from it the transmission t at every second reduced pixel, and an airlight A and a small offset O that vary
    slowly. The gain K = 1 / t is aligned to the photo's edges by a guided filter on luma (He, Sun & Tang, TPAMI 2013;
    coefficients enlarged as in He & Sun, arXiv:1505.00996), and the result at full size is J = A + K (I - A) + O. The
    network's input includes the dark channel at four scales (He, Sun & Tang, CVPR 2009), so that this prior does not
    have to be learned from few scenes.

    `maps_module` is the part that is exported (reduced photo -> N x 7 x h/2 x w/2: t, A, O). At inference
    `fairweather.inference.haze_maps` does the rest in NumPy; `forward` does the same in PyTorch for training.

    Args:
        size: the network's input is reduced to about size x size pixels.
        widths: channels of each scale, from the finest; 1 to 4 scales.
        blocks: residual blocks per scale.
        radius: radius of the guided filter in pixels of the maps.
        eps: regularization of the guided filter.
        offset: limit of the offset O.
        mirror: average the maps of the photo and of its mirror image in eval mode (Timofte, Rothe & Van Gool, CVPR
            2016, section 3.4): better, at twice the cost.
    """

    output: ClassVar[str] = "maps"
    multiple_of: ClassVar[int] = 1
    receptive_field: ClassVar[int | None] = None
    adjustable: ClassVar[tuple[str, ...]] = ("size", "radius", "eps", "mirror")

    def __init__(
        self,
        *,
        size: int = 256,
        widths: Sequence[int] = (40, 80, 128, 160),
        blocks: int = 1,
        radius: int = 2,
        eps: float = 2e-4,
        offset: float = 0.25,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.radius, self.eps = size, radius, eps
        self.maps_module = ScatteringMapsNetwork(widths=widths, blocks=blocks, offset=offset, mirror=mirror)

    def forward(self, photo: Tensor) -> Tensor:
        height, width = photo.shape[-2:]
        reduced = resize(photo, *reduced_size(height, width, self.size, self.maps_module.multiple_of))
        maps: Tensor = self.maps_module(reduced)
        return apply_maps(photo, reduced, maps, self.radius, self.eps)


class ScatteringMapsNetwork(nn.Module):
    """The network: N x 3 x h x w, sides multiples of 32 -> N x 7 x h/2 x w/2 of t, A (3), O (3)."""

    multiple_of: ClassVar[int] = 32

    def __init__(self, *, widths: Sequence[int], blocks: int, offset: float, mirror: bool) -> None:
        super().__init__()
        if not 1 <= len(widths) <= 4 or min(widths) < 1 or blocks < 0:
            raise BadSettings(f"needs 1 to 4 widths from 1, and blocks from 0, got {list(widths)} and {blocks}")
        self.offset, self.mirror = offset, mirror
        self.stem = _conv(48 + 5, widths[0])
        self.encoder = nn.ModuleList(_stage(width, blocks) for width in widths)
        self.down = nn.ModuleList(_conv(a, b, stride=2) for a, b in pairwise(widths))
        self.context = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.ReLU(), nn.Conv2d(widths[-1], widths[-1], 1)
        )
        self.up = nn.ModuleList(_conv(b, a) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_stage(width, blocks) for width in widths[:-1])
        self.transmission = nn.Conv2d(widths[0], 4, 3, padding=1)
        self.colour = nn.Conv2d(widths[0], 6, 3, padding=1)
        # The first output leaves the photo nearly unchanged: t = 0.9, A = 0.8, O = 0.
        for head in (self.transmission, self.colour):
            nn.init.normal_(head.weight, std=1e-3)
            assert head.bias is not None
            nn.init.zeros_(head.bias)
        nn.init.constant_(self.transmission.bias, 2.0)  # type: ignore[arg-type]
        nn.init.constant_(self.colour.bias[:3], 1.4)  # type: ignore[index]

    def forward(self, reduced: Tensor) -> Tensor:
        if self.training or not self.mirror:
            return self.heads(self.features(reduced))
        maps, mirrored = self.heads(self.features(torch.cat([reduced, reduced.flip(3)]))).chunk(2)
        return (maps + mirrored.flip(3)) / 2

    def features(self, reduced: Tensor) -> Tensor:
        """N x 3 x h x w -> the decoder's features, N x C x h/4 x w/4."""
        pixels = F.pixel_unshuffle(reduced, 4)
        x: Tensor = self.stem(torch.cat([pixels, *dark_channels(pixels)], 1))
        skips = []
        for level, stage in enumerate(self.encoder):
            x = stage(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        x = x + self.context(x.mean((2, 3), keepdim=True))
        for level in reversed(range(len(self.down))):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="bilinear") + skips[level]
            x = self.decoder[level](x)
        return x

    def heads(self, x: Tensor) -> Tensor:
        """The decoder's features -> the maps, N x 7 x h/2 x w/2."""
        t = MIN_TRANSMISSION + (1 - MIN_TRANSMISSION) * torch.sigmoid(self.transmission(x).float())
        colour = self.colour(x).float()
        colour = torch.cat([torch.sigmoid(colour[:, :3]), self.offset * torch.tanh(colour[:, 3:])], 1)
        return torch.cat([F.pixel_shuffle(t, 2), F.interpolate(colour, scale_factor=2.0, mode="bilinear")], 1)


def dark_channels(pixels: Tensor) -> list[Tensor]:
    """Minimum over channels and 4 x 4 pixels, its erosions over 3, 7 and 15 cells, and the maximum.

    `pixels` is an unshuffled photo, N x 48 x h x w; each result is N x 1 x h x w.
    """
    darkest = pixels.amin(1, keepdim=True)
    eroded = [darkest]
    for step in (3, 5, 9):  # successive windows of 3, 5 and 9 cells together span 3, 7 and 15
        eroded.append(-F.max_pool2d(-eroded[-1], step, 1, step // 2))
    return [*eroded, pixels.amax(1, keepdim=True)]


def reduced_size(height: int, width: int, size: int, multiple_of: int) -> tuple[int, int]:
    """Sides for about size * size pixels in the photo's aspect, or a smaller photo's own, to the nearest multiples."""
    scale = min(1.0, size / (height * width) ** 0.5)
    return (
        max(1, round(height * scale / multiple_of)) * multiple_of,
        max(1, round(width * scale / multiple_of)) * multiple_of,
    )


def resize(photo: Tensor, height: int, width: int) -> Tensor:
    """Resize by area where both sides shrink (exact fractions, as OpenCV's INTER_AREA), else bilinearly.

    Even sides of at least four times the target are halved first, as in `fairweather.inference.haze_maps`.
    """
    while min(photo.shape[-2] / height, photo.shape[-1] / width) >= 4 and not (photo.shape[-2] | photo.shape[-1]) % 2:
        photo = F.avg_pool2d(photo, 2)
    if (height, width) == tuple(photo.shape[-2:]):
        return photo
    if height > photo.shape[-2] or width > photo.shape[-1]:
        return F.interpolate(photo, (height, width), mode="bilinear")
    rows = _area_weights(photo.shape[-2], height, photo)
    columns = _area_weights(photo.shape[-1], width, photo)
    return rows @ photo @ columns.T


def _area_weights(source: int, target: int, like: Tensor) -> Tensor:
    edges = torch.arange(target + 1, dtype=torch.float64) * (source / target)
    cells = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return (overlap.clamp_min(0) * (target / source)).to(like)


def apply_maps(photo: Tensor, reduced: Tensor, maps: Tensor, radius: int, eps: float) -> Tensor:
    """Apply maps, J = A + K (I - A) + O, at the photo's size, with K aligned to its luma. All N x C x H x W."""
    transmission, airlight, offset = torch.split(maps, [1, 3, 3], 1)
    guide = luma(F.interpolate(reduced, maps.shape[-2:], mode="area"))
    mean = _box(torch.cat([guide, guide * guide, 1 / transmission, guide / transmission], 1), radius)
    mean_guide, mean_square, mean_gain, mean_product = mean.chunk(4, 1)
    slope = (mean_product - mean_guide * mean_gain) / (mean_square - mean_guide * mean_guide + eps)
    coefficients = torch.cat([_box(torch.cat([slope, mean_gain - slope * mean_guide], 1), radius), airlight, offset], 1)
    coefficients = F.interpolate(coefficients, photo.shape[-2:], mode="bilinear")
    slope, intercept, airlight, offset = torch.split(coefficients, [1, 1, 3, 3], 1)
    gain = (slope * luma(photo) + intercept).clamp(1, 1 / MIN_TRANSMISSION)
    return (airlight + gain * (photo - airlight) + offset).clamp(0, 1)


def luma(photo: Tensor) -> Tensor:
    """BT.601 luma, N x 1 x H x W."""
    return 0.299 * photo[:, :1] + 0.587 * photo[:, 1:2] + 0.114 * photo[:, 2:3]


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over a window of 2 radius + 1, cropped at the border, one axis after the other."""
    side = 2 * radius + 1
    x = F.avg_pool2d(x, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), 1, (0, radius), count_include_pad=False)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(blocks)))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))
