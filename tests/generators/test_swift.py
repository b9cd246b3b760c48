"""Ours: haze maps from a reduced photo, applied at full size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from fairweather.deploy.onnx_export import write_onnx
from fairweather.generators.scattering_maps import ScatteringMaps, ScatteringMapsNetwork

WIDTHS = (8, 8, 8, 8)


def taught(mirror: bool, widths: tuple[int, ...] = WIDTHS) -> ScatteringMaps:
    """A network with random heads: as it begins, its maps hardly depend on the photo."""
    torch.manual_seed(0)
    network = ScatteringMaps(size=64, widths=widths, mirror=mirror)
    for head in (network.maps_module.transmission, network.maps_module.colour):
        nn.init.normal_(head.weight, std=0.3)
    return network.eval()


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_with_mirror_a_mirrored_photo_is_restored_to_the_mirrored_answer(photo: torch.Tensor) -> None:
    differences = []
    for mirror in (False, True):
        network = taught(mirror)
        differences.append(float((network(photo.flip(3)).flip(3) - network(photo)).abs().max()))
    assert differences[0] > 0.01
    assert differences[1] < 1e-5


@torch.no_grad()
def test_mirror_averages_what_the_same_weights_say_of_both(photo: torch.Tensor) -> None:
    one, two = taught(False).maps_module, taught(True).maps_module
    expected = (one(photo) + one(photo.flip(3)).flip(3)) / 2
    assert torch.allclose(two(photo), expected, atol=1e-6)
    assert not torch.allclose(two(photo), one(photo), atol=1e-3)


def test_while_it_trains_mirror_costs_nothing(photo: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, once = [], ScatteringMapsNetwork.once
    monkeypatch.setattr(ScatteringMapsNetwork, "once", lambda self, x: (seen.append(len(x)), once(self, x))[1])
    network = taught(True)
    network.train()(photo)
    network.eval()(photo)
    assert seen == [2, 4]


def test_mirror_is_within_what_is_exported(photo: torch.Tensor, tmp_path: Path) -> None:
    network = taught(True, WIDTHS[:2]).maps_module  # the deeper, the more seconds the export takes
    write_onnx(network, tmp_path / "model.onnx", network.multiple_of)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for sides in ((64, 96), (96, 32)):
        given = photo[:1, :, : sides[0], : sides[1]] if sides == (64, 96) else torch.rand(1, 3, *sides)
        (answer,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        with torch.no_grad():
            assert np.abs(answer - network(given).numpy()).max() < 1e-4
