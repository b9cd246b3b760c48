from __future__ import annotations

import pytest
import torch

from fairweather.discriminators import PatchGAN
from fairweather.errors import BadSettings, UnknownName


def size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_of_the_papers() -> None:
    assert size(PatchGAN()) == 2_764_737  # CycleGAN
    assert size(PatchGAN(6, norm="batch")) == 2_768_705  # pix2pix
    assert size(PatchGAN(spectral=True)) == 2_764_737, "spectral norm adds no parameter"
    assert f"{size(PatchGAN()):,}" in (PatchGAN.__doc__ or "")


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers: int, field: int) -> None:
    """34 and 70 px are the paper's patches (table 4); its 16 px one is this depth as well."""
    network = PatchGAN(width=2, layers=layers, norm="none")
    assert network.receptive_field == field
    # With zero biases and LeakyReLU, every pixel of the patch has a gradient.
    photo = torch.rand(1, 3, 160, 168, requires_grad=True)
    logits = network(photo)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = photo.grad.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == field
    assert columns[-1] - columns[0] + 1 == field


def test_logits_cover_the_photo() -> None:
    network = PatchGAN(width=4, norm="none")
    for parameter in network.parameters():
        parameter.data.mul_(30)
    logits = network(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 1, 6, 10)
    assert logits.abs().max() > 1


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("spectral", [False, True])
def test_every_weight_has_a_gradient(norm: str, spectral: bool) -> None:
    network = PatchGAN(6, width=4, norm=norm, spectral=spectral)
    network(torch.rand(1, 6, 48, 40)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.ndim == 1 or parameter.grad.abs().sum() > 0, name


def norms(network: PatchGAN) -> list[float]:
    layers = [layer for layer in network.network if isinstance(layer, torch.nn.Conv2d)]
    assert len(layers) == 5
    return [torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() for layer in layers]


def test_spectral_norm_is_one_in_every_layer() -> None:
    """From the first forward pass, and 20 passes after every weight was replaced."""
    torch.manual_seed(0)
    network = PatchGAN(6, width=32, norm="none", spectral=True)
    assert norms(network) == pytest.approx([1.0] * 5, abs=1e-3)
    for layer in network.network:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.parametrizations.weight.original, std=3.0)
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(1, 6, 24, 24))
    network.eval()
    assert norms(network) == pytest.approx([1.0] * 5, abs=1e-3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.rand(1, 6, 24, 24))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_gradient_of_spectral_norm() -> None:
    """Against finite differences: the norm is not a constant."""
    torch.manual_seed(1)
    layer = PatchGAN(width=1, layers=1, norm="none", spectral=True).double().network[0]
    assert isinstance(layer, torch.nn.Conv2d)
    original = layer.parametrizations.weight.original
    pull = torch.randn_like(layer.weight)
    (gradient,) = torch.autograd.grad((layer.weight * pull).sum(), original)
    direction = torch.randn_like(original)
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            moved = original + step * direction
            values.append((moved / torch.linalg.matrix_norm(moved.flatten(1), 2) * pull).sum())
    slope = (values[0] - values[1]) / 2e-4
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_spectral_norm_is_float32_under_autocast(memory_format: torch.memory_format) -> None:
    torch.manual_seed(2)
    network = PatchGAN(width=16, norm="none", spectral=True).to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            assert network(torch.rand(1, 3, 24, 24)).dtype == torch.bfloat16
        network.eval()
        assert all(layer.weight.dtype == torch.float32 for layer in network.network if hasattr(layer, "weight"))
        assert norms(network) == pytest.approx([1.0] * 5, abs=1e-5)


def test_the_smallest_crop() -> None:
    network = PatchGAN(width=2)
    assert network(torch.rand(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(BadSettings, match="24 x 24"):
        network(torch.rand(1, 3, 23, 24))


def test_unknown_norm() -> None:
    with pytest.raises(UnknownName, match="instance"):
        PatchGAN(norm="instanse")  # type: ignore[arg-type]
