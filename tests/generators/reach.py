"""How far a network looks, measured by gradients."""

from __future__ import annotations

import torch
from torch import nn


def field_by_gradients(network: nn.Module, weight: float) -> int:
    """Side of the window that an output pixel depends on, over every phase of a pixel within a cell of `multiple_of`.

    The network is changed: all weights become `weight`, and ReLUs let everything through, since a dead one would hide a
    path that other weights have.
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
    given = torch.full((1, 3, cell, side), 0.5, requires_grad=True)
    restored = network(given)
    reach = 0
    for phase in range(cell):
        (gradient,) = torch.autograd.grad(restored[0, 0, 0, start + phase], given, retain_graph=True)
        seen = (gradient.abs().sum((0, 1, 2)) > 0).nonzero().flatten()
        reach = max(reach, start + phase - int(seen[0]), int(seen[-1]) - start - phase)
    return 2 * reach + 1
