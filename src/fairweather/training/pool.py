"""History of fakes for a discriminator."""

from __future__ import annotations

import torch
from torch import Tensor


class Pool:
    """Shows a discriminator a mixture of fresh and earlier fakes (Shrivastava et al., Learning from Simulated and
    Unsupervised Images through Adversarial Training, CVPR 2017, section 2.3).

    While it fills, fakes come back as they are. Then each one is, with even chance, kept in place of an earlier one,
    which comes back instead. `generator` (on the CPU) makes the draws; its state belongs to the run's state.
    """

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.size = size
        self.generator = generator
        self.photos: list[Tensor] = []

    def recall(self, fakes: Tensor) -> Tensor:
        """N x C x H x W -> N x C x H x W, detached."""
        fakes = fakes.detach()
        if self.size <= 0:
            return fakes
        shown = []
        for fake in fakes:
            if len(self.photos) < self.size:
                self.photos.append(fake.clone())
                shown.append(fake)
            elif torch.rand((), generator=self.generator) < 0.5:
                place = int(torch.randint(self.size, (), generator=self.generator))
                shown.append(self.photos[place])
                self.photos[place] = fake.clone()
            else:
                shown.append(fake)
        return torch.stack(shown)
