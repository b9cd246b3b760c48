"""Which weather is in a photo, and how sure that is: NumPy, OpenCV and small networks, no PyTorch.

Two witnesses are heard. A network of its own looks for haze and rain; it ships in models/weather, a folder of its own
kind: it gives no picture, so its card is recognizer.json and none of the lists of models holds it. And the models that
take weather out say how much they find (`fairweather.inference.weather_detection`). `runs/ship/weather.py` trains the one and
weighs it against the others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadCard, MissingExtra
from fairweather.images.io import to_float
from fairweather.inference.engines import Engine, open_engine

if TYPE_CHECKING:
    from fairweather.inference.restorer import Restorer

DETECTOR_CARD = "recognizer.json"
DETECTOR_FOLDER = model_folder.MODELS / "weather"
DETECTOR_FORMAT = 2
Decision = Literal["haze", "rain", "both", "none"]

SCALES = (480, 960)
"""The scales at which streaks are looked for, as the photo's short side in pixels: streaks are a few pixels wide at one
of the two, whatever camera took them. A photo of up to one and a half times the first is taken as it is."""
WINDOW_COLUMNS, WINDOW_ROWS = 3, 2
"""Windows along the longer and the shorter side."""
CERTAIN = 0.9
"""From this number on all of a weather is taken out."""


@dataclass(frozen=True)
class Weather:
    """What a photo shows: for each weather a number from 0 to 1, above 0.5 where it is worth taking out."""

    haze: float
    rain: float

    @property
    def decided(self) -> Decision:
        if self.haze > 0.5:
            return "both" if self.rain > 0.5 else "haze"
        return "rain" if self.rain > 0.5 else "none"

    @property
    def sure(self) -> float:
        """How sure the decision is, 0.5 to 1: no surer than the less certain of its two halves."""
        return min(max(self.haze, 1 - self.haze), max(self.rain, 1 - self.rain))

    def amount(self, weather: str) -> float:
        """How much of "haze" or "rain" to take out: nothing up to the number 0.5, all from SURE on, the square of the
        way between them. A doubtful find can so do little harm, and a film does not jump where a decision turns."""
        number: float = getattr(self, weather)
        return min(1.0, max(0.0, (number - 0.5) / (CERTAIN - 0.5))) ** 2

    def __str__(self) -> str:
        words = {"both": "haze and rain", "none": "no weather"}
        return f"{words.get(self.decided, self.decided)} ({100 * self.sure:.0f} % sure)"


@dataclass(frozen=True)
class DecisionRule:
    """From the network's logit x and a model's estimate e to Weather's number: 1 / (1 + exp(-(x + k e - logit) / w))
    with w = `width` and k = `estimate`."""

    logit: float
    width: float
    estimate: float
    model: str
    """Name of the shipped model that is asked."""
    above: float | None = None
    """It is asked only where x is greater (None: always): below no estimate would turn the decision."""

    def __call__(self, logit: float, estimate: float) -> float:
        beyond = (logit + self.estimate * estimate - self.logit) / self.width
        return 1 / (1 + math.exp(min(50.0, max(-50.0, -beyond))))

    def asks(self, logit: float) -> bool:
        """Whether the model has to be asked."""
        return self.above is None or logit > self.above


@dataclass(frozen=True)
class DetectorCard:
    """What recognizer.json says. `open_engine` takes it for a card: it has what engines ask of one."""

    name: str
    side: int
    """Side of the square views, in pixels."""
    haze: DecisionRule
    rain: DecisionRule
    training: dict[str, Any]
    """What it learned from, what of that was held back to set the rules, and the weights of the models that it asks."""
    licence: str
    terms: str
    description: str
    checksums: dict[str, str] = field(default_factory=dict)
    format_version: int = DETECTOR_FORMAT


class WeatherDetector:
    """Tells the weather in photos.

    `engine`: any callable from V x 3 x S x S in [0,1] to 1 x 2 logits (haze, rain). `opened`: gives the restorer of a
    model by its name; it is called when that model is first asked.
    """

    def __init__(self, card: DetectorCard, engine: Engine, opened: Callable[[str], Restorer]) -> None:
        self.card = card
        self.engine = engine
        self._opened = opened

    def __call__(self, photo: NDArray[Any]) -> Weather:
        """The weather in a photo, H x W x 3 uint8, uint16 or float32 in [0,1]. Raises BadCard for a broken model."""
        of_haze, of_rain = self.witnesses(photo)
        return Weather(self.card.haze(*of_haze), self.card.rain(*of_rain))

    def witnesses(self, photo: NDArray[Any]) -> tuple[tuple[float, float], tuple[float, float]]:
        """For haze and for rain: the network's logit, and the model's estimate or, where it is not asked, the least
        that there is. Raises BadCard as a call does."""
        haze, rain = self.card.haze, self.card.rain
        (of_haze, of_rain), windows = self._logits(photo)
        veil = haze_evidence(self._opened(haze.model), photo) if haze.asks(of_haze) else NO_HAZE_EVIDENCE
        streaks = rain_evidence(self._opened(rain.model), windows) if rain.asks(of_rain) else NO_RAIN_EVIDENCE
        return (of_haze, veil), (of_rain, streaks)

    def _logits(self, photo: NDArray[Any]) -> tuple[tuple[float, float], NDArray[np.float32]]:
        """What the network says of haze and of rain, and the first windows that it was shown."""
        shown = detector_views(photo, self.card.side)
        answer = self.engine(shown)
        if answer.shape != (1, 2) or not np.isfinite(answer).all():
            raise BadCard(f"model {self.card.name} answers with {answer.shape}, not two numbers: install it again")
        return (float(answer[0, 0]), float(answer[0, 1])), streak_windows(shown)


def load_detector(
    folder: str | os.PathLike[str] = DETECTOR_FOLDER,
    *,
    engine: str = "auto",
    threads: int | None = None,
    opened: Callable[[str], Restorer] | None = None,
) -> WeatherDetector:
    """The recognizer that ships, or one of your own. `opened` gives restorers by name, for the models that it asks; by
    default they are loaded for it alone. Raises BadCard, MissingExtra, UnknownName."""
    folder = Path(folder)
    card = read_detector_card(folder)
    alike = cast(model_folder.Card, card)  # it has the name and the checksums, all that is asked of a card here
    for name in model_folder.SUMMED:
        model_folder.checked(folder, alike, name)
    if opened is None:
        opened = _loader(engine, threads)
    if engine in ("torch", "torch-compiled"):  # so small a network gains nothing from being compiled
        return WeatherDetector(card, _torch(folder, card), opened)
    return WeatherDetector(card, open_engine(engine, folder, alike, threads=threads), opened)


def _loader(engine: str, threads: int | None) -> Callable[[str], Restorer]:
    from fairweather.inference.restorer import load

    @cache
    def opened(name: str) -> Restorer:
        return load(name, engine=engine, threads=threads)

    return opened


def _torch(folder: Path, card: DetectorCard) -> Engine:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", "the torch engine") from None
    from safetensors.torch import load_file

    from fairweather.weather_classifier import WeatherClassifier

    network = WeatherClassifier(side=card.side)
    network.load_state_dict(load_file(folder / model_folder.WEIGHTS))
    network.eval()

    def run(views: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(views)).numpy())

    return run


def detector_views(photo: NDArray[Any], side: int) -> NDArray[np.float32]:
    """V x 3 x side x side in [0,1]: the whole photo squeezed to a square of 2 side, of which the mean and the least of
    each 2 x 2 pixels (haze lifts what is darkest first), then windows at one or two scales.

    Every step reduces by area; only a photo below 2 side pixels is enlarged for the first views, and one below side
    continued by reflection for windows.
    """
    short = min(photo.shape[:2])
    scales = [short] if short <= 1.5 * SCALES[0] else [min(short, SCALES[1]), SCALES[0]]
    windows: list[NDArray[np.float32]] = []
    for scale in scales:
        photo = _reduced(photo, scale)
        windows += _windows(photo, side)
    enlarges = min(photo.shape[:2]) < 2 * side
    interpolation = cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA
    whole = to_float(
        cv2.resize(to_float(photo) if enlarges else photo, (2 * side, 2 * side), interpolation=interpolation)
    )
    cells = whole.reshape(side, 2, side, 2, 3)
    return np.stack([_planes(cells.mean((1, 3))), _planes(cells.min((1, 3))), *windows])


def streak_windows(shown: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those of the views in which a model looks for streaks: the windows at the first, the finer scale."""
    return shown[2 : 2 + WINDOW_COLUMNS * WINDOW_ROWS]


