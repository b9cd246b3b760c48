"""A moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of parameters and of batch norm's statistics; whole numbers are copied as they are.

    The decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights are soon forgotten
    (as TensorFlow's ExponentialMovingAverage with num_updates). It reaches back over a ninth of a short run: a second
    phase that begins with trained weights does not end as a blend with them.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for kept, fresh in zip(self.module.buffers(), module.buffers(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(fresh, 1 - decay)
            else:
                kept.copy_(fresh)
