"""What mixed precision may do to a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def check_bf16_in_channels_last(network: nn.Module, given: Tensor) -> None:
    """Under bf16 autocast: a float32 picture, near the float32 network's own, and finite gradients."""
    network = network.to(memory_format=torch.channels_last)
    given = given.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(given)
    with torch.autocast("cpu", torch.bfloat16):
        restored = network(given)
        loss = (restored - 0.3).abs().mean()
    loss.backward()
    assert restored.dtype == torch.float32, "a picture in bfloat16 has steps of an 8-bit one"
    assert (restored - expected).abs().amax() < 0.03
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
