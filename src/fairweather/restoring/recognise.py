"""Which weather is in a photo, and how sure that is: NumPy, OpenCV and one small network, no PyTorch.

The network ships in models/weather, a folder of its own kind: it gives no picture, so its card is recognizer.json and
none of the lists of models holds it. `runs/ship/weather.py` trains it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.errors import BadCard, MissingExtra
from fairweather.images import to_float
from fairweather.restoring.engines import Engine, open_engine

CARD = "recognizer.json"
FOLDER = cards.MODELS / "weather"
FORMAT_VERSION = 1
Decision = Literal["haze", "rain", "both", "none"]

SCALES = (480, 960)
"""The scales at which streaks are looked for, as the photo's short side in pixels: streaks are a few pixels wide at one
of the two, whatever camera took them. A photo of up to one and a half times the first is taken as it is."""
ACROSS, DOWN = 3, 2
"""Windows along the longer and the shorter side."""


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

    def __str__(self) -> str:
        words = {"both": "haze and rain", "none": "no weather"}
        return f"{words.get(self.decided, self.decided)} ({100 * self.sure:.0f} % sure)"


@dataclass(frozen=True)
class Threshold:
    """From a logit x to Weather's number: 1 / (1 + exp(-(x - logit) / width))."""

    logit: float
    width: float

    def __call__(self, logit: float) -> float:
        return 1 / (1 + math.exp(min(50.0, max(-50.0, -(logit - self.logit) / self.width))))


@dataclass(frozen=True)
class RecognizerCard:
    """What recognizer.json says. `open_engine` takes it for a card: it has what engines ask of one."""

    name: str
    side: int
    """Side of the square views, in pixels."""
    haze: Threshold
    rain: Threshold
    training: dict[str, Any]
    """What it learned from, and what of that was held back to set the thresholds."""
    licence: str
    terms: str
    description: str
    checksums: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


class Recognizer:
    """Tells the weather in photos. `engine`: any callable from V x 3 x S x S in [0,1] to 1 x 2 logits (haze, rain)."""

    def __init__(self, card: RecognizerCard, engine: Engine) -> None:
        self.card = card
        self.engine = engine

    def __call__(self, photo: NDArray[Any]) -> Weather:
        """The weather in a photo, H x W x 3 uint8, uint16 or float32 in [0,1]. Raises BadCard for a broken model."""
        answer = self.engine(views(photo, self.card.side))
        if answer.shape != (1, 2) or not np.isfinite(answer).all():
            raise BadCard(f"model {self.card.name} answers with {answer.shape}, not two numbers: install it again")
        return Weather(self.card.haze(float(answer[0, 0])), self.card.rain(float(answer[0, 1])))


def load_recognizer(
    folder: str | os.PathLike[str] = FOLDER, *, engine: str = "auto", threads: int | None = None
) -> Recognizer:
    """The recognizer that ships, or one of your own. Raises BadCard, MissingExtra, UnknownName."""
    folder = Path(folder)
    card = read_recognizer_card(folder)
    alike = cast(cards.Card, card)  # it has the name and the checksums, all that is asked of a card here
    for name in cards.SUMMED:
        cards.checked(folder, alike, name)
    if engine == "torch":
        return Recognizer(card, _torch(folder, card))
    return Recognizer(card, open_engine(engine, folder, alike, threads=threads))


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
        thresholds = {name: Threshold(**found[name]) for name in ("haze", "rain")}
        card = RecognizerCard(**{**found, **thresholds})
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


_FITS: dict[str, Callable[[RecognizerCard], bool]] = {
    "format_version": lambda card: card.format_version == FORMAT_VERSION,
    "name": lambda card: isinstance(card.name, str) and card.name != "",
    "side": lambda card: isinstance(card.side, int) and card.side >= 32 and card.side % 32 == 0,
    "haze": lambda card: _number(card.haze.logit) and _number(card.haze.width) and card.haze.width > 0,
    "rain": lambda card: _number(card.rain.logit) and _number(card.rain.width) and card.rain.width > 0,
    "training": lambda card: isinstance(card.training, dict),
    "terms": lambda card: all(isinstance(text, str) for text in (card.licence, card.terms, card.description)),
    "checksums": lambda card: isinstance(card.checksums, dict) and set(card.checksums) == set(cards.SUMMED),
}
