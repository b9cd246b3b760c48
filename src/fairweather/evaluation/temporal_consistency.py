"""Temporal consistency of restored videos: the warping error along the motion, and flicker.

Motion and occlusion are measured in the degraded video (or the truth, if known), never in the restored one, so output
that is easier to track does not improve the score. Memory is constant: only the last frames are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fairweather.errors import BadImage
from fairweather.evaluation.metrics import size

Array = NDArray[Any]
Floats = NDArray[np.float32]

WINDOW = 0.02
"""Side of the window of local contrast, relative to the longer side; 7 pixels at least."""
FLOOR = (0.25, 1.5)
"""Squared levels of 255 added to numerator and denominator of the gain, for slopes and curvatures: rounding noise."""
SMALLEST = 16
"""Minimum side of a frame in pixels, for the optical flow."""
CUT = 0.25
"""Frames of which less than this share is visible in the next belong to different scenes."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class TemporalScore:
    """The temporal consistency of a restored video and of its input; nan where nothing could be measured."""

    frames: int
    cuts: int
    """Scene changes, across which nothing is compared."""
    visible: float
    """Share of the pixels that are visible in the next frame, which are compared."""
    input: float
    """Warping error of the input: E_warp of Lai et al., a mean square of values in [0, 1]."""
    restored: float
    """Warping error of the restored video."""
    gain: float
    """Factor by which the change of contrast alone multiplies the input's error: the square of the contrast ratio."""
    normalised: float
    """`restored / gain`, which is compared with `input`."""
    ratio: float
    """`normalised / input`: 1 is as consistent as the input, above 1 the restorer adds instability."""
    flicker: float
    """Root mean square of the second difference of the frames' mean luma, in levels of 255."""
    input_flicker: float
    """The same of the input."""
    cast: float
    """The same of the mean colour minus its luma (length over the three channels): colour flicker."""
    input_cast: float
    """The same of the input."""
    psnr: float | None
    """Mean PSNR of the restored frames in dB; None without a truth."""
    input_psnr: float | None
    """The same of the input."""
    truth: float | None
    """Warping error of the truth: that of imperfect motion alone."""

    def as_dict(self) -> dict[str, Any]:
        """Return field -> value."""
        return asdict(self)


