from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairweather.errors import BadSettings
from fairweather.generators import GUNet
from fairweather.generators.gunet import Gated, SelectiveFusion
from tests.generators.mixed import check_bf16_in_channels_last


def small(**settings: Any) -> GUNet:
    torch.manual_seed(0)
    return GUNet(**{"width": 8, "depths": (1, 1, 1, 1, 1), **settings})


def photo(count: int = 1, side: int = 32, *, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_size_and_declarations() -> None:
    network = GUNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 844_899
    assert [len(stage) for stage in network.encoder] == [2, 2, 2, 4]
    assert [stage[0].norm.num_features for stage in network.encoder] == [24, 48, 96, 192]
    assert (network.multiple_of, network.receptive_field) == (8, None)


def test_depths_are_told_from_the_first_stage_to_the_last() -> None:
    network = small(depths=(1, 2, 3, 4, 5))
    assert [len(stage) for stage in network.encoder] == [1, 2, 3]
    assert [len(stage) for stage in reversed(network.decoder)] == [4, 5]  # run from the coarsest up


def test_a_block_is_shut_by_its_gate() -> None:
    torch.manual_seed(0)
    block, x = Gated(4, 5).eval(), torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.project.bias)
    assert (block(x) - x).abs().amax() > 1e-2
    nn.init.zeros_(block.gate.weight)
    nn.init.constant_(block.gate.bias, -50.0)
    torch.testing.assert_close(block(x), x)


def test_a_block_gates_what_it_mixes() -> None:
    """The formula of its docstring, on features of more than one size."""
    torch.manual_seed(0)
    block, x = Gated(4, 3).eval(), torch.randn(1, 4, 9, 6)
    block.norm.running_mean.uniform_()
    normed = block.norm(x)
    expected = x + block.project(block.depthwise(block.mix(normed)) * block.gate(normed).sigmoid())
    torch.testing.assert_close(block(x), expected)
    assert block.depthwise.groups == 4


def test_fusion_chooses_between_its_two_maps_channel_by_channel() -> None:
    """As a softmax over the two (their paper) does, written without our shortcut."""
    torch.manual_seed(0)
    fusion = SelectiveFusion(6)
    first, second = torch.randn(2, 6, 5, 7), torch.randn(2, 6, 5, 7)
    scores = fusion.choose((first + second).mean((2, 3), keepdim=True)).reshape(2, 2, 6, 1, 1)
    shares = scores.softmax(1)
    torch.testing.assert_close(fusion(first, second), shares[:, 0] * first + shares[:, 1] * second)
    assert shares.std() > 0
    torch.testing.assert_close(fusion(first, first), first)


@pytest.mark.parametrize("level", [0, 1])
def test_every_scale_has_its_skip(level: int) -> None:
    """With all below a scale silenced, it reaches the output through its skip alone."""
    network = small()
    network.up[level].register_forward_hook(lambda _module, _inputs, output: output * 0)
    network(photo(2)).square().mean().backward()
    here, below = network.encoder[level][0].project, network.encoder[level + 1][0].project
    assert here.weight.grad.abs().sum() > 0
    assert below.weight.grad.abs().sum() == 0


def test_a_pixel_sees_the_whole_photo() -> None:
    """Through the means of the fusion; hence no receptive field and no tiles."""
    network = small().eval()
    nn.init.normal_(network.head.weight, std=0.05)
    seen = photo(side=160).requires_grad_()
    network(seen)[..., :4, :4].sum().backward()
    assert seen.grad is not None
    assert seen.grad[..., -8:, -8:].abs().amax() > 0


def test_the_first_answer_is_the_photo() -> None:
    assert (small()(photo(2)) - photo(2)).abs().amax() < 0.05


def test_white_and_black_are_cut_and_still_learned_from() -> None:
    network = small()
    network.head.bias.data.fill_(40.0)
    assert torch.equal(network.eval()(photo()), torch.ones_like(photo()))
    network.train()(photo(2)).mean().backward()
    assert network.head.bias.grad.abs().amin() > 0


def test_it_learns_one_pair_by_heart() -> None:
    network = small()
    clear = F.interpolate(photo(side=8), scale_factor=4.0, mode="bilinear")
    degraded = 0.4 * clear + 0.5
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    errors = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (network(degraded) - clear).abs().mean()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.4 * float((degraded - clear).abs().mean())


def test_bf16_in_channels_last() -> None:
    check_bf16_in_channels_last(small(), photo(2))


@pytest.mark.parametrize("settings", [{"depths": (1, 1)}, {"depths": (1, -1, 1)}, {"width": 0}, {"kernel": 4}], ids=str)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(BadSettings, match="odd"):
        small(**settings)
