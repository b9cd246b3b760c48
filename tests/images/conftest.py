"""Fixtures of the image tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def alpha(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (96, 128), dtype=np.uint8)
