"""The models of a server, and the settings that a request may choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from fairweather import model_folder
from fairweather.errors import BadSettings, UnknownName
from fairweather.inference import weather_detection
from fairweather.inference.restorer import AutoRestorer, Memory, Restorer, check_strength, load
from fairweather.inference.weather_detection import RestorePlan, Weather, WeatherChoice, load_detector

AUTO_MODEL = "auto"
WEATHERS: tuple[str, ...] = get_args(WeatherChoice)


class RestoreSettings(NamedTuple):
    """The settings of a request: those of `fairweather restore --model --weather --strength --guard`."""

    model: str = AUTO_MODEL
    """"auto", or the name of an offered model; never a path."""
    weather: str = AUTO_MODEL
    """What to remove with model "auto"."""
    strength: float = 1.0
    guard: bool = True

    @property
    def key(self) -> str:
        """A key that ignores the strength and is valid in a file name."""
        return f"{self.model}-{self.weather}-{'guarded' if self.guard else 'free'}"


class ModelRegistry:
    """The shipped models and those in further folders. Each is opened when it is first used.

    Args:
        folders: model folders of the server's owner.
        engine: as in `fairweather.load`.
        precision: as in `fairweather.load`.
        memory: as in `fairweather.load`.

    Raises:
        BadFolder, BadCard, UnknownName: a folder is not a valid model folder.
        BadSettings: two models have the same name.
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
                raise BadSettings(f"--models {given}: a model named {name!r} exists: change the name in its card")
            self.folders[name] = folder
        self.cards = {name: model_folder.read_card(folder, verify=False) for name, folder in self.folders.items()}
        self.auto = AutoRestorer(
            lambda open_model: load_detector(open_model, engine=engine),
            lambda name: load(self.folders[self._known(name)], engine=engine, precision=precision, memory=memory),
        )

    def restorer(self, name: str) -> Restorer:
        """The restorer of an offered model. Raises UnknownName."""
        return self.auto.open(name)

    def check(self, settings: RestoreSettings) -> None:
        """Raise UnknownName (model) or BadSettings for settings that a request may not choose."""
        if settings.weather not in WEATHERS:
            raise BadSettings(f"weather must be one of {', '.join(WEATHERS)}, not {settings.weather[:40]!r}")
        if settings.model != AUTO_MODEL:
            self._known(settings.model)
            if settings.weather != AUTO_MODEL:
                raise BadSettings(
                    f"model {settings.model} and weather {settings.weather} exclude each other: give one of them"
                )
        check_strength(settings.strength)
        self.plan(lambda: Weather(0.0, 0.0), settings)

    def plan(self, detect: Callable[[], Weather], settings: RestoreSettings) -> RestorePlan:
        """Decide how a photo or video is restored; `detect` returns its weather and is called only if needed."""
        model = None if settings.model == AUTO_MODEL else self.cards[settings.model]
        return weather_detection.plan(detect, weather=settings.weather, model=model, models=self.auto.models)

    def _known(self, name: str) -> str:
        if name not in self.folders:
            raise UnknownName("model", name[:80], [AUTO_MODEL, *self.folders])
        return name
