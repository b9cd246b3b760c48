"""A photo in, the restored photo out: same size, same type, whatever the network behind it."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadCard, BadImage, BadSettings, FairweatherError, UnknownName
from fairweather.images.io import from_float, to_float
from fairweather.inference import cancellation, guards, haze_maps, tiling
from fairweather.inference.engines import Engine, open_engine
from fairweather.inference.weather_detection import Decision, Weather

DEFAULT_BYTES_PER_PIXEL = 1024.0
"""What a network is taken to need where its card does not say: four full-size layers of 64 channels in float32."""
ENGINE_OVERHEAD = 2.0
"""Engines take more than what is alive at once. Measured on `unet` and the ResNets in float32, times the card's
number: OpenVINO 1.2 to 1.95, ONNX Runtime 2.8 to 3.5 (which the default budget, half of the free RAM, still holds)."""
RESTORER_BYTES_PER_PIXEL = 60.0
"""The restorer's own arrays: the window twice, the answer, what is mixed and the result, float32."""


Memory: TypeAlias = int | Callable[[], int]
"""Bytes, or a function that gives them."""
_ENGINE_LOCK = threading.RLock()
"""Held while a network works, for windows of one photo from the first to the last: each takes all cores, and as much of
the memory as may be taken."""
_log = logging.getLogger("fairweather")
_ALLOCATION = re.compile(r"alloc|(out of|not enough|insufficient) memory", re.IGNORECASE)


@overload
def load(  # type: ignore[overload-overlap]  # "auto" is a str, too: the first that fits counts
    name_or_path: Literal["auto"],
    *,
    engine: str = "auto",
    tile: int | None = None,
    memory: Memory | None = None,
    threads: int | None = None,
    precision: str = "auto",
) -> AutoRestorer: ...


@overload
def load(
    name_or_path: str | os.PathLike[str] = "dehaze",
    *,
    engine: str = "auto",
    tile: int | None = None,
    memory: Memory | None = None,
    threads: int | None = None,
    precision: str = "auto",
) -> Restorer: ...


def load(
    name_or_path: str | os.PathLike[str] = "dehaze",
    *,
    engine: str = "auto",
    tile: int | None = None,
    memory: Memory | None = None,
    threads: int | None = None,
    precision: str = "auto",
) -> Restorer | AutoRestorer:
    """The restorer of a shipped model, or of a model folder (or run folder) of your own; "auto" is one that looks at
    each photo, and takes out the weather that it finds there.

    `engine`: "auto", "openvino", "onnxruntime", "torch" or "torch-compiled"; `precision`: "auto", "f32", "bf16" or
    "int8"; they and `threads` are as in `fairweather.inference.engines.open_engine`. `tile` and `memory` are the
    restorer's: `memory` is what the network's windows may take in bytes (half of the free RAM), or a function that is
    asked before each photo.
    Raises UnknownName, BadFolder, BadCard, MissingExtra, BadSettings.
    """
    if name_or_path == "auto":
        if tile is not None:
            raise BadSettings("tile is for one model, and auto may take several: leave it out, or name the model")
        return _auto(engine=engine, memory=memory, threads=threads, precision=precision)
    folder = model_folder.find(name_or_path)
    card = model_folder.read_card(folder)
    return Restorer(
        card, open_engine(engine, folder, card, threads=threads, precision=precision), tile=tile, memory=memory
    )


def _auto(*, engine: str, memory: Memory | None, threads: int | None, precision: str) -> AutoRestorer:
    from fairweather.inference.weather_detection import load_detector

    opening = threading.RLock()  # photos come from several threads, and each model is to be opened once

    @cache
    def restorer(name: str) -> Restorer:
        return load(name, engine=engine, memory=memory, threads=threads, precision=precision)

    def opened(name: str) -> Restorer:
        with opening:
            return restorer(name)

    @cache
    def recognizer() -> Callable[[NDArray[Any]], Weather]:
        return load_detector(engine=engine, threads=threads, opened=opened)

    def look(photo: NDArray[Any]) -> Weather:
        with opening:
            found = recognizer()
        return found(photo)

    return AutoRestorer(look, opened)


class HazeMaps(NamedTuple):
    """What a maps network saw in a photo."""

    reduced: NDArray[np.float32]
    """The photo as the network saw it, 1 x 3 x h x w in [0, 1]."""
    maps: NDArray[np.float32]
    """1 x 7 x h' x w': transmission, airlight (3), offset (3)."""


