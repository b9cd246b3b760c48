"""Warping error and flicker of videos with known motion, noise and truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from fairweather.errors import BadImage
from fairweather.evaluation.temporal_consistency import TemporalMeter, TemporalScore, occluded, temporal_score

Array = np.ndarray
FRAMES = 6


def scene(side: int = 256) -> Array:
    """A picture with detail at every scale, as photos have it: what a camera pans over. Levels of 255, float32."""
    rng = np.random.default_rng(3)
    picture = np.zeros((side, side, 3), np.float32)
    for step in (1, 2, 4, 8, 16, 32):
        layer = rng.normal(size=(side // step, side // step, 3)).astype(np.float32)
        picture += cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC) * step**0.5
    return (picture - picture.min()) / (picture.max() - picture.min()) * 160 + 40


def pan(count: int = FRAMES, noise: float = 0.0) -> list[Array]:
    """A camera that moves by 2 pixels down and 3 to the right each frame; 96 x 128 x 3 uint8."""
    rng = np.random.default_rng(8)
    frames = [scene()[2 * t : 2 * t + 96, 3 * t : 3 * t + 128] for t in range(count)]
    return [(frame + noise * rng.normal(size=frame.shape)).round().clip(0, 255).astype(np.uint8) for frame in frames]


def score(video: list[Array], change: Callable[[Array, int], Array], truth: list[Array] | None = None) -> TemporalScore:
    def frames() -> Iterator[tuple[Array, ...]]:
        for t, frame in enumerate(video):
            changed = change(frame.astype(np.float32), t).round().clip(0, 255).astype(np.uint8)
            yield (frame, changed) if truth is None else (frame, changed, truth[t])

    return temporal_score(frames())


def test_a_picture_that_only_moves_has_no_error() -> None:
    result = score(pan(), lambda frame, t: frame)
    assert result.input * 255**2 < 0.3  # of a square of the contrast of about 600
    assert result.restored == result.input
    assert (result.gain, result.ratio) == (1, 1)
    assert result.visible > 0.85
    assert (result.frames, result.cuts) == (FRAMES, 0)
    assert (result.psnr, result.truth) == (None, None)


def test_a_flickering_one_has_the_error_of_its_flicker() -> None:
    """Every second frame is 6 levels brighter: 36 squared levels a pair, and 12 levels of second difference."""
    result = score(pan(), lambda frame, t: frame + 6 * (t % 2))
    assert result.restored * 255**2 == pytest.approx(36, rel=0.02)
    assert result.gain == pytest.approx(1, abs=0.01)
    assert result.normalised == pytest.approx(result.restored, rel=0.01)
    assert result.ratio > 100
    assert result.flicker == pytest.approx(12, rel=0.1)
    assert result.cast == pytest.approx(result.input_cast, abs=0.3)
    assert result.input_flicker < 1


def test_a_colour_that_comes_and_goes_is_a_cast_and_not_brightness() -> None:
    tint = np.array([1, 0, -0.299 / 0.114], np.float32) * 4  # of no luma
    result = score(pan(), lambda frame, t: frame + tint * (t % 2))
    assert result.flicker == pytest.approx(result.input_flicker, abs=0.5)
    assert result.cast == pytest.approx(2 * float(np.linalg.norm(tint)), rel=0.1)


def test_contrast_alone_leaves_the_number_as_it_was() -> None:
    """Noise at 1.5 times the contrast: 2.25 times the error, and the same consistency."""
    result = score(pan(noise=3), lambda frame, t: (frame - 120) * 1.5 + 120)
    assert result.restored / result.input == pytest.approx(2.25, rel=0.02)
    assert result.ratio == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("noise", [0.7, 3])
@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.5, 3])
def test_blurring_does_not_win(noise: float, sigma: float) -> None:
    result = score(pan(noise=noise), lambda frame, t: cv2.GaussianBlur(frame, (0, 0), sigma))
    assert result.restored < result.input  # without the division it would
    assert result.ratio > 1


def test_sharpening_and_noise_do_not_win() -> None:
    rng = np.random.default_rng(4)
    video = pan(noise=1)
    sharp = score(video, lambda frame, t: frame + 0.7 * (frame - cv2.GaussianBlur(frame, (0, 0), 1.5)))
    noisy = score(video, lambda frame, t: frame + 2 * rng.normal(size=frame.shape))
    assert sharp.ratio > 1
    assert noisy.ratio > 1.5


def test_what_cannot_be_seen_twice_is_not_counted() -> None:
    """A square runs to the right: what it covers next and what it lays bare may change as it likes."""
    background, square = scene()[:96, :128], scene()[150:190, 150:190] * 0.6
    frames = [background.copy(), background.copy()]
    for t, frame in enumerate(frames):
        frame[30:70, 20 + 8 * t : 60 + 8 * t] = square
    video = [frame.round().astype(np.uint8) for frame in frames]

    def brightened(*columns: int) -> float:
        def change(frame: Array, t: int) -> Array:
            changed = frame.copy()
            changed[30:70, columns[t] : columns[t] + 8] += 60
            return changed

        return score(video, change).restored * 255**2

    still = score(video, lambda frame, t: frame).restored * 255**2
    hidden = brightened(60, 20) - still  # before it, covered in the second frame; behind it, covered in the first
    seen = brightened(90, 110) - still
    assert seen > 50
    assert hidden < 0.1 * seen


def test_what_leaves_the_picture_and_what_comes_in_is_not_counted() -> None:
    """The camera goes right: the first two columns of the first frame leave, the last one of the second comes in."""

    def change(frame: Array, t: int) -> Array:
        changed = frame.copy()
        changed[:, [0, 1] if t == 0 else [127]] += 90
        return changed

    assert score(pan(2), change).restored * 255**2 < 1
    assert score(pan(2)[::-1], change).restored * 255**2 > 20


def test_occlusion_by_hand() -> None:
    there = np.zeros((40, 60, 2), np.float32)
    there[..., 0] = 4
    mask = occluded(there, -there)
    assert mask[:, :56].sum() == 0
    assert mask[:, 56:].all()  # it leaves the picture
    lost = -there
    lost[10:20, 20:30] = 3  # what lies there in the second frame comes from elsewhere
    assert occluded(there, lost)[10:20, 16:26].all()
    broken = there.copy()
    broken[:, 30:] = 9
    assert occluded(broken, -broken)[:, 29:31].all()  # where motion breaks


def test_the_truth_gives_psnr_and_motion() -> None:
    """Two levels off everywhere: 20 log10(255 / 2); motion is measured in the truth, not in the input."""
    truth = pan()
    degraded = [(frame * 0.0 + 120).astype(np.uint8) for frame in truth]
    meter = TemporalMeter()
    for before, clear in zip(degraded, truth, strict=True):
        meter.add(before, {"good": clear + np.uint8(2), "bad": clear + np.uint8(8)}, clear)
    scores = meter.scores()
    assert scores["good"].psnr == pytest.approx(20 * math.log10(255 / 2))
    assert scores["bad"].psnr == pytest.approx(20 * math.log10(255 / 8))
    assert scores["good"].input_psnr < scores["bad"].psnr  # type: ignore[operator]
    assert scores["good"].truth == pytest.approx(scores["good"].restored)
    assert scores["good"].restored * 255**2 < 0.3  # along the truth's motion; without it these pictures would not meet
    assert scores["good"].input == pytest.approx(0, abs=1e-12)


def test_a_scene_change_is_not_instability() -> None:
    video = pan(4) + [np.ascontiguousarray(np.rot90(scene()[100:228, 120:216])) // 2 for _ in range(3)]
    result = score(video, lambda frame, t: frame)
    assert result.cuts == 1
    assert result.restored * 255**2 < 0.3
    assert result.input_flicker < 1


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_every_kind_of_frame_gives_the_same(dtype: type) -> None:
    video = pan(3, noise=2)
    factor = 257 if dtype is np.uint16 else 1 / 255
    frames = [(frame.astype(np.float64) * factor).astype(dtype) for frame in video]
    other = temporal_score(zip(frames, frames, strict=True))
    assert other.input == pytest.approx(score(video, lambda frame, t: frame).input, rel=1e-4)


def test_invalid_frames() -> None:
    video = pan(2)
    with pytest.raises(BadImage, match="1 frames"):
        temporal_score([(video[0], video[0])])
    meter = TemporalMeter()
    meter.add(video[0], {"x": video[0]}, video[0])
    with pytest.raises(BadImage, match=r"frame 1 of 'x' has 100 x 96 pixels, the video 128 x 96"):
        meter.add(video[1], {"x": video[1][:, :100]}, video[1])
    with pytest.raises(BadImage, match="too small"):
        temporal_score([(video[0][:10], video[0][:10])] * 2)
    with pytest.raises(BadImage, match="H x W x 3"):
        temporal_score([(video[0][..., 0], video[0])] * 2)
    with pytest.raises(BadImage, match="the previous one"):
        meter.add(video[1], {"x": video[1]})


def test_memory_does_not_grow() -> None:
    meter = TemporalMeter()
    video = pan(3)

    def stored() -> int:
        return sum(frame.nbytes for frame in meter._last.values()) + sum(
            len(flicker._means) for flicker in meter._flicker.values()
        )

    sizes = set()
    for t in range(12):
        meter.add(video[t % 3], {"x": video[t % 3]})
        sizes.add(stored() if t > 2 else 0)
    assert len(sizes) == 2
