"""UNet, and what it shares with ResNet: initial weights, residual output, upsampling."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators import ResNet6, ResNet9, UNet
from tests.generators.probes import checkerboard, field_by_gradients, lively, rand


def test_shape() -> None:
    with torch.device("meta"):
        network = UNet()
    assert network.multiple_of == 256
    assert len(network.encoder) == len(network.decoder) == 8
    dropped = [any(isinstance(layer, nn.Dropout) for layer in level) for level in network.decoder]
    assert dropped == [True, True, True, False, False, False, False, False]
    widths = [
        level[-1].num_features if isinstance(level[-1], nn.BatchNorm2d) else level[-1].out_channels
        for level in UNet(levels=6, width=2).encoder
    ]
    assert widths == [2, 4, 8, 16, 16, 16]
    assert UNet(levels=2, width=2, norm="instance").receptive_field is None


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_receptive_field(levels: int, upsampling: Any) -> None:
    network = UNet(levels=levels, width=2, dropout=0, upsampling=upsampling).eval()
    assert network.receptive_field == field_by_gradients(network, 0.01)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_one_photo_of_the_smallest_size_trains(norm: Any) -> None:
    """The innermost features are 1 x 1, which batch norm rejects and instance norm sets to zero."""
    network = UNet(levels=3, width=4, norm=norm, dropout=0)
    network(rand(1, 8)).mean().backward()
    innermost = network.encoder[-1]
    assert not any(isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d) for layer in innermost)
    assert innermost[-1].weight.grad.abs().sum() > 0


def test_dropout_is_used_in_training_only() -> None:
    network = UNet(levels=3, width=4)
    assert not torch.equal(network(rand()), network(rand()))
    network.eval()
    assert torch.equal(network(rand()), network(rand()))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_has_a_skip(level: int) -> None:
    network = UNet(levels=4, width=4, dropout=0)
    network.decoder[2 - level].register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(rand()).square().mean().backward()
    here, below = (
        next(layer for layer in network.encoder[at] if isinstance(layer, nn.Conv2d)) for at in (level, level + 1)
    )
    assert below.weight.grad.abs().sum() == 0
    assert here.weight.grad.abs().sum() > 0


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for network in (UNet(levels=5, width=16), ResNet9(width=16, blocks=2)):
        weights = torch.cat([p.flatten() for name, p in network.named_parameters() if p.ndim > 1])
        assert weights.mean().abs() < 1e-3
        assert weights.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("build", [partial(UNet, levels=3, width=4), partial(ResNet6, width=4)])
def test_a_residual_network_starts_from_the_photo(build: Any) -> None:
    photo = 0.2 + 0.6 * rand(1, 32, 40)
    torch.manual_seed(0)
    painted = (build().eval()(photo) - photo).abs().mean()
    torch.manual_seed(0)
    changed = (build(residual=True).eval()(photo) - photo).abs().mean()
    assert 2 * changed < painted
    saturated = build(residual=True).eval()
    bias = list(saturated.parameters())[-1]
    bias.data.fill_(40.0)
    assert torch.equal(saturated(photo), torch.ones_like(photo))
    restored = saturated.train()(photo)
    assert restored.max() <= 1 + 1e-6
    restored.mean().backward()
    assert bias.grad is not None
    assert bias.grad.abs().min() > 0, "a clamped output has a gradient"


@pytest.mark.parametrize("build", [partial(UNet, levels=2, width=4), partial(ResNet6, width=4)])
def test_resizing_leaves_no_checkerboard(build: Any) -> None:
    torch.manual_seed(1)
    networks = [lively(build(upsampling=kind)) for kind in ("resize", "transposed")]
    assert checkerboard(networks[0]) < 1e-4 < 1e-3 < checkerboard(networks[1])


def test_arguments_out_of_range() -> None:
    for build, error in (
        (partial(UNet, levels=0), BadSettings),
        (partial(UNet, levels=2, dropout=1.0), BadSettings),
        (partial(UNet, levels=4, norm="layer"), UnknownName),
        (partial(ResNet9, blocks=-1), BadSettings),
    ):
        with pytest.raises(error, match=r"levels|dropout|batch|blocks"):
            build()
