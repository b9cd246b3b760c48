"""The weather in a photo: what the network is shown, what is made of its answer, and the folder that it ships in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fairweather import images, model_folder
from fairweather.errors import BadCard, BadSettings
from fairweather.inference import load, weather_detection
from fairweather.inference.weather_detection import (
    DETECTOR_CARD,
    DETECTOR_FOLDER,
    DecisionRule,
    DetectorCard,
    Weather,
    WeatherDetector,
    detector_views,
    load_detector,
    plan,
    read_detector_card,
)
from tests.conftest import ROOT


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "count"),
    [((1, 1), 8), ((6, 8), 8), ((321, 481), 8), ((800, 600), 8), ((720, 900), 8), ((721, 900), 14), ((1500, 2000), 14)],
)
def test_views_are_squares_of_one_size_whatever_the_photo(size: tuple[int, int], count: int) -> None:
    made = detector_views(picture(*size), 64)
    assert made.shape == (count, 3, 64, 64)
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1


def test_windows_show_the_photo_at_its_own_scale_from_corner_to_corner() -> None:
    photo = picture(200, 300)
    first, *_, last = detector_views(photo, 64)[2:]
    assert np.array_equal(first, images.to_float(photo[:64, :64]).transpose(2, 0, 1))
    assert np.array_equal(last, images.to_float(photo[-64:, -64:]).transpose(2, 0, 1))
    upright = detector_views(photo.transpose(1, 0, 2), 64)
    assert np.array_equal(upright[-1], last.transpose(0, 2, 1))


def test_the_first_views_are_the_whole_and_its_darkest() -> None:
    photo = picture(160, 320)
    mean, least = detector_views(photo, 80)[:2]
    assert np.allclose(mean.mean((1, 2)), photo.mean((0, 1)) / 255, atol=2e-3)
    block = cv2.resize(photo, (160, 160), interpolation=cv2.INTER_AREA)[:2, :2] / 255
    assert mean[:, 0, 0] == pytest.approx(block.mean((0, 1)))
    assert least[:, 0, 0] == pytest.approx(block.min((0, 1)))


def test_a_large_photo_is_looked_at_in_two_scales() -> None:
    """Streaks that are 9 px wide in 12 megapixels are 3 px wide in one of them."""
    photo = np.full((2880, 3840, 3), 60, np.uint8)
    photo[:, 30:39] = 210
    made = detector_views(photo, 96)[2:]
    columns = [np.flatnonzero(window[0, 0] > 0.7).tolist() for window in (made[0], made[6])]
    assert columns == [[10, 11, 12], [5]]


@pytest.mark.parametrize("size", [(40, 50), (500, 640), (900, 1300)])
def test_types_of_pixels_are_seen_alike(size: tuple[int, int]) -> None:
    photo = picture(*size)
    small = detector_views(photo, 64)
    for same in (photo.astype(np.uint16) * 257, images.to_float(photo)):
        assert np.abs(detector_views(same, 64) - small).max() <= 1.01 / 255  # 8 bits round when they are reduced


@pytest.mark.parametrize(
    ("haze", "rain", "decided", "sure", "said"),
    [
        (0.02, 0.1, "none", 0.9, "no weather (90 % sure)"),
        (0.97, 0.4, "haze", 0.6, "haze (60 % sure)"),
        (0.5, 0.99, "rain", 0.5, "rain (50 % sure)"),
        (0.8, 0.7, "both", 0.7, "haze and rain (70 % sure)"),
    ],
)
def test_a_decision_is_as_sure_as_its_less_certain_half(
    haze: float, rain: float, decided: str, sure: float, said: str
) -> None:
    weather = Weather(haze, rain)
    assert weather.decided == decided
    assert weather.sure == pytest.approx(sure)
    assert str(weather) == said


@pytest.mark.parametrize(
    ("number", "amount"), [(0.0, 0.0), (0.5, 0.0), (0.6, 0.0625), (0.7, 0.25), (0.9, 1.0), (1.0, 1.0)]
)
def test_doubtful_weather_is_removed_in_part(number: float, amount: float) -> None:
    assert Weather(number, 0.2).amount("haze") == pytest.approx(amount)
    assert Weather(0.2, number).amount("rain") == pytest.approx(amount)


@pytest.mark.parametrize(
    ("weather", "parts", "words"),
    [
        (Weather(0.1, 0.1), [], "no weather (90 % sure): unchanged"),
        (Weather(0.95, 0.1), [("dehaze", 1.0)], "haze (90 % sure)"),
        (
            Weather(0.1, 0.7),
            [("derain", 0.25)],
            "rain (70 % sure): removing 25 % of the rain (--weather rain removes all)",
        ),
        (
            Weather(0.6, 0.7),
            [("derain", 0.25), ("dehaze", 0.0625)],
            "haze and rain (60 % sure): removing 6 % of the haze and 25 % of the rain (--weather both removes all)",
        ),
    ],
)
def test_a_plan_says_which_models_how_much_and_why(
    weather: Weather, parts: list[tuple[str, float]], words: str
) -> None:
    made = plan(lambda: weather)
    assert [(part.model, pytest.approx(part.amount)) for part in made.parts] == parts
    assert made.describe() == words


def test_a_plan_without_an_installed_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_folder, "shipped", lambda: {"dehaze": tmp_path})
    made = plan(lambda: Weather(1.0, 1.0))
    assert ([part.model for part in made.parts], made.missing) == (["dehaze"], ("rain",))
    assert made.describe() == "haze and rain (100 % sure), no model for rain is installed"
    assert plan(lambda: Weather(0.0, 1.0)).describe().endswith("no model for rain is installed: unchanged")
    with pytest.raises(BadSettings, match=r"weather both needs the model derain.*--model"):
        plan(never, weather="both")


def never() -> Weather:
    raise AssertionError("nothing is to be detected")


@pytest.mark.parametrize(
    ("weather", "models"), [("none", []), ("haze", ["dehaze"]), ("rain", ["derain"]), ("both", ["derain", "dehaze"])]
)
def test_a_named_weather_is_removed_completely_without_detection(weather: str, models: list[str]) -> None:
    made = plan(never, weather=weather)
    assert [(part.model, part.amount) for part in made.parts] == [(model, 1.0) for model in models]
    assert made.describe() == ""


def test_a_rule_weighs_the_model_beside_the_network() -> None:
    rule = DecisionRule(1.5, 0.5, 2.0, "m")
    assert rule(1.5, 0.0) == rule(0.5, 0.5) == 0.5
    assert rule(2.0, 0.0) == rule(0.0, 1.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert 0 < rule(-1e9, 0) < rule(1.4, 0) < 0.5 < rule(1.6, 0) < rule(1e9, 0) <= 1
    assert rule.needs_evidence(-1e9)
    assert not DecisionRule(1.5, 0.5, 2.0, "m", -5.0).needs_evidence(-5.0)


class Model:
    """A maps model whose transmission is given, or one that darkens its picture."""

    def __init__(self, transmission: float = 1.0, change: float = 0.0) -> None:
        self.transmission, self.change, self.asked = transmission, change, []  # type: ignore[var-annotated]

    def maps(self, photo: np.ndarray) -> dict[str, np.ndarray]:
        self.asked.append(photo.shape)
        return {"transmission": np.full((3, 4), self.transmission, np.float32)}

    def __call__(self, photo: np.ndarray, strength: float = 1.0, guard: bool = True) -> np.ndarray:
        assert not guard, "the guards would hide what the network found"
        self.asked.append(photo.shape)
        return photo - np.float32(self.change)


def test_estimates_of_models() -> None:
    photo = picture(100, 120)
    assert weather_detection.haze_evidence(Model(1.0), photo) == weather_detection.NO_HAZE_EVIDENCE  # type: ignore[arg-type]
    assert weather_detection.haze_evidence(Model(0.61), photo) == pytest.approx(np.log(0.4))  # type: ignore[arg-type]
    windows = np.full((6, 3, 160, 160), 0.5, np.float32)
    assert weather_detection.rain_evidence(Model(), windows) == weather_detection.NO_RAIN_EVIDENCE  # type: ignore[arg-type]
    model = Model(change=0.1)
    assert weather_detection.rain_evidence(model, windows) == pytest.approx(-20, abs=1e-4)  # type: ignore[arg-type]
    assert model.asked == [(96, 96, 3)] * 6


def test_one_window_with_a_fence_is_no_rain() -> None:
    windows = np.zeros((6, 3, 160, 160), np.float32)
    windows[0] = 1

    def darkens_bright_ones(photo: np.ndarray, guard: bool) -> np.ndarray:
        return photo * np.float32(0.5)

    assert weather_detection.rain_evidence(darkens_bright_ones, windows) == weather_detection.NO_RAIN_EVIDENCE  # type: ignore[arg-type]


def a_card(**changes: object) -> DetectorCard:
    fields = {
        "name": "w", "side": 64, "training": {}, "licence": "", "terms": "", "description": "",
        "haze": DecisionRule(0.5, 1, 1, "h"), "rain": DecisionRule(-0.5, 1, 0.1, "r", -5.0),
    }  # fmt: skip
    return DetectorCard(**{**fields, **changes})  # type: ignore[arg-type]


def test_logits_and_estimates_become_weather() -> None:
    shapes = []

    def engine(given: np.ndarray) -> np.ndarray:
        shapes.append(given.shape)
        return np.array([[0.5, 2.0]], np.float32)

    models = {"h": Model(0.61), "r": Model(change=0.1)}
    card = a_card(side=96)
    weather = WeatherDetector(card, engine, models.__getitem__)(picture(100, 120))  # type: ignore[arg-type]
    assert shapes == [(8, 3, 96, 96)]
    assert weather.haze == pytest.approx(0.4 / 1.4)
    assert weather.rain == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-5)
    assert models["h"].asked == [(100, 120, 3)]
    for answer in (np.zeros((1, 3)), np.full((1, 2), np.nan)):
        with pytest.raises(BadCard, match="install it again"):
            WeatherDetector(card, lambda _, answer=answer: answer, models.__getitem__)(picture(20, 20))  # type: ignore[arg-type]


def test_a_model_is_asked_where_the_network_leaves_a_doubt() -> None:
    opened: list[str] = []

    def open_one(name: str) -> Model:
        opened.append(name)
        return Model()

    look = WeatherDetector(a_card(), lambda _: np.array([[0.0, -5.1]]), open_one)  # type: ignore[arg-type, return-value]
    assert look(picture(100, 120)).rain == DecisionRule(-0.5, 1, 0.1, "r")(-5.1, weather_detection.NO_RAIN_EVIDENCE)
    assert opened == ["h"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The shipped recognizer's folder, to be damaged."""
    return Path(shutil.copytree(DETECTOR_FOLDER, tmp_path / "weather"))


