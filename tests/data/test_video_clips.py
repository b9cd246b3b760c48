"""Clips: a moving camera, moving haze and rain with ground truth, and the sources of a mixture as clips."""

from __future__ import annotations

import tracemalloc
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fairweather.data import Mixture, MixtureSettings, SourceSettings
from fairweather.data.augment import Augment
from fairweather.data.gpu_batches import GPUBatches
from fairweather.data.video_clips import (
    Camera,
    ClipHaze,
    ClipRain,
    consecutive_frames,
    draw_camera,
    draw_drift,
    hazy_clip,
)
from fairweather.errors import BadFolder, BadImage, BadSettings
from fairweather.weather.haze import HazeSettings
from fairweather.weather.rain import RainSettings
from tests.data.conftest import scene, write_photo

PLAIN = HazeSettings(density=(1.0, 1.0), patchy=0, linear=0, noise=0, tint=0, airlight=(0.8, 0.8))
QUIET = Augment(crop=32, tone=0, noise_share=0, jpeg_share=0, scale=(0.5, 0.8))


def corners(camera: Camera, frame: int) -> np.ndarray:
    rows, columns = camera.frame
    points = np.array([[0, 0, 1], [columns - 1, 0, 1], [0, rows - 1, 1], [columns - 1, rows - 1, 1]])
    return np.asarray(points @ camera.matrix(frame).T)


