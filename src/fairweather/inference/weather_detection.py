"""Weather detection: which weather a photo shows, and which models restore it.

The detector is a network in models/weather, a folder of its own format (recognizer.json instead of card.json), combined
with evidence from the models that remove weather: a model that removes haze and leaves clear photos unchanged measures
how much haze there is. On held-out photos each of the two detects some weather that the other misses (docs/models.md).
`runs/ship/weather.py` trains the network and fits the decision rules. NumPy, OpenCV and small networks, no PyTorch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadCard, BadSettings, MissingExtra, UnknownName
from fairweather.images.io import to_float
from fairweather.inference.engines import Engine, open_engine

Decision = Literal["haze", "rain", "both", "none"]
WeatherChoice = Literal["auto", "haze", "rain", "both", "none"]
"""What to remove: "auto" detects it."""
WEATHER_MODELS: Mapping[str, str] = {"rain": "derain", "haze": "dehaze"}
"""Weather -> the model that removes it, in the order in which they run: rain streaks lie in front of the haze, and are
harder to tell from the scene once the haze between them is gone."""
CERTAIN = 0.9
"""From this confidence on, all of a weather is removed."""


@dataclass(frozen=True)
class Weather:
    """The weather in a photo: for haze and rain a confidence from 0 to 1, above 0.5 where it should be removed."""

    haze: float
    rain: float

    @property
    def decided(self) -> Decision:
        """The decision."""
        if self.haze > 0.5:
            return "both" if self.rain > 0.5 else "haze"
        return "rain" if self.rain > 0.5 else "none"

    @property
    def sure(self) -> float:
        """The confidence of the decision, 0.5 to 1: that of the less certain of its two halves."""
        return min(max(self.haze, 1 - self.haze), max(self.rain, 1 - self.rain))

    def amount(self, weather: str) -> float:
        """How much of "haze" or "rain" to remove, 0 to 1.

        0 up to a confidence of 0.5, 1 from CERTAIN on, quadratic in between: a doubtful detection does little harm,
        and a video does not jump where the decision changes.
        """
        confidence: float = getattr(self, weather)
        return min(1.0, max(0.0, (confidence - 0.5) / (CERTAIN - 0.5))) ** 2

    def __str__(self) -> str:
        words = {"both": "haze and rain", "none": "no weather"}
        return f"{words.get(self.decided, self.decided)} ({100 * self.sure:.0f} % sure)"


class PlannedModel(NamedTuple):
    """One step of a restoration."""

    weather: str
    model: str
    amount: float
    """Strength at which the model runs, 0 to 1, to be multiplied with the user's strength."""


class RestorePlan(NamedTuple):
    """How a photo or video is restored; without parts it stays unchanged."""

    weather: Weather | None
    """The detected weather; None if the caller named the weather or the model."""
    parts: tuple[PlannedModel, ...]
    """The models in the order in which they run."""
    missing: tuple[str, ...] = ()
    """Detected weather for which no model is installed."""

    def describe(self) -> str:
        """The decision in words, e.g. "rain (70 % sure): removing 25 % of the rain (--weather rain removes all)".

        Empty where nothing was detected because the caller decided.
        """
        if self.weather is None:
            return ""
        line = str(self.weather)
        if self.missing:
            line += f", no model for {' and '.join(self.missing)} is installed"
        if not self.parts:
            return f"{line}: unchanged"
        partial = sorted(part for part in self.parts if part.amount < CERTAIN)
        if partial:
            shares = " and ".join(f"{100 * part.amount:.0f} % of the {part.weather}" for part in partial)
            line += f": removing {shares} (--weather {self.weather.decided} removes all)"
        return line


def plan(
    detect: Callable[[], Weather],
    *,
    weather: str = "auto",
    model: model_folder.Card | None = None,
    models: Mapping[str, str] = WEATHER_MODELS,
) -> RestorePlan:
    """Decide which models restore a photo or video, and how much of each.

    Args:
        detect: returns the weather; called only if neither `weather` nor `model` decides.
        weather: a `WeatherChoice`.
        model: the card of the one model to use, whatever the weather.
        models: weather -> model, in the order in which they run.

    Raises:
        BadSettings: `weather` names a weather whose model is not installed.
    """
    if model is not None:
        return RestorePlan(None, (PlannedModel(model.weather, model.name, 1.0),))
    detected = detect() if weather == "auto" else None
    decided = weather if detected is None else detected.decided
    wanted = [kind for kind in models if decided in (kind, "both")]
    missing = tuple(kind for kind in wanted if not _is_installed(models[kind]))
    if missing and detected is None:
        raise BadSettings(
            f"weather {weather} needs the model {models[missing[0]]}, which is not installed: "
            "train one (fairweather train) and pass it with --model"
        )
    return RestorePlan(
        detected,
        tuple(
            PlannedModel(kind, models[kind], 1.0 if detected is None else detected.amount(kind))
            for kind in wanted
            if kind not in missing
        ),
        missing,
    )


