"""Networks that tell restored photos from real ones, patch by patch."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from fairweather.errors import BadSettings, UnknownName


class PatchGAN(nn.Module):
    """Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017, section 6.1.2;
    N x C x H x W in [0,1] -> N x 1 x h x w logits, one for each overlapping patch of 70 x 70 px; 2,764,737 parameters.

    C64-C128-C256-C512 and a convolution to one channel: 4 x 4, LeakyReLU 0.2, stride 2 in the first `layers`, then 1.
    The defaults are CycleGAN's (three channels, instance norm). pix2pix's is conditional: 6 channels, the degraded
    photo and the other one concatenated, with batch norm (2,768,705 parameters). `spectral` normalises the weights of
    every layer (Miyato et al., ICLR 2018), usually with `norm="none"`. Draws its weights from torch's global generator.

    Raises BadSettings on settings out of range, and on pictures too small for one patch to be scored.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        width: int = 64,
        layers: int = 3,
        norm: Literal["instance", "batch", "none"] = "instance",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, width, layers) < 1:
            raise BadSettings(f"in_channels, width and layers must be at least 1, got {in_channels}, {width}, {layers}")
        channels = [in_channels, *(min(2**layer, 8) * width for layer in range(layers + 1)), 1]
        strides = [2] * layers + [1, 1]
        network: list[nn.Module] = []
        for layer, stride in enumerate(strides):
            first, last = layer == 0, layer == len(strides) - 1
            # Batch norm brings its own bias; instance norm cancels one too, but the paper's code keeps it there.
            bias = first or last or norm != "batch"
            convolution = nn.Conv2d(channels[layer], channels[layer + 1], 4, stride, padding=1, bias=bias)
            nn.init.normal_(convolution.weight, 0.0, 0.02)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            network.append(_spectral(convolution) if spectral else convolution)
            if not first and not last:
                network.extend(_norm(norm, channels[layer + 1]))
            if not last:
                network.append(nn.LeakyReLU(0.2, inplace=True))
        self.network = nn.Sequential(*network)
        self.receptive_field: int = _receptive_field(strides)
        # Each convolution of stride 1 takes a row away; this many rows leave one logit.
        self.smallest: int = 3 * 2**layers

    def forward(self, photo: Tensor) -> Tensor:
        """N x in_channels x H x W in [0,1] -> N x 1 x (H / 8 - 2) x (W / 8 - 2) logits at the default depth."""
        if min(photo.shape[-2:]) < self.smallest:
            raise BadSettings(
                f"this discriminator scores crops of at least {self.smallest} x {self.smallest} px, got "
                f"{tuple(photo.shape[-2:])}: take larger crops, or fewer layers"
            )
        return cast(Tensor, self.network(photo * 2 - 1))


class FullPrecision(nn.Module):
    """A parametrization that autocast leaves alone: a norm that is rounded to 16 bits bounds nothing."""

    def __init__(self, parametrization: nn.Module) -> None:
        super().__init__()
        self.parametrization = parametrization

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return cast(Tensor, self.parametrization(weight))


def _spectral(convolution: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its weight, as a matrix of out x (in * 4 * 4), divided by its largest singular value.

    One power iteration a forward pass keeps up with weights that move slowly, but is long in finding the first pair of
    singular vectors of random ones, whose largest singular values lie close together: those are computed here.
    """
    spectral_norm(convolution)
    (norm,) = parametrizations = cast(Any, convolution).parametrizations.weight
    matrix = parametrizations.original.detach().flatten(1)
    if matrix.device.type != "meta":
        # The products of its rows make a matrix far smaller, whose eigenvectors are its left singular vectors.
        u = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]
        norm._u.copy_(u)
        norm._v.copy_(functional.normalize(matrix.T @ u, dim=0))
    parametrizations[0] = FullPrecision(norm)
    return convolution


def _norm(norm: str, channels: int) -> list[nn.Module]:
    if norm == "instance":
        return [nn.InstanceNorm2d(channels)]
    if norm == "batch":
        layer = nn.BatchNorm2d(channels)
        nn.init.normal_(layer.weight, 1.0, 0.02)
        return [layer]
    if norm == "none":
        return []
    raise UnknownName("norm", norm, ("instance", "batch", "none"))


def _receptive_field(strides: list[int]) -> int:
    side = 1
    for stride in reversed(strides):
        side = (side - 1) * stride + 4
    return side