@pytest.mark.parametrize("sizes", [((400, 600), (192, 192)), ((200, 210), (192, 192)), ((90, 300), (128, 128))])
def test_a_camera_stays_inside_the_picture(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    for seed in range(8):
        camera = draw_camera(*sizes, np.random.default_rng(seed), speed=4, mirrored=bool(seed % 2))
        for frame in range(0, 3000, 97):
            places = corners(camera, frame)
            assert places.min() > -0.51
            assert (places.max(0) < np.array(sizes[0][::-1]) - 0.49).all()


def test_a_camera_moves_at_most_at_its_speed() -> None:
    fastest = []
    for seed in range(10):
        camera = draw_camera((600, 900), (200, 200), np.random.default_rng(seed), speed=3)
        middles = np.array([corners(camera, frame).mean(0) for frame in range(200)])
        fastest.append(np.linalg.norm(np.diff(middles, axis=0), axis=1).max())
        assert np.linalg.norm(middles[0] - middles, axis=1).max() > 20
    assert max(fastest) < 3 * 1.8 * 2**0.5  # both axes, both waves of each at once
    assert np.median(fastest) > 1
    still = draw_camera((600, 900), (200, 200), np.random.default_rng(0), speed=0)
    assert np.abs(corners(still, 0).mean(0) - corners(still, 8).mean(0)).max() < 0.1
    drift = draw_drift(0.2, 50, np.random.default_rng(4))
    values = np.array([drift.at(frame) for frame in range(2000)])
    assert 0.1 < np.abs(values).max() <= 0.2
    assert np.abs(np.diff(values)).max() < 0.2 * 2 * np.pi / 50 * 2.5


@pytest.mark.parametrize("mirrored", [False, True])
def test_moves_map_each_frame_to_the_one_before(mirrored: bool) -> None:
    rng = np.random.default_rng(2)
    picture = cv2.GaussianBlur(rng.random((200, 300, 3)).astype(np.float32), (0, 0), 4)
    camera = draw_camera((200, 300), (60, 90), rng, speed=6, mirrored=mirrored)
    moves = camera.moves(6)
    assert moves.shape == (6, 2, 3)
    assert np.abs(moves[0] - np.eye(3)[:2]).max() < 1e-6, "there is nothing before the first frame"
    frames = [torch.from_numpy(camera.render(picture, t).transpose(2, 0, 1))[None] for t in range(6)]
    for t in range(1, 6):
        grid = F.affine_grid(torch.from_numpy(moves[t])[None], [1, 3, 60, 90], align_corners=False)
        moved = F.grid_sample(frames[t - 1], grid, align_corners=False)
        inner = (..., slice(12, -12), slice(12, -12))
        assert (moved - frames[t])[inner].abs().mean() < 0.1 * (frames[t - 1] - frames[t])[inner].abs().mean()


def test_a_mirrored_camera_shows_the_mirror_image() -> None:
    picture = np.random.default_rng(0).random((100, 120, 3)).astype(np.float32)
    one, other = (
        draw_camera((100, 120), (50, 60), np.random.default_rng(5), mirrored=mirrored).render(picture, 7)
        for mirrored in (False, True)
    )
    assert np.abs(one[:, ::-1] - other).max() < 1e-3
    assert np.abs(one - other).mean() > 0.05


def detailed(height: int = 160, width: int = 220) -> np.ndarray:
    """A smooth photo with detail."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [120 + 70 * np.sin(x / (7 + k)) * np.cos(y / (9 - k)) for k in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def clip(seed: int, frames: int = 6, **more: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(hazy_clip(detailed(), frames, np.random.default_rng(seed), **more))


def test_a_clip_depends_on_its_seed_and_starts_the_same_at_any_length() -> None:
    one, again, other, short = clip(1), clip(1), clip(2), clip(1, 3)
    assert np.array_equal(one, again)
    assert np.array_equal(one[:3], short)
    assert not np.array_equal(one, other)
    for degraded, clear in one:
        assert degraded.shape == clear.shape == (120, 165, 3)
        assert degraded.dtype == clear.dtype == np.uint8


def test_haze_is_the_scattering_model_along_depth_that_moves_with_the_scene() -> None:
    depth = np.tile(np.linspace(0, 2, 220, dtype=np.float32), (160, 1)).clip(0, 1)
    camera = draw_camera((160, 220), (120, 165), np.random.default_rng(9), speed=2.0)
    frames = clip(9, settings=PLAIN, depth=depth)
    assert np.abs(frames[0][1].astype(int) - frames[5][1]).mean() > 2, "the camera moves"
    for t, (degraded, clear) in enumerate(frames):
        assert np.abs(camera.render(detailed().astype(np.float32), t).clip(0, 255) - clear).max() <= 1
        distance = camera.render(depth, t).clip(0, 1)
        near, far = distance < 1e-4, distance > 0.999
        assert np.abs(degraded[near].astype(int) - clear[near]).max(initial=0) <= 1
        # I - A = t (J - A): the same share everywhere at one depth
        light = np.median((degraded[far].astype(float) - np.exp(-1) * clear[far]) / (1 - np.exp(-1)), axis=0)
        slope = np.polyfit(clear[far][:, 1].astype(float), degraded[far][:, 1].astype(float), 1)[0]
        assert np.exp(-1.16) < slope < np.exp(-0.86), "exp(-density), which drifts by 15 %"
        assert np.abs(light - 204).max() < 30


def test_density_drifts_slowly_and_patches_move() -> None:
    grey, distance = np.full((8, 8, 3), 0.3, np.float32), np.ones((8, 8), np.float32)
    haze = ClipHaze(PLAIN, np.random.default_rng(3))
    levels = np.array([float(haze(t, grey, distance).mean()) for t in range(0, 400)]) * 255
    assert np.abs(np.diff(levels)).max() < 1
    assert np.ptp(levels) > 4
    assert np.abs(np.diff(levels, 2)).max() < 0.2
    grey, distance = np.full((64, 64, 3), 0.3, np.float32), np.ones((64, 64), np.float32)
    patchy = ClipHaze(HazeSettings(patchy=1, noise=0, density=(1, 1)), np.random.default_rng(2))
    first, later = patchy(0, grey, distance), patchy(200, grey, distance)
    assert first[..., 0].std() > 0.02
    assert np.abs((first - first.mean()) - (later - later.mean())).mean() > 0.005
    noisy = ClipHaze(HazeSettings(patchy=0, noise=0.02, density=(1, 1)), np.random.default_rng(2))
    assert (noisy(0, grey, distance) - noisy(1, grey, distance)).std() > 0.3 * noisy.noise > 0


def test_clips_are_endless_and_memory_does_not_depend_on_length() -> None:
    peaks = []
    for frames in (10, 60):
        tracemalloc.start()
        for _ in islice(hazy_clip(detailed(80, 110), 10**9, np.random.default_rng(0)), frames):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] + 50_000


def test_rain_falls_along_its_slant() -> None:
    settings = RainSettings(layers=(1, 1), angle=0, spread=0, length=(20, 20), gusts=(0, 0), coverage=(0.05, 0.05),
                            strength=(0.6, 0.6), veil=0, width=(2, 2), screen=0, tint=0)  # fmt: skip
    rain, again, other = (ClipRain(settings, 5, (160, 120), np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(rain.streaks, again.streaks)
    assert not torch.equal(rain.streaks, other.streaks)
    streaks = rain.streaks[:, 0].numpy()
    assert streaks.max() > 0.2
    falls = []
    for before, after in pairwise(streaks):
        scores = [float((before[: 160 - fall] * after[fall:]).mean()) for fall in range(90)]
        falls.append(int(np.argmax(scores)))
        assert max(scores[1:]) > 1.5 * scores[0], "it moves"
    assert max(falls) - min(falls) <= 2, "at constant speed, in whole pixels"
    assert 10 < falls[0] < 90
    dark = np.zeros((160, 120, 3), np.float32)
    assert np.allclose(rain(2, dark, dark[..., 0])[..., 1], streaks[2], atol=1e-6)


def test_bad_arguments_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(BadSettings, match="speed"):
        draw_camera((9, 9), (3, 3), rng, speed=-1)
    with pytest.raises(BadSettings, match="the camera needs"):
        draw_camera((9, 9), (3, 3), rng).render(np.zeros((8, 9, 3), np.float32), 0)
    with pytest.raises(BadImage, match="H x W x 3 uint8"):
        next(hazy_clip(detailed().astype(np.float32), 3, rng))  # type: ignore[arg-type]
    with pytest.raises(BadSettings, match="at least 1 frame"):
        next(hazy_clip(detailed(), 0, rng))


def test_a_clip_of_a_real_photo_does_not_flicker(shared_data: Path) -> None:
    from fairweather.evaluation.temporal_consistency import temporal_score

    path = sorted((shared_data / "kodak").glob("*.png"))[0]
    photo = cv2.resize(cv2.imread(str(path))[..., ::-1], (384, 256), interpolation=cv2.INTER_AREA)
    frames = hazy_clip(np.ascontiguousarray(photo), 6, np.random.default_rng(0), settings=PLAIN)
    score = temporal_score((degraded, degraded, clear) for degraded, clear in frames)
    assert score.truth is not None
    assert score.truth < 4e-4
    assert score.input_flicker < 0.5


KINDS: dict[str, dict[str, Any]] = {
    "pairs": {"kind": "pairs", "path": "pairs"},
    "rehazed": {"kind": "rehazed", "path": "pairs"},
    "haze": {"kind": "synthetic", "path": "photos"},
    "fog": {"kind": "synthetic", "path": "photos", "fog": "pairs"},
    "rain": {"kind": "synthetic", "path": "photos", "weather": "rain"},
    "clear": {"kind": "clear", "path": "photos"},
}


def mixture(root: Path, name: str, frames: int = 5, hold_back: float = 0.0, **changes: Any) -> Mixture:
    sources = (SourceSettings(**{**KINDS[name], **changes}),)
    return Mixture(MixtureSettings(sources=sources, augment=QUIET, frames=frames, samples=8, hold_back=hold_back), root)


@pytest.fixture
def root(pairs_folder: Path, clear_folder: Path) -> Path:
    return pairs_folder.parent


def frames_of(strip: torch.Tensor) -> np.ndarray:
    return np.stack([frame.permute(1, 2, 0).numpy() for frame in strip.split(32, 1)])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_source_gives_reproducible_strips(root: Path, name: str) -> None:
    data, other = mixture(root, name), mixture(root, name)
    samples = [data.sample(3, 0, index) for index in range(4)]
    for index, sample in reversed(list(enumerate(samples))):
        again = other.sample(3, 0, index)
        assert {key: tuple(value.shape) for key, value in sample.items()} == {
            **{"degraded": (3, 5 * 32, 32), "clear": (3, 5 * 32, 32)},
            "moves": (5, 2, 3),
        }
        for key, value in sample.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, again[key])
        assert 0 <= sample["degraded"].min() <= sample["degraded"].max() <= 1
        if name == "pairs":  # one camera for both sides: the degraded photos are half as bright
            assert (sample["degraded"] - sample["clear"] / 2).abs().max() < 3 / 255
    assert len({sample["clear"].numpy().tobytes() for sample in samples}) == 4
    motion = [np.abs(np.diff(frames_of(sample["clear"]), axis=0)).mean() for sample in samples]
    assert max(motion) > 1e-3
    changed = [(sample["degraded"] - sample["clear"]).abs().mean() for sample in samples]
    assert (max(changed) == 0) if name == "clear" else (max(changed) > 0.01)


def test_haze_is_attached_to_the_scene(root: Path) -> None:
    settings = HazeSettings(noise=0, patchy=0, linear=0)
    sample = mixture(root, "haze", haze=settings, speed=0.0).sample(0, 0, 1)
    clear = frames_of(sample["clear"])
    assert np.abs(clear - clear[0]).max() < 0.02, "the camera stands still"
    change = frames_of(sample["degraded"] - sample["clear"])
    assert np.abs(change).mean() > 0.02
    assert np.abs(np.diff(change, axis=0)).max() < 0.05


def test_video_frames_are_consecutive_and_of_one_video(tmp_path: Path) -> None:
    """The red of a frame is its number."""
    for video, first in (("one", 0), ("two", 100)):
        for number in range(7):
            write_photo(tmp_path / "photos" / video / f"{number:03}.png", scene(first + 10 * number))
    data = mixture(tmp_path, "clear", moving=True, speed=0.0)
    assert data.sources[0].items == 2 * 3
    for index in range(6):
        red = frames_of(data.sample(0, 0, index)["clear"])[..., 0].mean((1, 2)) * 255
        assert np.allclose(np.diff(red), 10, atol=0.5)
    assert mixture(tmp_path, "haze", moving=True).sample(0, 0, 0)["degraded"].shape == (3, 160, 32)
    with pytest.raises(BadFolder, match=r"no 8 frames in a row.*data\.frames"):
        mixture(tmp_path, "clear", frames=8, moving=True)
    paths = [Path(f"{video}/{frame:03}.png") for video in ("a", "b") for frame in range(4)]
    assert consecutive_frames(paths, 3) == [0, 1, 4, 5]
    assert consecutive_frames(paths, 5) == []


def test_clips_respect_the_holdout_and_name_what_they_do_not_support(root: Path) -> None:
    data = mixture(root, "pairs", hold_back=0.25)
    (holdout,) = data.holdout().values()
    assert len(holdout) == 4
    assert not {pair.clear for pair in holdout} & {pair.clear for pair in data.sources[0].source.pairs}  # type: ignore[attr-defined]
    with pytest.raises(BadSettings, match="does not support clips"):
        GPUBatches(data, "cpu", 2**30)
    with pytest.raises(BadSettings, match=r"haze\.night"):
        mixture(root, "haze", haze=HazeSettings(night=0.5))