class Restorer:
    """Restores photos with one network.

    `engine` is any callable as in `fairweather.inference.engines`. `memory` is how many bytes a photo may take, or a
    function that says so for each (default: half of the RAM that is free now); a photo that needs more is worked in
    tiles whose overlap covers the network's receptive field, so that the picture is the one that the whole would have
    given, up to float rounding. Where an engine finds no memory, tiles become smaller. `tile` asks for tiles of that
    side.

    A network with global statistics (instance norm, squeeze and excitation) sees a photo whole or not at all. Its
    statistics are not taken from a reduced copy: each layer's are of that layer's own answers, reducing takes off the
    noise and texture that make up much of their variance, and every layer divides by what the layer before has already
    got wrong. How far off that ends depends on the photo; no number on a card would bound it.
    """

    def __init__(
        self, card: model_folder.Card, engine: Engine, *, tile: int | None = None, memory: Memory | None = None
    ) -> None:
        if tile is not None and tile < 1:
            raise BadSettings(f"tile must be at least 1 pixel, not {tile}; leave it out to tile only where memory asks")
        if tile is not None and card.output == "maps":
            raise BadSettings(f"tile: model {card.name} sees a reduced photo and needs no tiles; leave tile out")
        if tile is not None and card.receptive_field is None:
            raise BadSettings(
                f"tile: model {card.name} normalises with statistics of the whole photo, so tiles would show; "
                "leave tile out, or take another model"
            )
        if isinstance(memory, int) and memory < 1:
            raise BadSettings(
                f"memory must be a number of bytes above 0, not {memory}; leave it out for half of the RAM"
            )
        self.card = card
        self.engine = engine
        self.tile = tile
        self._memory = tiling.available_memory() // 2 if memory is None else memory
        self._refused: int | None = None
        """Pixels of the smallest window for which the engine found no memory."""
        self.bytes_per_pixel = RESTORER_BYTES_PER_PIXEL + ENGINE_OVERHEAD * (
            card.bytes_per_pixel or DEFAULT_BYTES_PER_PIXEL
        )

    def __call__(self, photo: NDArray[Any], strength: float = 1.0, guard: bool = True) -> NDArray[Any]:
        """The restored photo: H x W x 3 uint8, uint16 or float32 in [0,1] -> a new array of that size and type.

        `strength` mixes: 0 gives the photo bit for bit, 1 all that the network does. `guard` keeps casts, amplified
        noise and clipped pixels off (`fairweather.inference.guards`); a model that degrades is never guarded.
        Raises BadImage (shape, type, values, or too large to be seen whole) and BadSettings (strength).
        """
        check_photo(photo)
        check_strength(strength)
        if strength == 0:
            return np.array(photo, order="C")
        if self.card.output == "maps":
            return self.apply_maps(photo, self.predict_maps(photo), strength, guard)
        return self._guarded(photo, self._by_image(photo, strength), guard)

    def predict_maps(self, photo: NDArray[Any]) -> HazeMaps:
        """What a maps network sees in the photo: `applied` makes the restored photo of it, at any strength, without
        asking the network again. Raises BadImage as a call does, BadSettings where the model gives a picture."""
        check_photo(photo)
        if self.card.output != "maps":
            raise BadSettings(f"model {self.card.name} gives a picture and no maps: take one whose card says 'maps'")
        spec = self.card.maps
        assert spec is not None, "a card with output maps has a maps field"
        reduced = haze_maps.reduce_photo(photo, spec, self.card.multiple_of)
        try:
            return HazeMaps(reduced, self._run(reduced))
        except MemoryError as error:
            raise BadImage(
                f"model {self.card.name} failed for want of memory ({error}): close other programs"
            ) from error

    def apply_maps(
        self, photo: NDArray[Any], seen: HazeMaps, strength: float = 1.0, guard: bool = True
    ) -> NDArray[Any]:
        """The photo as its maps restore it: what a call with this strength gives, where `seen` is of this photo."""
        check_strength(strength)
        if strength == 0:
            return np.array(photo, order="C")
        assert self.card.maps is not None, "a card with output maps has a maps field"
        photo = np.ascontiguousarray(photo)
        return self._guarded(photo, haze_maps.apply_maps(photo, *seen, self.card.maps, strength), guard)

    def _guarded(self, photo: NDArray[Any], restored: NDArray[Any], guard: bool) -> NDArray[Any]:
        return guards.apply_guards(photo, restored) if guard and self.card.direction == "restore" else restored

    @property
    def memory(self) -> int:
        """Bytes that the network's windows may take for the next photo."""
        return self._memory() if callable(self._memory) else self._memory

    def frames(
        self,
        frames: Iterable[NDArray[Any]],
        strength: float = 1.0,
        guard: bool = True,
        *,
        steady: bool = True,
        rate: float = 25.0,
    ) -> Iterator[NDArray[Any]]:
        """The restored frames of a film of `rate` frames a second, one by one as they are asked for.

        With `steady` what a maps network says is smoothed over time (`fairweather.inference.temporal`); without, and for
        networks that give pictures, each frame is restored as a photo is.
        """
        from fairweather.inference.temporal import VideoRestorer

        film = VideoRestorer([(self, strength)], guard=guard, steady=steady)
        for frame in frames:
            yield film(frame, 1 / rate)

    def maps(self, photo: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """What a maps network sees in the photo, at the network's own low resolution.

        "transmission" h x w (1 = clear air), "airlight" h x w x 3, "offset" h x w x 3.
        Raises BadSettings where the model gives a picture and no maps.
        """
        maps = self.predict_maps(photo).maps[0].transpose(1, 2, 0)
        return {"transmission": maps[..., 0], "airlight": maps[..., 1:4], "offset": maps[..., 4:7]}

    def _by_image(self, photo: NDArray[Any], strength: float) -> NDArray[Any]:
        reduced = haze_maps.reduce_to_pixels(photo, self.card.most_pixels)
        if reduced is None:
            return self._by_windows(photo, strength)
        return haze_maps.add_change(photo, self._by_windows(reduced, 1.0) - reduced, strength)

    def _by_windows(self, photo: NDArray[Any], strength: float) -> NDArray[Any]:
        with _ENGINE_LOCK:
            while True:
                grid = self._grid(*photo.shape[:2])
                try:
                    return self._over(grid, photo, strength)
                except MemoryError as error:
                    self._refused = self._back_off(grid, error)

    def _back_off(self, grid: tiling.Grid, error: MemoryError) -> int:
        """Half the pixels of windows that the engine found no memory for. Raises BadImage where none are smaller."""
        (height, width), field = grid.window, self.card.receptive_field
        smaller = height * width // 2
        least = math.inf if field is None else (2 * tiling.halo(field, self.card.multiple_of) + self.card.multiple_of)
        if self.tile is not None or smaller < least**2:
            remedy = "give a smaller photo" if self.tile is None else "ask for smaller tiles"
            raise BadImage(
                f"model {self.card.name} failed on {width} x {height} pixels ({error}): "
                f"{remedy}, or close other programs"
            ) from error
        _log.info("model %s: no memory for %d x %d pixels (%s); smaller tiles", self.card.name, width, height, error)
        return smaller

    def _over(self, grid: tiling.Grid, photo: NDArray[Any], strength: float) -> NDArray[Any]:
        result = np.empty(photo.shape, photo.dtype)
        for row, column in grid:
            cancellation.check_cancelled()
            window = to_float(tiling.read_window(photo, row, column))
            answer = self._run(np.ascontiguousarray(window.transpose(2, 0, 1))[None])
            inner = (_inside(row), _inside(column))
            kept = answer[0].transpose(1, 2, 0)[inner]
            if strength != 1:
                kept = window[inner] + np.float32(strength) * (kept - window[inner])
            result[row.first : row.last, column.first : column.last] = from_float(kept, photo.dtype)
        return result

    def _grid(self, height: int, width: int) -> tiling.Grid:
        """The windows for a picture of this size; raises BadImage where it must be seen whole and cannot be."""
        name, m, field = self.card.name, self.card.multiple_of, self.card.receptive_field
        if self.tile is not None and field is not None:
            return tiling.fixed_grid(height, width, self.tile, tiling.halo(field, m), m)
        whole = tiling.whole_grid(height, width, m)
        memory = self.memory
        pixels, allowed = int(memory / self.bytes_per_pixel), f"{memory / 2**30:.1f} GiB of memory"
        if self._refused is not None and field is not None:
            pixels = min(pixels, self._refused)
        if math.prod(whole.window) <= pixels:
            return whole
        if field is None:
            raise BadImage(
                f"a photo of {width} x {height} pixels is too large for model {name} in {allowed}: the model uses "
                f"statistics of the whole photo, so it cannot be worked in tiles, and the whole needs about "
                f"{math.prod(whole.window) * self.bytes_per_pixel / 2**30:.1f} GiB; give a smaller photo "
                f"(up to about {pixels / 1e6:.1f} megapixels), allow more memory, or take another model"
            )
        grid = tiling.cheapest_grid(height, width, pixels, tiling.halo(field, m), m)
        if grid is None:
            least = (2 * tiling.halo(field, m) + m) ** 2
            raise BadImage(
                f"a photo of {width} x {height} pixels is too large for model {name} in {allowed}: its smallest tile "
                f"needs about {least * self.bytes_per_pixel / 2**30:.1f} GiB; allow more memory, or take another model"
            )
        return grid

    def _run(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """The engine's answer for one picture, 1 x C x h x w, once it is what the card promises.

        Raises BadImage where the engine fails, MemoryError where it does so for want of memory.
        """
        name = self.card.name
        try:
            with _ENGINE_LOCK:
                answer = self.engine(picture)
        except FairweatherError:
            raise
        except Exception as error:  # ONNX Runtime raises classes of its own, derived from Exception alone
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            if isinstance(error, MemoryError) or _ALLOCATION.search(str(error)):
                raise MemoryError(line) from error
            raise BadImage(
                f"model {name} failed on {picture.shape[3]} x {picture.shape[2]} pixels ({line}): "
                "take another engine (--engine), or export the model again"
            ) from error
        promised = answer.shape == picture.shape
        if self.card.output == "maps":
            promised = answer.ndim == 4 and answer.shape[:2] == (1, 7)
        if not promised:
            raise BadCard(
                f"model {name} answers {picture.shape} with {answer.shape}, which is not what its card promises: "
                "export the model again"
            )
        if not np.isfinite(answer).all():
            raise BadCard(f"model {name} gives values that are no numbers: train it again, or use another model")
        return answer


def _inside(span: tiling.Span) -> slice:
    """What is kept, counted from the window's own start."""
    return slice(span.first - span.start, span.last - span.start)


def check_strength(strength: float) -> None:
    """Raises BadSettings unless this is from 0 to 1; a NaN is refused too."""
    if not 0 <= strength <= 1:
        raise BadSettings(f"strength must be from 0 (untouched) to 1, not {strength}")


def check_photo(photo: Any) -> None:
    """Raises BadImage unless this is a photo as the restorer takes it."""
    if not isinstance(photo, np.ndarray):
        remedy = "give its .pixels" if hasattr(photo, "pixels") else "np.asarray(photo) makes one"
        raise BadImage(f"a photo must be a NumPy array, not {type(photo).__name__}: {remedy}")
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise BadImage(
            f"a photo must be H x W x 3 (RGB), not {' x '.join(map(str, photo.shape)) or 'a single number'}: "
            "repeat a grey channel three times, take alpha off"
        )
    if photo.dtype not in (np.uint8, np.uint16, np.float32):
        raise BadImage(f"a photo must be uint8, uint16, or float32 in [0,1], not {photo.dtype}: convert it with astype")
    if photo.dtype == np.float32:
        low, high = float(photo.min()), float(photo.max())
        if not (low >= 0 and high <= 1):  # a NaN is refused too
            raise BadImage(f"a float32 photo must lie in [0,1], this one spans {low:g} to {high:g}: scale or clip it")


# The restorer that looks first: which weather is in the photo, then the models for it; a clear photo stays.

WEATHER_MODELS = {"rain": "derain", "haze": "dehaze"}
"""Weather -> the model that takes it out, in the order in which they work: streaks lie in front of the haze, and are
harder to tell from the scene once the haze between them is gone."""


class AutoRestorer:
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
        models: Mapping[str, str] = WEATHER_MODELS,
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
        seconds (`fairweather.inference.temporal.AutoVideoRestorer`)."""
        from fairweather.inference.temporal import AutoVideoRestorer

        watching = AutoVideoRestorer(self, strength, guard=guard, steady=steady)
        for frame in frames:
            yield watching(frame, 1 / rate)

    def parts(self, decided: Decision) -> tuple[str, ...]:
        """The kinds of weather in a decision, in the order in which they are taken out."""
        return tuple(weather for weather in self.models if decided in (weather, "both"))

    def missing(self, decided: Decision) -> tuple[str, ...]:
        """Those of a decision's kinds of weather for which there is no model."""
        return tuple(weather for weather in self.parts(decided) if not _is_shipped(self.models[weather]))

    def _restorer(self, name: str) -> Restorer:
        if name not in self._restorers:
            self._restorers[name] = self._opened(name)
        return self._restorers[name]

    def _tell(self, weather: str) -> None:
        if weather not in self._told:
            self._told.add(weather)
            _log.warning("%s is in the photo and stays there: no model %s ships", weather, self.models[weather])


def _is_shipped(model: str) -> bool:
    try:
        model_folder.find(model)
    except UnknownName:
        return False
    return True
