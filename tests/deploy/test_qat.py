"""Quantization-aware fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fairweather.deploy import qat
from fairweather.deploy.sample_photos import PhotoPath
from fairweather.generators import GENERATORS, exported

pytest.importorskip("torchao")


@pytest.fixture
def paths(tmp_path: Path, photo: np.ndarray) -> list[PhotoPath]:
    for number, pixels in enumerate((photo, photo[::-1], photo // 2 + 90)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [(tmp_path / "2.png", tmp_path / "0.png"), (tmp_path / "1.png", tmp_path / "1.png")]


def lively(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(2)
    network = GENERATORS[name](**arguments)
    for value in [*network.parameters(), *network.buffers()]:
        if value.is_floating_point() and value.dim() == 1:
            nn.init.uniform_(value, 0.5, 1.5)
    return network


def test_batch_norm_is_folded() -> None:
    network = lively("unet", levels=2, width=4).eval()
    picture = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        before = network(picture)
        folded = qat.fold_batch_norm(network)
        torch.testing.assert_close(folded(picture), before, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize("paired", [True, False])
def test_fine_tuning_a_maps_network(paired: bool, paths: list[PhotoPath]) -> None:
    generator = lively("scattering_maps", size=64, widths=[8, 8], mirror=True)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    given = paths if paired else [(degraded, None) for degraded, _ in paths]
    draws = torch.get_rng_state()
    tuned = qat.fine_tune(generator, given, floats=["stem.0"], steps=10, rate=1e-4)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    assert "stem.0" not in tuned.ranges
    assert {"encoder.0.0.first.0", "transmission", "colour"} <= set(tuned.ranges)
    assert all(low <= 0 <= high and low < high for low, high in tuned.ranges.values())
    folded = exported(qat.fold_batch_norm(generator.eval())).state_dict()
    moved = [key for key, value in tuned.network.state_dict().items() if not torch.equal(value, folded[key])]
    assert bool(moved) == (tuned.kept > 0)
    with torch.no_grad():
        assert tuned.network(torch.rand(1, 3, 64, 96)).shape == (1, 7, 32, 48), "any size"
