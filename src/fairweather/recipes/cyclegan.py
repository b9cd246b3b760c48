"""CycleGAN: translation between two unpaired sets of photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, l1
from fairweather.recipes.base import Batch, Build, Learn, Player, Recipe, total


@dataclass(frozen=True)
class CycleGANSettings:
    """The paper's settings (sections 4 and 5.2, appendix 7.1)."""

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


class CycleGAN(Recipe):
    """Zhu, Park, Isola and Efros, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks,
    ICCV 2017.

    `restore` goes degraded -> clear, `degrade` clear -> degraded. Identity asks each of them to leave alone a photo
    that is already where it would bring it: `restore` a clear one, `degrade` a degraded one. Both generators share
    one Adam, both discriminators another. The game is least squares, halved for the discriminators.

    Terms: `adversarial_clear`, `adversarial_degraded`, `cycle_degraded`, `cycle_clear`, `identity_clear`,
    `identity_degraded`; `discriminator_clear`, `discriminator_degraded`.
    """

    settings_type: ClassVar[type[CycleGANSettings]] = CycleGANSettings
    paired: ClassVar[bool] = False
    paper_crops: ClassVar[bool] = True
    batch: ClassVar[int] = 1
    epochs: ClassVar[int] = 200
    generator: ClassVar[str] = "resnet9"

    def __init__(self, build: Build, settings: CycleGANSettings | None = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or CycleGANSettings()
        self.restore = build()
        self.degrade = build()
        self.judge_clear = PatchGAN(width=self.settings.width, norm="instance")
        self.judge_degraded = PatchGAN(width=self.settings.width, norm="instance")

    def players(self) -> dict[str, Player]:
        def player(*modules: nn.Module) -> Player:
            s = self.settings
            return Player(modules, lr=s.lr, betas=(s.beta1, 0.999), schedule="linear", hold=s.hold)

        return {
            "generators": player(self.restore, self.degrade),
            "discriminators": player(self.judge_clear, self.judge_degraded),
        }

    def step(self, batch: Batch, learn: Learn) -> dict[str, Tensor]:
        s, game = self.settings, ADVERSARIAL["lsgan"]
        clear, degraded = self.restore(batch.degraded), self.degrade(batch.clear)
        terms = {
            "adversarial_clear": game.generator(self.judge_clear(clear)),
            "adversarial_degraded": game.generator(self.judge_degraded(degraded)),
            "cycle_degraded": s.cycle * l1(self.degrade(clear), batch.degraded),
            "cycle_clear": s.cycle * l1(self.restore(degraded), batch.clear),
        }
        if s.identity:
            terms["identity_clear"] = s.identity * l1(self.restore(batch.clear), batch.clear)
            terms["identity_degraded"] = s.identity * l1(self.degrade(batch.degraded), batch.degraded)
        learn("generators", total(terms))

        clear, degraded = learn.recall("clear", clear, s.pool), learn.recall("degraded", degraded, s.pool)
        clear_game = game.discriminator(self.judge_clear(batch.clear), self.judge_clear(clear))
        degraded_game = game.discriminator(self.judge_degraded(batch.degraded), self.judge_degraded(degraded))
        judged = {"discriminator_clear": 0.5 * clear_game, "discriminator_degraded": 0.5 * degraded_game}
        learn("discriminators", total(judged))
        return terms | judged

    def shipped(self) -> nn.Module:
        return self.restore
