"""Temporal smoothing: restore the frames of a video without flicker.

A network's predictions for two almost identical frames differ a little more than the frames do, which is visible as
flicker. `VideoRestorer` smooths the predicted maps, which are small, and carries the recurrent state of networks that
have one; `FrameBlender` blends whole frames along their motion, for networks that output images. All of them use past
frames only, follow motion, and start again at a scene cut. NumPy and OpenCV, no PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadSettings
from fairweather.inference import weather_detection
from fairweather.inference.engines import RecurrentEngine
from fairweather.inference.haze_maps import HazeMaps
from fairweather.inference.restorer import AutoRestorer, Restorer
from fairweather.inference.weather_detection import RestorePlan, Weather

Array = NDArray[Any]
Floats = NDArray[np.float32]

SMOOTHING_SECONDS = 0.5
"""Time constant of the smoothing: after this long the weight of an old prediction has dropped to 1/e."""
RECURRENT_SMOOTHING_SECONDS = 0.1
"""The same for recurrent networks, whose predictions are smooth already and differ only where the scene changes."""
AIRLIGHT_SLOWDOWN = 4.0
"""The airlight belongs to the whole scene: its time constant is this many times as long."""
FLOW_BRIGHTNESS_TOLERANCE = 0.06
"""Maximum brightness difference, in [0, 1], for a valid flow match."""
FLOW_ROUND_TRIP_TOLERANCE = 1.0
"""Maximum error in pixels of the flow to the previous frame and back, in addition to a tenth of its length."""
SCENE_CUT_SHARE = 0.25
"""A frame of which less than this share is found in the previous one starts a new scene."""
FLOW_SIDE = 256
"""Longer side, in pixels, of the image on which motion is estimated."""
DETECTION_SECONDS = 2.0
"""Interval between detections of the weather in a video that cannot be read in advance."""
DETECTION_MEMORY = 8
"""Minimum weight of such a detection in their running mean: 1 / DETECTION_MEMORY."""
_LAYERS = 4
"""Channels that OpenCV remaps at once; with more, its result is wrong without an error."""


def restore_frames(
    restorer: Restorer | AutoRestorer,
    frames: Iterable[Array],
    strength: float = 1.0,
    guard: bool = True,
    *,
    smooth: bool = True,
    rate: float = 25.0,
) -> Iterator[Array]:
    """Restore the frames of a video one by one, as they are requested.

    Args:
        restorer: the result of `fairweather.load`; "auto" detects the weather every DETECTION_SECONDS.
        frames: each H x W x 3, uint8, uint16 or float32 in [0, 1].
        strength: as for a photo.
        guard: as for a photo.
        smooth: smooth predicted maps over time.
        rate: frames per second.

    Yields:
        Each restored frame, of the frame's size and type.
    """
    if isinstance(restorer, AutoRestorer):
        video = VideoRestorer([], guard=guard, smooth=smooth, detect_with=restorer, strength=strength)
    else:
        video = VideoRestorer([(restorer, strength)], guard=guard, smooth=smooth)
    for frame in frames:
        yield video(frame, 1 / rate)


class VideoRestorer:
    """Restores frames in their order.

    Args:
        parts: the restorers in the order in which they run, and the strength of each.
        guard: as for a photo.
        smooth: smooth the maps of restorers that predict maps over time, and carry the state of recurrent networks
            along the motion.
        blend: blend the restored frames along their motion, for any model.
        seconds: time constant of the smoothing; default: SMOOTHING_SECONDS, or RECURRENT_SMOOTHING_SECONDS for
            recurrent networks; 0 leaves maps as predicted.
        detect_with: detect the weather while frames pass, and use this restorer's models in place of `parts`.
        strength: the strength with `detect_with`.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Restorer, float]],
        *,
        guard: bool = True,
        smooth: bool = True,
        blend: bool = False,
        seconds: float | None = None,
        detect_with: AutoRestorer | None = None,
        strength: float = 1.0,
    ) -> None:
        self._guard = guard
        self._smooth, self._seconds = smooth, seconds
        self._blend = FrameBlender() if blend else None
        self._auto, self._strength = detect_with, strength
        self._since, self._detections, self._weather = 0.0, 0, Weather(0.0, 0.0)
        self._parts: list[tuple[Restorer, float]] = []
        self._states: dict[int, _FrameState] = {}
        self.use(parts)

    def use(self, parts: Sequence[tuple[Restorer, float]]) -> None:
        """Use these restorers and strengths from the next frame on."""
        self._parts = [(restorer, amount) for restorer, amount in parts if amount > 0]
        smoothed = [restorer for restorer, _ in self._parts if self._smooth and _predicts_maps(restorer)]
        new = {id(restorer): restorer for restorer in smoothed}
        self._states = {key: self._states.get(key) or _FrameState(new[key], self._seconds) for key in new}

    def __call__(self, frame: Array, step: float) -> Array:
        """Restore a frame.

        Args:
            frame: H x W x 3, uint8, uint16 or float32 in [0, 1].
            step: seconds since the previous frame.
        """
        return self.begin(frame, step)()

    def begin(self, frame: Array, step: float) -> Callable[[], Array]:
        """Do the part of the work that depends on previous frames.

        Returns:
            The rest of the work, which any thread may do while the next frame begins.
        """
        if self._auto is not None:
            self._detect(self._auto, frame, step)
        if not self._parts:
            return partial(np.array, frame, order="C")
        result = frame
        for index, (restorer, amount) in enumerate(self._parts):
            state = self._states.get(id(restorer))
            if state is None:
                result = restorer(result, amount, self._guard)
                continue
            maps = state.predict_maps(result, step)
            if index == len(self._parts) - 1 and self._blend is None:
                return partial(restorer.apply_maps, result, maps, amount, self._guard)
            result = restorer.apply_maps(result, maps, amount, self._guard)
        if self._blend is not None:
            result = self._blend(frame, result)
        return lambda: result

    def _detect(self, auto: AutoRestorer, frame: Array, step: float) -> None:
        """Update the running mean of the weather, and the strengths with it, every DETECTION_SECONDS."""
        self._since += step
        if self._detections and self._since < DETECTION_SECONDS:
            return
        found = auto.detect(frame)
        self._since, self._detections = 0.0, self._detections + 1
        share = max(1 / self._detections, 1 / DETECTION_MEMORY)
        mean = self._weather
        self._weather = Weather(
            mean.haze + share * (found.haze - mean.haze), mean.rain + share * (found.rain - mean.rain)
        )
        self.use(open_parts(auto, weather_detection.plan(lambda: self._weather, models=auto.models), self._strength))


