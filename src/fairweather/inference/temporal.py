"""A film instead of photos: what a network says of one frame is held to what it said of those before it.

What a network finds in two frames that hardly differ differs a little more than they do, and the eye sees that as
flicker. `Steady` smooths maps, which are small, and costs little; `Blend` mixes whole frames along their motion, for
networks that give pictures. Both look back only, both follow what moves, and both begin anew at a cut.
NumPy and OpenCV, no PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.inference import engines
from fairweather.inference.engines import RecurrentEngine
from fairweather.inference.restorer import AutoRestorer, HazeMaps, Restorer
from fairweather.inference.weather_detection import Weather

Array = NDArray[Any]
Floats = NDArray[np.float32]

SMOOTHING_SECONDS = 0.5
"""After so long the share of an old answer has fallen to 1/e, where what it was about is still there."""
RECURRENT_SMOOTHING_SECONDS = 0.1
"""The same behind a network with a memory of its own, which has smoothed already: what is left changes quickly."""
AIRLIGHT_SLOWDOWN = 4.0
"""The airlight is the whole scene's: it changes this many times as slowly as what is seen of a single place."""
FLOW_BRIGHTNESS_TOLERANCE = 0.06
"""A place is taken for the same one where its brightness, in [0, 1], came along up to about this."""
FLOW_ROUND_TRIP_TOLERANCE = 1.0
"""Pixels by which a place may miss itself on the way to the frame before and back; a tenth of the way beside it."""
SCENE_CUT_SHARE = 0.25
"""Where less than this share of a frame is found in the one before, it shows another scene."""
FLOW_SIDE = 256
"""The longer side of the picture on which motion is looked for."""
_LAYERS = 4
"""Channels that OpenCV moves at once; of more it gives a wrong picture without a word."""


