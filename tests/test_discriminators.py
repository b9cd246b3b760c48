from __future__ import annotations

import pytest
import torch

from fairweather.discriminators import PatchGAN
from fairweather.errors import BadSettings, UnknownName


def size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_papers_counts() -> None:
    assert size(PatchGAN()) == 2_764_737  # CycleGAN
    assert size(PatchGAN(6, norm="batch")) == 2_768_705  # pix2pix
    assert size(PatchGAN(spectral=True)) == 2_764_737, "spectral norm adds no parameter"
    assert f"{size(PatchGAN()):,}" in (PatchGAN.__doc__ or "")


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_one_logit_sees_its_patch_and_no_more(layers: int, field: int) -> None:
    """34 and 70 px are the paper's patches (table 4); its 16 px one is this depth as well."""
    network = PatchGAN(width=2, layers=layers, norm="none")
    assert network.receptive_field == field
    # Biases at zero and slopes of LeakyReLU never zero: a pixel that is seen has a gradient.
    photo = torch.rand(1, 3, 160, 168, requires_grad=True)
    logits = network(photo)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = photo.grad.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == field
    assert columns[-1] - columns[0] + 1 == field


def test_logits_are_not_squashed_and_cover_the_photo() -> None:
    network = PatchGAN(width=4, norm="none")
    for parameter in network.parameters():
        parameter.data.mul_(30)
    logits = network(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 1, 6, 10)
    assert logits.abs().max() > 1


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("spectral", [False, True])
def test_every_weight_learns(norm: str, spectral: bool) -> None:
    network = PatchGAN(6, width=4, norm=norm, spectral=spectral)
    network(torch.rand(1, 6, 48, 40)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, name


def test_spectral_norm_holds_every_layer_to_one() -> None:
    torch.manual_seed(0)
    network = PatchGAN(width=4, norm="none", spectral=True)
    for layer in network.network:
        if isinstance(layer, torch.nn.Conv2d):
            layer.parametrizations.weight.original.data.mul_(100)
    for _ in range(200):  # one step of power iteration each
        network(torch.rand(1, 3, 24, 24))
    network.eval()
    layers = [layer for layer in network.network if isinstance(layer, torch.nn.Conv2d)]
    assert len(layers) == 5
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)


def test_the_smallest_crop_and_one_below() -> None:
    network = PatchGAN(width=2)
    assert network(torch.rand(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(BadSettings, match="24 x 24"):
        network(torch.rand(1, 3, 23, 24))


def test_misspelt_norm() -> None:
    with pytest.raises(UnknownName, match="instance"):
        PatchGAN(norm="instanse")  # type: ignore[arg-type]
