"""Clips with moving weather: the truth is the photo before the camera, the haze hangs in the scene, the rain falls."""

from __future__ import annotations

import tracemalloc
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather.data.video_clips import ClipHaze, ClipRain, consecutive_frames, draw_camera, hazy_clip
from fairweather.errors import BadImage, BadSettings
from fairweather.weather.haze import HazeSettings
from fairweather.weather.rain import RainSettings

PLAIN = HazeSettings(density=(1.0, 1.0), patchy=0, linear=0, noise=0, tint=0, airlight=(0.8, 0.8))


def scene(height: int = 160, width: int = 220) -> np.ndarray:
    """A smooth picture with detail, uint8."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [120 + 70 * np.sin(x / (7 + k)) * np.cos(y / (9 - k)) for k in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def made(seed: int, frames: int = 6, **words: object) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(hazy_clip(scene(), frames, np.random.default_rng(seed), **words))  # type: ignore[arg-type]


def test_the_same_seed_is_the_same_clip() -> None:
    one, again, other = made(1), made(1), made(2)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    for degraded, clear in one:
        assert degraded.shape == clear.shape == (120, 165, 3)
        assert degraded.dtype == clear.dtype == np.uint8


def test_a_longer_clip_begins_as_the_short_one() -> None:
    assert np.array_equal(made(4, 3), made(4, 9)[:3])


def test_the_truth_is_the_photo_as_the_camera_sees_it() -> None:
    """Its frames differ by motion alone: along the flow that the camera says, they are the same picture."""
    camera = draw_camera((160, 220), (120, 165), np.random.default_rng(1), speed=2.0)
    clip = made(1)
    for t, (_, clear) in enumerate(clip):
        seen = camera.render(scene().astype(np.float32), t)
        assert np.abs(seen.clip(0, 255) - clear).max() <= 1
    assert np.abs(clip[0][1].astype(int) - clip[5][1]).mean() > 2, "it moves"


def test_haze_is_the_scattering_model_along_the_depth_that_moves_with_the_scene() -> None:
    depth = np.tile(np.linspace(0, 2, 220, dtype=np.float32), (160, 1)).clip(0, 1)
    rng = np.random.default_rng(9)
    camera = draw_camera((160, 220), (120, 165), rng, speed=2.0)
    clip = list(hazy_clip(scene(), 5, np.random.default_rng(9), settings=PLAIN, depth=depth))
    for t, (degraded, clear) in enumerate(clip):
        seen = camera.render(depth, t).clip(0, 1)
        near = seen < 1e-4
        assert np.abs(degraded[near].astype(int) - clear[near]).max(initial=0) <= 1, (
            "no haze where there is no distance"
        )
        # I - A = t (J - A): the same share everywhere at one depth.
        far = seen > 0.999
        light = 255 * np.median(
            (degraded[far].astype(float) - np.exp(-1) * clear[far]) / (1 - np.exp(-1)) / 255, axis=0
        )
        slope = np.polyfit(clear[far][:, 1].astype(float), degraded[far][:, 1].astype(float), 1)[0]
        assert np.exp(-1.16) < slope < np.exp(-0.86), "exp(-density), which drifts by 15 %"
        assert np.abs(light - 204).max() < 30


def test_the_air_drifts_slowly() -> None:
    air = ClipHaze(PLAIN, np.random.default_rng(3))
    grey, distance = np.full((8, 8, 3), 0.3, np.float32), np.ones((8, 8), np.float32)
    levels = np.array([float(air(t, grey, distance).mean()) for t in range(0, 400)]) * 255
    assert np.abs(np.diff(levels)).max() < 1
    assert np.ptp(levels) > 4
    assert np.abs(np.diff(levels, 2)).max() < 0.2, "steadily, as no camera's exposure would"


def test_swaths_drift_and_noise_is_another_in_each_frame() -> None:
    grey, distance = np.full((64, 64, 3), 0.3, np.float32), np.ones((64, 64), np.float32)
    swaths = ClipHaze(HazeSettings(patchy=1, noise=0, density=(1, 1)), np.random.default_rng(2))
    first, later = swaths(0, grey, distance), swaths(200, grey, distance)
    assert first[..., 0].std() > 0.02
    assert np.abs((first - first.mean()) - (later - later.mean())).mean() > 0.005
    noisy = ClipHaze(HazeSettings(patchy=0, noise=0.02, density=(1, 1)), np.random.default_rng(2))
    one, other = noisy(0, grey, distance), noisy(1, grey, distance)
    assert (one - other).std() > 0.3 * noisy.noise > 0


def test_memory_does_not_depend_on_length() -> None:
    peaks = []
    for frames in (10, 60):
        tracemalloc.start()
        for _ in hazy_clip(scene(), frames, np.random.default_rng(0)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] + 50_000


def test_a_clip_may_go_on_for_ever() -> None:
    late = list(islice(hazy_clip(scene(48, 64), 10**9, np.random.default_rng(0)), 300))[-1]
    assert late[0].shape == (36, 48, 3)


def test_rain_falls_along_its_lean() -> None:
    settings = RainSettings(layers=(1, 1), angle=0, spread=0, length=(20, 20), gusts=(0, 0), coverage=(0.05, 0.05),
                            strength=(0.6, 0.6), veil=0, width=(2, 2), screen=0, tint=0)  # fmt: skip
    rain = ClipRain(settings, 5, (160, 120), np.random.default_rng(0))
    streaks = rain.streaks[:, 0].numpy()
    assert streaks.max() > 0.2
    falls = []
    for before, after in pairwise(streaks):
        scores = [float((before[: 160 - fall] * after[fall:]).mean()) for fall in range(90)]
        falls.append(int(np.argmax(scores)))
        assert max(scores[1:]) > 1.5 * scores[0], "nobody stands still"
    assert max(falls) - min(falls) <= 2, "always as fast, in whole pixels"
    assert 10 < falls[0] < 90
    dark = np.zeros((160, 120, 3), np.float32)
    assert np.allclose(rain(2, dark, dark[..., 0])[..., 1], streaks[2], atol=1e-6)


def test_nearer_layers_fall_faster_and_the_seed_decides() -> None:
    one, again, other = (ClipRain(RainSettings(), 3, (64, 48), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.streaks, again.streaks)
    assert not np.array_equal(one.streaks, other.streaks)
    assert one.streaks.shape == (3, 3, 64, 48)
    assert float(one.streaks.min()) >= 0


def test_clips_of_frames_stay_in_their_film() -> None:
    paths = [Path(f"{film}/{frame:03}.png") for film in ("a", "b") for frame in range(4)]
    assert consecutive_frames(paths, 3) == [0, 1, 4, 5]
    assert consecutive_frames(paths, 5) == []


def test_bad_words_are_named() -> None:
    with pytest.raises(BadImage, match="H x W x 3 uint8"):
        next(hazy_clip(scene().astype(np.float32), 3, np.random.default_rng(0)))  # type: ignore[arg-type]
    with pytest.raises(BadSettings, match="at least 1 frame"):
        next(hazy_clip(scene(), 0, np.random.default_rng(0)))


def test_a_real_photo_gives_a_clip_that_does_not_flicker(shared_data: Path) -> None:
    from fairweather.evaluation.temporal_consistency import temporal_score

    path = sorted((shared_data / "kodak").glob("*.png"))[0]
    photo = cv2.resize(cv2.imread(str(path))[..., ::-1], (384, 256), interpolation=cv2.INTER_AREA)
    clip = hazy_clip(np.ascontiguousarray(photo), 6, np.random.default_rng(0), settings=PLAIN)
    score = temporal_score((degraded, degraded, clear) for degraded, clear in clip)
    assert score.truth is not None
    assert score.truth < 4e-4
    assert score.input_flicker < 0.5
