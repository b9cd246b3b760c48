"""Generators: networks from a degraded photo to a clear one, by name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators.conv_unet import ConvUNet
from fairweather.generators.gunet import GUNet
from fairweather.generators.mbconv_unet import MBConvUNet
from fairweather.generators.multipath_unet import MultipathUNet
from fairweather.generators.recurrent_maps import RecurrentMaps
from fairweather.generators.resnet import ResNet6, ResNet9
from fairweather.generators.scattering_maps import ScatteringMaps
from fairweather.generators.unet import UNet
from fairweather.validation import check_keys, checked_value, quoted

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
    "check_generator_arguments",
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

ARGUMENT_BOUNDS: dict[str, tuple[float, float]] = {
    "width": (1, 1024),
    "widths": (1, 4096),
    "blocks": (0, 64),
    "encoder": (0, 64),
    "decoder": (0, 64),
    "depths": (0, 64),
    "levels": (1, 10),
    "paths": (1, 64),
    "kernel": (1, 31),
    "shuffle": (1, 16),
    "expansion": (1, 16),
    "squeeze": (1e-3, 1),
    "dropout": (0, 0.99),
    "size": (16, 4096),
    "radius": (0, 64),
    "eps": (1e-8, 1),
    "offset": (0, 1),
    "heads": (1, 256),
    "states": (1, 256),
}
"""Smallest and largest value of every numeric argument, or of each entry of a list."""
MAX_ENTRIES, MAX_PARAMETERS = 16, 10**9


def check_generator_arguments(name: str, arguments: Mapping[str, Any], *, where: str = "[generator]") -> None:
    """Check the arguments of a generator before it is built: names, types, bounds and the size of the network.

    Args:
        name: a key of `GENERATORS`.
        arguments: plain values, as in a settings file or on a model's card.
        where: start of error messages, e.g. a file.

    Raises:
        UnknownName: there is no such generator.
        BadSettings: an argument is unknown, has the wrong type or is out of bounds, or two contradict each other.
    """
    if name not in GENERATORS:
        raise UnknownName("generator", name, GENERATORS)
    kind: Any = GENERATORS[name]
    check_keys(arguments, inspect.signature(kind).parameters, where=f"{where} (the arguments of {name})")
    hints = typing.get_type_hints(kind.__init__)
    for key, value in arguments.items():
        checked_value(value, hints[key], name=f"{where}: {key}")
        if isinstance(value, Sequence) and not isinstance(value, str) and not 1 <= len(value) <= MAX_ENTRIES:
            raise BadSettings(f"{where}: {key} is {quoted(value)}: it must have 1 to {MAX_ENTRIES} entries")
        low, high = ARGUMENT_BOUNDS.get(key, (0, 1))
        if any(not low <= number <= high for number in _numbers(value)):
            raise BadSettings(f"{where}: {key} is {quoted(value)}: it must be from {low:g} to {high:g}")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes only: nothing is allocated
            network = kind(**arguments)
    except (BadSettings, UnknownName, TypeError, ValueError, RuntimeError) as error:
        raise BadSettings(f"{where}: {name} cannot be built with these arguments: {error}") from None
    if (count := sum(weight.numel() for weight in network.parameters())) > MAX_PARAMETERS:
        raise BadSettings(
            f"{where}: {name} would have {count:,} parameters, above the limit of {MAX_PARAMETERS:,}: use lower widths"
        )


def _numbers(value: Any) -> Iterator[float]:
    for entry in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            yield entry


@runtime_checkable
class Generator(Protocol):
    """The interface of a generator, which is also an `nn.Module` with keyword arguments that all have defaults.

    Optional attributes:

    - `maps_module`, `size`, `radius`, `eps`, for output "maps": the part that is exported, and the fields of MapsSpec.
    - `clip(frames)`, B x T x 3 x H x W in and out, for a recurrent generator, and `state_channels` and `state_stride`
      of its exported part: the fields of StateSpec.
    - `adjustable`: arguments that do not affect the weights, so that training can start from weights with other values.
    - `growable`: arguments that count blocks; `grow(weights)` loads the weights of a network with fewer blocks.
    - `grown_from`: names of other generators whose weights `grow` loads.
    """

    output: Literal["image", "maps"]
    """Output of the exported part: the picture, or maps that are applied outside the network."""
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
