"""Paired regression: differences from the ground truth, and optionally an adversarial term.

The shipped models are trained in two phases: regression alone, then a shorter run from those weights (`run.start`) with
a discriminator (`adversarial` above zero) and a lower learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from fairweather.discriminators import PatchGAN
from fairweather.losses import ADVERSARIAL, charbonnier, frequency, ssim_loss
from fairweather.recipes.base import (
    Batch,
    Build,
    Decay,
    Decibel,
    GradientNorm,
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
class SupervisedSettings:
    """Weights and optimizer of paired regression. A term of weight zero is neither computed nor logged."""

    charbonnier: Weight = 1.0
    """Weight of the Charbonnier difference (Lai et al., LapSRN, CVPR 2017)."""
    ssim: Weight = 0.1
    """Weight of 1 - SSIM (Zhao et al., Loss Functions for Image Restoration, TCI 2017)."""
    frequency: Weight = 0.05
    """Weight of the L1 difference of orthonormal Fourier transforms (after Cho et al., MIMO-UNet, ICCV 2021)."""
    psnr: Weight = 0.0
    """Weight of the negative PSNR in dB, averaged over photos (Chen et al., HINet, CVPRW 2021); 0.01 is usual."""
    psnr_ceiling: Decibel = 35.0
    """PSNR in dB at which that term levels off; without it, photos that are nearly clear outweigh all others."""
    adversarial: Weight = 0.0
    """Weight of the hinge loss against a PatchGAN with spectral norm (Miyato et al., ICLR 2018); 0 disables it."""
    discriminator_warmup: Annotated[int, Meta(ge=0, le=10**9)] = 200
    """Steps in which only the discriminator uses the adversarial loss; over as many further steps its weight for the
    generator rises to full. An untrained discriminator would damage trained weights."""
    width: Width = 64
    """Channels of the discriminator's first layer; half the width costs a quarter of the time."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter, ICLR 2019), or Muon (Jordan et al., 2024), which gains more per step in short runs:
    after five minutes on one core, 1 dB on the training photos."""
    lr: Rate = 1e-3
    """Peak learning rate."""
    weight_decay: Share = 1e-4
    """Decoupled weight decay."""
    warmup: Decay = 0.02
    """Share of the run with a linear warm-up; afterwards half a cosine to zero."""
    clip: GradientNorm | None = 1.0
    """Maximum gradient norm (None: no clipping)."""
    ema: Decay = 0.999
    """Decay of the moving average of the exported weights; 0 exports the last weights."""
    lr_discriminator: Rate = 2e-4
    """Peak learning rate of the discriminator's Adam."""


class Supervised(Recipe):
    """One generator, pairs, and a weighted sum of differences.

    Terms: `charbonnier`, `ssim`, `frequency`, `psnr`, each unless its weight is zero; with `adversarial`:
    `discriminator`, and `adversarial` after the discriminator's warm-up.
    """

    settings_type: ClassVar[type[SupervisedSettings]] = SupervisedSettings
    paired: ClassVar[bool] = True
    batch: ClassVar[int] = 16
    epochs: ClassVar[int] = 100
    generator: ClassVar[str] = "scattering_maps"
    discriminator_steps: Tensor
    """Steps in which the discriminator was updated."""

    def __init__(self, build: Build, settings: SupervisedSettings | None = None) -> None:
        super().__init__(build, settings)
        self.settings = settings or SupervisedSettings()
        self.ema = self.settings.ema
        self.restore = build()
        self.discriminator: PatchGAN | None = None
        if self.settings.adversarial > 0:
            self.discriminator = PatchGAN(width=self.settings.width, norm="none", spectral=True)
            # A buffer, so that checkpoints hold it.
            self.register_buffer("discriminator_steps", torch.zeros(()))

    def optimizer_groups(self) -> dict[str, OptimizerGroup]:
        s = self.settings
        groups = {
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
            # No warm-up: the discriminator has to catch up with a trained generator.
            groups["discriminator"] = OptimizerGroup(
                (self.discriminator,), lr=s.lr_discriminator, betas=(0.5, 0.999), schedule="cosine"
            )
        return groups

    def step(self, batch: Batch, update: Update) -> dict[str, Tensor]:
        s, gan = self.settings, ADVERSARIAL["hinge"]
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

        if (weight := s.adversarial * self.adversarial_ramp()) > 0:
            terms["adversarial"] = weight * gan.generator(self.discriminator(restored))
        update("generator", sum_terms(terms))
        fake = self.discriminator(restored.detach())
        losses = {"discriminator": gan.discriminator(self.discriminator(batch.clear), fake)}
        update("discriminator", sum_terms(losses))
        self.discriminator_steps += 1
        return terms | losses

    def adversarial_ramp(self) -> float:
        """Factor of the adversarial weight, 0 to 1: zero during the discriminator's warm-up, then rising linearly."""
        warmup, steps = self.settings.discriminator_warmup, int(self.discriminator_steps)
        return min(1.0, max(0.0, (steps + 1 - warmup) / warmup)) if warmup > 0 else 1.0

    def restorer_network(self) -> nn.Module:
        return self.restore


def negative_psnr(output: Tensor, target: Tensor, ceiling: float) -> Tensor:
    """-PSNR in dB, averaged over photos, so that a difficult photo does not dominate the others.

    The error that corresponds to `ceiling` dB is added to each photo's own, so that the slope levels off there.
    """
    errors = (output.float() - target.float()).square().mean((1, 2, 3))
    return (10 / math.log(10)) * (errors + 10 ** (-ceiling / 10)).log().mean()
