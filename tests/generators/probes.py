"""Measurements on generators: receptive field, checkerboard, bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rand(count: int = 1, height: int = 32, width: int | None = None, *, seed: int = 1) -> Tensor:
    """Photos of noise, count x 3 x height x width."""
    return torch.rand(count, 3, height, width or height, generator=torch.Generator().manual_seed(seed))


def field_by_gradients(network: nn.Module, weight: float) -> int:
    """Receptive field over every phase of a pixel within a cell of `multiple_of`.

    The network is changed: all weights become `weight`, and ReLUs identities, since a dead one would hide a path.
    """
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.forward = lambda x: x
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data.fill_(weight)
    field, cell = network.receptive_field, network.multiple_of
    assert isinstance(field, int)
    side = (field // cell + 2) * cell
    start = side // 2 // cell * cell
    photo = torch.full((1, 3, cell, side), 0.5, requires_grad=True)
    restored = network(photo)
    reach = 0
    for phase in range(cell):
        (gradient,) = torch.autograd.grad(restored[0, 0, 0, start + phase], photo, retain_graph=True)
        inputs = (gradient.abs().sum((0, 1, 2)) > 0).nonzero().flatten()
        reach = max(reach, start + phase - int(inputs[0]), int(inputs[-1]) - start - phase)
    return 2 * reach + 1


def checkerboard(network: nn.Module, side: int = 160, window: int = 64) -> float:
    """Amplitude of what alternates from pixel to pixel in the middle of a restored uniform photo."""
    with torch.no_grad():
        restored = network.eval()(torch.full((1, 3, side, side), 0.4))
    start = (side - window) // 2
    middle = restored[..., start : start + window, start : start + window].double()
    hann = torch.hann_window(window, dtype=torch.double)
    hann = hann[:, None] * hann
    spectrum = torch.fft.fft2((middle - middle.mean((-2, -1), keepdim=True)) * hann).abs() / hann.sum()
    return float(torch.stack([spectrum[..., window // 2, :].amax(), spectrum[..., window // 2].amax()]).max())


def lively(network: nn.Module, std: float = 0.2) -> nn.Module:
    """Larger weights, so that each part shows in the output."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=std)
    return network
