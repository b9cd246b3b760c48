"""ClarityGAN: CycleGAN for haze whose reconstructions must also match in VGG-19's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairweather.losses import Perceptual
from fairweather.recipes.base import Batch, Build, Layers, Weight
from fairweather.recipes.cyclegan import CycleGAN, CycleGANSettings


@dataclass(frozen=True)
class ClarityGANSettings(CycleGANSettings):
    """CycleGAN's settings, and those of the perceptual term."""

    perceptual: Weight = 1.0
    """Weight of the difference in VGG-19's features between a photo and its reconstruction; 0 disables it."""
    layers: Layers = ("relu3_3", "relu4_3")
    """The layers whose features are compared; shallower ones (relu2_2) are much cheaper."""
    vgg: str | None = None
    """File of VGG-19's weights, torchvision's vgg19-dcbb9e9d.pth (default: torch's cache, else a random network)."""


class ClarityGAN(CycleGAN):
    """The public project ClarityGAN, after Engin, Genc and Ekenel, Cycle-Dehaze: Enhanced CycleGAN for Single Image
    Dehazing, CVPRW 2018: CycleGAN with a perceptual term for cycle consistency.

    L1 penalizes a reconstruction that is shifted by a pixel as much as a blurred one; features distinguish the two
    (Johnson et al., ECCV 2016). The term compares the end of a cycle with its start, never photos of different domains,
    which should differ.

    Terms: CycleGAN's, and `perceptual_degraded`, `perceptual_clear`.
    """

    settings_type: ClassVar[type[ClarityGANSettings]] = ClarityGANSettings

    settings: ClarityGANSettings

    def __init__(self, build: Build, settings: ClarityGANSettings | None = None) -> None:
        super().__init__(build, settings)
        s = self.settings
        self.compare = Perceptual(s.layers, s.vgg) if s.perceptual else None

    def perceptual_terms(self, batch: Batch, degraded_again: Tensor, clear_again: Tensor) -> dict[str, Tensor]:
        if self.compare is None:
            return {}
        return {
            "perceptual_degraded": self.settings.perceptual * self.compare(degraded_again, batch.degraded),
            "perceptual_clear": self.settings.perceptual * self.compare(clear_again, batch.clear),
        }

    def notes(self) -> dict[str, str]:
        return {} if self.compare is None else {"perceptual": self.compare.words}
