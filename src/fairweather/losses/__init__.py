"""Losses: functions `(output, target[, weight]) -> scalar`, and pairs of adversarial losses.

`Perceptual` has weights and is therefore a module.
"""

from __future__ import annotations

from fairweather.losses.adversarial import ADVERSARIAL, Adversarial
from fairweather.losses.haze_aware import HazeMask, dark_channel_mask, haze_aware, transmission_mask
from fairweather.losses.perceptual import Perceptual
from fairweather.losses.pixel import charbonnier, l1, mse
from fairweather.losses.structure import frequency, ssim_loss

__all__ = [
    "ADVERSARIAL",
    "Adversarial",
    "HazeMask",
    "Perceptual",
    "charbonnier",
    "dark_channel_mask",
    "frequency",
    "haze_aware",
    "l1",
    "mse",
    "ssim_loss",
    "transmission_mask",
]