class Flow(NamedTuple):
    """Where each place of a frame was in the frame before, and how far that is to be believed."""

    x: Floats
    """h x w: column in the small picture of the frame before."""
    y: Floats
    """h x w: its row."""
    trust: Floats
    """h x w: 1 where the place looks as it did, 0 where something else was there."""

    def moved(self, before: Floats) -> Floats:
        """What belonged to the frame before (h' x w' x C, any size), where it is in this one."""
        height, width = before.shape[:2]
        if (height, width) == self.x.shape:
            x, y = self.x, self.y
        else:
            across, down = width / self.x.shape[1], height / self.x.shape[0]
            x = (cv2.resize(self.x, (width, height)) + np.float32(0.5)) * np.float32(across) - np.float32(0.5)
            y = (cv2.resize(self.y, (width, height)) + np.float32(0.5)) * np.float32(down) - np.float32(0.5)
        moved = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved).reshape(before.shape)

    def carried(self, state: Floats) -> Floats:
        """A network's memory of the frame before, 1 x C x h' x w', where it is in this frame; there is none of what
        was not seen then."""
        channels, height, width = state.shape[1:]
        layers = np.ascontiguousarray(state[0].transpose(1, 2, 0))
        layers = np.pad(layers, ((0, 0), (0, 0), (0, -channels % _LAYERS)))
        parts = [np.ascontiguousarray(part) for part in np.split(layers, layers.shape[2] // _LAYERS, 2)]
        moved = np.concatenate([self.moved(part) for part in parts], 2)[..., :channels]
        return np.ascontiguousarray((moved * self.trusted(height, width)).transpose(2, 0, 1)[None])

    def trusted(self, height: int, width: int) -> Floats:
        """`trust` at another size, h' x w' x 1."""
        return np.asarray(cv2.resize(self.trust, (width, height)), np.float32)[..., None]


class MotionEstimator:
    """The motion from frame to frame, found on small pictures: DIS optical flow (Kroeger et al., ECCV 2016)."""

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, small: Array) -> Flow | None:
        """From the picture shown last to this one, h x w x 3 (uint8, or float32 in [0, 1]).

        None for the first picture, one of another size, and one of another scene.
        """
        light = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        if light.dtype != np.uint8:
            light = np.rint(light * 255).astype(np.uint8)
        last, self._last = self._last, light
        if last is None or last.shape != light.shape or min(light.shape) < 16:
            return None
        flow, back = self._flow.calc(light, last, None), self._flow.calc(last, light, None)
        rows, columns = np.indices(light.shape, np.float32)
        x, y = columns + flow[..., 0], rows + flow[..., 1]
        followed = cv2.remap(last, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        off = cv2.absdiff(light, followed).astype(np.float32) / 255
        # There and back again ends where it began, unless the place was hidden in one of the two (Sundaram et al.,
        # ECCV 2010, section 4); what came in from outside was.
        astray = np.square(flow + cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)).sum(-1)
        astray /= FLOW_ROUND_TRIP_TOLERANCE**2 + np.float32(0.01) * np.square(flow).sum(-1)
        trust = np.exp(-((cv2.blur(off, (5, 5)) / FLOW_BRIGHTNESS_TOLERANCE) ** 2) - astray)
        trust[(x < -1) | (y < -1) | (x > light.shape[1]) | (y > light.shape[0])] = 0
        if trust.mean() < SCENE_CUT_SHARE:
            return None
        return Flow(x, y, np.asarray(trust, np.float32))


class MapSmoother:
    """The maps of a film's frames, smoothed over time.

    t and O of a place are followed as it moves, and held where it still looks as it did; the airlight, which is the
    whole scene's, changes more slowly. After `seconds` the share of an old answer has fallen to 1/e; with 0 maps stay
    as they are.
    """

    def __init__(self, seconds: float = SMOOTHING_SECONDS) -> None:
        self.seconds = seconds
        self._motion = MotionEstimator()
        self._held: Floats | None = None

    def __call__(self, reduced: Floats, maps: Floats, step: float) -> Floats:
        """The maps to be applied: 1 x 7 x h' x w', of what the network gave for this frame (`maps`) and before.

        `reduced`: the frame as the network saw it, 1 x 3 x h x w in [0, 1]; `step`: seconds since the frame before.
        """
        if not self.seconds:
            return maps
        return self.along(self._motion(np.ascontiguousarray(reduced[0].transpose(1, 2, 0))), maps, step)

    def along(self, move: Flow | None, maps: Floats, step: float) -> Floats:
        """The same where the motion since the frame before is known already (None: this is another scene)."""
        if not self.seconds:
            return maps
        new = np.ascontiguousarray(maps[0].transpose(1, 2, 0))
        if move is not None and self._held is not None and self._held.shape == new.shape:
            keep = move.trusted(*new.shape[:2]) * np.float32(math.exp(-step / self.seconds))
            local = [0, 4, 5, 6]
            held = move.moved(np.ascontiguousarray(self._held[..., local]))
            air = np.float32(math.exp(-step / (AIRLIGHT_SLOWDOWN * self.seconds)))
            new[..., local] += keep * (held - new[..., local])
            new[..., 1:4] += air * (self._held[..., 1:4] - new[..., 1:4])
        self._held = new
        return np.ascontiguousarray(new.transpose(2, 0, 1)[None])


class FrameBlender:
    """A film's frames, each mixed with the one before it along the motion in the film that came in.

    For any network; what it costs is a little sharpness where motion is not found to the pixel. `share` of the frame
    before is kept where the place looks as it did.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share
        self._motion = MotionEstimator()
        self._held: Array | None = None

    def __call__(self, frame: Array, restored: Array) -> Array:
        """The restored frame, mixed; `frame` is what came in: both H x W x 3 of one type."""
        height, width = frame.shape[:2]
        move = self._motion(reduce_for_motion(frame))
        if move is not None and self._held is not None and self._held.shape == restored.shape:
            before = move.moved(self._held)
            keep = np.float32(self.share) * move.trusted(height, width)
            mixed = restored + keep * (before.astype(np.float32) - restored)
            restored = mixed if restored.dtype == np.float32 else np.rint(mixed).astype(restored.dtype)
        self._held = restored
        return restored


def reduce_for_motion(frame: Array) -> Array:
    """A frame, H x W x 3, reduced to at most SIDE pixels a side, as `Motion` takes it."""
    height, width = frame.shape[:2]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return (reduced >> 8).astype(np.uint8) if reduced.dtype == np.uint16 else np.asarray(reduced)


# A film's frames, one after the other, restored by one model or by those that `auto` takes.


class VideoRestorer:
    """Restores frames in their order; it remembers what it needs of those before.

    `parts`: the restorers, in the order in which they work, and how much of what each finds is taken out (0 to 1).
    With `steady` the maps of those that give maps are smoothed over time (`seconds`, see `Steady`: SECONDS where it is
    not given, BEHIND a memory less; 0 leaves them as the network says), and a network with a memory of its own keeps
    that from frame to frame (`fairweather.inference.engines`), carries it along with what moves, and forgets it at a
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
        self._blend = FrameBlender() if blend else None
        self._parts: list[tuple[Restorer, float]] = []
        self._kept: dict[int, _FrameState] = {}
        self.take(parts)

    def take(self, parts: Sequence[tuple[Restorer, float]]) -> None:
        """From the next frame on work with these restorers and amounts."""
        self._parts = [(restorer, amount) for restorer, amount in parts if amount > 0]
        smooth = [restorer for restorer, _ in self._parts if self._smooth and _predicts_maps(restorer)]
        kept = {id(restorer): _FrameState(restorer, self._seconds) for restorer in smooth}
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
            seen = kept.predict_maps(result, step)
            if index == len(self._parts) - 1 and self._blend is None:
                return partial(restorer.apply_maps, result, seen, amount, self._guard)
            result = restorer.apply_maps(result, seen, amount, self._guard)
        if self._blend is not None:
            result = self._blend(frame, result)
        return partial(_identity, result)


class _FrameState:
    """What is kept from frame to frame for one restorer that gives maps."""

    def __init__(self, restorer: Restorer, seconds: float | None) -> None:
        self._restorer = restorer
        self._remembers = isinstance(restorer.engine, RecurrentEngine)
        if seconds is None:
            seconds = RECURRENT_SMOOTHING_SECONDS if self._remembers else SMOOTHING_SECONDS
        self._steady, self._motion = MapSmoother(seconds), MotionEstimator()
        self._state: NDArray[np.float32] | None = None

    def predict_maps(self, frame: Array, step: float) -> HazeMaps:
        """What the restorer sees in the next frame, in the light of those before."""
        if not self._remembers:
            seen = self._restorer.predict_maps(frame)
            return HazeMaps(seen.reduced, self._steady(seen.reduced, seen.maps, step))
        move = self._motion(reduce_for_motion(frame))
        if move is None:
            self._state = None
        elif self._state is not None:
            self._state = move.carried(self._state)
        seen, self._state = engines.recurrent_step(self._restorer, frame, self._state)
        return HazeMaps(seen.reduced, self._steady.along(move, seen.maps, step))


class AutoVideoRestorer:
    """A film whose weather is looked for as it goes by: on the first frame, and again every `every` seconds.

    The mean of what was seen so far decides, old looks counting less and less, so that it does not flicker between two
    minds, and how much is taken out moves as slowly.
    """

    MEMORY = 8
    """A look counts for at least 1 / MEMORY of the mean."""

    def __init__(
        self,
        auto: AutoRestorer,
        strength: float = 1.0,
        *,
        guard: bool = True,
        steady: bool = True,
        blend: bool = False,
        every: float = 2.0,
    ) -> None:
        self.every = every
        self._auto, self._strength = auto, strength
        self._film = VideoRestorer([], guard=guard, steady=steady, blend=blend)
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


def _predicts_maps(restorer: Any) -> bool:
    return isinstance(restorer, Restorer) and restorer.card.output == "maps"


def _identity(pixels: Array) -> Array:
    return pixels
