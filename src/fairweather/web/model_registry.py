"""The models that a server offers, each opened when it is first asked for, and what a request may say about them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadSettings, UnknownName
from fairweather.inference import Restorer, load
from fairweather.inference.restorer import AutoRestorer, Memory, check_strength
from fairweather.inference.weather_detection import Decision, Weather, load_detector

if TYPE_CHECKING:
    from fairweather.inference.weather_detection import WeatherDetector

AUTO_MODEL = "auto"
WEATHERS = (AUTO_MODEL, *get_args(Decision))


class RestoreSettings(NamedTuple):
    """What a request may say: as `fairweather restore --model --weather --strength --no-guard`."""

    model: str = AUTO_MODEL
    """auto, or a name that is offered. Never a path."""
    weather: str = AUTO_MODEL
    """What auto takes out: what it sees, or what is said here."""
    strength: float = 1.0
    guard: bool = True

    @property
    def key(self) -> str:
        """The same for requests that differ in strength alone; can stand in a file's name."""
        return f"{self.model}-{self.weather}-{'guarded' if self.guard else 'free'}"


class PlannedModel(NamedTuple):
    """One model's share in restoring a photo."""

    weather: str
    model: str
    amount: float
    """How much of it is taken out at strength 1."""


class RestorePlan(NamedTuple):
    """What is done with a photo: nothing where there are no parts."""

    weather: Weather | None
    """What was seen; None where nobody looked."""
    parts: tuple[PlannedModel, ...]
    lacking: tuple[str, ...] = ()
    """Weather that was seen or named, and for which no model ships."""


class ModelRegistry:
    """The shipped models, and those in folders that whoever starts the server names.

    Raises BadFolder, BadCard, UnknownName for what is no model folder, BadSettings where two have one name.
    """

    def __init__(
        self,
        folders: Sequence[Path] = (),
        *,
        engine: str = "auto",
        precision: str = "auto",
        memory: Memory | None = None,
    ) -> None:
        self.folders = dict(model_folder.shipped())
        for given in folders:
            folder = model_folder.find(given)
            name = model_folder.read_card(folder).name
            if name == AUTO_MODEL or self.folders.get(name, folder) != folder:
                raise BadSettings(
                    f"--models {given}: there is a model {name!r} already; give it another name in its card"
                )
            self.folders[name] = folder
        self.cards = {name: model_folder.read_card(folder, verify=False) for name, folder in self.folders.items()}
        self._ways: dict[str, Any] = {"engine": engine, "precision": precision, "memory": memory}
        self._opened: dict[str, Restorer] = {}
        self._recognizer: WeatherDetector | None = None
        self._opening = threading.RLock()
        self.auto = AutoRestorer(self._look, self.restorer)

    def restorer(self, name: str) -> Restorer:
        """The restorer of an offered model. Raises UnknownName."""
        with self._opening:
            if name not in self._opened:
                self._opened[name] = load(self.folders[self._known(name)], **self._ways)
            return self._opened[name]

    def check(self, settings: RestoreSettings) -> None:
        """Raises UnknownName (model) and BadSettings for what a request may not say."""
        if settings.model != AUTO_MODEL:
            self._known(settings.model)
        if settings.weather not in WEATHERS:
            raise BadSettings(f"weather must be one of {', '.join(WEATHERS)}, not {settings.weather[:40]!r}")
        if settings.model != AUTO_MODEL and settings.weather != AUTO_MODEL:
            raise BadSettings(
                f"model {settings.model} and weather {settings.weather} both say what to take out: give one of them"
            )
        check_strength(settings.strength)
        if settings.weather not in (AUTO_MODEL, "none") and (
            lacking := self.auto.missing(cast(Decision, settings.weather))
        ):
            raise BadSettings(f"weather {settings.weather} needs a model for {lacking[0]}, and none ships")

    def plan(self, look: Callable[[], Weather], settings: RestoreSettings) -> RestorePlan:
        """What these settings do with a photo; `look` tells the weather in it, and is called where that is asked."""
        if settings.model != AUTO_MODEL:
            return RestorePlan(None, (PlannedModel(self.cards[settings.model].weather, settings.model, 1.0),))
        seen = look() if settings.weather == AUTO_MODEL else None
        decided = seen.decided if seen else cast(Decision, settings.weather)
        lacking = self.auto.missing(decided)
        parts = tuple(
            PlannedModel(weather, self.auto.models[weather], seen.amount(weather) if seen else 1.0)
            for weather in self.auto.parts(decided)
            if weather not in lacking
        )
        return RestorePlan(seen, parts, lacking)

    def apply(self, pixels: NDArray[Any], plan: RestorePlan, strength: float, guard: bool) -> NDArray[Any]:
        """What `fairweather.load("auto")` or the named model's restorer makes of these pixels."""
        for part in plan.parts:
            pixels = self.restorer(part.model)(pixels, strength * part.amount, guard)
        return pixels

    def _known(self, name: str) -> str:
        if name not in self.folders:
            raise UnknownName("model", name[:80], [AUTO_MODEL, *self.folders])
        return name

    def _look(self, photo: NDArray[Any]) -> Weather:
        with self._opening:
            if self._recognizer is None:
                self._recognizer = load_detector(engine=self._ways["engine"], opened=self.restorer)
            found = self._recognizer
        return found(photo)
