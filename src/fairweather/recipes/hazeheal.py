"""HazeHeal: a conditional GAN on hazy pairs that looks twice where the haze is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, HazeMask, Perceptual, charbonnier, dark_channel_mask, transmission_mask
from fairweather.recipes.base import Batch, Build, OptimizerGroup, Recipe, Update, sum_terms


@dataclass(frozen=True)
class HazeHealSettings:
    """The public project's settings; the adversarial term weighs 1."""

    reconstruction: float = 150.0
    """Weight of the Charbonnier difference from the ground truth, whole and inside the haze together."""
    inside: float = 0.3
    """Share of that weight which looks inside the haze mask alone; the rest looks at the whole photo."""
    mask: HazeMask = "dark_channel"
    """Where the haze is: by the degraded photo's dark channel, or by the transmission between the pair's photos."""
    patch: int = 15
    """Side in pixels of the dark channel's window."""
    threshold: float | None = None
    """Share of airlight (0 to 1) above which a pixel lies inside the mask; None weighs each pixel by its share."""
    perceptual: float = 0.005
    """Weight of the difference of VGG-19's features; 0 makes none."""
    layers: tuple[str, ...] = ("relu3_3", "relu4_3")
    """The layers whose features are compared; shallower ones (relu2_2) are much cheaper."""
    vgg: str | None = None
    """File of VGG-19's weights (torchvision's vgg19-dcbb9e9d.pth). None: torch's cache, else a random network."""
    lr: float = 2e-4
    """Learning rate of both Adams."""
    beta1: float = 0.5
    """First momentum of both Adams; the second is 0.999."""
    hold: float = 1.0
    """Share of the run before the learning rate decays linearly to zero; 1 keeps it to the end."""
    width: int = 64
    """Channels of the discriminator's first layer."""


class HazeHeal(Recipe):
    """The public project HazeHeal: pix2pix's game (Isola et al., CVPR 2017) with a U-Net of MBConv blocks, Charbonnier
    in place of L1, a mask of the haze (dark channel: He, Sun and Tang, CVPR 2009) and VGG-19's features (Johnson et
    al., ECCV 2016).

    The discriminator sees the degraded photo beside the clear or the restored one; every layer of it is under spectral
    norm (Miyato et al., ICLR 2018), none under batch norm. Both sides move against what the other was before the step.

    Terms: `adversarial`, `charbonnier` (whole), `haze_aware` (inside the mask), `perceptual`; `discriminator`.
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
        def group(module: nn.Module) -> OptimizerGroup:
            s = self.settings
            return OptimizerGroup((module,), lr=s.lr, betas=(s.beta1, 0.999), schedule="linear", hold=s.hold)

        return {"generator": group(self.restore), "discriminator": group(self.discriminator)}

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        s, game = self.settings, ADVERSARIAL["bce"]
        restored = self.restore(batch.degraded)
        terms = {
            "adversarial": game.generator(self.discriminator(torch.cat([batch.degraded, restored], dim=1))),
            "charbonnier": s.reconstruction * (1 - s.inside) * charbonnier(restored, batch.clear),
            "haze_aware": s.reconstruction * s.inside * charbonnier(restored, batch.clear, self.mask(batch)),
        }
        if self.compare is not None:
            terms["perceptual"] = s.perceptual * self.compare(restored, batch.clear)
        update("generator", sum_terms(terms))

        real = self.discriminator(torch.cat([batch.degraded, batch.clear], dim=1))
        fake = self.discriminator(torch.cat([batch.degraded, restored.detach()], dim=1))
        judged = {"discriminator": game.discriminator(real, fake)}
        update("discriminator", sum_terms(judged))
        return terms | judged

    def mask(self, batch: Batch) -> Tensor:
        """N x 1 x H x W in [0,1]: where the haze is."""
        s = self.settings
        if s.mask == "transmission":
            return transmission_mask(batch.degraded, batch.clear, threshold=s.threshold)
        return dark_channel_mask(batch.degraded, patch=s.patch, threshold=s.threshold)

    def restorer_network(self) -> nn.Module:
        return self.restore

    def notes(self) -> dict[str, str]:
        return {} if self.compare is None else {"perceptual": self.compare.words}
