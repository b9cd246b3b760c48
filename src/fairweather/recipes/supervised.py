"""Paired regression: the output is compared with the ground truth, and that is nearly all.

Models that ship are made in two phases: regression alone, then the same again for a while from those weights
(`run.start`), with a discriminator beside it (`adversarial` above zero) and a lower learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, charbonnier, frequency, ssim_loss
from fairweather.recipes.base import Batch, Build, OptimizerGroup, Recipe, Update, sum_terms


@dataclass(frozen=True)
class SupervisedSettings:
    """Weights and optimizer of paired regression. A term of weight zero is neither computed nor logged."""

    charbonnier: float = 1.0
    """Weight of the Charbonnier difference (Lai et al., LapSRN, CVPR 2017)."""
    ssim: float = 0.1
    """Weight of 1 - SSIM (Zhao et al., Loss Functions for Image Restoration, TCI 2017)."""
    frequency: float = 0.05
    """Weight of the L1 difference of orthonormal Fourier transforms (after Cho et al., MIMO-UNet, ICCV 2021)."""
    psnr: float = 0.0
    """Weight of the negative PSNR in dB, the mean over photos (Chen et al., HINet, CVPRW 2021); 0.01 is usual."""
    psnr_ceiling: float = 35.0
    """PSNR in dB beyond which that term hardly rewards a photo, or those left clear would outweigh all others."""
    adversarial: float = 0.0
    """Weight of the hinge loss against a PatchGAN with spectral norm (Miyato et al., ICLR 2018); 0 makes none."""
    discriminator_warmup: int = 200
    """Steps in which the discriminator learns and the generator does not hear of it; in as many more its word gains its
    full weight. A discriminator that knows nothing yet would spoil trained weights."""
    width: int = 64
    """Channels of the discriminator's first layer. A narrow one is much cheaper: half of it, a quarter of the work."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter, ICLR 2019), or Muon (Jordan et al., 2024), which learns more from each step where
    there is time for few: after five minutes on one core the training photos came out 1 dB better."""
    lr: float = 1e-3
    """Peak learning rate of the optimizer."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    warmup: float = 0.02
    """Share of the run in which the learning rate climbs; afterwards half a cosine to zero."""
    clip: float | None = 1.0
    """Largest gradient norm; None leaves gradients as they are."""
    ema: float = 0.999
    """Decay of the moving average of the weights that ships; 0 ships the last weights."""
    lr_discriminator: float = 2e-4
    """Peak learning rate of the discriminator's Adam, where there is one."""


class Supervised(Recipe):
    """One generator, pairs, and a weighed sum of differences; the reconstruction phase of most restorers.

    Terms: `charbonnier`, `ssim`, `frequency`, `psnr`, each where its weight is not zero; `discriminator` where there is
    one, `adversarial` once its word counts.
    """

    settings_type: ClassVar[type[SupervisedSettings]] = SupervisedSettings
    paired: ClassVar[bool] = True
    batch: ClassVar[int] = 16
    epochs: ClassVar[int] = 100
    generator: ClassVar[str] = "scattering_maps"
    discriminator_steps: Tensor
    """Steps that the discriminator has learned in."""

    def __init__(self, build: Build, settings: SupervisedSettings | None = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or SupervisedSettings()
        self.ema = self.settings.ema
        self.restore = build()
        self.discriminator: PatchGAN | None = None
        if self.settings.adversarial > 0:
            self.discriminator = PatchGAN(width=self.settings.width, norm="none", spectral=True)
            # Among the networks' state, so that a resumed run goes on with it.
            self.register_buffer("discriminator_steps", torch.zeros(()))

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        s = self.settings
        optimizer_groups = {
            "generator": OptimizerGroup(
                (self.restore,),
                lr=s.lr,
                optimizer=s.optimizer,
                weight_decay=s.weight_decay,
                schedule="cosine",
                warmup=s.warmup,
                clip=s.clip,
            )
        }
        if self.discriminator is not None:
            # No warmup: it has to catch up with a trained generator.
            optimizer_groups["discriminator"] = OptimizerGroup(
                (self.discriminator,), lr=s.lr_discriminator, betas=(0.5, 0.999), schedule="cosine"
            )
        return optimizer_groups

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        s = self.settings
        restored = self.restore(batch.degraded)
        terms: dict[str, Tensor] = {}
        if s.charbonnier:
            terms["charbonnier"] = s.charbonnier * charbonnier(restored, batch.clear)
        if s.ssim:
            terms["ssim"] = s.ssim * ssim_loss(restored, batch.clear)
        if s.frequency:
            terms["frequency"] = s.frequency * frequency(restored, batch.clear, norm="ortho")
        if s.psnr:
            terms["psnr"] = s.psnr * negative_psnr(restored, batch.clear, s.psnr_ceiling)
        if self.discriminator is None:
            update("generator", sum_terms(terms))
            return terms

        game = ADVERSARIAL["hinge"]
        if (weight := s.adversarial * self.adversarial_ramp()) > 0:
            terms["adversarial"] = weight * game.generator(self.discriminator(restored))
        update("generator", sum_terms(terms))
        judged = {
            "discriminator": game.discriminator(self.discriminator(batch.clear), self.discriminator(restored.detach()))
        }
        update("discriminator", sum_terms(judged))
        self.discriminator_steps += 1
        return terms | judged

    def adversarial_ramp(self) -> float:
        """How much the discriminator's word counts, 0 to 1: nothing while it learns alone, then more by the step."""
        alone, steps = self.settings.discriminator_warmup, int(self.discriminator_steps)
        return min(1.0, max(0.0, (steps + 1 - alone) / alone)) if alone > 0 else 1.0

    def restorer_network(self) -> nn.Module:
        return self.restore


def negative_psnr(output: Tensor, target: Tensor, ceiling: float) -> Tensor:
    """-PSNR in dB, the mean over photos: every photo counts by its ratio, a hard one does not drown the others.

    The error that `ceiling` dB stand for is added to each photo's own, so that the slope levels off there.
    """
    errors = (output.float() - target.float()).square().mean((1, 2, 3))
    return (10 / math.log(10)) * (errors + 10 ** (-ceiling / 10)).log().mean()
