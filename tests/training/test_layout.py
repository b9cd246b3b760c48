"""Channels last, instance norm gives what it always gives, and keeps the layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fairweather.discriminators import PatchGAN
from fairweather.training.optimization import ChannelsLastInstanceNorm, to_channels_last


@pytest.mark.parametrize("shape", [(1, 8, 12, 16), (3, 5, 9, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_instance_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features, slope = 3 * torch.randn(shape) + 1, torch.randn(shape)
    wanted_features = features.clone().requires_grad_()
    wanted = nn.InstanceNorm2d(shape[1])(wanted_features)
    wanted.backward(slope)
    given = features.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = ChannelsLastInstanceNorm(shape[1])(given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    found.backward(slope.to(dtype))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(found.float(), wanted, **tolerance)
    torch.testing.assert_close(given.grad.float(), wanted_features.grad, **tolerance)


def test_only_training_leaves_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported network says instance norm."""
    calls = []
    usual = nn.InstanceNorm2d.forward
    monkeypatch.setattr(nn.InstanceNorm2d, "forward", lambda self, x: (calls.append(1), usual(self, x))[1])
    layer = ChannelsLastInstanceNorm(4)
    features = torch.randn(2, 4, 6, 6)
    last = features.contiguous(memory_format=torch.channels_last)
    layer(last)
    assert not calls
    layer(features)
    layer.eval()(last)
    assert len(calls) == 2


def test_a_network_keeps_its_weights_and_answers() -> None:
    torch.manual_seed(0)
    discriminator = PatchGAN(width=8)
    photos = torch.rand(2, 3, 32, 32)
    before, state = discriminator(photos), copy.deepcopy(discriminator.state_dict())
    to_channels_last(discriminator, "cpu")
    assert sum(type(part) is ChannelsLastInstanceNorm for part in copy.deepcopy(discriminator).modules()) == 3
    torch.testing.assert_close(discriminator(photos), before, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in discriminator.state_dict().items())
