"""Batch norm's statistics measured anew for the weights that ship."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fairweather.data.batched import Batched
from fairweather.training.feed import DeviceFeed, Feed, Samples

SAMPLES = 1600
BATCH = 16


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there is anything to measure."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def with_precise_statistics(
    network: nn.Module,
    samples: Samples | Batched,
    *,
    seed: int,
    most: int = SAMPLES,
    side: Literal["degraded", "clear"] = "degraded",
) -> nn.Module:
    """A copy of the network whose batch norms hold the mean statistics of up to `most` training samples.

    `side` is what the network is shown: degraded photos, or clear ones where it is the one that degrades.

    "Precise batch norm" (Wu & Johnson, "Rethinking Batch in BatchNorm", arXiv:2105.07576, section 3): the running
    averages that training leaves are of the last few batches and of weights that were still moving, not of the moving
    average of weights that ships. A network without batch norm comes back as it is.
    """
    if not has_batch_norm(network):
        return network
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # PyTorch's word for the plain mean over all batches
            module.train()
    device = next(network.parameters()).device
    kind = DeviceFeed if isinstance(samples, Batched) else Feed
    batches = iter(kind(samples, seed=seed, batch=BATCH))  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in islice(batches, max(1, most // BATCH)):
            network(getattr(batch, side).to(device))
    return network.eval()