def open_parts(
    restorer: Restorer | AutoRestorer, plan: RestorePlan, strength: float = 1.0
) -> list[tuple[Restorer, float]]:
    """The restorers and strengths of a plan, as `VideoRestorer` takes them."""
    return [(restorer.open(part.model), strength * part.amount) for part in plan.parts]


class _FrameState:
    """The state from frame to frame of one restorer that predicts maps."""

    def __init__(self, restorer: Restorer, seconds: float | None) -> None:
        self._restorer = restorer
        self._recurrent = isinstance(restorer.engine, RecurrentEngine)
        if seconds is None:
            seconds = RECURRENT_SMOOTHING_SECONDS if self._recurrent else SMOOTHING_SECONDS
        self._smoother, self._motion = MapSmoother(seconds), MotionEstimator()
        self._state: Floats | None = None

    def predict_maps(self, frame: Array, step: float) -> HazeMaps:
        """The maps of the next frame, smoothed."""
        if not self._recurrent:
            found = self._restorer.predict_maps(frame)
            return HazeMaps(found.reduced, self._smoother(found.reduced, found.maps, step))
        flow = self._motion(reduce_for_motion(frame))
        if flow is None:
            self._state = None
        elif self._state is not None:
            self._state = flow.warp_state(self._state)
        found, self._state = recurrent_step(self._restorer, frame, self._state)
        return HazeMaps(found.reduced, self._smoother.along(flow, found.maps, step))


