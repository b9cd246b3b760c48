"""Restorers: a photo in, the restored photo of the same size and type out, for any network."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from fairweather import model_folder
from fairweather.errors import BadCard, BadImage, BadSettings, FairweatherError
from fairweather.images.io import MAX_PIXELS, from_float, to_float
from fairweather.inference import guards, haze_maps, tiling, weather_detection
from fairweather.inference.cancellation import check_cancelled
from fairweather.inference.engines import Engine, open_engine
from fairweather.inference.haze_maps import HazeMaps
from fairweather.inference.memory import available_memory
from fairweather.inference.weather_detection import WEATHER_MODELS, RestorePlan, Weather, load_detector

DEFAULT_BYTES_PER_PIXEL = 1024.0
"""Memory of a network whose card does not state it: four full-size layers of 64 channels in float32."""
ENGINE_OVERHEAD = 2.0
"""Engines use more memory than the largest live set of activations. Measured on `unet` and the ResNets in float32,
relative to the card's number: OpenVINO 1.2 to 1.95, ONNX Runtime 2.8 to 3.5 (which still fits the default budget)."""
RESTORER_BYTES_PER_PIXEL = 60.0
"""The restorer's own arrays in float32: the window twice, the output, the blended output and the result."""

PreviewLayout = Literal["side", "split"]
Memory: TypeAlias = int | Callable[[], int]
"""Bytes, or a function that returns them."""
_ENGINE_LOCK = threading.RLock()
"""Lock: one network runs at a time, from the first to the last window of a photo, since each uses all cores and all
allowed memory."""
_ALLOCATION = re.compile(r"alloc|(out of|not enough|insufficient) memory", re.IGNORECASE)
_log = logging.getLogger("fairweather")