def _reduced(photo: NDArray[Any], short: int) -> NDArray[Any]:
    height, width = photo.shape[:2]
    factor = short / min(height, width)
    if factor >= 1:
        return photo
    size = (round(width * factor), round(height * factor))
    return cast(NDArray[Any], cv2.resize(photo, size, interpolation=cv2.INTER_AREA))


def _windows(photo: NDArray[Any], side: int) -> list[NDArray[np.float32]]:
    """Windows in a grid from edge to edge; they overlap where the photo is small and leave gaps where it is large."""
    down, right = (max(0, side - length) for length in photo.shape[:2])
    if down or right:
        photo = cv2.copyMakeBorder(photo, 0, down, 0, right, cv2.BORDER_REFLECT)
    height, width = photo.shape[:2]
    rows, columns = (WINDOW_ROWS, WINDOW_COLUMNS) if width >= height else (WINDOW_COLUMNS, WINDOW_ROWS)
    places = [
        (round((height - side) * i / (rows - 1)), round((width - side) * j / (columns - 1)))
        for i in range(rows)
        for j in range(columns)
    ]
    return [_planes(photo[top : top + side, left : left + side]) for top, left in places]


def _planes(picture: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(to_float(picture).transpose(2, 0, 1))


def read_detector_card(folder: str | os.PathLike[str]) -> DetectorCard:
    """The card of a recognizer's folder. Raises BadCard where it is missing or not what this release reads."""
    path = Path(folder) / DETECTOR_CARD
    remedy = "install fairweather again, or train a recognizer with this release (runs/ship/weather.py)"
    found = model_folder.read_json(path, remedy)
    try:
        rules = {name: DecisionRule(**found[name]) for name in ("haze", "rain")}
        card = DetectorCard(**{**found, **rules})
    except (TypeError, KeyError) as error:
        raise BadCard(f"{path} is no recognizer's card ({error}): {remedy}") from None
    wrong = [name for name, fits in _VALID.items() if not fits(card)]
    if wrong:
        raise BadCard(f"{path}: {', '.join(wrong)} cannot be what it says: {remedy}")
    return card


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _fits(rule: DecisionRule) -> bool:
    numbers = (rule.logit, rule.width, rule.estimate, 0.0 if rule.above is None else rule.above)
    return all(map(_number, numbers)) and rule.width > 0 and isinstance(rule.model, str)


_VALID: dict[str, Callable[[DetectorCard], bool]] = {
    "format_version": lambda card: card.format_version == DETECTOR_FORMAT,
    "name": lambda card: isinstance(card.name, str) and card.name != "",
    "side": lambda card: type(card.side) is int and card.side in range(32, 1025, 32),
    "haze": lambda card: _fits(card.haze),
    "rain": lambda card: _fits(card.rain),
    "training": lambda card: isinstance(card.training, dict),
    "terms": lambda card: all(isinstance(text, str) for text in (card.licence, card.terms, card.description)),
    "checksums": lambda card: isinstance(card.checksums, dict) and set(card.checksums) == set(model_folder.SUMMED),
}

# What the models themselves say of the weather in a photo: second witnesses beside the network that recognises it.
#
# A network that was taught to take weather out and to leave clear photos alone knows how much there is to take out. That
# is other knowledge than the recognizer's, from more and other training: on held-back photos either misses what the other
# sees (docs/models.md has the figures).

NO_HAZE_EVIDENCE, NO_RAIN_EVIDENCE = math.log(0.01), -60.0
"""The least that `veil` and `streaks` answer, and what is taken for their answers where they are not asked."""
EVIDENCE_SIDE = 96
"""Windows are shown to the model in this size, the middle of each: enough for streaks, and a third of the work."""


def haze_evidence(dehaze: Restorer, photo: NDArray[Any]) -> float:
    """ln(0.01 + the mean of 1 - t), at least NO_VEIL, for the transmission t that a maps model sees: -4 in clear air,
    towards 0 in fog."""
    transmission = dehaze.maps(photo)["transmission"]
    return math.log(0.01 + max(0.0, 1 - float(transmission.mean(dtype=np.float64))))


def rain_evidence(derain: Restorer, windows: Iterable[NDArray[np.float32]]) -> float:
    """How much a model changes in windows of a photo (each 3 x S x S in [0,1], S >= SIDE), in dB against white.

    The median over the windows of 10 lg(mean square change): rain is everywhere, a fence is in one place. -60 and less
    is nothing, -15 heavy rain.
    """
    changes = []
    for window in windows:
        edge = (window.shape[1] - EVIDENCE_SIDE) // 2
        middle = np.ascontiguousarray(
            window[:, edge : edge + EVIDENCE_SIDE, edge : edge + EVIDENCE_SIDE].transpose(1, 2, 0)
        )
        changes.append(float(np.square(derain(middle, guard=False) - middle).mean()))
    return 10 * math.log10(max(10 ** (NO_RAIN_EVIDENCE / 10), float(np.median(changes))))