def recurrent_step(restorer: Restorer, frame: Array, state: Floats | None = None) -> tuple[HazeMaps, Floats]:
    """Predict the maps of the next frame with a recurrent network.

    The restorer stores no state, so one restorer can process several videos at a time.

    Args:
        restorer: a restorer whose card has a `state`.
        frame: H x W x 3, uint8, uint16 or float32 in [0, 1].
        state: the state returned for the previous frame; None for the first frame and after a cut.

    Returns:
        The maps, for `restorer.apply_maps(frame, maps)`, and the new state.

    Raises:
        BadSettings: the network is not recurrent, or the state does not fit the frame.
        BadImage: as for a call of the restorer.
    """
    engine = restorer.engine
    if not isinstance(engine, RecurrentEngine):
        raise BadSettings(
            f"model {restorer.card.name} is not recurrent: use a model whose card has a state, or predict_maps"
        )
    states: list[Floats] = []

    def run(picture: Floats) -> Floats:
        output, after = engine.step(picture, state)
        states.append(after)
        return output

    return restorer.predict_maps(frame, run), states[-1]


def _predicts_maps(restorer: Any) -> bool:
    return isinstance(restorer, Restorer) and restorer.card.output == "maps"


# Motion and smoothing.


class Flow(NamedTuple):
    """For each pixel of a frame, its position in the previous frame and the confidence of that match."""

    x: Floats
    """h x w: column in the reduced previous frame."""
    y: Floats
    """h x w: row."""
    trust: Floats
    """h x w: 1 for a certain match, 0 where the pixel was not visible before."""

    def warp(self, before: Floats) -> Floats:
        """Warp values of the previous frame, h' x w' x C of any size, to this frame."""
        height, width = before.shape[:2]
        if (height, width) == self.x.shape:
            x, y = self.x, self.y
        else:
            across, down = width / self.x.shape[1], height / self.x.shape[0]
            x = (cv2.resize(self.x, (width, height)) + np.float32(0.5)) * np.float32(across) - np.float32(0.5)
            y = (cv2.resize(self.y, (width, height)) + np.float32(0.5)) * np.float32(down) - np.float32(0.5)
        warped = cv2.remap(before, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(warped).reshape(before.shape)

    def warp_state(self, state: Floats) -> Floats:
        """Warp a recurrent state, 1 x C x h' x w', to this frame; it is 0 where the pixel was not visible before."""
        channels, height, width = state.shape[1:]
        layers = np.ascontiguousarray(state[0].transpose(1, 2, 0))
        layers = np.pad(layers, ((0, 0), (0, 0), (0, -channels % _LAYERS)))
        parts = [np.ascontiguousarray(part) for part in np.split(layers, layers.shape[2] // _LAYERS, 2)]
        warped = np.concatenate([self.warp(part) for part in parts], 2)[..., :channels]
        return np.ascontiguousarray((warped * self.trusted(height, width)).transpose(2, 0, 1)[None])

    def trusted(self, height: int, width: int) -> Floats:
        """The confidence at another size, h' x w' x 1."""
        return np.asarray(cv2.resize(self.trust, (width, height)), np.float32)[..., None]


class MotionEstimator:
    """Estimates the motion between consecutive frames: DIS optical flow (Kroeger et al., ECCV 2016)."""

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._last: NDArray[np.uint8] | None = None

    def __call__(self, small: Array) -> Flow | None:
        """The flow from the previous call's image to this one.

        Args:
            small: h x w x 3, uint8 or float32 in [0, 1].

        Returns:
            None for the first image, after a change of size, and at a scene cut.
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
        matched = cv2.remap(last, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        off = cv2.absdiff(light, matched).astype(np.float32) / 255
        # Flow to the previous frame and back ends where it started, unless the pixel is occluded in one of the two
        # (Sundaram et al., ECCV 2010, section 4) or outside the frame.
        round_trip = np.square(flow + cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)).sum(-1)
        round_trip /= FLOW_ROUND_TRIP_TOLERANCE**2 + np.float32(0.01) * np.square(flow).sum(-1)
        trust = np.exp(-((cv2.blur(off, (5, 5)) / FLOW_BRIGHTNESS_TOLERANCE) ** 2) - round_trip)
        trust[(x < -1) | (y < -1) | (x > light.shape[1]) | (y > light.shape[0])] = 0
        if trust.mean() < SCENE_CUT_SHARE:
            return None
        return Flow(x, y, np.asarray(trust, np.float32))


class MapSmoother:
    """Smooths maps over time.

    Transmission and offset follow the motion and are smoothed where the flow is reliable; the airlight, a property of
    the whole scene, changes more slowly.

    Args:
        seconds: time constant; 0 leaves maps unchanged.
    """

    def __init__(self, seconds: float = SMOOTHING_SECONDS) -> None:
        self.seconds = seconds
        self._motion = MotionEstimator()
        self._previous: Floats | None = None

    def __call__(self, reduced: Floats, maps: Floats, step: float) -> Floats:
        """The smoothed maps, 1 x 7 x h' x w'.

        Args:
            reduced: the network's input, 1 x 3 x h x w in [0, 1].
            maps: its prediction for this frame.
            step: seconds since the previous frame.
        """
        if not self.seconds:
            return maps
        return self.along(self._motion(np.ascontiguousarray(reduced[0].transpose(1, 2, 0))), maps, step)

    def along(self, flow: Flow | None, maps: Floats, step: float) -> Floats:
        """The same with a known flow (None: a new scene)."""
        if not self.seconds:
            return maps
        new = np.ascontiguousarray(maps[0].transpose(1, 2, 0))
        if flow is not None and self._previous is not None and self._previous.shape == new.shape:
            keep = flow.trusted(*new.shape[:2]) * np.float32(math.exp(-step / self.seconds))
            local = [0, 4, 5, 6]
            warped = flow.warp(np.ascontiguousarray(self._previous[..., local]))
            air = np.float32(math.exp(-step / (AIRLIGHT_SLOWDOWN * self.seconds)))
            new[..., local] += keep * (warped - new[..., local])
            new[..., 1:4] += air * (self._previous[..., 1:4] - new[..., 1:4])
        self._previous = new
        return np.ascontiguousarray(new.transpose(2, 0, 1)[None])


class FrameBlender:
    """Blends each restored frame with the previous one along the motion in the source, for any network.

    Costs a little sharpness where the motion is not accurate to the pixel.

    Args:
        share: weight of the previous frame where the flow is reliable.
    """

    def __init__(self, share: float = 0.5) -> None:
        self.share = share
        self._motion = MotionEstimator()
        self._previous: Array | None = None

    def __call__(self, frame: Array, restored: Array) -> Array:
        """Blend a restored frame; `frame` is its source: both H x W x 3 of one type."""
        height, width = frame.shape[:2]
        flow = self._motion(reduce_for_motion(frame))
        if flow is not None and self._previous is not None and self._previous.shape == restored.shape:
            before = flow.warp(self._previous)
            keep = np.float32(self.share) * flow.trusted(height, width)
            mixed = restored + keep * (before.astype(np.float32) - restored)
            restored = mixed if restored.dtype == np.float32 else np.rint(mixed).astype(restored.dtype)
        self._previous = restored
        return restored


def reduce_for_motion(frame: Array) -> Array:
    """Reduce a frame, H x W x 3, to at most FLOW_SIDE pixels a side for `MotionEstimator`."""
    height, width = frame.shape[:2]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return (reduced >> 8).astype(np.uint8) if reduced.dtype == np.uint16 else np.asarray(reduced)
