"""A film's frames by several restorers: what is kept between them, and what it is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fairweather.inference.engines import RecurrentEngine
from fairweather.inference.restorer import Restorer
from fairweather.inference.temporal import AutoVideoRestorer, VideoRestorer
from fairweather.inference.weather_detection import Weather
from fairweather.model_folder import StateSpec
from tests.inference.test_restorer import MAPS


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A camera that goes right over a soft picture: 12 frames of 96 x 160."""
    noise = np.random.default_rng(3).random((96, 240, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    soft = np.rint((soft - soft.min()) / (soft.max() - soft.min()) * 255).astype(np.uint8)
    return [np.ascontiguousarray(soft[:, 2 * at : 2 * at + 160]) for at in range(12)]


def maps(picture: np.ndarray, transmission: float) -> np.ndarray:
    answer = np.zeros((1, 7, picture.shape[2] // 2, picture.shape[3] // 2), np.float32)
    answer[:, 0], answer[:, 1:4] = transmission, 0.9
    return answer


def flickering() -> Restorer:
    rng = np.random.default_rng(1)
    return Restorer(MAPS, lambda picture: maps(picture, 0.6 + 0.1 * rng.standard_normal()))


def unrest(film: VideoRestorer, frames: list[np.ndarray]) -> float:
    means = [film(frame, 0.04).mean() for frame in frames]
    return float(np.std(np.diff(means)))


def test_flicker_is_taken_off_where_it_is_wanted(frames: list[np.ndarray]) -> None:
    loud = unrest(VideoRestorer([(flickering(), 1.0)], steady=False), frames)
    assert unrest(VideoRestorer([(flickering(), 1.0)]), frames) < 0.4 * loud
    assert unrest(VideoRestorer([(flickering(), 1.0)], steady=False, blend=True), frames) < 0.8 * loud


def test_a_restorer_s_frames_are_a_film_s(frames: list[np.ndarray]) -> None:
    film = VideoRestorer([(flickering(), 0.7)])
    for answer, frame in zip(flickering().frames(frames, 0.7), frames, strict=True):
        assert np.array_equal(answer, film(frame, 1 / 25))


def test_what_begins_may_be_finished_later(frames: list[np.ndarray]) -> None:
    """As in a pipeline: the next frame begins before the last is finished."""
    one, other = VideoRestorer([(flickering(), 1.0)]), VideoRestorer([(flickering(), 1.0)])
    begun = [one.begin(frame, 0.04) for frame in frames]
    for finish, frame in zip(begun, frames, strict=True):
        assert np.array_equal(finish(), other(frame, 0.04))


def test_restorers_work_one_after_the_other(frames: list[np.ndarray]) -> None:
    called = []

    def add(photo: np.ndarray, strength: float, guard: bool) -> np.ndarray:
        called.append((strength, guard))
        return np.minimum(photo, 245) + np.uint8(10)

    steady = Restorer(MAPS, lambda picture: maps(picture, 0.6))
    film = VideoRestorer([(add, 0.5), (steady, 1.0), (add, 0.0)], guard=False)
    assert np.array_equal(film(frames[0], 0.0), steady(np.minimum(frames[0], 245) + np.uint8(10), guard=False))
    assert called == [(0.5, False)], "what takes nothing out is not asked"
    untouched = VideoRestorer([])(frames[0], 0.0)
    assert np.array_equal(untouched, frames[0])
    assert untouched is not frames[0]


def counting() -> Restorer:
    """A network whose memory counts the frames in which a place was in sight, and whose transmission tells the most."""

    def run(picture: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        return [maps(picture, 1.0 - 0.05 * round(float(state.max()))), state + 1]

    return Restorer(MAPS, RecurrentEngine(run, StateSpec(channels=2, stride=2)))


def test_a_network_with_a_memory_keeps_it_until_a_cut(frames: list[np.ndarray]) -> None:
    restorer = counting()
    film = VideoRestorer([(restorer, 1.0)], guard=False, seconds=0)

    def count(frame: np.ndarray) -> int:
        answer = film(frame, 0.04)
        found = [np.array_equal(answer, at_count(frame, number)) for number in range(8)]
        return found.index(True)

    def at_count(frame: np.ndarray, number: int) -> np.ndarray:
        return Restorer(MAPS, lambda picture: maps(picture, 1.0 - 0.05 * number))(frame, guard=False)

    assert [count(frame) for frame in frames[:5]] == [0, 1, 2, 3, 4]
    assert [count(255 - frame) for frame in frames[:2]] == [0, 1], "another scene"
    assert [count(frame[:64]) for frame in frames[:2]] == [0, 1], "another size"


def test_maps_behind_a_memory_are_smoothed_too(frames: list[np.ndarray]) -> None:
    rng = np.random.default_rng(1)

    def run(picture: np.ndarray, state: np.ndarray) -> list[np.ndarray]:
        return [maps(picture, 0.6 + 0.1 * rng.standard_normal()), state]

    restorer = Restorer(MAPS, RecurrentEngine(run, StateSpec(channels=2, stride=2)))
    loud = unrest(VideoRestorer([(restorer, 1.0)], seconds=0), frames)
    assert unrest(VideoRestorer([(restorer, 1.0)]), frames) < 0.8 * loud, "for a shorter time"
    assert unrest(VideoRestorer([(restorer, 1.0)], seconds=0.5), frames) < 0.4 * loud
    assert unrest(VideoRestorer([(restorer, 1.0)], steady=False), frames) > 0.6 * loud


class Looks:
    """In place of Auto."""

    def __init__(self, haze: list[float]) -> None:
        self.haze, self.taken = iter(haze), []

    def recognise(self, frame: np.ndarray) -> Weather:
        return Weather(next(self.haze), 0.0)

    def taking(self, weather: Weather) -> list[tuple[object, float]]:
        self.taken.append(round(weather.haze, 3))
        return [(lambda photo, strength, guard: photo, weather.amount("haze"))]


def test_a_film_that_goes_by_is_looked_at_now_and_then(frames: list[np.ndarray]) -> None:
    looks = Looks([1.0, 0.5, 0.0])
    watching = AutoVideoRestorer(looks, every=0.2)
    for at, frame in enumerate(frames):
        watching(frame, 0.04 if at else 0.0)
    assert looks.taken == [1.0, 0.75, 0.5], "on the first frame, and each 5 frames later; the mean decides"
