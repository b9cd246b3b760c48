"""What the papers' generators have in common: how their weights start and how their features are normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName

NORMS = ("batch", "instance")
UPSAMPLINGS = ("transposed", "resize")


def initialise(network: nn.Module) -> None:
    """Weights from normal(0, 0.02), biases zero, batch norm's gains from normal(1, 0.02), in place.

    pix2pix (Isola et al., CVPR 2017) section 6.2 and CycleGAN (Zhu et al., ICCV 2017) section 7.1, with the gains of
    their public code. Draws from torch's global random generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Batch norm, or instance norm without parameters. Raises UnknownName."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    raise UnknownName("norm", norm, NORMS)


def upsample(kind: str, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """Twice the height and width, learned: n x c x h x w -> n x channels_out x 2h x 2w.

    "transposed" is a transposed convolution of stride 2 with a 3 x 3 or 4 x 4 kernel, as the papers have it. "resize"
    repeats every pixel and convolves 3 x 3: the same weights fall on every pixel, so that no checkerboard can appear
    (Odena, Dumoulin and Olah, Deconvolution and Checkerboard Artifacts, Distill 2016). Raises UnknownName.
    """
    if kind == "transposed":
        if kernel not in (3, 4):
            raise BadSettings(f"a transposed convolution of stride 2 has a kernel of 3 or 4 here, got {kernel}")
        return nn.ConvTranspose2d(
            channels_in, channels_out, kernel, stride=2, padding=1, output_padding=4 - kernel, bias=bias
        )
    if kind == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias))
    raise UnknownName("upsampling", kind, UPSAMPLINGS)


def as_picture(degraded: Tensor, network: Tensor, *, residual: bool, training: bool) -> Tensor:
    """The network's last features as a picture in [0,1], all N x 3 x H x W.

    The papers end in tanh and read it as [-1,1]. With `residual` the network says what to change, in the same units,
    and starts from the photo as it is. While it trains, gradients pass where the sum was cut to [0,1]: a pixel that
    was driven beyond white could otherwise never come back. Under autocast the features come in 16 bits, of which
    bfloat16 spends eight on the value: the picture is made in the photo's own type.
    """
    network = network.to(degraded.dtype)
    if not residual:
        return torch.tanh(network) * 0.5 + 0.5
    changed = degraded + 0.5 * network
    cut = changed.clamp(0, 1)
    return changed + (cut - changed).detach() if training else cut