class TemporalMeter:
    """Measures several restored versions of a video frame by frame, with shared motion.

    **Warping error** (Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018, section 4): with the optical
    flow from frame t to t + 1, E is the mean over visible pixels and over colours of (V_t - warped V_{t+1})^2, averaged
    over the pairs of frames. The flow is DIS (Kroeger et al., ECCV 2016) on the luma of the truth, if known, else of
    the input. For occluded pixels see `occluded`.

    **Contrast**: restoring amplifies differences, including the input's instability. The local gain g_i^2 is the ratio,
    restored to input, of the mean square of slopes (differences of neighbours, all colours) in a window around pixel i,
    or that of curvatures (Laplacian), whichever is less. With r_i the input's residual, the gain is
    sum(g_i^2 r_i^2) / sum(r_i^2), the factor of the input's error by the change of contrast alone, and E of the
    restored video is divided by it. K times the contrast gives K^2 by slopes and by curvatures, and the same result.
    Blur lowers curvatures more than the residual, and sharpening or noise raises slopes less than the residual: neither
    improves the result. Removing noise while preserving detail does.

    **Flicker**: second differences of the frames' means, which are zero for a uniform change of light.
    """

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._flow.setFinestScale(0)
        self._last: dict[str, Floats] = {}
        self._guide: NDArray[np.uint8] | None = None
        self._shape: tuple[int, ...] | None = None
        self._frames = self._pairs = self._cuts = 0
        self._visible = self._own = self._truth = 0.0
        self._error: dict[str, float] = {}
        self._expected: dict[str, float] = {}
        self._gain: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._flicker: dict[str, _Flicker] = {}

    def add(self, before: Array, after: Mapping[str, Array], truth: Array | None = None) -> None:
        """Add a frame: H x W x 3, uint8, uint16 or floats in [0, 1], all of one size.

        Args:
            before: the degraded frame.
            after: name -> restored frame, with the same names every time.
            truth: the clear frame, always or never.

        Raises:
            BadImage: a frame has another size or kind, or fewer than 16 pixels per side.
        """
        frames = {"": _levels(before), **{f"+{name}": _levels(frame) for name, frame in after.items()}}
        if truth is not None:
            frames["truth"] = _levels(truth)
        self._check(frames)
        guide = cv2.cvtColor(frames.get("truth", frames[""]), cv2.COLOR_RGB2GRAY)
        guide = np.floor(guide + 0.5).astype(np.uint8)
        if truth is not None:
            for name in frames.keys() - {"truth"}:
                error = float(np.square(frames[name] - frames["truth"]).mean(dtype=np.float64))
                self._noise[name] = self._noise.get(name, 0.0) + _psnr(error)
        cut = self._guide is not None and not self._compare(self._guide, guide, frames)
        self._cuts += cut
        for name, frame in frames.items():
            flicker = self._flicker.setdefault(name, _Flicker())
            if cut:
                flicker.restart()
            flicker.add(frame.mean((0, 1), dtype=np.float64))
        self._guide, self._last = guide, frames
        self._frames += 1

    def scores(self) -> dict[str, TemporalScore]:
        """Return name of a restored version -> its score so far."""
        return {name[1:]: self._score(name) for name in self._last if name.startswith("+")}

    def _score(self, name: str) -> TemporalScore:
        pairs = self._pairs or math.nan
        own, restored = self._own / pairs, self._error.get(name, 0.0) / pairs
        # An input without error has nothing to weight the gain by: use its mean.
        gain = self._expected.get(name, 0.0) / self._own if self._own else self._gain.get(name, 0.0) / pairs
        normalised = restored / gain if gain else math.nan
        known = "truth" in self._last
        return TemporalScore(
            frames=self._frames,
            cuts=self._cuts,
            visible=self._visible / pairs,
            input=own / 255**2,
            restored=restored / 255**2,
            gain=gain,
            normalised=normalised / 255**2,
            ratio=normalised / own if own else math.inf if normalised > 0 else math.nan,
            flicker=self._flicker[name].brightness,
            input_flicker=self._flicker[""].brightness,
            cast=self._flicker[name].colour,
            input_cast=self._flicker[""].colour,
            psnr=self._noise[name] / self._frames if known else None,
            input_psnr=self._noise[""] / self._frames if known else None,
            truth=self._truth / pairs / 255**2 if known else None,
        )

    def _compare(self, last: NDArray[np.uint8], guide: NDArray[np.uint8], frames: Mapping[str, Floats]) -> bool:
        """Add the errors of a pair of frames; False if they belong to different scenes."""
        forward, backward = self._flow.calc(last, guide, None), self._flow.calc(guide, last, None)
        place = _targets(forward)
        visible = ~occluded(forward, backward)
        share = float(visible.mean())
        if share < CUT:
            return False

        def residual(name: str) -> Floats:
            """Mean square over colours, H x W."""
            warped = cv2.remap(frames[name], place, None, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
            square: Floats = np.square(self._last[name] - warped).mean(2)
            return square

        own, contrast = residual(""), _contrast(self._last[""])
        self._own += float(own[visible].mean(dtype=np.float64))
        for name in frames.keys() - {"", "truth"}:
            gain = (_contrast(self._last[name]) / contrast).min(2)
            for sums, values in (
                (self._error, residual(name)),
                (self._expected, gain * own),
                (self._gain, gain),
            ):
                sums[name] = sums.get(name, 0.0) + float(values[visible].mean(dtype=np.float64))
        if "truth" in frames:
            self._truth += float(residual("truth")[visible].mean(dtype=np.float64))
        self._pairs += 1
        self._visible += share
        return True

    def _check(self, frames: Mapping[str, Floats]) -> None:
        shape = self._shape or frames[""].shape
        for name, frame in frames.items():
            if frame.shape != shape:
                which = {"": "of the input", "truth": "of the truth"}.get(name, f"of {name[1:]!r}")
                raise BadImage(
                    f"frame {self._frames} {which} has {size(frame)} pixels, the video {size(np.empty(shape))}: give "
                    "frames of one size"
                )
        if min(shape[:2]) < SMALLEST:
            raise BadImage(
                f"frames of {size(np.empty(shape))} pixels are too small: use at least {SMALLEST} pixels per side"
            )
        if self._last and self._last.keys() != frames.keys():
            raise BadImage(
                f"frame {self._frames} has {sorted(frames)}, the previous one {sorted(self._last)}: use equal names"
            )
        self._shape = shape


def temporal_score(frames: Iterable[tuple[Array, Array] | tuple[Array, Array, Array]]) -> TemporalScore:
    """Measure a restored video.

    Args:
        frames: (degraded, restored) or (degraded, restored, truth) frames, see `TemporalMeter.add`.

    Raises:
        BadImage: there are fewer than two frames, or as in `TemporalMeter.add`.
    """
    meter, count = TemporalMeter(), 0
    for before, after, *truth in frames:
        meter.add(before, {"": after}, truth[0] if truth else None)
        count += 1
    if count < 2:
        raise BadImage(f"a video of {count} frames has no motion: give at least two frames")
    return meter.scores()[""]


def occluded(forward: Floats, backward: Floats) -> NDArray[np.bool_]:
    """Return which pixels of the first frame are not visible in the second: two flows H x W x 2 -> H x W.

    The rules of Ruder, Dosovitskiy & Brox, "Artistic style transfer for videos", GCPR 2016, section 3.3 (after Sundaram
    et al., ECCV 2010): the flows are inconsistent, |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5, or motion is discontinuous,
    |grad f|^2 > 0.01 |f|^2 + 0.002; and pixels that leave the frame.
    """
    place = _targets(forward)
    back = cv2.remap(backward, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    length = np.square(forward).sum(2)
    inconsistent = np.square(forward + back).sum(2) > 0.01 * (length + np.square(back).sum(2)) + 0.5
    change = sum(np.square(np.gradient(forward, axis=axis)).sum(2) for axis in (0, 1))
    height, width = forward.shape[:2]
    outside = (place < 0).any(2) | (place[..., 0] > width - 1) | (place[..., 1] > height - 1)
    answer: NDArray[np.bool_] = inconsistent | (change > 0.01 * length + 0.002) | outside
    return answer


class _Flicker:
    """Accumulates second differences of the frames' mean colour."""

    def __init__(self) -> None:
        self._means: list[NDArray[np.float64]] = []
        self._brightness = self._colour = 0.0
        self._count = 0

    def restart(self) -> None:
        """Start another scene, which is not compared with the previous one."""
        self._means.clear()

    def add(self, mean: NDArray[np.float64]) -> None:
        self._means = [*self._means[-2:], mean]
        if len(self._means) == 3:
            second = self._means[0] - 2 * self._means[1] + self._means[2]
            brightness = float(second @ LUMA)
            self._brightness += brightness**2
            self._colour += float(np.square(second - brightness).sum())
            self._count += 1

    @property
    def brightness(self) -> float:
        return math.sqrt(self._brightness / self._count) if self._count else math.nan

    @property
    def colour(self) -> float:
        return math.sqrt(self._colour / self._count) if self._count else math.nan


def _levels(frame: Array) -> Floats:
    """Convert to levels of 255, float32."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype.kind not in "uf":
        raise BadImage(
            f"a frame of {frame.shape} {frame.dtype} is not a picture: give H x W x 3, uint8, uint16 or float"
        )
    unit = 255 / (np.iinfo(frame.dtype).max if frame.dtype.kind == "u" else 1)
    return frame.astype(np.float32) * np.float32(unit)


def _targets(flow: Floats) -> Floats:
    """Return the target of each pixel: H x W x 2 of x and y."""
    height, width = flow.shape[:2]
    place = flow.copy()
    place[..., 0] += np.arange(width, dtype=np.float32)
    place[..., 1] += np.arange(height, dtype=np.float32)[:, None]
    return place


def _contrast(frame: Floats) -> Floats:
    """Mean squares of slopes and of the Laplacian over colours and a window, each plus its floor: H x W x 2."""
    padded = cv2.copyMakeBorder(frame, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
    slope = np.square(padded[1:, :-1] - frame) + np.square(padded[:-1, 1:] - frame)
    curvature = np.square(cv2.Laplacian(frame, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE))
    side = max(7, round(WINDOW * max(frame.shape[:2])) // 2 * 2 + 1)
    mean: Floats = cv2.blur(np.stack([slope.mean(2), curvature.mean(2)], 2), (side, side))
    return mean + np.array(FLOOR, np.float32)


def _psnr(error: float) -> float:
    """PSNR in dB from a mean square in levels of 255."""
    return 10 * math.log10(255**2 / error) if error else math.inf
