"""The guards: nothing where nothing is wrong, and bounds where something is."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from fairweather.inference import Restorer, guards
from fairweather.inference.temporal import restore_frames
from tests.inference.test_restorer import DTYPES, LOCAL, photo_of, same


def of_type(levels: np.ndarray, dtype: str) -> np.ndarray:
    """Levels of 255 as a picture of a type."""
    if dtype == "float32":
        return (levels / 255).clip(0, 1).astype(np.float32)
    full = np.iinfo(dtype).max
    return (levels * (full / 255)).clip(0, full).round().astype(dtype)


def levels_of(picture: np.ndarray) -> np.ndarray:
    full = 1 if picture.dtype == np.float32 else np.iinfo(picture.dtype).max
    return picture.astype(np.float64) * (255 / full)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=2)


def clipped(picture: np.ndarray) -> np.ndarray:
    levels = np.floor(levels_of(picture) + 0.5)
    return ((levels <= 0) | (levels >= 255)).any(axis=2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_network_left_stays_bit_for_bit(dtype: str, rng: np.random.Generator) -> None:
    photo = photo_of(70, 90, dtype, rng)  # noise all over, from black to white
    photo[:20] = 0
    photo[20:40] = 1 if dtype == "float32" else np.iinfo(dtype).max
    assert guards.apply_guards(photo, photo.copy()).tobytes() == photo.tobytes()
    assert Restorer(LOCAL, same)(photo).tobytes() == photo.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_what_was_clipped_is_clipped(dtype: str, rng: np.random.Generator) -> None:
    places = rng.permutation(256)  # all levels beside each other: nothing smooth, where halos would be looked for
    ramp = grey(np.tile(np.arange(256.0)[places], (40, 1)))
    photo = of_type(ramp, dtype)
    raw = of_type((ramp - 120) * 4 + 120, dtype)
    assert clipped(raw).mean() > 0.7
    result = guards.apply_guards(photo, raw.copy())
    assert (clipped(result) == clipped(photo)).all()
    row, unguarded = (levels_of(picture)[0, np.argsort(places), 0] for picture in (result, raw))
    assert (np.diff(row) >= 0).all(), "what was darker stays darker"
    assert row[80] - row[20] > 2, "detail shows in what was one black"
    assert row[250] - row[190] > 2, "and in what was one white"
    assert np.abs(row - unguarded).max() < 13, "a little, not more"
    assert (row[106:132] == unguarded[106:132]).all(), "away from both ends levels are the network's own"


def test_types_agree(rng: np.random.Generator) -> None:
    photo = cv2.GaussianBlur(photo_of(80, 100, "uint8", rng), (0, 0), 5)
    raw = ((photo.astype(np.float32) - 128) * 12 + 140).clip(0, 255).round().astype(np.uint8)
    expected = guards.apply_guards(photo, raw.copy()).astype(np.float64)
    assert (expected != raw).mean() > 0.1
    for dtype in ("uint16", "float32"):
        other = guards.apply_guards(of_type(photo.astype(np.float64), dtype), of_type(raw.astype(np.float64), dtype))
        assert np.abs(levels_of(other) - expected).max() <= 1.3


def mean_shift(photo: np.ndarray, result: np.ndarray) -> float:
    a, b = (cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 1:].mean((0, 1)) for p in (result, photo))
    return float(np.hypot(*(a - b)))


def tinted(photo: np.ndarray, by: float) -> np.ndarray:
    return (photo.astype(np.float32) + by * np.array([1, -0.5, -1], np.float32)).clip(0, 255).round().astype(np.uint8)


def test_a_cast_is_led_back_and_a_shift_let_through(photo: np.ndarray) -> None:
    photo = photo // 2 + 64
    for by in (2, 8):
        raw = tinted(photo, by)
        assert mean_shift(photo, raw) < guards.MAX_CAST / 2
        assert (guards.apply_guards(photo, raw.copy()) == raw).all()
    raws = [tinted(photo, by) for by in (20, 30, 40, 55)]
    shifts = [(mean_shift(photo, raw), mean_shift(photo, guards.apply_guards(photo, raw.copy()))) for raw in raws]
    assert shifts[-1][0] > 2 * guards.MAX_CAST
    assert all(after < before for before, after in shifts)
    assert all(after < guards.MAX_CAST + 0.5 for _, after in shifts)
    assert [after for _, after in shifts] == sorted(after for _, after in shifts), (
        "the more there was, the more is left"
    )


def flat(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A grey photo with noise and one sharp edge."""
    picture = np.full((200, 240, 3), 110.0)
    picture[:, 120:] = 140
    return picture + rng.normal(0, sigma, picture.shape)


def stretched(picture: np.ndarray, gain: float) -> np.ndarray:
    return (picture - 125) * gain + 125


@pytest.mark.parametrize("dtype", DTYPES)
def test_amplified_noise_is_taken_off_and_edges_stay(dtype: str, rng: np.random.Generator) -> None:
    clean = flat(rng, 2.5)
    photo = of_type(clean, dtype)
    raw = of_type(stretched(levels_of(photo), 4), dtype)
    result = levels_of(guards.apply_guards(photo, raw.copy()))
    before, after = (picture[20:180, 10:100].std() for picture in (levels_of(raw), result))
    assert before == pytest.approx(10, rel=0.1)
    assert after < 0.75 * before
    step = result[:, 125:].mean() - result[:, :115].mean()
    assert step == pytest.approx(120, abs=5)
    assert abs(result[:, 119].mean() - result[:, 120].mean()) > 100, "the edge is as sharp"


