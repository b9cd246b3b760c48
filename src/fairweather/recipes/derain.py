"""CycleGAN-DeRain: rain out of photos, and into them, from two unpaired sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fairweather.recipes.base import Batch, Update, sum_terms
from fairweather.recipes.cyclegan import CycleRecipe, CycleSettings


@dataclass(frozen=True)
class DerainSettings(CycleSettings):
    """Those of CycleGAN (Zhu et al., ICCV 2017); `CycleSettings` lists them."""


class Derain(CycleRecipe):
    """The public project CycleGAN-DeRain: CycleGAN's objective (Zhu et al., ICCV 2017) with U-Nets for generators.

    Rain is thin and bright, and a U-Net's outermost skip hands every other pixel on as it was. The U-Net is pix2pix's
    without its dropout, which would blur the way back; `multipath_unet` is the project's other drawing. Batch norm, as
    drawn, sees degraded, clear and made-up photos in turn, so that what it has learned of one set is mixed with the
    other: its statistics are measured anew on degraded photos before the model ships. `norm = "instance"` among the
    generator's arguments does without.

    Terms: `adversarial_clear`, `adversarial_degraded`, `cycle_degraded`, `cycle_clear`, `identity_clear`,
    `identity_degraded`; `discriminator_clear`, `discriminator_degraded`.
    """

    settings_type: ClassVar[type[DerainSettings]] = DerainSettings
    generator: ClassVar[str] = "unet"
    arguments: ClassVar[Mapping[str, Any]] = {"dropout": 0.0}
    weather: ClassVar[str] = "rain"

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        outputs = self.translate(batch)
        terms = self.adversarial(outputs) | self.cycle(batch, outputs) | self.identity(batch)
        update("generators", sum_terms(terms))
        return terms | self.update_discriminators(batch, outputs, update)
