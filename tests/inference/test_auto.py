"""load("auto"): what is seen is taken out, in order, nothing else; models that do not ship are said to be missing."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import fairweather
from fairweather.errors import BadImage, BadSettings
from fairweather.inference.restorer import AutoRestorer
from fairweather.inference.weather_detection import Decision, Weather

PHOTO = np.full((4, 5, 3), 100, np.uint8)
SEEN: dict[Decision, Weather] = {
    "none": Weather(0.1, 0.1),
    "haze": Weather(1.0, 0.1),
    "rain": Weather(0.1, 1.0),
    "both": Weather(1.0, 1.0),
}


class Fakes:
    """Restorers that multiply (rain) and add (haze), so that their order shows."""

    def __init__(self, seen: Weather) -> None:
        self.seen, self.opened, self.looks = seen, [], 0  # type: ignore[var-annotated]

    def look(self, photo: np.ndarray) -> Weather:
        self.looks += 1
        return self.seen

    def open(self, name: str) -> Any:
        self.opened.append(name)
        work = {"wipe": lambda photo, strength: photo * 2, "lift": lambda photo, strength: photo + round(10 * strength)}
        return lambda photo, strength, guard: work[name](photo, strength)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Both models can be found."""
    from fairweather import model_folder

    monkeypatch.setattr(model_folder, "shipped", lambda: {"wipe": tmp_path, "lift": tmp_path})


def auto(seen: Weather) -> tuple[AutoRestorer, Fakes]:
    fakes = Fakes(seen)
    return AutoRestorer(fakes.look, fakes.open, {"rain": "wipe", "haze": "lift"}), fakes


@pytest.mark.parametrize(
    ("decided", "value", "opened"),
    [("none", 100, []), ("haze", 110, ["lift"]), ("rain", 200, ["wipe"]), ("both", 210, ["wipe", "lift"])],
)
@pytest.mark.usefixtures("there")
def test_what_is_seen_is_taken_out_rain_first(decided: Decision, value: int, opened: list[str]) -> None:
    restore, fakes = auto(SEEN[decided])
    for _ in range(2):
        result = restore(PHOTO)
        assert (result == value).all()
        assert result is not PHOTO
        assert not np.shares_memory(result, PHOTO)
    assert fakes.opened == opened, "a model is opened once, when it is needed"
    assert restore.recognise(PHOTO) == SEEN[decided]


@pytest.mark.usefixtures("there")
def test_strength_goes_on_to_the_models_and_0_looks_at_nothing() -> None:
    restore, fakes = auto(SEEN["haze"])
    assert (restore(PHOTO, 0.5) == 105).all()
    looks = fakes.looks
    untouched = restore(PHOTO, 0)
    assert np.array_equal(untouched, PHOTO)
    assert untouched is not PHOTO
    assert fakes.looks == looks
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadSettings, match="strength"):
            restore(PHOTO, strength)
    with pytest.raises(BadImage):
        restore(PHOTO[..., 0])


@pytest.mark.usefixtures("there")
def test_what_is_doubtful_is_taken_out_in_part_and_what_is_named_whole() -> None:
    restore, _ = auto(Weather(0.7, 0.1))
    assert (restore(PHOTO) == 102).all()
    assert (restore(PHOTO, 0.8) == 102).all()
    assert (restore.restore(PHOTO, Weather(0.7, 0.1)) == 102).all()
    assert (restore.restore(PHOTO, "haze") == 110).all()


def test_weather_without_a_model_stays_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    from fairweather import model_folder

    monkeypatch.setattr(model_folder, "shipped", lambda: {"lift": tmp_path})
    restore, fakes = auto(SEEN["both"])
    assert restore.missing("both") == ("rain",)
    assert restore.missing("haze") == restore.missing("none") == ()
    with caplog.at_level(logging.WARNING, "fairweather"):
        assert (restore(PHOTO) == 110).all()
        assert (restore(PHOTO) == 110).all()
    assert [record.getMessage() for record in caplog.records] == [
        "rain is in the photo and stays there: no model wipe ships"
    ]
    assert fakes.opened == ["lift"]


@pytest.mark.usefixtures("there")
def test_a_film_does_not_flicker() -> None:
    restore, _ = auto(SEEN["haze"])
    doubts = iter([1.0, 1.0, 0.1, 1.0, 0.1])
    restore._look = lambda photo: Weather(next(doubts), 0.0)
    assert [int(frame[0, 0, 0]) for frame in restore.frames([PHOTO] * 5, rate=0.5)] == [110, 110, 102, 105, 101]


def test_load_gives_it_by_name() -> None:
    made = fairweather.load("auto", memory=1 << 30)
    assert isinstance(made, AutoRestorer)
    assert list(made.models.values()) == ["derain", "dehaze"]
    with pytest.raises(BadSettings, match="tile"):
        fairweather.load("auto", tile=64)
