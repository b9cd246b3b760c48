"""The restorer that looks first: which weather is in the photo, then the models for it; a clear photo stays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fairweather import cards
from fairweather.errors import UnknownName
from fairweather.restoring.recognise import Decision, Weather
from fairweather.restoring.restorer import Restorer, check_photo, check_strength

MODELS = {"rain": "derain", "haze": "dehaze"}
"""Weather -> the model that takes it out, in the order in which they work: streaks lie in front of the haze, and are
harder to tell from the scene once the haze between them is gone."""
_log = logging.getLogger("fairweather")


class Auto:
    """What `fairweather.load("auto")` gives: called as a Restorer is, it decides for each photo what to take out.

    `look` tells the weather in a photo (a Recognizer), `opened` gives the restorer of a model; each is opened when a
    photo first needs it. `models` says which model takes out which weather, in the order of their work. What is seen
    without doubt is taken out whole, what is doubtful in part (`Weather.amount`). Weather for which no model ships is
    left in the photo, and said once (`missing` tells before).
    """

    def __init__(
        self,
        look: Callable[[NDArray[Any]], Weather],
        opened: Callable[[str], Restorer],
        models: Mapping[str, str] = MODELS,
    ) -> None:
        self.models = models
        self._look = look
        self._opened = opened
        self._restorers: dict[str, Restorer] = {}
        self._told: set[str] = set()

    def recognise(self, photo: NDArray[Any]) -> Weather:
        """The weather in a photo: `.haze` and `.rain` from 0 to 1, `.decided`, `.sure`. Raises BadImage, BadCard."""
        check_photo(photo)
        return self._look(photo)

    def __call__(self, photo: NDArray[Any], strength: float = 1.0, guard: bool = True) -> NDArray[Any]:
        """The photo without what was recognised in it, a new array of its size and type, as from a Restorer.

        Raises BadImage, BadCard, and BadSettings (strength).
        """
        check_photo(photo)
        check_strength(strength)  # before the weather is looked for
        if strength == 0:
            return np.array(photo, order="C")
        return self.restore(photo, self.recognise(photo), strength, guard)

    def restore(
        self, photo: NDArray[Any], weather: Weather | Decision, strength: float = 1.0, guard: bool = True
    ) -> NDArray[Any]:
        """The photo without the weather that was seen, each in its amount, or without that which somebody decided on,
        whole: "none" gives a copy, "both" is rain, then haze."""
        check_photo(photo)
        result = photo
        for restorer, amount in self.taking(weather):
            result = restorer(result, strength * amount, guard)
        return np.array(photo, order="C") if result is photo else result

    def taking(self, weather: Weather | Decision) -> list[tuple[Restorer, float]]:
        """The restorers that take out this weather, in their order, and how much of it each (0 to 1); those of weather
        for which no model ships are left out, and that is said once."""
        seen = weather if isinstance(weather, Weather) else None
        decided = seen.decided if seen else cast("Decision", weather)
        lacking = self.missing(decided)
        for part in lacking:
            self._tell(part)
        return [
            (self._restorer(self.models[part]), seen.amount(part) if seen else 1.0)
            for part in self.parts(decided)
            if part not in lacking
        ]

    def frames(
        self,
        frames: Iterable[NDArray[Any]],
        strength: float = 1.0,
        guard: bool = True,
        *,
        steady: bool = True,
        rate: float = 25.0,
    ) -> Iterator[NDArray[Any]]:
        """The restored frames of a film of `rate` frames a second, one by one. The weather is looked for every two
        seconds (`fairweather.restoring.film.Watching`)."""
        from fairweather.restoring.film import Watching

        watching = Watching(self, strength, guard=guard, steady=steady)
        for frame in frames:
            yield watching(frame, 1 / rate)

    def parts(self, decided: Decision) -> tuple[str, ...]:
        """The kinds of weather in a decision, in the order in which they are taken out."""
        return tuple(weather for weather in self.models if decided in (weather, "both"))

    def missing(self, decided: Decision) -> tuple[str, ...]:
        """Those of a decision's kinds of weather for which there is no model."""
        return tuple(weather for weather in self.parts(decided) if not _there(self.models[weather]))

    def _restorer(self, name: str) -> Restorer:
        if name not in self._restorers:
            self._restorers[name] = self._opened(name)
        return self._restorers[name]

    def _tell(self, weather: str) -> None:
        if weather not in self._told:
            self._told.add(weather)
            _log.warning("%s is in the photo and stays there: no model %s ships", weather, self.models[weather])


def _there(model: str) -> bool:
    try:
        cards.find(model)
    except UnknownName:
        return False
    return True
