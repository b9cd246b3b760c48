"""The figure for glow: halos along strong edges raise it, and no other error does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from glow import bands, glow


@pytest.fixture
def roof() -> np.ndarray:
    """A dark roof before a bright sky, with a little texture on both."""
    y, x = np.mgrid[0:200, 0:300]
    luma = np.where(y > 120 - abs(x - 150) // 3, 0.25, 0.75) + 0.02 * np.sin(x / 3) * np.cos(y / 2)
    return np.repeat(luma[..., None], 3, axis=2).astype(np.float32)


def halo(truth: np.ndarray, amount: float) -> np.ndarray:
    """What a coarse map does: a change of the sky that reaches beyond the roof line."""
    wide = cv2.GaussianBlur(truth, (0, 0), 16)
    return truth + amount * (truth - wide)


def test_glow_sees_a_halo(roof: np.ndarray) -> None:
    weak, strong = (glow(halo(roof, amount), roof) for amount in (0.1, 0.3))
    assert weak[0] > 1
    assert strong[0] == pytest.approx(3 * weak[0], rel=0.1)
    assert strong[0] > 3 * strong[1]


def test_glow_does_not_see_what_is_no_glow(roof: np.ndarray, rng: np.random.Generator) -> None:
    ramp = np.linspace(-0.1, 0.1, roof.shape[1], dtype=np.float32)[:, None]
    for other in (roof * 0.8, roof + 0.1, roof + ramp, roof + rng.normal(0, 0.02, roof.shape).astype(np.float32)):
        assert glow(other, roof)[0] < 0.25 * glow(halo(roof, 0.3), roof)[0]
    assert glow(roof, roof) == pytest.approx((0, 0), abs=1e-3)


def test_a_photo_without_edges_has_no_glow() -> None:
    flat = np.full((64, 64, 3), 0.5, np.float32)
    near, beyond = bands(flat[..., 0])
    assert not near.any()
    assert beyond.all()
    assert np.isnan(glow(flat, flat)[0])
