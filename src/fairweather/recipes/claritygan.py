"""ClarityGAN: CycleGAN for haze, whose ways back must also look right to VGG-19."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairweather.losses import Perceptual
from fairweather.recipes.base import Batch, Build, Update, sum_terms
from fairweather.recipes.cyclegan import CycleOutputs, CycleRecipe, CycleSettings


@dataclass(frozen=True)
class ClarityGANSettings(CycleSettings):
    """CycleGAN's, and those of the perceptual term."""

    perceptual: float = 1.0
    """Weight of the difference of VGG-19's features between a photo and its way there and back; 0 makes none."""
    layers: tuple[str, ...] = ("relu3_3", "relu4_3")
    """The layers whose features are compared; shallower ones (relu2_2) are much cheaper."""
    vgg: str | None = None
    """File of VGG-19's weights (torchvision's vgg19-dcbb9e9d.pth). None: torch's cache, else a random network."""


class ClarityGAN(CycleRecipe):
    """The public project ClarityGAN, after Engin, Genc and Ekenel, Cycle-Dehaze: Enhanced CycleGAN for Single Image
    Dehazing, CVPRW 2018: CycleGAN, and a perceptual term for cycle consistency.

    To L1 a way back that is a pixel off is as bad as one that is blurred; features tell them apart (Johnson et al.,
    ECCV 2016). The term stands between the cycle's end and its beginning, never between domains, where photos are to
    differ.

    Terms: CycleGAN's, and `perceptual_degraded`, `perceptual_clear`.
    """

    settings_type: ClassVar[type[ClarityGANSettings]] = ClarityGANSettings
    generator: ClassVar[str] = "resnet9"

    settings: ClarityGANSettings

    def __init__(self, build: Build, settings: ClarityGANSettings | None = None) -> None:
        super().__init__(build, settings)
        s = self.settings
        self.compare = Perceptual(s.layers, s.vgg) if s.perceptual else None

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        outputs = self.translate(batch)
        terms = (
            self.adversarial(outputs)
            | self.cycle(batch, outputs)
            | self.identity(batch)
            | self.perceptual(batch, outputs)
        )
        update("generators", sum_terms(terms))
        return terms | self.update_discriminators(batch, outputs, update)

    def perceptual(self, batch: Batch, outputs: CycleOutputs) -> dict[str, Tensor]:
        """A photo that went there and came back is to look to VGG-19 as it did."""
        if self.compare is None:
            return {}
        weight = self.settings.perceptual
        return {
            "perceptual_degraded": weight * self.compare(outputs.degraded_again, batch.degraded),
            "perceptual_clear": weight * self.compare(outputs.clear_again, batch.clear),
        }

    def notes(self) -> dict[str, str]:
        return {} if self.compare is None else {"perceptual": self.compare.words}
