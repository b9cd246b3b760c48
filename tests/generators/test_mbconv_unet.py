from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fairweather.errors import BadSettings, UnknownName
from fairweather.generators import MBConvUNet
from fairweather.generators.layers import initialise
from tests.generators.probes import checkerboard, rand


def small(**arguments: Any) -> MBConvUNet:
    torch.manual_seed(0)
    return MBConvUNet(**{"width": 8, "levels": 3, "expansion": 2, **arguments})


def of(kind: type[nn.Module] | tuple[type[nn.Module], ...], network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_shape() -> None:
    with torch.device("meta"):
        network = MBConvUNet()
    assert [scale.plain[0].out_channels for scale in network.encoder] == [48, 96, 192, 384, 384]
    assert (network.multiple_of, network.receptive_field) == (32, None)
    network = small(norm="instance")
    assert network.multiple_of == 16
    assert of(nn.SiLU, network.encoder)
    assert not of((nn.ReLU, nn.LeakyReLU), network.encoder)
    assert not of(nn.SiLU, network.decoder)


def test_the_bottleneck() -> None:
    block = small(expansion=4, squeeze=0.5).encoder[1].bottleneck  # 16 channels
    expand, depthwise, project = block.expand[0], block.depthwise[0], block.project[0]
    assert (expand.kernel_size, expand.in_channels, expand.out_channels) == ((1, 1), 16, 64)
    assert (depthwise.kernel_size, depthwise.groups, depthwise.out_channels) == ((3, 3), 64, 64)
    assert (project.kernel_size, project.in_channels, project.out_channels) == ((1, 1), 64, 16)
    assert [layer.out_channels for layer in of(nn.Conv2d, block.excite)] == [8, 64]
    assert not of((nn.SiLU, nn.ReLU), block.project), "the bottleneck is linear"
    project.weight.data.zero_()
    features = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(block.eval()(features), features)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("path", ["plain", "bottleneck"])
def test_every_scale_fuses_both_paths(level: int, path: str) -> None:
    network = small().eval()
    with torch.no_grad():
        before = network(rand(1, 64))
        getattr(network.encoder[level], path).register_forward_hook(lambda _module, _inputs, output: output + 1)
        assert (network(rand(1, 64)) - before).abs().amax() > 1e-4


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_a_skip(level: int) -> None:
    network = small()
    network.decoder[1 - level].up.register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(rand(1, 64)).square().mean().backward()
    assert network.encoder[level + 1].fuse[0].weight.grad.abs().sum() == 0
    assert network.encoder[level].fuse[0].weight.grad.abs().sum() > 0


def test_the_photo_reaches_the_head() -> None:
    network = small().eval()
    network.last.register_forward_hook(lambda _module, _inputs, output: output * 0)
    assert not torch.equal(network(rand(seed=1)), network(rand(seed=2)))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_pixel_depends_on_the_whole_photo(norm: str) -> None:
    photo = rand(1, 128).requires_grad_()
    small(norm=norm).eval()(photo)[0, 0, 0, 0].backward()
    assert photo.grad is not None
    assert photo.grad[..., -8:, -8:].abs().amax() > 0


def test_signals_keep_their_size_without_norms() -> None:
    def sizes(network: MBConvUNet) -> list[float]:
        found: list[float] = []
        for scale in network.encoder:
            scale.register_forward_hook(lambda _module, _inputs, output: found.append(float(output.std())))
        with torch.no_grad():
            network(rand(1, 64))
        return found

    network = small(width=16, levels=5, norm="none")
    ours = sizes(network)
    assert max(ours) / min(ours) < 3
    assert all(0.2 < size < 2 for size in ours)
    initialise(network)
    assert sizes(network)[-1] < 1e-3, "the papers' initial weights would not do"


def test_the_first_output_is_near_grey_or_the_photo() -> None:
    photo = rand(1, 64)
    restored, changed = small()(photo), small(residual=True)(photo)
    assert (restored - 0.5).abs().mean() < 0.15
    assert (changed - photo).abs().mean() < 0.15 < (restored - photo).abs().mean()


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_one_photo_of_the_smallest_size_trains(norm: str) -> None:
    network = small(norm=norm)
    network(rand(1, network.multiple_of)).mean().backward()
    assert network.encoder[-1].plain[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_resizing_leaves_no_checkerboard(norm: str) -> None:
    networks = [small(levels=2, upsampling=kind, norm=norm) for kind in ("resize", "transposed")]
    for network in networks:
        network.head.weight.data *= 3
    assert checkerboard(networks[0]) < 1e-6 < 1e-3 < checkerboard(networks[1])


def test_arguments_out_of_range() -> None:
    for arguments, error in (
        ({"width": 0}, BadSettings),
        ({"squeeze": 0}, BadSettings),
        ({"norm": "layer"}, UnknownName),
        ({"upsampling": "bilinear"}, UnknownName),
    ):
        with pytest.raises(error, match=r"width|squeeze|none|resize"):
            MBConvUNet(**arguments)  # type: ignore[arg-type]
