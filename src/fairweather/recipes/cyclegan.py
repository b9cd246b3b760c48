"""What the unpaired recipes share: two generators, two discriminators, and the trips that photos make between the domains.

A recipe's own page says what is weighed; here is how each term is computed, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, l1
from fairweather.recipes.base import Batch, Build, OptimizerGroup, Recipe, Update, sum_terms


@dataclass(frozen=True)
class CycleSettings:
    """The settings of Zhu et al., ICCV 2017 (sections 4 and 5.2, appendix 7.1)."""

    cycle: float = 10.0
    """Weight of the L1 difference between a photo and its way there and back; the adversarial terms weigh 1."""
    identity: float = 5.0
    """Weight of the L1 difference that a generator makes to a photo of its own target domain."""
    pool: int = 50
    """Size of each discriminator's history of fakes (Shrivastava et al., CVPR 2017); 0 shows it the fresh ones."""
    lr: float = 2e-4
    """Learning rate of both Adams."""
    beta1: float = 0.5
    """First momentum of both Adams; the second is 0.999."""
    hold: float = 0.5
    """Share of the run before the learning rate decays linearly to zero (the paper: 100 of 200 epochs)."""
    width: int = 64
    """Channels of the discriminators' first layer."""


@dataclass(frozen=True)
class CycleOutputs:
    """Where the photos of a batch have been: each is N x 3 x H x W."""

    clear: Tensor
    """What `restore` made of the degraded photos."""
    degraded: Tensor
    """What `degrade` made of the clear photos."""
    degraded_again: Tensor
    """The degraded photos after both, `degrade(restore(degraded))`."""
    clear_again: Tensor
    """The clear photos after both, `restore(degrade(clear))`."""


class CycleRecipe(Recipe):
    """`restore` goes degraded -> clear, `degrade` clear -> degraded; they share one Adam, both discriminators another."""

    paired: ClassVar[bool] = False
    paper_crops: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    epochs: ClassVar[int] = 200

    settings: CycleSettings

    def __init__(self, build: Build, settings: Any = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or self.settings_type()
        self.restore = build()
        self.degrade = build()
        self.discriminator_clear = PatchGAN(width=self.settings.width, norm="instance")
        self.discriminator_degraded = PatchGAN(width=self.settings.width, norm="instance")

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        def group(*modules: nn.Module) -> OptimizerGroup:
            s = self.settings
            return OptimizerGroup(modules, lr=s.lr, betas=(s.beta1, 0.999), schedule="linear", hold=s.hold)

        return {
            "generators": group(self.restore, self.degrade),
            "discriminators": group(self.discriminator_clear, self.discriminator_degraded),
        }

    def translate(self, batch: Batch) -> CycleOutputs:
        """Every photo to the other domain and back."""
        clear, degraded = self.restore(batch.degraded), self.degrade(batch.clear)
        return CycleOutputs(clear, degraded, self.degrade(clear), self.restore(degraded))

    def adversarial(self, outputs: CycleOutputs) -> dict[str, Tensor]:
        """Least squares: each fake is to be taken for a photo of the domain that it was brought to."""
        game = ADVERSARIAL["lsgan"]
        return {
            "adversarial_clear": game.generator(self.discriminator_clear(outputs.clear)),
            "adversarial_degraded": game.generator(self.discriminator_degraded(outputs.degraded)),
        }

    def cycle(self, batch: Batch, outputs: CycleOutputs) -> dict[str, Tensor]:
        """A photo that went there and came back is to be what it was."""
        weight = self.settings.cycle
        return {
            "cycle_degraded": weight * l1(outputs.degraded_again, batch.degraded),
            "cycle_clear": weight * l1(outputs.clear_again, batch.clear),
        }

    def identity(self, batch: Batch) -> dict[str, Tensor]:
        """A photo that is already where a generator would bring it is to be left alone."""
        weight = self.settings.identity
        if not weight:
            return {}
        return {
            "identity_clear": weight * l1(self.restore(batch.clear), batch.clear),
            "identity_degraded": weight * l1(self.degrade(batch.degraded), batch.degraded),
        }

    def update_discriminators(self, batch: Batch, outputs: CycleOutputs, update: Update) -> dict[str, Tensor]:
        """The discriminators' step, on fakes from the history pools; half of each game's loss slows them down."""
        game, size = ADVERSARIAL["lsgan"], self.settings.pool
        clear, degraded = (
            update.sample_history("clear", outputs.clear, size),
            update.sample_history("degraded", outputs.degraded, size),
        )
        clear_game = game.discriminator(self.discriminator_clear(batch.clear), self.discriminator_clear(clear))
        degraded_game = game.discriminator(
            self.discriminator_degraded(batch.degraded), self.discriminator_degraded(degraded)
        )
        judged = {"discriminator_clear": 0.5 * clear_game, "discriminator_degraded": 0.5 * degraded_game}
        update("discriminators", sum_terms(judged))
        return judged

    def restorer_network(self) -> nn.Module:
        return self.restore

    def directions(self) -> dict[str, nn.Module]:
        return {"restore": self.restore, "degrade": self.degrade}


# CycleGAN: translation between two unpaired sets of photos.


@dataclass(frozen=True)
class CycleGANSettings(CycleSettings):
    """The paper's settings; `CycleSettings` lists them."""


class CycleGAN(CycleRecipe):
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

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        outputs = self.translate(batch)
        terms = self.adversarial(outputs) | self.cycle(batch, outputs) | self.identity(batch)
        update("generators", sum_terms(terms))
        return terms | self.update_discriminators(batch, outputs, update)
