"""HazeHeal: a conditional GAN on hazy pairs with an additional loss inside the haze."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, HazeMask, Perceptual, charbonnier, dark_channel_mask, transmission_mask
from fairweather.recipes.base import (
    Batch,
    Build,
    Decay,
    Layers,
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
class HazeHealSettings:
    """The public project's settings; the adversarial term weighs 1."""

    reconstruction: Weight = 150.0
    """Weight of the Charbonnier difference from the ground truth, over the whole photo and inside the haze together."""
    inside: Share = 0.3
    """Share of that weight for the difference inside the haze mask; the rest is for the whole photo."""
    mask: HazeMask = "dark_channel"
    """Haze mask: from the degraded photo's dark channel, or from the transmission between the two photos of a pair."""
    patch: Annotated[int, Meta(ge=1, le=255)] = 15
    """Side in pixels of the dark channel's window."""
    threshold: Share | None = None
    """Share of airlight above which a pixel is in the mask (default: each pixel is weighted by its share)."""
    perceptual: Weight = 0.005
    """Weight of the difference in VGG-19's features; 0 disables it."""
    layers: Layers = ("relu3_3", "relu4_3")
    """The layers whose features are compared; shallower ones (relu2_2) are much cheaper."""
    vgg: str | None = None
    """File of VGG-19's weights, torchvision's vgg19-dcbb9e9d.pth (default: torch's cache, else a random network)."""
    lr: Rate = 2e-4
    """Learning rate of both Adams."""
    beta1: Decay = 0.5
    """First momentum of both Adams; the second is 0.999."""
    hold: Share = 1.0
    """Share of the run before the learning rate decays linearly to zero; 1 keeps it constant."""
    width: Width = 64
    """Channels of the discriminator's first layer."""


class HazeHeal(Recipe):
    """The public project HazeHeal: pix2pix's conditional GAN (Isola et al., CVPR 2017) with a U-Net of MBConv blocks,
    Charbonnier in place of L1, a haze mask (dark channel: He, Sun and Tang, CVPR 2009) and VGG-19's features (Johnson
    et al., ECCV 2016).

    The discriminator sees the degraded photo together with the clear or the restored one; each of its layers has
    spectral norm (Miyato et al., ICLR 2018), none has batch norm. The generator is updated first; the discriminator
    sees the output from before that update.

    Terms: `adversarial`, `charbonnier` (whole photo), `haze_aware` (inside the mask), `perceptual`; `discriminator`.
    """

    settings_type: ClassVar[type[HazeHealSettings]] = HazeHealSettings
    paired: ClassVar[bool] = True
    batch: ClassVar[int] = 4
    epochs: ClassVar[int] = 200
    generator: ClassVar[str] = "mbconv_unet"

    def __init__(self, build: Build, settings: HazeHealSettings | None = None) -> None:
        super().__init__(build, settings)
        self.settings = s = settings or HazeHealSettings()
        self.restore = build()
        self.discriminator = PatchGAN(6, width=s.width, norm="none", spectral=True)
        self.compare = Perceptual(s.layers, s.vgg) if s.perceptual else None

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        s = self.settings
        adam: dict[str, Any] = {"lr": s.lr, "betas": (s.beta1, 0.999), "schedule": "linear", "hold": s.hold}
        return {
            "generator": OptimizerGroup((self.restore,), **adam),
            "discriminator": OptimizerGroup((self.discriminator,), **adam),
        }

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        s, gan = self.settings, ADVERSARIAL["bce"]
        restored = self.restore(batch.degraded)
        terms = {
            "adversarial": gan.generator(self.discriminator(torch.cat([batch.degraded, restored], dim=1))),
            "charbonnier": s.reconstruction * (1 - s.inside) * charbonnier(restored, batch.clear),
            "haze_aware": s.reconstruction * s.inside * charbonnier(restored, batch.clear, self.mask(batch)),
        }
        if self.compare is not None:
            terms["perceptual"] = s.perceptual * self.compare(restored, batch.clear)
        update("generator", sum_terms(terms))

        real = self.discriminator(torch.cat([batch.degraded, batch.clear], dim=1))
        fake = self.discriminator(torch.cat([batch.degraded, restored.detach()], dim=1))
        losses = {"discriminator": gan.discriminator(real, fake)}
        update("discriminator", sum_terms(losses))
        return terms | losses

    def mask(self, batch: Batch) -> Tensor:
        """The haze mask, N x 1 x H x W in [0,1]."""
        s = self.settings
        if s.mask == "transmission":
            return transmission_mask(batch.degraded, batch.clear, threshold=s.threshold)
        return dark_channel_mask(batch.degraded, patch=s.patch, threshold=s.threshold)

    def restorer_network(self) -> nn.Module:
        return self.restore

    def notes(self) -> dict[str, str]:
        return {} if self.compare is None else {"perceptual": self.compare.words}
