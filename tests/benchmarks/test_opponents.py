"""The opponents are the papers' networks: their parameters, their work, their equations."""

from __future__ import annotations

import opponents
import pytest
import torch
from torch import nn


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_gunet_t_has_the_papers_work() -> None:
    network = opponents.gunet_t().eval()
    work = opponents.macs(network, torch.zeros(1, 3, 256, 256)) / 1e9
    assert work == pytest.approx(2.60, rel=0.07)
    assert work * opponents.GUNET_T_SHARE == pytest.approx(2.60, rel=0.001)
    assert parameters(network) / 1e6 == pytest.approx(0.81, rel=0.06)


def test_aod_net_has_the_papers_parameters_and_equation() -> None:
    torch.manual_seed(0)
    network = opponents.AODNet().eval()
    assert parameters(network) == 1761
    photo = torch.rand(1, 3, 20, 31)
    assert opponents.macs(network, photo) == (1761 - 15) * 20 * 31  # all but the five layers' biases, everywhere
    with torch.no_grad():
        network.five.weight.zero_()
        assert network.five.bias is not None
        network.five.bias.fill_(2.0)
        assert torch.allclose(network(photo), (2 * photo - 1).clamp(0, 1), atol=1e-6)


def test_macs_of_strides_groups_and_transposed_convolutions() -> None:
    picture = torch.zeros(1, 4, 12, 16)
    assert opponents.macs(nn.Conv2d(4, 6, 3, 2, 1), picture) == 6 * 4 * 9 * 6 * 8
    assert opponents.macs(nn.Conv2d(4, 4, 3, padding=1, groups=4), picture) == 4 * 9 * 12 * 16
    assert opponents.macs(nn.ConvTranspose2d(4, 6, 2, 2), picture) == 4 * 6 * 4 * 12 * 16


def test_every_opponent_keeps_the_size() -> None:
    for make in opponents.OPPONENTS.values():
        network = make().eval()
        with torch.inference_mode():
            assert network(torch.rand(1, 3, 32, 64)).shape == (1, 3, 32, 64)
