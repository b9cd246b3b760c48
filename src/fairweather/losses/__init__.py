"""What a network is told to make small: functions `(output, target[, weight]) -> scalar`, and adversarial pairs."""

from __future__ import annotations

from fairweather.losses.adversarial import ADVERSARIAL, Adversarial
from fairweather.losses.pixel import charbonnier, l1, mse
from fairweather.losses.structure import frequency, ssim_loss

__all__ = ["ADVERSARIAL", "Adversarial", "charbonnier", "frequency", "l1", "mse", "ssim_loss"]
