"""Channels last on a CPU: what the convolutions gain by it, instance norm must not lose."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelsLastInstanceNorm(nn.InstanceNorm2d):
    """nn.InstanceNorm2d that stays in the layout it is given, while it trains.

    PyTorch computes instance norm as the batch norm of N C channels, and reshapes to that end: channels last, it copies
    the features to and fro, and the ReLU that then works in place on a view copies them twice more. The batch norm of
    one sample is its instance norm, and has a kernel for this layout.
    """

    def forward(self, features: Tensor) -> Tensor:
        plain = features.is_contiguous() or not features.is_contiguous(memory_format=torch.channels_last)
        # In evaluation mode it is exported, and must be what ONNX calls instance norm.
        if plain or not self.training or self.affine or self.track_running_stats:
            return super().forward(features)
        samples = [
            functional.batch_norm(features[at : at + 1], None, None, training=True, eps=self.eps)
            for at in range(len(features))
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


def to_channels_last(module: nn.Module, device: str) -> None:
    """Weights channels last, in place; what they are does not change."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in module.modules():
        if device == "cpu" and type(part) is nn.InstanceNorm2d:
            part.__class__ = ChannelsLastInstanceNorm
