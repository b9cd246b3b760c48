"""Narrow generators that run fast, and their model folders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairweather.generators import GENERATORS
from fairweather.model_folder import CARD, SUMMED

NARROW: dict[str, dict[str, Any]] = {
    "resnet6": {"width": 4, "blocks": 2},
    "resnet9": {"width": 4, "blocks": 3},
    "unet": {"levels": 3, "width": 4},
    "mbconv_unet": {"width": 4, "levels": 2, "expansion": 2},
    "multipath_unet": {"width": 4, "levels": 2},
    "conv_unet": {"widths": [4, 8], "encoder": [1, 1], "decoder": [1]},
    "gunet": {"width": 4, "depths": [1, 1, 1]},
    "scattering_maps": {"size": 64, "widths": [8, 8], "mirror": True},
    "recurrent_maps": {"size": 64, "widths": [8, 8], "heads": 4, "states": 2},
}
"""Generator -> arguments, as in a card, of a network that runs and exports fast."""


def narrow(name: str, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return GENERATORS[name](**NARROW[name])


def shaken(network: nn.Module, by: float = 0.3) -> nn.Module:
    """The network with weights and running statistics far from their initial values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(by * torch.rand(tensor.shape, generator=generator))
    return network


def write_model(name: str, folder: Path) -> None:
    """Export the narrow network, shaken by 0.05, and check that the export has no side effects."""
    from fairweather.deploy.onnx_export import export_generator

    network = shaken(narrow(name), 0.05).train()
    before, draws = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    export_generator(
        network,
        folder,
        name="narrow",
        weather="haze",
        generator_name=name,
        arguments=NARROW[name],
        licence="MIT",
        terms="",
        training={},
    )
    assert torch.equal(torch.get_rng_state(), draws)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == sorted((CARD, *SUMMED))
    assert not list(folder.parent.glob(f".{folder.name}.*"))
