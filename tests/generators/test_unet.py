from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators import ResNet6, ResNet9, UNet
from tests.generators.reach import field_by_gradients


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_papers_counts() -> None:
    with torch.device("meta"):
        network = UNet()
    assert size(network) == 54_413_955
    assert network.multiple_of == 256
    assert len(network.encoder) == len(network.decoder) == 8


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_receptive_field_is_what_gradients_show(levels: int, upsampling: str) -> None:
    """Over every phase of a pixel within a cell of `multiple_of`, and not a pixel wider than needed."""
    network = UNet(levels=levels, width=2, dropout=0, upsampling=upsampling).eval()
    assert network.receptive_field == field_by_gradients(network, 0.01)


def test_receptive_field_is_whole_photo_with_instance_norm() -> None:
    assert UNet(levels=2, width=2, norm="instance").receptive_field is None


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_one_photo_of_the_smallest_size_trains(norm: str) -> None:
    """Innermost features are 1 x 1 here, which batch norm refuses and instance norm erases."""
    network = UNet(levels=3, width=4, norm=norm, dropout=0)
    network(torch.rand(1, 3, 8, 8)).mean().backward()
    innermost = network.encoder[-1]
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d) for layer in innermost)
    assert innermost[-1].weight.grad.abs().sum() > 0


def test_dropout_is_in_the_first_three_levels_of_the_decoder() -> None:
    dropped = [any(isinstance(layer, nn.Dropout) for layer in level) for level in UNet(width=1).decoder]
    assert dropped == [True, True, True, False, False, False, False, False]
    network = UNet(levels=3, width=4)
    photo = torch.rand(1, 3, 16, 16)
    assert not torch.equal(network(photo), network(photo))
    network.eval()
    assert torch.equal(network(photo), network(photo))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_has_its_skip(level: int) -> None:
    """With all below a level silenced, its encoder can reach the output through its skip alone."""
    network = UNet(levels=4, width=4, dropout=0)
    network.decoder[2 - level].register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(torch.rand(1, 3, 32, 32)).square().mean().backward()
    here, below = (
        next(layer for layer in network.encoder[at] if isinstance(layer, nn.Conv2d)) for at in (level, level + 1)
    )
    assert below.weight.grad.abs().sum() == 0
    assert here.weight.grad.abs().sum() > 0


def test_channels_double_up_to_eight_times() -> None:
    widths = [
        level[-1].num_features if isinstance(level[-1], nn.BatchNorm2d) else level[-1].out_channels
        for level in UNet(levels=6, width=2).encoder
    ]
    assert widths == [2, 4, 8, 16, 16, 16]


def test_weights_start_as_in_the_papers() -> None:
    torch.manual_seed(0)
    for network in (UNet(levels=5, width=16), ResNet9(width=16, blocks=2)):
        weights = torch.cat([p.flatten() for name, p in network.named_parameters() if p.ndim > 1])
        assert weights.mean().abs() < 1e-3
        assert weights.std().item() == pytest.approx(0.02, rel=0.02)


def test_settings_out_of_range() -> None:
    with pytest.raises(BadSettings, match="levels"):
        UNet(levels=0)
    with pytest.raises(BadSettings, match="dropout"):
        UNet(levels=2, dropout=1.0)
    with pytest.raises(UnknownName, match="batch"):
        UNet(levels=4, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(BadSettings, match="blocks"):
        ResNet9(blocks=-1)


@pytest.mark.parametrize("build", [partial(UNet, levels=3, width=4), partial(ResNet6, width=4)])
def test_a_residual_network_starts_from_the_photo(build: Any) -> None:
    photo = 0.2 + 0.6 * torch.rand(1, 3, 32, 40)
    torch.manual_seed(0)
    painted = (build().eval()(photo) - photo).abs().mean()
    torch.manual_seed(0)
    changed = (build(residual=True).eval()(photo) - photo).abs().mean()
    assert 2 * changed < painted
    saturated = build(residual=True).eval()
    list(saturated.parameters())[-1].data.fill_(40.0)  # the last bias: far beyond white
    assert torch.equal(saturated(photo), torch.ones_like(photo))
    restored = saturated.train()(photo)
    assert restored.max() <= 1 + 1e-6
    restored.mean().backward()
    assert list(saturated.parameters())[-1].grad.abs().min() > 0  # it can come back


@pytest.mark.parametrize("build", [partial(UNet, levels=2, width=4), partial(ResNet6, width=4)])
def test_resize_convolution_treats_all_pixels_alike(build: Any) -> None:
    """On a flat photo, away from its borders, a transposed convolution draws a grid; a resize-convolution must not."""

    def grid(upsampling: str) -> float:
        torch.manual_seed(1)
        network = build(upsampling=upsampling)
        for module in network.modules():  # lively weights, or there is nothing to see
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                torch.nn.init.normal_(module.weight, std=0.2)
                torch.nn.init.normal_(module.bias, std=0.2) if module.bias is not None else None
        flat = torch.full((1, 3, 160, 160), 0.4) + 1e-3 * torch.rand(1, 3, 1, 1)
        with torch.no_grad():
            middle = network.eval()(flat)[..., 72:88, 72:88]
        return float(middle.std((-2, -1)).max())

    assert grid("resize") < 1e-4 < 1e-2 < grid("transposed")
