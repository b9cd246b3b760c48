"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos that may lie beside the checkout; tests that need it skip where it does not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real photos (../shared/data) are not beside this checkout")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def photo(rng: np.random.Generator) -> np.ndarray:
    """A smooth 96 x 128 x 3 uint8 picture with edges: more like a photo than white noise is."""
    y, x = np.mgrid[0:96, 0:128] / 96.0
    base = np.stack([0.5 + 0.4 * np.sin(5 * x + k) * np.cos(4 * y - k) for k in range(3)], axis=-1)
    base[30:60, 40:90] *= 0.5
    base += rng.normal(0, 0.02, base.shape)
    return (base.clip(0, 1) * 255).round().astype(np.uint8)
