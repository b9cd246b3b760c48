"""JPEG on a whole batch at once, on any device: what quantization does to a picture, without a file."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The example tables of the standard (ITU-T T.81, annex K.1), which nearly every encoder scales by its quality.
LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Rows Y, Cb, Cr of ITU-R BT.601 as JFIF has them, Cb and Cr about 0."""
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg(pictures: Tensor, qualities: Tensor) -> Tensor:
    """N x 3 x H x W in [0,1] after JPEG of N qualities (1 to 100), chroma halved both ways (4:2:0).

    What libjpeg gives but for rounding between its steps: scaled tables, 8-bit pixels, chroma enlarged linearly.
    """
    height, width = pictures.shape[-2:]
    pixels = F.pad((pictures * 255).round(), (0, -width % 16, 0, -height % 16), mode="replicate")
    # Rounded where libjpeg does: half a level more or less moves many coefficients by a whole step of the table.
    planes = torch.einsum("ij,njhw->nihw", pixels.new_tensor(TO_YCC), pixels).round()
    luma = _quantized(planes[:, :1] - 128, qualities, LUMA) + 128
    chroma = _quantized(F.avg_pool2d(planes[:, 1:], 2).round(), qualities, CHROMA)
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear")
    planes = torch.cat([luma.clamp(0, 255), chroma.clamp(-128, 127)], 1)
    coded = torch.einsum("ij,njhw->nihw", pixels.new_tensor(TO_RGB), planes)[..., :height, :width]
    return coded.round().clamp(0, 255) / 255


def _quantized(planes: Tensor, qualities: Tensor, table: tuple[int, ...]) -> Tensor:
    """N x C x H x W, sides multiples of 8: the cosine transform of each 8 x 8 block, rounded to the table's steps."""
    # libjpeg's jpeg_quality_scaling
    percent = torch.where(qualities < 50, (5000 / qualities).floor(), 200 - 2 * qualities).view(-1, 1, 1)
    base = planes.new_tensor(table).view(1, 8, 8)
    steps = ((base * percent + 50) / 100).floor().clamp(1, 255).view(-1, 1, 1, 8, 1, 8)
    k, n = torch.arange(8.0).view(8, 1), torch.arange(8.0).view(1, 8)
    cosines = torch.cos((2 * n + 1) * k * math.pi / 16) * torch.where(k == 0, 8**-0.5, 0.5)
    cosines = cosines.to(planes)
    count, channels, height, width = planes.shape
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8)
    waves = torch.einsum("ij,nchjwk,lk->nchiwl", cosines, blocks, cosines)
    waves = (waves / steps).round() * steps
    blocks = torch.einsum("ij,nchiwl,lk->nchjwk", cosines, waves, cosines)
    return blocks.flatten(4).flatten(2, 3).round()
