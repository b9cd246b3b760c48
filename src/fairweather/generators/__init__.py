"""Networks that turn a degraded photo into a clear one, by name, and what every caller of them needs.

A generator is an `nn.Module` with explicit keyword arguments and three attributes: `multiple_of` (what the sides of its
input must be divisible by), `receptive_field` (side in px of what one output pixel sees; None where that is the whole
photo) and `output` ("image", or "maps" where the exported network predicts maps that are applied outside it). Where it
has `adjustable`, those are the arguments whose value no weight's shape or meaning depends on: a run may begin with
weights that were trained at another. Where it has `growable`, those count blocks: a run may begin with the weights of
a network that has fewer, which its method `grow` takes; `grown_from` names other generators whose weights it takes.
One with a memory has a method `clip`, B x T x 3 x H x W in and out, and `state_channels` and `state_stride` on what is
exported: its state is a picture of so many channels, so many times smaller than the input.
Its `forward` takes and gives N x 3 x H x W in [0,1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

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


def padded(generator: nn.Module, degraded: Tensor) -> Tensor:
    """Runs the generator on N x 3 x H x W of any size, 1 x 1 included -> the same shape.

    The right and lower border are extended by reflection to `multiple_of`, again and again where the photo is smaller
    than what is missing (`numpy.pad(mode="reflect")` does the same), and the result is cropped.
    """
    multiple = cast(int, generator.multiple_of)
    height, width = degraded.shape[-2:]
    rows = _reflected(height, -height % multiple, degraded.device)
    columns = _reflected(width, -width % multiple, degraded.device)
    if rows is not None:
        degraded = degraded.index_select(-2, rows)
    if columns is not None:
        degraded = degraded.index_select(-1, columns)
    restored = cast(Tensor, generator(degraded))
    return restored[..., :height, :width]


def exported(generator: nn.Module) -> nn.Module:
    """The module whose graph is shipped: the generator, or the part of it that predicts maps."""
    if cast(str, generator.output) == "maps":
        return cast(nn.Module, generator.maps_module)
    return generator


def _reflected(side: int, missing: int, device: torch.device) -> Tensor | None:
    if missing == 0:
        return None
    # One period of a mirrored row runs there and back without repeating either end; a single pixel repeats itself.
    period = max(2 * (side - 1), 1)
    place = torch.arange(side + missing, device=device) % period
    return torch.minimum(place, period - place) if side > 1 else torch.zeros_like(place)