def test_what_ships_is_whole_and_small() -> None:
    card = read_detector_card(DETECTOR_FOLDER)
    assert card.name == DETECTOR_FOLDER.name == "weather"
    assert "research" in card.terms
    assert card.training["held_back"] > 0
    for name in model_folder.SUMMED:
        assert model_folder.checked(DETECTOR_FOLDER, card, name).stat().st_size < 1_000_000  # type: ignore[arg-type]
    assert DETECTOR_FOLDER.name not in model_folder.shipped(), "it gives no picture: no list of models may hold it"


def test_its_rules_were_found_with_the_models_that_ship() -> None:
    """Another `dehaze` finds other amounts of haze: runs/ship/weather.py --again weighs it anew."""
    card = read_detector_card(DETECTOR_FOLDER)
    assert {card.haze.model, card.rain.model} == set(card.training["asks"])
    for name, weights in card.training["asks"].items():
        assert model_folder.read_card(model_folder.find(name)).checksums[model_folder.WEIGHTS] == weights, name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format_version": 1}, "format_version"),
        ({"side": 100}, "side"),
        ({"haze": {"logit": 0.0, "width": 0, "estimate": 1, "model": "m"}}, "haze"),
        ({"rain": {"logit": 0.0, "width": 1, "estimate": 1, "model": 3}}, "rain"),
        ({"rain": {"logit": 0.0}}, "detector card"),
        ({"unknown": 1}, "detector card"),
        ({"haze": {"logit": 10**400, "width": 1, "estimate": 1, "model": "m"}}, "haze"),
        ({"checksums": {}}, "checksums"),
    ],
)
def test_a_card_that_is_not_understood_is_refused(copied: Path, change: dict[str, object], told: str) -> None:
    fields = json.loads((copied / DETECTOR_CARD).read_text())
    (copied / DETECTOR_CARD).write_text(json.dumps({**fields, **change}))
    with pytest.raises(BadCard, match=told):
        load_detector(load, copied)


