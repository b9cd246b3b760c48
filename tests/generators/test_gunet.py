from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fairweather.errors import BadSettings
from fairweather.generators import GUNet
from fairweather.generators.gunet import Gated, SelectiveFusion
from tests.generators.probes import rand


def small(**arguments: Any) -> GUNet:
    torch.manual_seed(0)
    return GUNet(**{"width": 8, "depths": (1, 1, 1, 1, 1), **arguments})


def test_shape() -> None:
    network = GUNet()
    assert [len(stage) for stage in network.encoder] == [2, 2, 2, 4]
    assert [stage[0].norm.num_features for stage in network.encoder] == [24, 48, 96, 192]
    assert (network.multiple_of, network.receptive_field) == (8, None)
    network = small(depths=(1, 2, 3, 4, 5))
    assert [len(stage) for stage in network.encoder] == [1, 2, 3]
    assert [len(stage) for stage in reversed(network.decoder)] == [4, 5]


def test_the_gated_block_is_the_formula_of_its_docstring() -> None:
    torch.manual_seed(0)
    block, x = Gated(4, 3).eval(), torch.randn(1, 4, 9, 6)
    block.norm.running_mean.uniform_()
    normed = block.norm(x)
    expected = x + block.project(block.depthwise(block.mix(normed)) * block.gate(normed).sigmoid())
    torch.testing.assert_close(block(x), expected)
    assert block.depthwise.groups == 4
    nn.init.zeros_(block.project.bias)
    nn.init.zeros_(block.gate.weight)
    nn.init.constant_(block.gate.bias, -50.0)
    torch.testing.assert_close(block(x), x)


def test_fusion_is_the_papers_softmax() -> None:
    torch.manual_seed(0)
    fusion = SelectiveFusion(6)
    first, second = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    scores = fusion.choose((first + second).mean((2, 3), keepdim=True)).reshape(2, 2, 6, 1, 1)
    shares = scores.softmax(1)
    assert shares.std() > 0
    torch.testing.assert_close(fusion(first, second), shares[:, 0] * first + shares[:, 1] * second)


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_a_skip(level: int) -> None:
    network = small()
    network.up[level].register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(rand(2)).square().mean().backward()
    here, below = network.encoder[level][0].project, network.encoder[level + 1][0].project
    assert here.weight.grad.abs().sum() > 0
    assert below.weight.grad.abs().sum() == 0


def test_a_pixel_depends_on_the_whole_photo() -> None:
    network, photo = small().eval(), rand(1, 160).requires_grad_()
    nn.init.normal_(network.head.weight, std=0.05)
    network(photo)[..., :4, :4].sum().backward()
    assert photo.grad is not None
    assert photo.grad[..., -8:, -8:].abs().amax() > 0


def test_the_first_output_is_the_photo_and_a_clamped_one_has_a_gradient() -> None:
    network = small()
    assert (network(rand(2)) - rand(2)).abs().amax() < 0.05
    network.head.bias.data.fill_(40.0)
    assert torch.equal(network.eval()(rand()), torch.ones_like(rand()))
    network.train()(rand(2)).mean().backward()
    assert network.head.bias.grad.abs().amin() > 0


@pytest.mark.parametrize(
    "arguments", [{"depths": (1, 1)}, {"depths": (1, -1, 1)}, {"width": 0}, {"kernel": 4}], ids=str
)
def test_arguments_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadSettings, match="odd"):
        small(**arguments)
