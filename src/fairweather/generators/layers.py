"""Layers that several generators share: norms, upsampling, initial weights, output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName

NORMS = ("batch", "instance", "none")
UPSAMPLINGS = ("transposed", "resize")


def initialise(network: nn.Module) -> None:
    """Draw weights from normal(0, 0.02) and batch norm gains from normal(1, 0.02), set biases to zero, in place.

    pix2pix (Isola et al., CVPR 2017, section 6.2) and CycleGAN (Zhu et al., ICCV 2017, section 7.1), with the gains of
    their public code.
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
    """Batch norm, instance norm without parameters, or nothing. Raises UnknownName."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise UnknownName("norm", norm, NORMS)


def normalised(convolution: nn.Conv2d, norm: str, *after: nn.Module) -> nn.Sequential:
    """A convolution, its norm, and the layers `after` it."""
    return nn.Sequential(convolution, norm_layer(norm, convolution.out_channels), *after)


def upsample(kind: str, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """Learned upsampling by two: N x channels_in x h x w -> N x channels_out x 2h x 2w.

    "transposed" is a transposed convolution of stride 2 with a 3 x 3 or 4 x 4 kernel, as in the papers. "resize"
    repeats pixels and convolves 3 x 3: all pixels share the same weights, so that no checkerboard can appear (Odena,
    Dumoulin and Olah, Deconvolution and Checkerboard Artifacts, Distill 2016). Raises UnknownName.
    """
    if kind == "transposed":
        if kernel not in (3, 4):
            raise BadSettings(f"a transposed convolution of stride 2 needs a kernel of 3 or 4, got {kernel}")
        return nn.ConvTranspose2d(
            channels_in, channels_out, kernel, stride=2, padding=1, output_padding=4 - kernel, bias=bias
        )
    if kind == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias))
    raise UnknownName("upsampling", kind, UPSAMPLINGS)


def as_picture(degraded: Tensor, features: Tensor, *, residual: bool, training: bool) -> Tensor:
    """The network's last features as a picture in [0,1], all N x 3 x H x W.

    The papers end in tanh, whose range is [-1,1]. With `residual` the features are the change to the photo in the same
    units. Under autocast, features in 16 bits are converted to the photo's type first.
    """
    features = features.to(degraded.dtype)
    if not residual:
        return torch.tanh(features) * 0.5 + 0.5
    return add_change(degraded, 0.5 * features, training=training)


def add_change(degraded: Tensor, change: Tensor, *, training: bool) -> Tensor:
    """The sum, clamped to [0,1].

    In training, gradients pass the clamp unchanged: a pixel beyond white could otherwise never return.
    """
    changed = degraded + change
    clamped = changed.clamp(0, 1)
    return changed + (clamped - changed).detach() if training else clamped
