"""Generators: networks from a degraded photo to a clear one, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from fairweather.generators.conv_unet import ConvUNet
from fairweather.generators.gunet import GUNet
from fairweather.generators.mbconv_unet import MBConvUNet
from fairweather.generators.multipath_unet import MultipathUNet
from fairweather.generators.recurrent_maps import RecurrentMaps
from fairweather.generators.resnet import ResNet6, ResNet9
from fairweather.generators.scattering_maps import ScatteringMaps
from fairweather.generators.unet import UNet

__all__ = [
    "GENERATORS",
    "Generator",
    "GUNet",
    "MBConvUNet",
    "MultipathUNet",
    "ConvUNet",
    "ResNet6",
    "ResNet9",
    "RecurrentMaps",
    "ScatteringMaps",
    "UNet",
    "exported",
    "padded",
]

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "resnet6": ResNet6,
    "resnet9": ResNet9,
    "unet": UNet,
    "mbconv_unet": MBConvUNet,
    "multipath_unet": MultipathUNet,
    "conv_unet": ConvUNet,
    "gunet": GUNet,
    "scattering_maps": ScatteringMaps,
    "recurrent_maps": RecurrentMaps,
}


@runtime_checkable
class Generator(Protocol):
    """What callers need of a generator, which is also an `nn.Module` with keyword arguments that all have defaults.

    Optional attributes:

    - `maps_module`, `size`, `radius`, `eps`, for output "maps": the part that is exported, and the fields of MapsSpec.
    - `clip(frames)`, B x T x 3 x H x W in and out, for a recurrent generator, and `state_channels` and `state_stride`
      of its exported part: the fields of StateSpec.
    - `adjustable`: arguments that do not affect the weights, so that training can start from weights with other values.
    - `growable`: arguments that count blocks; `grow(weights)` loads the weights of a network with fewer blocks.
    - `grown_from`: names of other generators whose weights `grow` loads.
    """

    output: Literal["image", "maps"]
    """What the exported part predicts: the picture, or maps that are applied outside the network."""
    multiple_of: int
    """Required divisor of the input's sides."""
    receptive_field: int | None
    """Side in pixels of the input that one output pixel depends on; None = the whole photo."""

    def forward(self, degraded: Tensor, /) -> Tensor:
        """N x 3 x H x W in [0,1] -> the same shape and range."""
        ...


def padded(generator: nn.Module, degraded: Tensor) -> Tensor:
    """Run a generator on N x 3 x H x W of any size, from 1 x 1, and return the same shape.

    The right and bottom borders are extended to `multiple_of` by reflection, repeatedly for small photos, as
    `numpy.pad(mode="reflect")` does, and the result is cropped.
    """
    multiple = cast(int, generator.multiple_of)
    height, width = degraded.shape[-2:]
    for axis in (-2, -1):
        side = degraded.shape[axis]
        if missing := -side % multiple:
            # A period of the reflected row runs back and forth without repeating its ends.
            period = max(2 * (side - 1), 1)
            place = torch.arange(side + missing, device=degraded.device) % period
            degraded = degraded.index_select(axis, torch.minimum(place, period - place) if side > 1 else place)
    restored = cast(Tensor, generator(degraded))
    return restored[..., :height, :width]


def exported(generator: nn.Module) -> nn.Module:
    """The module that is exported: the generator, or the part of it that predicts maps."""
    return cast(nn.Module, generator.maps_module) if cast(str, generator.output) == "maps" else generator