@dataclass(frozen=True)
class RestoreOptions:
    """How photos and videos are restored: the options of `fairweather restore`."""

    model: str | None = None
    """Name or path of the model to use, regardless of the weather."""
    weather: str = "auto"
    """What to remove, a `WeatherChoice`."""
    strength: float = 1.0
    guard: bool = True
    engine: str = "auto"
    precision: str = "auto"
    memory: int | None = None
    """Bytes that the process may use."""
    max_pixels: int = MAX_PIXELS
    """Larger photos are rejected."""
    overwrite: bool = False
    """Whether existing outputs are replaced."""
    start: float = 0.0
    """Videos: first second of the part to restore."""
    end: float | None = None
    """Videos: end of that part, in seconds."""
    preview: PreviewLayout | None = None
    """Videos: write source and result in one picture."""
    smooth: bool = True
    """Videos: smooth predicted maps over time."""
    blend: bool = False
    """Videos: blend restored frames along their motion."""
    codec: str | None = None
    """Videos: encoder; None keeps the source's codec."""
    quality: float | None = None
    """Videos: the encoder's quality number; None matches the source."""
    fps: Fraction | None = None
    """Frames per second of a folder of frames."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:  # true for NaN
            raise BadSettings(f"--strength must be from 0 (unchanged) to 1, not {self.strength:g}")
        if self.end is not None and self.end <= self.start:
            raise BadSettings(f"--end {self.end:g} s is not after --start {self.start:g} s")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise BadSettings(f"--fps must be above 0 and at most 1000, not {float(self.fps):g}")


@overload
def load(  # type: ignore[overload-overlap]  # "auto" is a str, too: the first match counts
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
    """Load the restorer of a model.

    Args:
        name_or_path: a shipped model, the path of a model folder or run folder, or "auto" for a restorer that detects
            the weather in each photo and removes it.
        engine: "auto", "openvino", "onnxruntime", "torch" or "torch-compiled"; see `engines.open_engine`.
        tile: side of the tiles in pixels; by default a photo is tiled only if memory requires it.
        memory: bytes that the network may use, or a function that returns them for each photo; default: half of the
            free RAM.
        threads: number of threads of the engine; None leaves it to the engine.
        precision: "auto", "f32", "bf16" or "int8"; see `engines.open_engine`.

    Raises:
        UnknownName: no such model or engine.
        BadFolder, BadCard: the model folder is missing, incomplete or altered.
        MissingExtra: the engine is not installed.
        BadSettings: the options do not fit the model.
    """
    if name_or_path != "auto":
        folder = model_folder.find(name_or_path)
        card = model_folder.read_card(folder)
        opened = open_engine(engine, folder, card, threads=threads, precision=precision)
        return Restorer(card, opened, tile=tile, memory=memory)
    if tile is not None:
        raise BadSettings('tile applies to one model: omit it with "auto", or name the model')
    return AutoRestorer(
        lambda open_model: load_detector(open_model, engine=engine, threads=threads),
        lambda name: load(name, engine=engine, memory=memory, threads=threads, precision=precision),
    )


class Restorer:
    """Restores photos with one network.

    A photo that needs more memory than allowed is processed in tiles that overlap by the network's receptive field, so
    the result equals that of the whole photo up to float rounding. When an engine runs out of memory, tiles shrink.

    A network with global statistics (instance norm, squeeze and excitation) processes a photo whole or not at all. Its
    statistics cannot come from a reduced copy: reducing removes noise and texture, which make up much of the variance
    of each layer, and each layer amplifies the error of the one before, without a bound that a card could state.

    Args:
        card: the model's card.
        engine: any callable as in `fairweather.inference.engines`.
        tile: side of the tiles in pixels.
        memory: bytes that a photo may use, or a function that returns them for each; default: half of the free RAM.

    Raises:
        BadSettings: `tile` or `memory` is out of range, or the model does not support tiles.
    """

    def __init__(
        self, card: model_folder.Card, engine: Engine, *, tile: int | None = None, memory: Memory | None = None
    ) -> None:
        if tile is not None and tile < 1:
            raise BadSettings(f"tile must be at least 1 pixel, not {tile}: omit it to tile only as memory requires")
        if tile is not None and card.output == "maps":
            raise BadSettings(f"tile: model {card.name} works on a reduced photo and needs no tiles: omit it")
        if tile is not None and card.receptive_field is None:
            raise BadSettings(
                f"tile: model {card.name} uses statistics of the whole photo, so tiles would be visible: "
                "omit it, or use another model"
            )
        if isinstance(memory, int) and memory < 1:
            raise BadSettings(f"memory must be a positive number of bytes, not {memory}: omit it for half of the RAM")
        self.card = card
        self.engine = engine
        self.tile = tile
        self._memory = available_memory() // 2 if memory is None else memory
        self._failed_pixels: int | None = None
        """Pixels of the smallest window for which the engine ran out of memory, halved."""
        self.bytes_per_pixel = RESTORER_BYTES_PER_PIXEL + ENGINE_OVERHEAD * (
            card.bytes_per_pixel or DEFAULT_BYTES_PER_PIXEL
        )

    def __call__(self, photo: NDArray[Any], strength: float = 1.0, guard: bool = True) -> NDArray[Any]:
        """Restore a photo.

        Args:
            photo: H x W x 3, uint8, uint16 or float32 in [0, 1].
            strength: blends from 0 (the photo, bit for bit) to 1 (the network's full output).
            guard: suppress colour casts, amplified noise and clipping (`fairweather.inference.guards`); models that
                degrade are never guarded.

        Returns:
            A new array of the photo's size and type.

        Raises:
            BadImage: wrong shape, type or values, or too large for the allowed memory.
            BadSettings: strength out of range.
        """
        check_photo(photo)
        check_strength(strength)
        if strength == 0:
            return np.array(photo, order="C")
        if self.card.output == "maps":
            return self.apply_maps(photo, self.predict_maps(photo), strength, guard)
        reduced = haze_maps.reduce_to_pixels(photo, self.card.most_pixels)
        if reduced is None:
            restored = self._run_windows(photo, strength)
        else:
            restored = haze_maps.add_change(photo, self._run_windows(reduced, 1.0) - reduced, strength)
        return self._guarded(photo, restored, guard)

    def plan(self, photo: NDArray[Any] | None = None, weather: str = "auto") -> RestorePlan:
        """A plan with this model only: counterpart of `AutoRestorer.plan`."""
        return weather_detection.plan(_no_detection, model=self.card)

    def open(self, model: str) -> Restorer:
        """This restorer: counterpart of `AutoRestorer.open`."""
        return self

    def predict_maps(self, photo: NDArray[Any], engine: Engine | None = None) -> HazeMaps:
        """Run a maps network on a photo. `apply_maps` turns the result into the restored photo, at any strength.

        Args:
            photo: H x W x 3, uint8, uint16 or float32 in [0, 1].
            engine: replaces the restorer's own engine, e.g. to continue from a recurrent state.

        Raises:
            BadImage: as for a call.
            BadSettings: the model outputs images.
        """
        check_photo(photo)
        if self.card.output != "maps":
            raise BadSettings(f"model {self.card.name} outputs images: use a model whose card has output 'maps'")
        spec = self.card.maps
        assert spec is not None, "a card with output maps has a maps field"
        reduced = haze_maps.reduce_photo(photo, spec, self.card.multiple_of)
        try:
            return HazeMaps(reduced, self._run(reduced, engine or self.engine))
        except MemoryError as error:
            raise BadImage(f"model {self.card.name} ran out of memory ({error}): close other programs") from error

    def apply_maps(
        self, photo: NDArray[Any], maps: HazeMaps, strength: float = 1.0, guard: bool = True
    ) -> NDArray[Any]:
        """Restore a photo by its maps: the result of a call with this strength. Raises BadSettings (strength)."""
        check_strength(strength)
        if strength == 0:
            return np.array(photo, order="C")
        assert self.card.maps is not None, "a card with output maps has a maps field"
        photo = np.ascontiguousarray(photo)
        return self._guarded(photo, haze_maps.apply_maps(photo, *maps, self.card.maps, strength), guard)

    def maps(self, photo: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """The maps that the network predicts for a photo, at its own low resolution.

        Returns:
            "transmission" h x w (1 = clear air), "airlight" h x w x 3, "offset" h x w x 3.

        Raises:
            BadSettings: the model outputs images.
        """
        maps = self.predict_maps(photo).maps[0].transpose(1, 2, 0)
        return {"transmission": maps[..., 0], "airlight": maps[..., 1:4], "offset": maps[..., 4:7]}

    @property
    def memory(self) -> int:
        """Bytes that the network may use for the next photo."""
        return self._memory() if callable(self._memory) else self._memory

    def _guarded(self, photo: NDArray[Any], restored: NDArray[Any], guard: bool) -> NDArray[Any]:
        return guards.apply_guards(photo, restored) if guard and self.card.direction == "restore" else restored

    def _run_windows(self, photo: NDArray[Any], strength: float) -> NDArray[Any]:
        """Run an image network on a photo, in smaller windows whenever the engine runs out of memory."""
        with _ENGINE_LOCK:
            while True:
                grid = self._grid(*photo.shape[:2])
                result = np.empty(photo.shape, photo.dtype)
                try:
                    for row, column in grid:
                        check_cancelled()
                        window = to_float(tiling.read_window(photo, row, column))
                        output = self._run(np.ascontiguousarray(window.transpose(2, 0, 1))[None], self.engine)
                        inner = row.inner, column.inner
                        restored = output[0].transpose(1, 2, 0)[inner]
                        if strength != 1:
                            restored = window[inner] + np.float32(strength) * (restored - window[inner])
                        result[row.first : row.last, column.first : column.last] = from_float(restored, photo.dtype)
                    return result
                except MemoryError as error:
                    self._failed_pixels = self._halved(grid, error)

    def _halved(self, grid: tiling.Grid, error: MemoryError) -> int:
        """Half the pixels of the windows that did not fit. Raises BadImage if there are no smaller ones."""
        (height, width), field = grid.window, self.card.receptive_field
        smaller = height * width // 2
        least = math.inf if field is None else (2 * tiling.halo(field, self.card.multiple_of) + self.card.multiple_of)
        if self.tile is not None or smaller < least**2:
            remedy = "use a smaller photo" if self.tile is None else "choose a smaller tile"
            raise BadImage(
                f"model {self.card.name} failed on {width} x {height} pixels ({error}): "
                f"{remedy}, or close other programs"
            ) from error
        _log.info("model %s: no memory for %d x %d pixels (%s), using smaller tiles",
                  self.card.name, width, height, error)  # fmt: skip
        return smaller

    def _grid(self, height: int, width: int) -> tiling.Grid:
        """The windows for a photo of this size. Raises BadImage if none fit into memory."""
        name, m, field = self.card.name, self.card.multiple_of, self.card.receptive_field
        if self.tile is not None and field is not None:
            return tiling.fixed_grid(height, width, self.tile, tiling.halo(field, m), m)
        whole = tiling.whole_grid(height, width, m)
        memory = self.memory
        pixels, allowed = int(memory / self.bytes_per_pixel), f"{memory / 2**30:.1f} GiB of memory"
        if self._failed_pixels is not None and field is not None:
            pixels = min(pixels, self._failed_pixels)
        if math.prod(whole.window) <= pixels:
            return whole
        if field is None:
            raise BadImage(
                f"a photo of {width} x {height} pixels is too large for model {name} in {allowed}: the model uses "
                f"statistics of the whole photo, so it cannot be tiled, and the whole needs about "
                f"{math.prod(whole.window) * self.bytes_per_pixel / 2**30:.1f} GiB: use a smaller photo "
                f"(up to about {pixels / 1e6:.1f} megapixels), allow more memory, or use another model"
            )
        grid = tiling.cheapest_grid(height, width, pixels, tiling.halo(field, m), m)
        if grid is None:
            least = (2 * tiling.halo(field, m) + m) ** 2
            raise BadImage(
                f"a photo of {width} x {height} pixels is too large for model {name} in {allowed}: its smallest tile "
                f"needs about {least * self.bytes_per_pixel / 2**30:.1f} GiB: allow more memory, or use another model"
            )
        return grid

    def _run(self, picture: NDArray[np.float32], engine: Engine) -> NDArray[np.float32]:
        """Run the engine on one image and check its output, 1 x C x h x w.

        Raises BadImage if the engine fails, MemoryError if it runs out of memory, BadCard for an invalid output.
        """
        name = self.card.name
        try:
            with _ENGINE_LOCK:
                output = engine(picture)
        except FairweatherError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            line = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            if isinstance(error, MemoryError) or _ALLOCATION.search(str(error)):
                raise MemoryError(line) from error
            raise BadImage(
                f"model {name} failed on {picture.shape[3]} x {picture.shape[2]} pixels ({line}): "
                "use another engine (--engine), or export the model again"
            ) from error
        valid = output.shape == picture.shape
        if self.card.output == "maps":
            valid = output.ndim == 4 and output.shape[:2] == (1, 7)
        if not valid:
            raise BadCard(
                f"model {name} returned shape {output.shape} for {picture.shape}, which contradicts its card: "
                "export the model again"
            )
        if not np.isfinite(output).all():
            raise BadCard(f"model {name}: the output contains NaN or Inf: train the model again, or use another one")
        return output


class AutoRestorer:
    """Restores photos by the weather in them: the result of `fairweather.load("auto")`.

    Confident detections are removed completely, doubtful ones in part (`Weather.amount`). The detector and the models
    are opened when a photo first needs them.

    Args:
        open_detector: returns the detector; its argument returns evidence models by name.
        open_model: returns a model's restorer by name.
        models: weather -> model, in the order in which they run.
    """

    def __init__(
        self,
        open_detector: Callable[[Callable[[str], Restorer]], Callable[[NDArray[Any]], Weather]],
        open_model: Callable[[str], Restorer],
        models: Mapping[str, str] = WEATHER_MODELS,
    ) -> None:
        self.models = models
        self._open_detector, self._open_model = open_detector, open_model
        self._detector: Callable[[NDArray[Any]], Weather] | None = None
        self._opened: dict[str, Restorer] = {}
        self._opening = threading.RLock()  # photos come from several threads; each model is opened once
        self._warned: set[str] = set()

    def __call__(self, photo: NDArray[Any], strength: float = 1.0, guard: bool = True) -> NDArray[Any]:
        """Detect and remove the weather in a photo; arguments, result and errors are those of a `Restorer`."""
        check_photo(photo)
        check_strength(strength)
        if strength == 0:
            return np.array(photo, order="C")
        plan = self.plan(photo)
        for weather in {*plan.missing} - self._warned:
            self._warned.add(weather)
            _log.warning("%s stays in the photo: model %s is not installed", weather, self.models[weather])
        return self.apply(photo, plan, strength, guard)

    def detect(self, photo: Any) -> Weather:
        """Detect the weather in a photo. Raises BadImage and BadCard."""
        check_photo(photo)
        with self._opening:
            if self._detector is None:
                self._detector = self._open_detector(self.open)
        return self._detector(photo)

    def plan(self, photo: NDArray[Any] | None = None, weather: str = "auto") -> RestorePlan:
        """Decide how a photo is restored; see `weather_detection.plan`. Raises BadImage, BadCard and BadSettings.

        The photo may be omitted unless `weather` is "auto".
        """
        return weather_detection.plan(lambda: self.detect(photo), weather=weather, models=self.models)

    def apply(self, photo: NDArray[Any], plan: RestorePlan, strength: float = 1.0, guard: bool = True) -> NDArray[Any]:
        """Restore a photo according to a plan, which may be that of another photo or video frame."""
        result = photo
        for part in plan.parts:
            result = self.open(part.model)(result, strength * part.amount, guard)
        return np.array(photo, order="C") if result is photo else result

    def open(self, model: str) -> Restorer:
        """The restorer of one of the models, opened once. Raises as `load` does."""
        with self._opening:
            if model not in self._opened:
                self._opened[model] = self._open_model(model)
            return self._opened[model]


def check_strength(strength: float) -> None:
    """Raise BadSettings unless this is from 0 to 1; NaN is rejected too."""
    if not 0 <= strength <= 1:
        raise BadSettings(f"strength must be from 0 (unchanged) to 1, not {strength}")


def check_photo(photo: Any) -> None:
    """Raise BadImage unless this is an array that a restorer accepts."""
    if not isinstance(photo, np.ndarray):
        remedy = "pass its .pixels" if hasattr(photo, "pixels") else "convert it with np.asarray(photo)"
        raise BadImage(f"a photo must be a NumPy array, not {type(photo).__name__}: {remedy}")
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise BadImage(
            f"a photo must be H x W x 3 (RGB), not {' x '.join(map(str, photo.shape)) or 'a scalar'}: "
            "repeat a grey channel three times, remove alpha"
        )
    if photo.dtype not in (np.uint8, np.uint16, np.float32):
        raise BadImage(f"a photo must be uint8, uint16 or float32 in [0, 1], not {photo.dtype}: use astype")
    if photo.dtype == np.float32:
        low, high = float(photo.min()), float(photo.max())
        if not (low >= 0 and high <= 1):  # true for NaN
            raise BadImage(f"a float32 photo must be in [0, 1], not {low:g} to {high:g}: scale or clip it")


def _no_detection() -> Weather:
    raise AssertionError("a named model needs no detection")
