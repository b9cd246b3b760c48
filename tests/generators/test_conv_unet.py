from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fairweather.errors import BadSettings
from fairweather.generators import ConvUNet
from tests.generators.probes import checkerboard, field_by_gradients, rand


def small(**arguments: Any) -> ConvUNet:
    torch.manual_seed(0)
    return ConvUNet(**{"widths": (8, 12, 16), "encoder": (1, 1, 1), "decoder": (1, 1), **arguments})


def test_shape_at_the_defaults() -> None:
    network = ConvUNet()
    assert [stage[0].first.out_channels for stage in network.encoder] == [32, 64, 128, 192]
    assert network.stem.in_channels == 12
    assert (network.multiple_of, network.receptive_field) == (16, 383)
    assert (small(shuffle=1).multiple_of, small(shuffle=4).multiple_of) == (4, 16)
    kinds = {type(module) for module in network.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d}, "no norms and no pooling: it can be quantized and run in tiles"


@pytest.mark.parametrize(
    ("shuffle", "encoder", "decoder"),
    [
        (1, (1,), ()),
        (2, (2,), ()),
        (2, (1, 1), (1,)),
        (2, (1, 2, 1), (1, 0)),
        (3, (1, 0, 2), (0, 1)),
        (4, (0, 1), (2,)),
    ],
)
def test_receptive_field(shuffle: int, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> None:
    network = ConvUNet(shuffle=shuffle, widths=(2,) * len(encoder), encoder=encoder, decoder=decoder)
    assert network.receptive_field == field_by_gradients(network, 0.05)


def test_the_first_output_is_near_the_photo() -> None:
    network = small().eval()
    assert 0 < (network(rand()) - rand()).abs().mean() < 0.15
    assert checkerboard(network) < 0.05
    network.head.weight.data.zero_()
    assert torch.equal(network(rand()), rand())


def test_signals_keep_their_size() -> None:
    network, found = ConvUNet(widths=(16, 24, 32, 48)), []
    for stage in network.encoder:
        stage.register_forward_hook(lambda _module, _inputs, output: found.append(float(output.detach().std())))
    network(rand(1, 64))
    assert max(found) / min(found) < 3


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_a_skip(level: int) -> None:
    network = small()
    network.up[level].register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(rand()).square().mean().backward()
    here, below = network.encoder[level][0].first, network.encoder[level + 1][0].first
    assert here.weight.grad.abs().sum() > 0
    assert below.weight.grad.abs().sum() == 0


def test_a_clamped_output_has_a_gradient() -> None:
    network = small()
    network.head.bias.data.fill_(40.0)
    assert torch.equal(network.eval()(rand()), torch.ones_like(rand()))
    network.train()(rand()).mean().backward()
    assert network.head.bias.grad.abs().amin() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (8, 8)}, "2 widths needs 2"),
        ({"widths": ()}, "0 widths"),
        ({"decoder": (1,)}, "got 3 and 1"),
        ({"shuffle": 0}, "shuffle"),
        ({"widths": (8, 0, 8)}, "widths"),
        ({"encoder": (1, -1, 1)}, "blocks"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        small(**arguments)
