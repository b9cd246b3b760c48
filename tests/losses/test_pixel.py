"""Pixel and structural losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fairweather.errors import BadSettings
from fairweather.losses import charbonnier, frequency, l1, mse, ssim_loss

Loss = Callable[..., torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]
every = pytest.mark.parametrize("loss", [l1, mse, charbonnier, ssim_loss, frequency])


@pytest.fixture
def pair() -> Pair:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, 13, 17, generator=generator), torch.rand(2, 3, 13, 17, generator=generator)


def test_values(pair: Pair) -> None:
    a, b = pair
    assert l1(a, b).item() == pytest.approx((a - b).abs().mean().item())
    assert mse(a, b).item() == pytest.approx(((a - b) ** 2).mean().item())
    assert charbonnier(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.003), eps=0.004).item() == pytest.approx(
        0.005, rel=1e-5
    )
    assert charbonnier(a, a).item() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("loss", [l1, mse, charbonnier])
def test_a_weighted_mean(loss: Loss, pair: Pair) -> None:
    a, b = pair
    mask = torch.zeros(2, 1, 13, 17)
    mask[:, :, 2:5, 3:9] = 1
    inside = loss(a[:, :, 2:5, 3:9], b[:, :, 2:5, 3:9]).item()
    assert loss(a, b, mask).item() == pytest.approx(inside, rel=1e-5)
    assert loss(a, b, 7 * mask).item() == pytest.approx(inside, rel=1e-5)
    assert loss(a, b, torch.zeros_like(mask)).item() == 0
    assert loss(a, b, torch.ones_like(mask)).item() == pytest.approx(loss(a, b).item(), rel=1e-5)


@every
def test_shapes_are_not_broadcast(loss: Loss) -> None:
    with pytest.raises(BadSettings, match="one shape"):
        loss(torch.zeros(2, 3, 12, 12), torch.zeros(1, 3, 12, 12))


@every
def test_full_precision_under_autocast_and_least_for_equal_pictures(loss: Loss, pair: Pair) -> None:
    a, b = pair
    best, nearer, farther = (loss(a + s * (b - a), a).item() for s in (0, 0.1, 1))
    assert best < nearer < farther
    a, b = a.bfloat16(), b.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(a, b)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(a.float(), b.float()).item(), rel=1e-6)
