"""Adversarial losses, as pairs of functions of a discriminator's logits.

Logits have any shape, N x 1 x h x w for PatchGAN. Every loss is a scalar, the mean over logits. A discriminator's loss
is the sum of both sides; recipes halve it where their paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Adversarial:
    """The losses of both networks."""

    generator: Callable[[Tensor], Tensor]
    """Logits of fakes -> the generator's loss."""
    discriminator: Callable[[Tensor, Tensor], Tensor]
    """Logits of reals, logits of fakes -> the discriminator's loss, not halved."""


def _lsgan_generator(fakes: Tensor) -> Tensor:
    return (fakes.float() - 1).square().mean()


def _lsgan_discriminator(reals: Tensor, fakes: Tensor) -> Tensor:
    return (reals.float() - 1).square().mean() + fakes.float().square().mean()


def _bce_generator(fakes: Tensor) -> Tensor:
    # softplus(-s) is -log(sigmoid(s)), finite for all logits.
    return functional.softplus(-fakes.float()).mean()


def _bce_discriminator(reals: Tensor, fakes: Tensor) -> Tensor:
    return functional.softplus(-reals.float()).mean() + functional.softplus(fakes.float()).mean()


def _hinge_generator(fakes: Tensor) -> Tensor:
    return -fakes.float().mean()


def _hinge_discriminator(reals: Tensor, fakes: Tensor) -> Tensor:
    return functional.relu(1 - reals.float()).mean() + functional.relu(1 + fakes.float()).mean()


ADVERSARIAL: dict[str, Adversarial] = {
    # Mao et al., Least Squares Generative Adversarial Networks, ICCV 2017, eq. 9 with a = 0, b = c = 1, as CycleGAN
    # uses it (Zhu et al. 2017, section 4): without the paper's factors of one half.
    "lsgan": Adversarial(_lsgan_generator, _lsgan_discriminator),
    # Goodfellow et al., Generative Adversarial Nets, 2014, with the non-saturating generator of section 3.
    "bce": Adversarial(_bce_generator, _bce_discriminator),
    # Lim and Ye, Geometric GAN, 2017; Miyato et al., Spectral Normalization, ICLR 2018, eqs. 16 and 17.
    "hinge": Adversarial(_hinge_generator, _hinge_discriminator),
}