def _is_installed(model: str) -> bool:
    try:
        model_folder.find(model)
    except UnknownName:
        return False
    return True


# The detector.

DETECTOR_CARD = "recognizer.json"
DETECTOR_FOLDER = model_folder.MODELS / "weather"
DETECTOR_FORMAT = 2
SCALES = (480, 960)
"""Short sides, in pixels, to which a photo is reduced to look for streaks: these are a few pixels wide at one of the
two, for any camera. A photo of up to 1.5 times the first keeps its size."""
WINDOW_COLUMNS, WINDOW_ROWS = 3, 2
"""Number of windows along the longer and the shorter side."""
NO_HAZE_EVIDENCE, NO_RAIN_EVIDENCE = math.log(0.01), -60.0
"""The minima of `haze_evidence` and `rain_evidence`, used where a model need not run."""
EVIDENCE_SIDE = 96
"""Side of the centre crops that the rain model receives: enough for streaks, at a third of the cost."""


class EvidenceModel(Protocol):
    """A model that removes weather, as the detector uses it: `fairweather.inference.Restorer` is one."""

    def __call__(self, photo: NDArray[Any], strength: float = ..., guard: bool = ...) -> NDArray[Any]: ...

    def maps(self, photo: NDArray[Any]) -> dict[str, NDArray[np.float32]]: ...


@dataclass(frozen=True)
class DecisionRule:
    """From the network's logit x and a model's evidence e to a confidence: 1 / (1 + exp(-(x + k e - logit) / w)),
    with w = `width` and k = `estimate`."""

    logit: float
    width: float
    estimate: float
    model: str
    """Name of the shipped model that gives the evidence."""
    above: float | None = None
    """The model runs only where x is greater (None: always); below, no evidence changes the decision."""

    def __call__(self, logit: float, evidence: float) -> float:
        beyond = (logit + self.estimate * evidence - self.logit) / self.width
        return 1 / (1 + math.exp(min(50.0, max(-50.0, -beyond))))

    def needs_evidence(self, logit: float) -> bool:
        """Whether the model has to run."""
        return self.above is None or logit > self.above


@dataclass(frozen=True)
class DetectorCard:
    """The contents of recognizer.json. `open_engine` accepts it in place of a `Card`."""

    name: str
    side: int
    """Side of the square views, in pixels."""
    haze: DecisionRule
    rain: DecisionRule
    training: dict[str, Any]
    """Training data, the holdout on which the rules were fitted, and the weights of the evidence models."""
    licence: str
    terms: str
    description: str
    checksums: dict[str, str] = field(default_factory=dict)
    format_version: int = DETECTOR_FORMAT


class WeatherDetector:
    """Detects the weather in photos.

    Args:
        card: the detector's card.
        engine: any callable from V x 3 x S x S in [0, 1] to 1 x 2 logits (haze, rain).
        open_model: returns a model by name; called when its evidence is first needed.
    """

    def __init__(self, card: DetectorCard, engine: Engine, open_model: Callable[[str], EvidenceModel]) -> None:
        self.card = card
        self.engine = engine
        self._open_model = open_model

    def __call__(self, photo: NDArray[Any]) -> Weather:
        """Detect the weather in a photo, H x W x 3 uint8, uint16 or float32 in [0, 1]. Raises BadCard."""
        haze, rain = self.evidence(photo)
        return Weather(self.card.haze(*haze), self.card.rain(*rain))

    def evidence(self, photo: NDArray[Any]) -> tuple[tuple[float, float], tuple[float, float]]:
        """For haze and for rain: the network's logit and the model's evidence, or its minimum if that is not needed.

        Raises:
            BadCard: the network's output is invalid.
        """
        haze, rain = self.card.haze, self.card.rain
        views = detector_views(photo, self.card.side)
        logits = self.engine(views)
        if logits.shape != (1, 2) or not np.isfinite(logits).all():
            raise BadCard(f"model {self.card.name} returned {logits.shape} instead of two numbers: install it again")
        x_haze, x_rain = map(float, logits[0])
        of_haze, of_rain = NO_HAZE_EVIDENCE, NO_RAIN_EVIDENCE
        if haze.needs_evidence(x_haze):
            of_haze = haze_evidence(self._open_model(haze.model), photo)
        if rain.needs_evidence(x_rain):
            windows = views[2 : 2 + WINDOW_COLUMNS * WINDOW_ROWS]  # those of the finer scale
            of_rain = rain_evidence(self._open_model(rain.model), windows)
        return (x_haze, of_haze), (x_rain, of_rain)


