"""CycleGAN: translation between two unpaired sets of photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fairweather.recipes.base import Batch, Learn, total
from fairweather.recipes.cycle import Cycle, CycleSettings


@dataclass(frozen=True)
class CycleGANSettings(CycleSettings):
    """The paper's settings; `CycleSettings` lists them."""


class CycleGAN(Cycle):
    """Zhu, Park, Isola and Efros, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks,
    ICCV 2017.

    `restore` goes degraded -> clear, `degrade` clear -> degraded. Identity asks each of them to leave alone a photo
    that is already where it would bring it: `restore` a clear one, `degrade` a degraded one. Both generators share
    one Adam, both discriminators another. The game is least squares, halved for the discriminators.

    Terms: `adversarial_clear`, `adversarial_degraded`, `cycle_degraded`, `cycle_clear`, `identity_clear`,
    `identity_degraded`; `discriminator_clear`, `discriminator_degraded`.
    """

    settings_type: ClassVar[type[CycleGANSettings]] = CycleGANSettings
    generator: ClassVar[str] = "resnet9"

    def step(self, batch: Batch, learn: Learn) -> dict[str, Tensor]:
        trip = self.travel(batch)
        terms = self.adversarial(trip) | self.cycle(batch, trip) | self.identity(batch)
        learn("generators", total(terms))
        return terms | self.judge(batch, trip, learn)
