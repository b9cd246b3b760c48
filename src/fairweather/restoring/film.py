"""A film's frames, one after the other, restored by one model or by those that `auto` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairweather.restoring import stepping
from fairweather.restoring.auto import Auto
from fairweather.restoring.recognise import Weather
from fairweather.restoring.restorer import Restorer, Seen
from fairweather.restoring.steady import BEHIND, SECONDS, Blend, Motion, Steady, small
from fairweather.restoring.stepping import Stepping

Array = NDArray[Any]


class Film:
    """Restores frames in their order; it remembers what it needs of those before.

    `parts`: the restorers, in the order in which they work, and how much of what each finds is taken out (0 to 1).
    With `steady` the maps of those that give maps are smoothed over time (`seconds`, see `Steady`: SECONDS where it is
    not given, BEHIND a memory less; 0 leaves them as the network says), and a network with a memory of its own keeps
    that from frame to frame (`fairweather.restoring.stepping`), carries it along with what moves, and forgets it at a
    cut; with `blend` the restored frames are mixed along their motion, whatever the model.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Restorer, float]],
        *,
        guard: bool = True,
        steady: bool = True,
        blend: bool = False,
        seconds: float | None = None,
    ) -> None:
        self._guard = guard
        self._smooth, self._seconds = steady, seconds
        self._blend = Blend() if blend else None
        self._parts: list[tuple[Restorer, float]] = []
        self._kept: dict[int, _Kept] = {}
        self.take(parts)

    def take(self, parts: Sequence[tuple[Restorer, float]]) -> None:
        """From the next frame on work with these restorers and amounts."""
        self._parts = [(restorer, amount) for restorer, amount in parts if amount > 0]
        smooth = [restorer for restorer, _ in self._parts if self._smooth and _by_maps(restorer)]
        kept = {id(restorer): _Kept(restorer, self._seconds) for restorer in smooth}
        self._kept = {key: self._kept.get(key) or new for key, new in kept.items()}

    def __call__(self, frame: Array, step: float) -> Array:
        """The restored frame, H x W x 3 of the same type; `step`: seconds since the frame before."""
        return self.begin(frame, step)()

    def begin(self, frame: Array, step: float) -> Callable[[], Array]:
        """The part of the work that needs the frames before it; what is returned does the rest, in any thread, while
        the next frame begins."""
        if not self._parts:
            return partial(np.array, frame, order="C")
        result = frame
        for index, (restorer, amount) in enumerate(self._parts):
            kept = self._kept.get(id(restorer))
            if kept is None:
                result = restorer(result, amount, self._guard)
                continue
            seen = kept.seen(result, step)
            if index == len(self._parts) - 1 and self._blend is None:
                return partial(restorer.applied, result, seen, amount, self._guard)
            result = restorer.applied(result, seen, amount, self._guard)
        if self._blend is not None:
            result = self._blend(frame, result)
        return partial(_given, result)


class _Kept:
    """What is kept from frame to frame for one restorer that gives maps."""

    def __init__(self, restorer: Restorer, seconds: float | None) -> None:
        self._restorer = restorer
        self._remembers = isinstance(restorer.engine, Stepping)
        if seconds is None:
            seconds = BEHIND if self._remembers else SECONDS
        self._steady, self._motion = Steady(seconds), Motion()
        self._state: NDArray[np.float32] | None = None

    def seen(self, frame: Array, step: float) -> Seen:
        """What the restorer sees in the next frame, in the light of those before."""
        if not self._remembers:
            seen = self._restorer.seen(frame)
            return Seen(seen.reduced, self._steady(seen.reduced, seen.maps, step))
        move = self._motion(small(frame))
        if move is None:
            self._state = None
        elif self._state is not None:
            self._state = move.carried(self._state)
        seen, self._state = stepping.step(self._restorer, frame, self._state)
        return Seen(seen.reduced, self._steady.along(move, seen.maps, step))


class Watching:
    """A film whose weather is looked for as it goes by: on the first frame, and again every `every` seconds.

    The mean of what was seen so far decides, old looks counting less and less, so that it does not flicker between two
    minds, and how much is taken out moves as slowly.
    """

    MEMORY = 8
    """A look counts for at least 1 / MEMORY of the mean."""

    def __init__(
        self,
        auto: Auto,
        strength: float = 1.0,
        *,
        guard: bool = True,
        steady: bool = True,
        blend: bool = False,
        every: float = 2.0,
    ) -> None:
        self.every = every
        self._auto, self._strength = auto, strength
        self._film = Film([], guard=guard, steady=steady, blend=blend)
        self._since, self._looks = 0.0, 0
        self._weather = Weather(0.0, 0.0)

    def __call__(self, frame: Array, step: float) -> Array:
        """As Film's."""
        return self.begin(frame, step)()

    def begin(self, frame: Array, step: float) -> Callable[[], Array]:
        """As Film's."""
        self._since += step
        if not self._looks or self._since >= self.every:
            self._look(frame)
        return self._film.begin(frame, step)

    def _look(self, frame: Array) -> None:
        seen = self._auto.recognise(frame)
        self._since, self._looks = 0.0, self._looks + 1
        share = max(1 / self._looks, 1 / self.MEMORY)
        was = self._weather
        self._weather = Weather(was.haze + share * (seen.haze - was.haze), was.rain + share * (seen.rain - was.rain))
        self._film.take([(r, self._strength * amount) for r, amount in self._auto.taking(self._weather)])


def _by_maps(restorer: Any) -> bool:
    return isinstance(restorer, Restorer) and restorer.card.output == "maps"


def _given(pixels: Array) -> Array:
    return pixels