def load_detector(
    open_model: Callable[[str], EvidenceModel],
    folder: str | os.PathLike[str] = DETECTOR_FOLDER,
    *,
    engine: str = "auto",
    threads: int | None = None,
) -> WeatherDetector:
    """Load the shipped detector, or one of your own.

    Args:
        open_model: returns the evidence models by name, e.g. `fairweather.load`.
        folder: the detector's folder.
        engine: as in `open_engine`.
        threads: as in `open_engine`.

    Raises:
        BadCard: the folder is incomplete or altered.
        MissingExtra: the engine is not installed.
        UnknownName: there is no such engine.
    """
    folder = Path(folder)
    card = read_detector_card(folder)
    as_card = cast(model_folder.Card, card)  # it has the name and the checksums, the only fields used here
    for name in model_folder.SUMMED:
        model_folder.checked(folder, as_card, name)
    if engine.startswith("torch"):  # compiling so small a network gains nothing
        return WeatherDetector(card, _open_torch(folder, card), open_model)
    return WeatherDetector(card, open_engine(engine, folder, as_card, threads=threads), open_model)


def _open_torch(folder: Path, card: DetectorCard) -> Engine:
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


def haze_evidence(dehaze: EvidenceModel, photo: NDArray[Any]) -> float:
    """ln(0.01 + mean(1 - t)) for the transmission t predicted by a maps model: -4 in clear air, near 0 in fog."""
    transmission = dehaze.maps(photo)["transmission"]
    return math.log(0.01 + max(0.0, 1 - float(transmission.mean(dtype=np.float64))))


def rain_evidence(derain: EvidenceModel, windows: Iterable[NDArray[np.float32]]) -> float:
    """How much a model changes windows of a photo, in dB relative to white: -60 is nothing, -15 heavy rain.

    The median over the windows of 10 lg(mean squared change): rain is everywhere, a fence is in one place.

    Args:
        derain: the model.
        windows: each 3 x S x S in [0, 1], S >= EVIDENCE_SIDE.
    """
    changes = []
    for window in windows:
        edge = (window.shape[1] - EVIDENCE_SIDE) // 2
        centre = np.ascontiguousarray(
            window[:, edge : edge + EVIDENCE_SIDE, edge : edge + EVIDENCE_SIDE].transpose(1, 2, 0)
        )
        changes.append(float(np.square(derain(centre, guard=False) - centre).mean()))
    return 10 * math.log10(max(10 ** (NO_RAIN_EVIDENCE / 10), float(np.median(changes))))


def detector_views(photo: NDArray[Any], side: int) -> NDArray[np.float32]:
    """The detector's input for a photo, V x 3 x side x side in [0, 1].

    The first two views are the whole photo resized to a square of 2 side, pooled by the mean and the minimum of each
    2 x 2 pixels (haze lifts the darkest pixels first); windows at one or two scales follow. All resizing is by area;
    only a photo below 2 side pixels is enlarged for the first views, and one below side is padded by reflection.
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
    """A grid of windows from edge to edge; they overlap in small photos and leave gaps in large ones."""
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
    """Read a detector's card. Raises BadCard if it is missing, invalid or of another version."""
    path = Path(folder) / DETECTOR_CARD
    remedy = "install fairweather again, or train a detector with this release (runs/ship/weather.py)"
    found = model_folder.read_json(path, remedy)
    try:
        rules = {name: DecisionRule(**found[name]) for name in ("haze", "rain")}
        card = DetectorCard(**{**found, **rules})
    except (TypeError, KeyError) as error:
        raise BadCard(f"{path} is not a valid detector card ({error}): {remedy}") from None
    wrong = [name for name, fits in _VALID.items() if not fits(card)]
    if wrong:
        raise BadCard(f"{path}: {', '.join(wrong)} have invalid values: {remedy}")
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
