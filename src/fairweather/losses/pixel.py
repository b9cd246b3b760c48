"""Pixel losses: L1, Charbonnier and mean squared error.

All take `output` and `target` of one shape, N x C x H x W in [0,1], and return a scalar, computed in fp32 also under
autocast. With an optional `weight`, broadcastable to them (a mask is N x 1 x H x W), it is the weighted mean, i.e. the
mean inside a mask; it is zero for an empty mask.
"""

from __future__ import annotations

from torch import Tensor

from fairweather.errors import BadSettings


def l1(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference."""
    return _mean(_difference(output, target).abs(), weight)


def mse(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference."""
    return _mean(_difference(output, target).square(), weight)


def charbonnier(output: Tensor, target: Tensor, weight: Tensor | None = None, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(d^2 + eps^2), a smooth L1 (Lai et al., LapSRN, CVPR 2017, section 3.3); equals `eps` at d = 0."""
    return _mean((_difference(output, target).square() + eps * eps).sqrt(), weight)


def check_same_shape(output: Tensor, target: Tensor) -> None:
    """Raise BadSettings instead of broadcasting pictures of different shapes."""
    if output.shape != target.shape:
        raise BadSettings(f"a loss compares pictures of one shape, got {tuple(output.shape)} and {tuple(target.shape)}")


def _difference(output: Tensor, target: Tensor) -> Tensor:
    check_same_shape(output, target)
    return output.float() - target.float()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    weights = weight.float().expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1e-12)
