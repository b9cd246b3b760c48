"""Which weather is in a photo, and how sure that is: NumPy, OpenCV and small networks, no PyTorch.

Two witnesses are heard. A network of its own looks for haze and rain; it ships in models/weather, a folder of its own
kind: it gives no picture, so its card is recognizer.json and none of the lists of models holds it. And the models that
take weather out say how much they find (`fairweather.restoring.estimates`). `runs/ship/weather.py` trains the one and
weighs it against the others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.errors import BadCard, MissingExtra
from fairweather.images import to_float
from fairweather.restoring import estimates
from fairweather.restoring.engines import Engine, open_engine

if TYPE_CHECKING:
    from fairweather.restoring.restorer import Restorer

CARD = "recognizer.json"
FOLDER = cards.MODELS / "weather"
FORMAT_VERSION = 2
Decision = Literal["haze", "rain", "both", "none"]

SCALES = (480, 960)
"""The scales at which streaks are looked for, as the photo's short side in pixels: streaks are a few pixels wide at one
of the two, whatever camera took them. A photo of up to one and a half times the first is taken as it is."""
ACROSS, DOWN = 3, 2
"""Windows along the longer and the shorter side."""
SURE = 0.9
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
        return min(1.0, max(0.0, (number - 0.5) / (SURE - 0.5))) ** 2

    def __str__(self) -> str:
        words = {"both": "haze and rain", "none": "no weather"}
        return f"{words.get(self.decided, self.decided)} ({100 * self.sure:.0f} % sure)"


@dataclass(frozen=True)
class Rule:
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
class RecognizerCard:
    """What recognizer.json says. `open_engine` takes it for a card: it has what engines ask of one."""

    name: str
    side: int
    """Side of the square views, in pixels."""
    haze: Rule
    rain: Rule
    training: dict[str, Any]
    """What it learned from, what of that was held back to set the rules, and the weights of the models that it asks."""
    licence: str
    terms: str
    description: str
    checksums: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


class Recognizer:
    """Tells the weather in photos.

    `engine`: any callable from V x 3 x S x S in [0,1] to 1 x 2 logits (haze, rain). `opened`: gives the restorer of a
    model by its name; it is called when that model is first asked.
    """

    def __init__(self, card: RecognizerCard, engine: Engine, opened: Callable[[str], Restorer]) -> None:
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
        veil = estimates.veil(self._opened(haze.model), photo) if haze.asks(of_haze) else estimates.NO_VEIL
        streaks = estimates.streaks(self._opened(rain.model), windows) if rain.asks(of_rain) else estimates.NO_STREAKS
        return (of_haze, veil), (of_rain, streaks)

    def _logits(self, photo: NDArray[Any]) -> tuple[tuple[float, float], NDArray[np.float32]]:
        """What the network says of haze and of rain, and the first windows that it was shown."""
        shown = views(photo, self.card.side)
        answer = self.engine(shown)
        if answer.shape != (1, 2) or not np.isfinite(answer).all():
            raise BadCard(f"model {self.card.name} answers with {answer.shape}, not two numbers: install it again")
        return (float(answer[0, 0]), float(answer[0, 1])), windows_of(shown)


def load_recognizer(
    folder: str | os.PathLike[str] = FOLDER,
    *,
    engine: str = "auto",
    threads: int | None = None,
    opened: Callable[[str], Restorer] | None = None,
) -> Recognizer:
    """The recognizer that ships, or one of your own. `opened` gives restorers by name, for the models that it asks; by
    default they are loaded for it alone. Raises BadCard, MissingExtra, UnknownName."""
    folder = Path(folder)
    card = read_recognizer_card(folder)
    alike = cast(cards.Card, card)  # it has the name and the checksums, all that is asked of a card here
    for name in cards.SUMMED:
        cards.checked(folder, alike, name)
    if opened is None:
        opened = _loader(engine, threads)
    if engine in ("torch", "torch-compiled"):  # so small a network gains nothing from being compiled
        return Recognizer(card, _torch(folder, card), opened)
    return Recognizer(card, open_engine(engine, folder, alike, threads=threads), opened)


def _loader(engine: str, threads: int | None) -> Callable[[str], Restorer]:
    from fairweather.restoring.restorer import load

    @cache
    def opened(name: str) -> Restorer:
        return load(name, engine=engine, threads=threads)

    return opened


def _torch(folder: Path, card: RecognizerCard) -> Engine:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", "the torch engine") from None
    from safetensors.torch import load_file

    from fairweather.recognizer import WeatherNet

    network = WeatherNet(side=card.side)
    network.load_state_dict(load_file(folder / cards.WEIGHTS))
    network.eval()

    def run(views: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(views)).numpy())

    return run


def views(photo: NDArray[Any], side: int) -> NDArray[np.float32]:
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


def windows_of(shown: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those of the views in which a model looks for streaks: the windows at the first, the finer scale."""
    return shown[2 : 2 + ACROSS * DOWN]


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
    rows, columns = (DOWN, ACROSS) if width >= height else (ACROSS, DOWN)
    places = [
        (round((height - side) * i / (rows - 1)), round((width - side) * j / (columns - 1)))
        for i in range(rows)
        for j in range(columns)
    ]
    return [_planes(photo[top : top + side, left : left + side]) for top, left in places]


def _planes(picture: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(to_float(picture).transpose(2, 0, 1))


def read_recognizer_card(folder: str | os.PathLike[str]) -> RecognizerCard:
    """The card of a recognizer's folder. Raises BadCard where it is missing or not what this release reads."""
    path = Path(folder) / CARD
    remedy = "install fairweather again, or train a recognizer with this release (runs/ship/weather.py)"
    try:
        found = json.loads(path.read_bytes())
        rules = {name: Rule(**found[name]) for name in ("haze", "rain")}
        card = RecognizerCard(**{**found, **rules})
    except OSError as error:
        raise BadCard(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise BadCard(f"{path} is no recognizer's card ({error}): {remedy}") from None
    wrong = [name for name, fits in _FITS.items() if not fits(card)]
    if wrong:
        raise BadCard(f"{path}: {', '.join(wrong)} cannot be what it says: {remedy}")
    return card


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _fits(rule: Rule) -> bool:
    numbers = (rule.logit, rule.width, rule.estimate, 0.0 if rule.above is None else rule.above)
    return all(map(_number, numbers)) and rule.width > 0 and isinstance(rule.model, str)


_FITS: dict[str, Callable[[RecognizerCard], bool]] = {
    "format_version": lambda card: card.format_version == FORMAT_VERSION,
    "name": lambda card: isinstance(card.name, str) and card.name != "",
    "side": lambda card: isinstance(card.side, int) and card.side >= 32 and card.side % 32 == 0,
    "haze": lambda card: _fits(card.haze),
    "rain": lambda card: _fits(card.rain),
    "training": lambda card: isinstance(card.training, dict),
    "terms": lambda card: all(isinstance(text, str) for text in (card.licence, card.terms, card.description)),
    "checksums": lambda card: isinstance(card.checksums, dict) and set(card.checksums) == set(cards.SUMMED),
}
