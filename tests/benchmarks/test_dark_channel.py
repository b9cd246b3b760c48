"""The dark channel prior does what the paper says, so that what we are compared with is no straw man."""

from __future__ import annotations

from pathlib import Path

import dark_channel
import numpy as np
import pytest

from fairweather.evaluation.metrics import psnr
from fairweather.evaluation.scores import load_pair
from fairweather.pairs import find_pairs

AIRLIGHT = np.array([0.9, 0.85, 0.8], np.float32)


def test_dark_channel_by_hand() -> None:
    photo = np.full((41, 41, 3), 0.7, np.float32)
    photo[20, 20, 1] = 0.2
    dark = dark_channel.dark_channel(photo)
    inside = np.zeros((41, 41), bool)
    inside[13:28, 13:28] = True  # 15 x 15 around the one dark pixel
    assert np.array_equal(dark, np.where(inside, 0.2, 0.7).astype(np.float32))


def test_airlight_is_found_in_the_haziest_place_not_in_the_brightest(rng: np.random.Generator) -> None:
    photo = (rng.random((120, 160, 3)) * 0.6).astype(np.float32)
    photo[10:50, 10:60] = AIRLIGHT
    photo[100, 100] = 1.0  # a lamp: one pixel, dark neighbours
    assert dark_channel.estimate_airlight(photo) == pytest.approx(AIRLIGHT)


def test_the_guided_filter_gives_back_an_affine_function_of_its_guide(rng: np.random.Generator) -> None:
    guide = rng.random((60, 80)).astype(np.float32)
    kept = dark_channel.guided_filter(guide, 0.3 - 0.8 * guide, 8, 1e-9)
    assert np.abs(kept - (0.3 - 0.8 * guide)).max() < 1e-3
    unrelated = dark_channel.guided_filter(guide, rng.random((60, 80)).astype(np.float32), 8, 1e-2)
    assert unrelated.std() < 0.1, "what the guide does not have is smoothed away"


def test_it_takes_haze_away(rng: np.random.Generator) -> None:
    """A scene that obeys the prior (some channel dark in every patch), hazed by the model it assumes."""
    clear = (rng.random((160, 200, 3)) ** 2).astype(np.float32)
    clear[:30] = AIRLIGHT  # the sky
    t = np.full((160, 200, 1), 0.5, np.float32)
    t[:30] = 0.02
    hazy = clear * t + AIRLIGHT * (1 - t)
    out = dark_channel.restore(hazy)
    assert out.dtype == np.float32
    assert 0 <= out.min() <= out.max() <= 1
    before, after = (np.square(p[60:] - clear[60:]).mean() for p in (hazy, out))
    assert after < before / 20


def test_it_scores_what_such_an_implementation_scores(shared_data: Path) -> None:
    """On the fog of a fog machine, beside the figure of another implementation: 12.36 dB."""
    photos = [load_pair(pair) for pair in find_pairs(shared_data / "test" / "nh_haze2")]
    scores = [psnr(dark_channel.restore(hazy), clear) for hazy, clear in photos]
    assert len(scores) == 8
    assert np.mean(scores) == pytest.approx(12.36, abs=0.05)
