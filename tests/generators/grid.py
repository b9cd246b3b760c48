"""How much of a checkerboard is in a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def waves(side: int = 160) -> Tensor:
    """A grey photo of slow waves and nothing finer, 1 x 3 x side x side."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (0.5 + 0.3 * torch.sin(2 * torch.pi * (x + 0.6 * y) / 80)).expand(1, 3, side, side).clone()


def grid(pictures: Tensor, side: int = 64) -> float:
    """Amplitude, in the middle of the pictures, of what alternates from pixel to pixel along rows or columns."""
    top, left = (pictures.shape[-2] - side) // 2, (pictures.shape[-1] - side) // 2
    middle = pictures[..., top : top + side, left : left + side].double()
    window = torch.hann_window(side, dtype=torch.double)
    window = window[:, None] * window
    spectrum = torch.fft.fft2((middle - middle.mean((-2, -1), keepdim=True)) * window).abs() / window.sum()
    fastest = side // 2
    return float(torch.stack([spectrum[..., fastest, :].amax(), spectrum[..., fastest].amax()]).max())