def test_noise_that_was_there_is_not_ours_to_take(rng: np.random.Generator) -> None:
    photo = of_type(flat(rng, 12), "uint8")
    assert (guards.apply_guards(photo, photo + 3) == photo + 3).all()
    quiet = of_type(flat(rng, 0.5), "uint8")
    raw = of_type(stretched(levels_of(quiet), 3), "uint8")
    result = guards.apply_guards(quiet, raw.copy())
    assert np.abs(levels_of(result) - levels_of(raw))[:, :100].max() <= 2, "amplified, and still below what is seen"
    assert result[:, :100].std() == pytest.approx(raw[:, :100].std(), rel=0.05)


def sky_and_roofs(rng: np.random.Generator) -> np.ndarray:
    """A bright sky that darkens slowly upwards, over dark textured houses."""
    y, x = np.mgrid[0:160, 0:240].astype(np.float64)
    picture = grey(170 + 0.15 * y + 0.02 * x)
    houses = (y > 90) & ((x // 40) % 2 == 0) | (y > 120)
    picture[houses] = 60 + rng.uniform(-25, 25, (houses.sum(), 1))
    return picture


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_halo_in_the_sky_is_taken_off(dtype: str, rng: np.random.Generator) -> None:
    scene = sky_and_roofs(rng)
    photo = of_type(scene, dtype)
    y, x = np.mgrid[0:160, 0:240]
    glow = 14 * np.exp(-((y - 55) ** 2 + (x - 120) ** 2) / (2 * 9**2))  # a blob in the middle of the sky
    wanted = stretched(scene, 1.3)
    result = levels_of(guards.apply_guards(photo, of_type(wanted + grey(glow), dtype)))
    bare = levels_of(guards.apply_guards(photo, of_type(wanted, dtype)))
    sky, roofs = (slice(20, 80), slice(60, 180)), slice(130, 160)
    left = (result - wanted)[sky]
    assert np.abs(left).max() < 0.6 * 14
    assert np.square(left).mean() < 0.3 * np.square(glow[sky]).mean()
    assert np.abs(bare - wanted)[sky].max() < 2.5, "a sky's own slow change is no halo"
    assert np.abs(bare - wanted)[roofs].max() < 2.5, "and texture none either"


def test_a_change_that_follows_the_photo_is_no_halo(rng: np.random.Generator) -> None:
    scene = cv2.GaussianBlur(rng.uniform(60, 190, (20, 30, 3)), (0, 0), 2)
    photo = of_type(cv2.resize(scene, (300, 200), interpolation=cv2.INTER_CUBIC), "uint8")
    raw = of_type(stretched(levels_of(photo), 1.5), "uint8")
    assert np.abs(levels_of(guards.apply_guards(photo, raw.copy())) - levels_of(raw)).max() < 4


@pytest.mark.parametrize("pixels", [1, 1000, 1 << 30])
def test_strips_do_not_show(pixels: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = of_type(flat(rng, 4), "uint8")
    raw = tinted(of_type(stretched(levels_of(photo), 5), "uint8"), 50)
    whole = guards.apply_guards(photo, raw.copy())
    assert (whole != raw).mean() > 0.9
    monkeypatch.setattr(guards, "STRIP_PIXELS", pixels)
    assert (guards.apply_guards(photo, raw.copy()) == whole).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 199])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bands_do_not_show(rows: int, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where noise is taken off, a band at a time is copied: its neighbours are read as they were before."""
    photo = of_type(flat(rng, 4), dtype)
    raw = of_type(stretched(levels_of(photo), 5), dtype)
    whole = guards.apply_guards(photo, raw.copy())
    monkeypatch.setattr(guards, "_BAND_PIXELS", rows * photo.shape[1])
    monkeypatch.setattr(guards, "STRIP_PIXELS", 5 * photo.shape[1])
    banded = guards.apply_guards(photo, raw.copy())
    # OpenCV adds floats in another order where a band is a few rows
    assert np.abs(banded - whole).max() < 1e-6 if dtype == "float32" else (banded == whole).all()


def test_no_threshold_flickers(rng: np.random.Generator) -> None:
    """From one strength to the next the guarded picture changes as little as the unguarded one."""
    photo = of_type(flat(rng, 3), "float32")
    previous = None
    for step in range(10):
        raw = of_type(stretched(levels_of(photo), 1 + 0.4 * step) + step * np.array([3.2, 0, -3.2]), "float32")
        result = guards.apply_guards(photo, raw)
        if previous is not None:
            assert np.abs(levels_of(result) - levels_of(previous)).mean() < 10
        previous = result


def test_the_restorer_guards_unless_told_not_to(rng: np.random.Generator) -> None:
    def engine(picture: np.ndarray) -> np.ndarray:
        return (picture - 0.5) * 4 + 0.5

    photo = photo_of(40, 60, "uint8", rng) // 2 + 64
    restorer = Restorer(LOCAL, engine)
    raw = restorer(photo, guard=False)
    assert clipped(raw).mean() > 0.3
    assert not clipped(restorer(photo)).any()
    assert (restorer(photo) == guards.apply_guards(photo, raw.copy())).all()
    assert not clipped(restorer(photo, 0.9)).any()
    assert (next(restore_frames(restorer, [photo], guard=False)) == raw).all()
    worse = Restorer(replace(LOCAL, direction="degrade"), engine)
    assert (worse(photo) == raw).all(), "what puts weather in is not held back"
