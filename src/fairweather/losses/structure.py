"""Structural losses: SSIM and the Fourier spectrum.

Both take `output` and `target` of one shape, N x C x H x W in [0,1], and return a scalar, computed in fp32 also under
autocast: SSIM subtracts nearly equal squares, and half-precision transforms overflow.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from fairweather.errors import BadSettings
from fairweather.losses.pixel import check_same_shape

WINDOW = 11
SIGMA = 1.5


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM, mean over windows, channels and pictures (Wang et al., TIP 2004, section III.B).

    Gaussian window of 11 px, sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, only windows inside the picture, as
    scikit-image's `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.

    Raises:
        BadSettings: the shapes differ, or a side is below 11 px.
    """
    check_same_shape(output, target)
    if min(output.shape[-2:]) < WINDOW:
        raise BadSettings(f"SSIM needs pictures of at least {WINDOW} x {WINDOW} px, got {tuple(output.shape[-2:])}")
    with torch.autocast(output.device.type, enabled=False):
        a, b = output.float(), target.float()
        n, c, h, w = a.shape
        # Four moments suffice, because SSIM uses the variances only as their sum.
        moments = torch.cat([a, b, a * a + b * b, a * b]).reshape(1, 4 * n * c, h, w)
        if a.device.type == "cpu":
            # One picture with a channel per moment, channels last, is 30 times as fast in a CPU's depthwise
            # convolution as a batch of single-channel pictures. On CUDA the contiguous format selects the depthwise
            # kernel in full fp32; cuDNN's TF32 would lose the variances.
            moments = moments.contiguous(memory_format=torch.channels_last)
        kernel = _gaussian(moments).expand(4 * n * c, 1, 1, WINDOW)
        blurred = functional.conv2d(moments, kernel, groups=4 * n * c)
        blurred = functional.conv2d(blurred, kernel.transpose(2, 3), groups=4 * n * c)
        mean_a, mean_b, squares, product = blurred.chunk(4, dim=1)
        both = mean_a * mean_b
        means = mean_a.square() + mean_b.square()
        c1, c2 = 0.01**2, 0.03**2
        ssim = (2 * both + c1) * (2 * (product - both) + c2) / ((means + c1) * (squares - means + c2))
        loss: Tensor = 1 - ssim.mean()
        return loss


def frequency(output: Tensor, target: Tensor, *, norm: Literal["backward", "ortho"] = "backward") -> Tensor:
    """Mean absolute difference of the real and imaginary parts of the Fourier transforms.

    The frequency reconstruction loss of MIMO-UNet (Cho et al., Rethinking Coarse-to-Fine Approach in Single Image
    Deblurring, ICCV 2021, eq. 5; weight 0.1 in the paper). Its transform is not normalized, so the loss grows with the
    side of the crop; with `norm="ortho"` it is on the scale of L1.
    """
    check_same_shape(output, target)
    with torch.autocast(output.device.type, enabled=False):
        width = output.shape[-1]
        # The transform is linear: one transform of the difference suffices.
        half = torch.view_as_real(torch.fft.rfft2(output.float() - target.float(), norm=norm)).abs()
        # A real picture's spectrum is symmetric; rfft2 omits the mirror image of every column but the first and, for
        # an even width, the last. Counting the others twice gives the mean of the whole plane.
        total = 2 * half.sum() - half[..., 0, :].sum()
        if width % 2 == 0:
            total = total - half[..., -1, :].sum()
        return total / (2 * output.numel())


def _gaussian(like: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * SIGMA * SIGMA))
    return bell / bell.sum()
