"""CycleGAN: unpaired training of two generators, one per direction, against two discriminators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta
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
class CycleGANSettings:
    """The settings of Zhu et al., ICCV 2017 (sections 4 and 5.2, appendix 7.1)."""

    cycle: Weight = 10.0
    """Weight of the L1 cycle consistency; the adversarial terms weigh 1."""
    identity: Weight = 5.0
    """Weight of the identity term: L1 difference between a photo of a generator's target domain and its output."""
    pool: Annotated[int, Meta(ge=0, le=10_000)] = 50
    """Size of each discriminator's sample history (Shrivastava et al., CVPR 2017); 0 uses fresh fakes only."""
    lr: Rate = 2e-4
    """Learning rate of both Adams."""
    beta1: Decay = 0.5
    """First momentum of both Adams; the second is 0.999."""
    hold: Share = 0.5
    """Share of the run before the learning rate decays linearly to zero (the paper: 100 of 200 epochs)."""
    width: Width = 64
    """Channels of the discriminators' first layer."""


class CycleGAN(Recipe):
    """Zhu, Park, Isola and Efros, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks,
    ICCV 2017.

    `restore` maps degraded to clear, `degrade` clear to degraded. The identity term trains each of them to leave photos
    of its target domain unchanged: `restore` clear ones, `degrade` degraded ones. Both generators share one Adam, both
    discriminators another. The adversarial loss is least squares, halved for the discriminators.

    Terms: `adversarial_clear`, `adversarial_degraded`, `cycle_degraded`, `cycle_clear`, `identity_clear`,
    `identity_degraded`; `discriminator_clear`, `discriminator_degraded`.
    """

    settings_type: ClassVar[type[CycleGANSettings]] = CycleGANSettings
    paired: ClassVar[bool] = False
    paper_crops: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    epochs: ClassVar[int] = 200
    generator: ClassVar[str] = "resnet9"

    settings: CycleGANSettings

    def __init__(self, build: Build, settings: Any = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or self.settings_type()
        self.restore = build()
        self.degrade = build()
        self.discriminator_clear = PatchGAN(width=self.settings.width, norm="instance")
        self.discriminator_degraded = PatchGAN(width=self.settings.width, norm="instance")

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        s = self.settings
        adam: dict[str, Any] = {"lr": s.lr, "betas": (s.beta1, 0.999), "schedule": "linear", "hold": s.hold}
        return {
            "generators": OptimizerGroup((self.restore, self.degrade), **adam),
            "discriminators": OptimizerGroup((self.discriminator_clear, self.discriminator_degraded), **adam),
        }

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        s, gan = self.settings, ADVERSARIAL["lsgan"]
        clear, degraded = self.restore(batch.degraded), self.degrade(batch.clear)
        degraded_again, clear_again = self.degrade(clear), self.restore(degraded)
        terms = {
            "adversarial_clear": gan.generator(self.discriminator_clear(clear)),
            "adversarial_degraded": gan.generator(self.discriminator_degraded(degraded)),
            "cycle_degraded": s.cycle * l1(degraded_again, batch.degraded),
            "cycle_clear": s.cycle * l1(clear_again, batch.clear),
        }
        if s.identity:
            terms["identity_clear"] = s.identity * l1(self.restore(batch.clear), batch.clear)
            terms["identity_degraded"] = s.identity * l1(self.degrade(batch.degraded), batch.degraded)
        terms |= self.perceptual_terms(batch, degraded_again, clear_again)
        update("generators", sum_terms(terms))

        # Fakes from the histories; half of each loss slows the discriminators down.
        clear = update.sample_history("clear", clear, s.pool)
        degraded = update.sample_history("degraded", degraded, s.pool)
        on_clear = gan.discriminator(self.discriminator_clear(batch.clear), self.discriminator_clear(clear))
        on_degraded = gan.discriminator(
            self.discriminator_degraded(batch.degraded), self.discriminator_degraded(degraded)
        )
        losses = {"discriminator_clear": 0.5 * on_clear, "discriminator_degraded": 0.5 * on_degraded}
        update("discriminators", sum_terms(losses))
        return terms | losses

    def perceptual_terms(self, batch: Batch, degraded_again: Tensor, clear_again: Tensor) -> dict[str, Tensor]:
        """Further terms between a photo and its reconstruction; CycleGAN has none, ClarityGAN does."""
        return {}

    def restorer_network(self) -> nn.Module:
        return self.restore

    def directions(self) -> dict[str, nn.Module]:
        return {"restore": self.restore, "degrade": self.degrade}