def test_an_altered_or_missing_file_is_refused(copied: Path) -> None:
    with (copied / model_folder.ONNX).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BadCard, match="altered"):
        load_detector(load, copied)
    (copied / DETECTOR_CARD).unlink()
    with pytest.raises(BadCard, match="install fairweather again"):
        load_detector(load, copied)


def test_engines_agree() -> None:
    photo = images.read(ROOT / "examples" / "lighthouse.jpg").pixels
    said = [load_detector(load, engine=engine)(photo) for engine in ("onnxruntime", "torch", "openvino")]
    assert abs(said[0].haze - said[1].haze) < 1e-3
    assert abs(said[0].rain - said[1].rain) < 1e-3
    assert said[2].decided == said[0].decided  # bf16 where the processor has it


def test_the_examples_are_hazy_and_one_is_rainy() -> None:
    look = load_detector(load)
    for path in sorted((ROOT / "examples").glob("*.jpg")):
        seen = look(images.read(path).pixels)
        shown = "rain" if path.stem == "shutters" else "haze"
        assert getattr(seen, shown) > 0.5, path.name
        assert seen.amount("rain" if shown == "haze" else "haze") < 0.7, path.name


def test_clear_photos_are_clear_and_streaks_over_them_are_rain(shared_data: Path, rng: np.random.Generator) -> None:
    """On photos that nothing was trained on; the streaks are drawn by other code than in training."""
    look = load_detector(load)
    clear = [images.to_float(images.read(path).pixels) for path in sorted((shared_data / "kodak").glob("*.png"))[:5]]
    assert sum(look(photo).decided == "none" for photo in clear) >= len(clear) - 1
    kernel = np.zeros((31, 31), np.float32)
    cv2.line(kernel, (11, 0), (19, 30), 1.0, 2, cv2.LINE_AA)
    found = 0
    for photo in clear:
        seeds = (rng.random(photo.shape[:2]) > 0.998).astype(np.float32) * rng.random(photo.shape[:2], np.float32)
        streaks = np.minimum(cv2.filter2D(seeds, -1, kernel), 1)[..., None]
        rainy = photo + (1 - photo) * streaks * np.float32(0.7)
        found += look(rainy.clip(0, 1)).decided == "rain"
    assert found >= len(clear) - 1


def test_recognising_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, fairweather\n"
        "photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)\n"
        "auto = fairweather.load('auto')\n"
        "weather = auto.detect(photo)\n"
        "assert 0 <= weather.haze <= 1 and 0.5 <= weather.sure <= 1\n"
        "assert auto(photo).shape == photo.shape\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
