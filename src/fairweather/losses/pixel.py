"""Differences pixel by pixel: L1, Charbonnier and the mean square.

Every function takes `output` and `target` of one shape (`N x C x H x W`, [0,1]) and gives a scalar, computed in fp32
whatever autocast says. A third argument `weight`, where given, broadcasts against them (a mask is
`N x 1 x H x W`) and makes the scalar a weighted mean: the difference inside a mask, however small the mask is. A mask
that is zero everywhere gives zero.
"""

from __future__ import annotations

from torch import Tensor

from fairweather.errors import BadSettings


def l1(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference."""
    return _mean(_difference(output, target).abs(), weight)


def mse(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean square difference."""
    return _mean(_difference(output, target).square(), weight)


def charbonnier(output: Tensor, target: Tensor, weight: Tensor | None = None, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(d^2 + eps^2): L1 with a rounded tip (Lai et al., LapSRN, CVPR 2017, section 3.3).

    It is `eps`, not zero, where the pictures are equal.
    """
    return _mean((_difference(output, target).square() + eps * eps).sqrt(), weight)


def _difference(output: Tensor, target: Tensor) -> Tensor:
    # Broadcasting a picture against one of another shape is always a mistake, and a silent one.
    if output.shape != target.shape:
        raise BadSettings(f"a loss compares pictures of one shape, got {tuple(output.shape)} and {tuple(target.shape)}")
    return output.float() - target.float()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    weights = weight.float().expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1e-12)
