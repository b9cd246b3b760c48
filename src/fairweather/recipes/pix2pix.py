"""pix2pix: a conditional GAN on pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, l1
from fairweather.recipes.base import (
    Batch,
    Build,
    Decay,
    OptimizerGroup,
    Rate,
    Recipe,
    Share,
    Update,
    Weight,
    Width,
    sum_terms,
)


@dataclass(frozen=True)
class Pix2PixSettings:
    """The paper's settings (section 3.3 and appendix 6.2)."""

    l1: Weight = 100.0
    """Weight of the L1 difference from the ground truth; the adversarial term weighs 1."""
    lr: Rate = 2e-4
    """Learning rate of both Adams."""
    beta1: Decay = 0.5
    """First momentum of both Adams; the second is 0.999."""
    hold: Share = 0.5
    """Share of the run before the learning rate decays linearly to zero (the authors' code: 100 of 200 epochs)."""
    width: Width = 64
    """Channels of the discriminator's first layer."""


class Pix2Pix(Recipe):
    """Isola, Zhu, Zhou and Efros, Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017.

    The discriminator sees the degraded photo together with the clear or the restored one. It is updated first, with
    half its loss, so that it learns slowly relative to the generator; then the generator, against the updated one.

    Terms: `adversarial`, `l1`; `discriminator`.
    """

    settings_type: ClassVar[type[Pix2PixSettings]] = Pix2PixSettings
    paired: ClassVar[bool] = True
    paper_crops: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    epochs: ClassVar[int] = 200
    generator: ClassVar[str] = "unet"

    def __init__(self, build: Build, settings: Pix2PixSettings | None = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or Pix2PixSettings()
        self.restore = build()
        self.discriminator = PatchGAN(6, width=self.settings.width, norm="batch")

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        s = self.settings
        adam: dict[str, Any] = {"lr": s.lr, "betas": (s.beta1, 0.999), "schedule": "linear", "hold": s.hold}
        return {
            "generator": OptimizerGroup((self.restore,), **adam),
            "discriminator": OptimizerGroup((self.discriminator,), **adam),
        }

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        gan = ADVERSARIAL["bce"]
        restored = self.restore(batch.degraded)

        real = self.discriminator(torch.cat([batch.degraded, batch.clear], dim=1))
        fake = self.discriminator(torch.cat([batch.degraded, restored.detach()], dim=1))
        losses = {"discriminator": 0.5 * gan.discriminator(real, fake)}
        update("discriminator", sum_terms(losses))

        terms = {
            "adversarial": gan.generator(self.discriminator(torch.cat([batch.degraded, restored], dim=1))),
            "l1": self.settings.l1 * l1(restored, batch.clear),
        }
        update("generator", sum_terms(terms))
        return terms | losses

    def restorer_network(self) -> nn.Module:
        return self.restore
