"""Maps and frames over time: held where nothing happens, moved with what moves, forgotten at cuts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fairweather.inference.temporal import SMOOTHING_SECONDS, FrameBlender, MapSmoother, MotionEstimator


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A soft random picture, larger than a frame: 200 x 320 x 3 float32."""
    noise = np.random.default_rng(3).random((200, 320, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    return (soft - soft.min()) / (soft.max() - soft.min())


def frame_at(scene: np.ndarray, column: int) -> np.ndarray:
    return np.ascontiguousarray(scene[20:164, column : column + 256])


def chw(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None])


def maps(values: np.ndarray | float, airlight: float = 0.8) -> np.ndarray:
    answer = np.zeros((1, 7, 72, 128), np.float32)
    answer[0, 0] = values
    answer[0, 1:4] = airlight
    return answer


def test_motion_is_found(scene: np.ndarray) -> None:
    motion = MotionEstimator()
    assert motion(frame_at(scene, 10)) is None
    move = motion(frame_at(scene, 16))  # the camera goes right, what it sees goes left
    assert move is not None
    columns = np.indices(move.x.shape)[1]
    inner = (slice(20, -20), slice(20, -20))
    assert abs(np.median((move.x - columns)[inner]) - 6) < 0.3
    assert move.trust[inner].mean() > 0.9
    followed = move.moved(frame_at(scene, 10))
    assert np.abs(followed - frame_at(scene, 16))[inner].mean() < 0.01


def test_what_belongs_to_a_place_goes_along_at_any_size(scene: np.ndarray) -> None:
    motion = MotionEstimator()
    motion(frame_at(scene, 10))
    move = motion(frame_at(scene, 18))
    small = cv2.resize(frame_at(scene, 10), (128, 72), interpolation=cv2.INTER_AREA)
    wanted = cv2.resize(frame_at(scene, 18), (128, 72), interpolation=cv2.INTER_AREA)
    inner = (slice(10, -10), slice(10, -10))
    assert np.abs(move.moved(small) - wanted)[inner].mean() < 0.2 * np.abs(small - wanted)[inner].mean()


def test_a_memory_goes_along_and_nothing_is_remembered_of_what_was_hidden(scene: np.ndarray) -> None:
    """Seven channels, which OpenCV does not move at once: each is moved as it is alone."""
    motion = MotionEstimator()
    motion(frame_at(scene, 10))
    move = motion(frame_at(scene, 22))  # three places of the state come in from the right
    state = np.random.default_rng(1).random((1, 7, 36, 64)).astype(np.float32)
    carried = move.carried(state)
    assert carried.shape == state.shape
    assert carried.dtype == np.float32
    for channel in range(7):
        alone = move.moved(np.ascontiguousarray(state[0, channel][..., None]))[..., 0] * move.trusted(36, 64)[..., 0]
        assert np.abs(carried[0, channel] - alone).max() < 1e-6
    assert np.abs(carried[0, :, 5:-5, 5:50] - state[0, :, 5:-5, 8:53]).mean() < 0.1
    assert np.abs(carried[0, :, 5:-5, -2:]).mean() < 0.3 * np.abs(carried[0, :, 5:-5, 5:50]).mean()


def test_flickering_answers_are_smoothed(scene: np.ndarray) -> None:
    steady, rng = MapSmoother(), np.random.default_rng(0)
    given, answers = [], []
    for number in range(60):
        given.append(0.5 + 0.05 * rng.standard_normal())
        answers.append(
            steady(chw(frame_at(scene, 10 + number // 2)), maps(given[-1]), 0.04)[0, 0, 20:-20, 20:-20].mean()
        )
    assert np.std(answers[20:]) < 0.35 * np.std(given[20:])
    assert abs(np.mean(answers[20:]) - 0.5) < 0.02


def test_a_lasting_change_is_followed(scene: np.ndarray) -> None:
    steady = MapSmoother()
    frame = chw(frame_at(scene, 10))
    for _ in range(5):
        steady(frame, maps(0.9), 0.04)
    answers = [steady(frame, maps(0.4), 0.04)[0, 0].mean() for _ in range(100)]
    assert answers[0] > 0.8
    after = answers[round(SMOOTHING_SECONDS / 0.04) - 1]
    assert after == pytest.approx(0.4 + 0.5 * np.exp(-1), abs=0.02)
    assert answers[-1] == pytest.approx(0.4, abs=0.01)


def test_time_counts_not_frames(scene: np.ndarray) -> None:
    frame = chw(frame_at(scene, 10))
    found = []
    for step in (0.02, 0.1):
        steady = MapSmoother()
        steady(frame, maps(0.9), step)
        for _ in range(round(0.4 / step)):
            answer = steady(frame, maps(0.4), step)
        found.append(answer[0, 0].mean())
    assert found[0] == pytest.approx(found[1], abs=0.005)


def test_the_airlight_is_slower(scene: np.ndarray) -> None:
    steady = MapSmoother()
    frame = chw(frame_at(scene, 10))
    steady(frame, maps(0.9, 0.9), 0.04)
    answer = steady(frame, maps(0.4, 0.4), 0.04)
    assert 0.9 - answer[0, 1:4].mean() < 0.3 * (0.9 - answer[0, 0].mean())


def test_maps_move_with_what_they_are_of(scene: np.ndarray) -> None:
    steady = MapSmoother()
    light = [
        cv2.resize(frame_at(scene, column)[..., 0], (128, 72), interpolation=cv2.INTER_AREA) for column in (10, 20)
    ]
    steady(chw(frame_at(scene, 10)), maps(light[0]), 0.04)
    answer = steady(chw(frame_at(scene, 20)), maps(light[1]), 0.04)[0, 0]
    inner = (slice(8, -8), slice(8, -8))
    assert np.abs(answer - light[1])[inner].mean() < 0.15 * np.abs(light[0] - light[1])[inner].mean()


def test_a_cut_is_a_new_beginning(scene: np.ndarray) -> None:
    steady = MapSmoother()
    steady(chw(frame_at(scene, 10)), maps(0.9), 0.04)
    answer = steady(chw(1 - frame_at(scene, 10)), maps(0.4), 0.04)
    assert np.array_equal(answer, maps(0.4))
    answer = steady(chw(frame_at(scene, 10)[:96]), maps(0.7), 0.04)
    assert np.array_equal(answer, maps(0.7)), "frames of another size belong to another film"


def test_what_was_uncovered_is_new(scene: np.ndarray) -> None:
    steady = MapSmoother()
    before = frame_at(scene, 10)
    after = before.copy()
    after[40:100, 60:140] = 1 - after[40:100, 60:140]
    steady(chw(before), maps(0.9), 0.04)
    answer = steady(chw(after), maps(0.4), 0.04)[0, 0]
    assert answer[25:45, 35:65].mean() < 0.5
    assert answer[55:, :].mean() > 0.8


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_blending_takes_flicker_off_and_leaves_what_moves_sharp(scene: np.ndarray, dtype: str) -> None:
    top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
    rng, blend = np.random.default_rng(1), FrameBlender()
    off, plain, detail = [], [], []
    for number in range(20):
        frame = frame_at(scene, 10 + number)
        noisy = np.clip(frame + 0.03 * rng.standard_normal(), 0, 1)
        given = [(picture * top).astype(dtype) for picture in (frame, noisy)]
        answer = blend(*given)
        assert answer.dtype == given[1].dtype
        inner = (slice(16, -16), slice(16, -16))
        off.append((answer / top - frame)[inner].mean())
        plain.append((given[1] / top - frame)[inner].mean())
        detail.append(np.std((answer / top)[inner]) / np.std(frame[inner]))
    assert np.std(np.diff(off)) < 0.7 * np.std(np.diff(plain))
    assert min(detail) > 0.97


def test_blending_forgets_at_a_cut(scene: np.ndarray) -> None:
    blend = FrameBlender()
    dark, bright = frame_at(scene, 10) * 0.2, 1 - frame_at(scene, 10) * 0.2
    blend(dark, dark)
    assert np.array_equal(blend(bright, bright), bright)
