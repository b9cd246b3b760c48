"""The models that a server offers, each opened when it is first asked for, and what a request may say about them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from numpy.typing import NDArray

from fairweather import cards
from fairweather.errors import BadSettings, UnknownName
from fairweather.restoring import Restorer, load
from fairweather.restoring.auto import Auto
from fairweather.restoring.recognise import Decision, Weather, load_recognizer
from fairweather.restoring.restorer import Memory, check_strength

if TYPE_CHECKING:
    from fairweather.restoring.recognise import Recognizer

AUTO = "auto"
WEATHERS = (AUTO, *get_args(Decision))


class Settings(NamedTuple):
    """What a request may say: as `fairweather restore --model --weather --strength --no-guard`."""

    model: str = AUTO
    """auto, or a name that is offered. Never a path."""
    weather: str = AUTO
    """What auto takes out: what it sees, or what is said here."""
    strength: float = 1.0
    guard: bool = True

    @property
    def key(self) -> str:
        """The same for requests that differ in strength alone; can stand in a file's name."""
        return f"{self.model}-{self.weather}-{'guarded' if self.guard else 'free'}"


class Part(NamedTuple):
    """One model's share in restoring a photo."""

    weather: str
    model: str
    amount: float
    """How much of it is taken out at strength 1."""


class Plan(NamedTuple):
    """What is done with a photo: nothing where there are no parts."""

    weather: Weather | None
    """What was seen; None where nobody looked."""
    parts: tuple[Part, ...]
    lacking: tuple[str, ...] = ()
    """Weather that was seen or named, and for which no model ships."""


class Offer:
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
        self.folders = dict(cards.shipped())
        for given in folders:
            folder = cards.find(given)
            name = cards.read_card(folder).name
            if name == AUTO or self.folders.get(name, folder) != folder:
                raise BadSettings(
                    f"--models {given}: there is a model {name!r} already; give it another name in its card"
                )
            self.folders[name] = folder
        self.cards = {name: cards.read_card(folder, verify=False) for name, folder in self.folders.items()}
        self._ways: dict[str, Any] = {"engine": engine, "precision": precision, "memory": memory}
        self._opened: dict[str, Restorer] = {}
        self._recognizer: Recognizer | None = None
        self._opening = threading.RLock()
        self.auto = Auto(self._look, self.restorer)

    def restorer(self, name: str) -> Restorer:
        """The restorer of an offered model. Raises UnknownName."""
        with self._opening:
            if name not in self._opened:
                self._opened[name] = load(self.folders[self._known(name)], **self._ways)
            return self._opened[name]

    def check(self, settings: Settings) -> None:
        """Raises UnknownName (model) and BadSettings for what a request may not say."""
        if settings.model != AUTO:
            self._known(settings.model)
        if settings.weather not in WEATHERS:
            raise BadSettings(f"weather must be one of {', '.join(WEATHERS)}, not {settings.weather[:40]!r}")
        if settings.model != AUTO and settings.weather != AUTO:
            raise BadSettings(
                f"model {settings.model} and weather {settings.weather} both say what to take out: give one of them"
            )
        check_strength(settings.strength)
        if settings.weather not in (AUTO, "none") and (lacking := self.auto.missing(cast(Decision, settings.weather))):
            raise BadSettings(f"weather {settings.weather} needs a model for {lacking[0]}, and none ships")

    def plan(self, look: Callable[[], Weather], settings: Settings) -> Plan:
        """What these settings do with a photo; `look` tells the weather in it, and is called where that is asked."""
        if settings.model != AUTO:
            return Plan(None, (Part(self.cards[settings.model].weather, settings.model, 1.0),))
        seen = look() if settings.weather == AUTO else None
        decided = seen.decided if seen else cast(Decision, settings.weather)
        lacking = self.auto.missing(decided)
        parts = tuple(
            Part(weather, self.auto.models[weather], seen.amount(weather) if seen else 1.0)
            for weather in self.auto.parts(decided)
            if weather not in lacking
        )
        return Plan(seen, parts, lacking)

    def apply(self, pixels: NDArray[Any], plan: Plan, strength: float, guard: bool) -> NDArray[Any]:
        """What `fairweather.load("auto")` or the named model's restorer makes of these pixels."""
        for part in plan.parts:
            pixels = self.restorer(part.model)(pixels, strength * part.amount, guard)
        return pixels

    def _known(self, name: str) -> str:
        if name not in self.folders:
            raise UnknownName("model", name[:80], [AUTO, *self.folders])
        return name

    def _look(self, photo: NDArray[Any]) -> Weather:
        with self._opening:
            if self._recognizer is None:
                self._recognizer = load_recognizer(engine=self._ways["engine"], opened=self.restorer)
            found = self._recognizer
        return found(photo)
