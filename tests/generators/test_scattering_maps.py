from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators import RecurrentMaps, ScatteringMaps
from tests.generators.probes import rand


def with_random_heads(mirror: bool) -> ScatteringMaps:
    """The initial maps hardly depend on the photo."""
    torch.manual_seed(0)
    network = ScatteringMaps(size=64, widths=(8, 8, 8, 8), mirror=mirror)
    for head in (network.maps_module.transmission, network.maps_module.colour):
        nn.init.normal_(head.weight, std=0.3)
    return network.eval()


@torch.no_grad()
def test_mirror_averages_the_maps_of_the_photo_and_its_mirror_image() -> None:
    photo = rand(2, 64, 96)
    plain, mirrored = with_random_heads(False), with_random_heads(True)
    asymmetry = [float((net(photo.flip(3)).flip(3) - net(photo)).abs().max()) for net in (plain, mirrored)]
    assert asymmetry[0] > 0.01
    assert asymmetry[1] < 1e-5
    one, both = plain.maps_module, mirrored.maps_module
    assert torch.allclose(both(photo), (one(photo) + one(photo.flip(3)).flip(3)) / 2, atol=1e-6)
    assert not torch.allclose(both(photo), one(photo), atol=1e-3)


def test_mirror_has_no_cost_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    network = with_random_heads(True)
    batches, features = [], network.maps_module.features

    def counted(reduced: Tensor) -> Tensor:
        batches.append(len(reduced))
        return features(reduced)

    monkeypatch.setattr(network.maps_module, "features", counted)
    network.train()(rand(2, 64))
    network.eval()(rand(2, 64))
    assert batches == [2, 4]


@pytest.mark.parametrize("widths", [(), (8,) * 5, (8, 0)])
@pytest.mark.parametrize("build", [ScatteringMaps, RecurrentMaps])
def test_arguments_out_of_range(build: type[nn.Module], widths: tuple[int, ...]) -> None:
    with pytest.raises(BadSettings, match="1 to 4 widths"):
        build(widths=widths)
